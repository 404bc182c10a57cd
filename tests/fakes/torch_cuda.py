"""A fake of torch for what hasfaas asks of torch.cuda: current streams, the caching allocator, and graphs. It is not torch.

It lives on the stand-in for CuPy, so that both see the same streams and captures. `log` has what the host did, in order:
the kernels launched or replayed, by name. Graphs refuse what torch's refuse.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

TOTAL_BYTES = 16 << 30


class OutOfMemoryError(RuntimeError):
    """As torch's."""


OutOfMemoryError.__module__ = "torch"


class FakeStream:
    """A handle of a stream of the stand-in."""

    def __init__(self, pointer: int) -> None:
        self.cuda_stream = pointer


class FakeTorch:
    """What `import torch` would give."""

    def __init__(self, cupy: Any, *, available: bool = True) -> None:
        self.log: list[str] = []
        self.fraction: float | None = None
        self.total_bytes = TOTAL_BYTES
        self.allocated: dict[int, tuple[int, int]] = {}
        self.Tensor = FakeTensor
        self._cupy = cupy
        self._current = FakeStream(0)
        self._pools = itertools.count(1)
        self._pointers = itertools.count(1 << 20)
        self._capturing: Any = None
        self.cuda = SimpleNamespace(
            CUDAGraph=_graph_class(self),
            ExternalStream=FakeStream,
            caching_allocator_alloc=self._alloc,
            caching_allocator_delete=lambda pointer: self.allocated.pop(pointer),
            current_device=lambda: 0,
            current_stream=lambda: self._current,
            get_device_properties=lambda device: SimpleNamespace(total_memory=self.total_bytes),
            init=lambda: None,
            is_available=lambda: available,
            is_initialized=lambda: False,
            set_per_process_memory_fraction=self._set_fraction,
            set_stream=self._set_stream,
        )

    def launch(self, name: str) -> None:
        """A kernel on the current stream: into the graph that is being captured, or onto the device."""
        if self._capturing is not None:
            self._capturing.nodes.append(name)
        else:
            self.log.append(name)

    def side_stream(self) -> FakeStream:
        """Another stream."""
        return FakeStream(self._cupy.cuda.Stream(non_blocking=True).ptr)

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        """Current inside."""
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    @contextlib.contextmanager
    def captured(self, graph: Any, **options: Any) -> Iterator[None]:
        """As `torch.cuda.graph`."""
        with self.stream(self.side_stream()):
            graph.capture_begin(**options)
            try:
                yield
            finally:
                graph.capture_end()

    def _set_stream(self, stream: FakeStream) -> None:
        self._current = stream

    def _set_fraction(self, fraction: float) -> None:
        assert isinstance(fraction, float) and 0 <= fraction <= 1
        self.fraction = fraction

    def _alloc(self, size: int, device: int, stream: int) -> int:
        assert isinstance(stream, int) and device == 0
        held = sum(size for size, _ in self.allocated.values())
        if held + size > (1.0 if self.fraction is None else self.fraction) * TOTAL_BYTES:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate more.")
        pointer = next(self._pointers)
        self.allocated[pointer] = (size, stream)
        return pointer


class FakeTensor:
    """A tensor that says where it is."""

    def __init__(self, values: Any, *, is_cuda: bool) -> None:
        self.values, self.is_cuda = values, is_cuda

    def cpu(self) -> FakeTensor:
        """On the host."""
        return FakeTensor(self.values, is_cuda=False) if self.is_cuda else self


def _graph_class(torch: FakeTorch) -> Any:
    class _CUDAGraph:
        """What torch has in C++."""

        def __init__(self, keep_graph: bool = False) -> None:
            self.nodes: list[str] = []
            self.stream: int | None = None
            self.ended = False
            self.keep_graph = keep_graph

        def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
            assert not self.ended, "This CUDAGraph instance already owns a captured graph."
            assert torch._capturing is None, "one capture at a time"
            self.stream = torch.cuda.current_stream().cuda_stream
            assert self.stream, "CUDA graphs must be captured on a non-default stream."
            self.mode, self._pool = capture_error_mode, pool or next(torch._pools)
            torch._cupy.cuda._BaseStream(self.stream).begin_capture()
            torch._capturing = self

        def capture_end(self) -> None:
            if torch._capturing is not self:
                raise RuntimeError("capture_end() called before capture_begin().")
            torch._capturing = None
            torch._cupy.cuda._BaseStream(self.stream).end_capture()
            if "unjoined" in self.nodes:
                raise RuntimeError("CUDA error: capturing stream has unjoined work")
            assert torch.cuda.current_stream().cuda_stream == self.stream
            if not self.nodes:
                warnings.warn("The CUDA Graph is empty. This usually means ...", stacklevel=2)
            self.ended = True

        def replay(self) -> None:
            assert self.ended, "Called CUDAGraph::replay without a preceding successful capture."
            torch.log.extend(self.nodes)

        def reset(self) -> None:
            self.ended, self.nodes = False, []

        def pool(self) -> object:
            assert self.ended, "Called CUDAGraph::pool() without a preceding successful capture."
            return self._pool

    class CUDAGraph(_CUDAGraph):
        """What torch has in Python, which calls that."""

        def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
            super().capture_begin(pool=pool, capture_error_mode=capture_error_mode)

        def capture_end(self) -> None:
            super().capture_end()

        def replay(self) -> None:
            super().replay()

        def reset(self) -> None:
            super().reset()

    return CUDAGraph
