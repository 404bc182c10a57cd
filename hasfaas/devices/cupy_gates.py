"""CuPy's raw kernels and graphs, gated: each launch of one is a unit of work with a gate before it.

`cupy.RawKernel` and `cupy.RawModule` are replaced by subclasses, also for kernels that a bundle brings along, and the graphs
that a stream's `end_capture` gives by what behaves as they do. A graph is one unit: CuPy's are not cut.
NumPy-like calls of CuPy have no gate of their own; `hasfaas.gate()` is for loops of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class CupyGates:
    """Gates before what CuPy launches from the user's own source."""

    def __init__(self, cupy: Any, gate: Callable[[], None]) -> None:
        self._cupy = cupy
        self._gate = gate
        self._plain: list[tuple[Any, str, Any]] = []

    def install(self) -> None:
        """From now on: names that were imported before stay what they were."""
        kernel = _gated_kernel(self._cupy.RawKernel, self._gate)
        module = _gated_module(self._cupy.RawModule, kernel)
        for home in self._homes():
            self._replace(home, "RawKernel", kernel)
            self._replace(home, "RawModule", module)
        # The class that all kinds of streams share.
        streams = self._cupy.cuda.Stream.__mro__[-2]
        self._replace(streams, "end_capture", _gated_end(streams.end_capture, self._gate))

    def uninstall(self) -> None:
        """CuPy as it was; kernels and graphs made meanwhile keep their gate."""
        for home, name, plain in reversed(self._plain):
            setattr(home, name, plain)
        self._plain.clear()

    def _homes(self) -> list[Any]:
        """Where users and pickles find the classes: in CuPy itself, and where it defines them."""
        import importlib

        names = {self._cupy.RawKernel.__module__, "cupy._core"}
        found = [importlib.import_module(name) for name in sorted(names)]
        return [self._cupy, *found]

    def _replace(self, home: Any, name: str, new: Any) -> None:
        self._plain.append((home, name, getattr(home, name)))
        setattr(home, name, new)


def _gated_kernel(plain: Any, gate: Callable[[], None]) -> Any:
    class RawKernel(plain):  # type: ignore[misc]
        __doc__ = plain.__doc__
        __module__ = plain.__module__

        def __call__(self, grid: Any, block: Any, args: Any, **kwargs: Any) -> None:
            gate()
            super().__call__(grid, block, args, **kwargs)

    RawKernel.__qualname__ = plain.__qualname__
    return RawKernel


def _gated_module(plain: Any, kernel: Any) -> Any:
    class RawModule(plain):  # type: ignore[misc]
        __doc__ = plain.__doc__
        __module__ = plain.__module__

        def get_function(self, name: str) -> Any:
            # CuPy makes one of its own class; what it is made of goes into one of ours. The compiled module is found in
            # CuPy's cache, so both are the same kernel.
            made = kernel.__new__(kernel)
            made.__setstate__(super().get_function(name).__getstate__())
            return made

    RawModule.__qualname__ = plain.__qualname__
    return RawModule


def _gated_end(plain: Any, gate: Callable[[], None]) -> Any:
    def end_capture(stream: Any) -> GatedGraph:
        return GatedGraph(plain(stream), gate)

    return end_capture


class GatedGraph:
    """A graph of CuPy's, which cannot be subclassed from Python, with a gate before each launch."""

    def __init__(self, graph: Any, gate: Callable[[], None]) -> None:
        self._graph = graph
        self._gate = gate

    def launch(self, stream: Any = None) -> None:
        """Launches the graph, on the current stream by default."""
        self._gate()
        self._graph.launch(stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)
