"""The event loop as machine code, where numba is installed; the same functions, interpreted, where it is not."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import numpy as np

from hasfaas.core import allocation
from hasfaas.executor import quota
from hasfaas.scaling import observation
from hasfaas.serving import batching, policies
from hasfaas.simulator import alarms, costs, events, lane_steps, records
from hasfaas.simulator.records import World

Array = np.ndarray[Any, Any]


@attrs.frozen
class Kernel:
    """The functions that a simulation calls; `compiled` says whether they are machine code."""

    serve: Callable[[World, int], None]
    attach: Callable[[World, int], None]
    requota: Callable[[World, int, int], None]
    rebatch: Callable[[World, int, int], None]
    drain: Callable[[World, int], None]
    look: Callable[[World, Array], None]
    audit: Callable[[World, Array, Array, Array], int]
    compiled: bool


INTERPRETED = Kernel(
    events.serve, events.attach, events.requota, events.rebatch, events.drain, events.look, events.audit, compiled=False
)


@functools.cache
def load() -> Kernel:
    """The compiled kernel, or the interpreted one if numba is not installed. Compiling takes some 20 s, so the code is kept
    in the user's cache, in a folder for each version of the sources that went into it."""
    try:
        import numba
        from numba.extending import register_jitable
    except ImportError:
        return INTERPRETED
    product = (batching.ready, policies.precedes, *lane_steps.ARITHMETIC)
    for function in (*product, *costs.STEPS, *lane_steps.STEPS, *alarms.STEPS, *events.STEPS):
        register_jitable(function)
    folder = _cache_folder()

    def compiled(function: Callable[..., object]) -> Any:
        # Without reference counts: nothing is allocated here, and counting the arrays of a world at each call of a function
        # takes six times as long as all the rest.
        return numba.njit(function, cache=folder is not None, _nrt=False)  # type: ignore[call-overload]

    with _caching_in(numba.config, folder):
        return Kernel(
            serve=compiled(events.serve),
            attach=compiled(events.attach),
            requota=compiled(events.requota),
            rebatch=compiled(events.rebatch),
            drain=compiled(events.drain),
            look=compiled(events.look),
            audit=compiled(events.audit),
            compiled=True,
        )


def _cache_folder() -> Path | None:
    """Named by the sources: numba compares the file of the function alone, and what it calls lies in others. None where
    nothing can be written."""
    modules: tuple[ModuleType, ...] = (allocation, quota, batching, policies, observation)
    modules += (alarms, costs, events, lane_steps, records)
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "hasfaas" / f"kernel-{hashlib.sha256(sources).hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextmanager
def _caching_in(config: Any, folder: Path | None) -> Iterator[None]:
    before = config.CACHE_DIR
    if folder is not None:
        config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before
