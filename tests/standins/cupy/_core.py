"""Raw kernels: those of hasfaas's probes by name, those that a test has defined, and any other one as a short one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._machine import CLOCK_MHZ, SHORT_NS, machine
from .cuda import get_current_stream

# Name -> (duration in ns, effect on its arguments), or what gives these for (grid, block, args).
Effect = Callable[[], None]
kernels: dict[str, Callable[[Any, Any, Any], tuple[int, Effect | None]]] = {}


class RawKernel:
    """A kernel by its name; its source is not looked at."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        self.code, self.name, self.options, self.backend = code, name, options, backend

    def __call__(self, grid: Any, block: Any, args: Any, **_: Any) -> None:
        machine.start()
        known = kernels.get(self.name)
        duration_ns, effect = known(grid, block, args) if known else (SHORT_NS, None)
        machine.launches += 1
        machine.queue(get_current_stream().ptr).put(duration_ns, effect)

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class RawModule:
    """Kernels by name."""

    def __init__(self, *, code: str | None = None, path: str | None = None, options: tuple[str, ...] = ()) -> None:
        self.code, self.file_path, self.options = code, path, options

    def get_function(self, name: str) -> RawKernel:
        """One of them. As in CuPy this starts CUDA."""
        machine.start()
        return RawKernel(self.code or "", name, self.options)


def _census(grid: Any, _block: Any, args: Any) -> tuple[int, Effect]:
    seen, spin = args

    def work() -> None:
        seen.host[0] = np.arange(grid[0]) % machine.sms
        seen.host[1] = spin
        seen.host[2] = int(spin) / CLOCK_MHZ * 1e3

    return int(int(spin) / CLOCK_MHZ * 1e3), work


def _triad(_grid: Any, _block: Any, args: Any) -> tuple[int, Effect]:
    a, b, c, scale = args

    def work() -> None:
        a.host[-1:] = b.host[-1:] + scale * c.host[-1:]

    return int(3 * a.nbytes / 3.35e12 * 1e9), work


def _multiply_add(_grid: Any, _block: Any, args: Any) -> tuple[int, Effect]:
    out, scale, shift, rounds = args

    def work() -> None:
        out.host[-1:] = 8 * shift / (1 - scale)  # where its 8 chains come to rest

    return int(16 * int(rounds) * out.host.size / (machine.sms * 256 * CLOCK_MHZ * 1e6) * 1e9), work


kernels.update(census=_census, triad=_triad, multiply_add=_multiply_add)
