"""The stream of one replica on a GPU: events, timing by them, limits, errors. Not yet run on a GPU.

Law: there is one stream, CuPy's, which does not wait for the legacy default stream. It is made current for CuPy, and for
torch as soon as torch is there. What runs ahead of a gate is bounded on the stream that is current when the gate is reached;
work on any other is metered by the drain, which waits for the whole context. While a stream is captured into a graph
nothing runs, and asking the device would spoil the capture: then every call here returns at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from hasfaas.devices import cuda_errors, cuda_fetch, cuda_memory, probes
from hasfaas.devices.base import Failure, Stream, Timer
from hasfaas.devices.cuda_graphs import GraphGates
from hasfaas.devices.cuda_torch import WhenImported
from hasfaas.devices.cupy_gates import CupyGates

# cudaErrorStreamCaptureImplicit: the legacy stream was asked while a stream that waits for it is being captured.
_CAPTURE_IMPLICIT = 906


class CudaTimer:
    """Time by the device: marks are events on the stream that is current. Within a graph capture nothing takes time."""

    def __init__(self, stream: CudaStream) -> None:
        self._stream = stream

    def mark(self) -> object:
        """An event, behind all launched so far."""
        return self._stream.event()

    def elapsed_ns(self, start: object, end: object) -> int:
        """The device's time between two events, in steps of about 0.5 us (CUDA Runtime API, cudaEventElapsedTime)."""
        return self._stream.between_ns(start, end)


class CudaStream(Stream):
    """The stream of one replica, for the thread that opened it. Events are CuPy's, and keep their time."""

    def __init__(self, cupy: Any, stream: Any, limit_bytes: int) -> None:
        self._cupy = cupy
        self._runtime = cupy.cuda.runtime
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._granted_percent: float | None = None
        self._torch: Any = None
        self._gate: Callable[[], None] | None = None
        self._graphs: GraphGates | None = None
        self._cupy_gates: CupyGates | None = None
        self._torch_import = WhenImported("torch", self._adopt)
        self._timer = CudaTimer(self)

    @classmethod
    def opened(cls, limit_bytes: int, device_sms: int) -> CudaStream:
        """Starts CUDA, makes the stream current, bounds the memory and counts the SMs. Raises what CuPy raises."""
        import cupy

        made = cls(cupy, cupy.cuda.Stream(non_blocking=True).use(), limit_bytes)
        cuda_memory.limit_cupy(cupy, limit_bytes)
        made._granted_percent = 100.0 * probes.census().sms / device_sms
        made._torch_import.start()
        return made

    # -- the four calls ------------------------------------------------------------------------------------------------

    def record(self) -> object | None:
        """An event behind all launched so far on the current stream. Within a capture: none, and the graph is cut here."""
        event = self.event()
        if event is None and self._graphs is not None:
            self._graphs.cut()
        return event

    def query(self, event: object | None) -> bool:
        """Whether the event is done."""
        return event is None or self._capturing() or bool(_event(event).done)

    def wait(self, event: object | None) -> None:
        """Blocks until the event is done."""
        if event is not None and not self._capturing():
            _event(event).synchronize()

    def drain(self) -> None:
        """Blocks until all streams of this process are done. Of other processes' work CUDA knows nothing here."""
        if not self._capturing():
            self._runtime.deviceSynchronize()

    # -- the rest ------------------------------------------------------------------------------------------------------

    def gated(self, gate: Callable[[], None]) -> None:
        """Raw kernels of CuPy, and graphs of it and of torch, call `gate` before each launch on the calling thread."""
        thread = threading.get_ident()

        def on_thread() -> None:
            if threading.get_ident() == thread:
                gate()

        self._gate = on_thread
        self._cupy_gates = CupyGates(self._cupy, on_thread)
        self._cupy_gates.install()
        self._gate_torch()

    def fetch(self, value: object) -> object:
        """With arrays of the device copied to the host."""
        return cuda_fetch.fetch(value)

    def failure(self, exc: BaseException) -> Failure | None:
        """As CUDA, torch and CuPy say it."""
        return cuda_errors.failure(exc)

    @property
    def timer(self) -> Timer:
        """The device's own time."""
        return self._timer

    @property
    def granted_percent(self) -> float | None:
        """The SMs counted when the process started, of those that the device has."""
        return self._granted_percent

    def close(self) -> None:
        """Takes back what `gated` put into libraries, and waits for torch no longer. A replica ends without it."""
        self._torch_import.stop()
        for gates in (self._graphs, self._cupy_gates):
            if gates is not None:
                gates.uninstall()
        self._graphs = self._cupy_gates = self._gate = None

    # -- within --------------------------------------------------------------------------------------------------------

    def event(self) -> object | None:
        """An event behind all launched so far on the current stream; None within a capture."""
        pointer = self._pointer()
        if self._is_captured(pointer):
            return None
        event: object = self._cupy.cuda.Event()
        self._runtime.eventRecord(_event(event).ptr, pointer)
        return event

    def between_ns(self, start: object, end: object) -> int:
        """The time between two events, once the second is done; 0 where one of them lies within a capture."""
        if start is None or end is None or self._capturing():
            return 0
        _event(end).synchronize()
        elapsed_ms: float = self._cupy.cuda.get_elapsed_time(start, end)
        return round(1e6 * elapsed_ms)

    def _adopt(self, torch: Any) -> None:
        """Torch is there: it launches on our stream, and CuPy allocates from it. A torch without CUDA stays alone."""
        if not torch.cuda.is_available():
            return
        torch.cuda.init()
        torch.cuda.set_stream(torch.cuda.ExternalStream(self._stream.ptr))
        cuda_memory.share_with_torch(self._cupy, torch, self._limit_bytes)
        self._torch = torch
        self._gate_torch()

    def _gate_torch(self) -> None:
        if self._torch is not None and self._gate is not None and self._graphs is None:
            self._graphs = GraphGates(self._torch, self._gate)
            self._graphs.install()

    def _pointer(self) -> int:
        """The stream that this thread launches on: ours, unless its code has made another one current."""
        if self._torch is not None:
            pointer: int = self._torch.cuda.current_stream().cuda_stream
            if pointer != self._stream.ptr:
                return pointer
        current: int = self._cupy.cuda.get_current_stream().ptr
        return current

    def _capturing(self) -> bool:
        return self._is_captured(self._pointer())

    def _is_captured(self, pointer: int) -> bool:
        try:
            return bool(self._runtime.streamIsCapturing(pointer))
        except RuntimeError as exc:
            if cuda_errors.code_of(exc) == _CAPTURE_IMPLICIT:
                return True
            raise


def _event(event: object) -> Any:
    return event
