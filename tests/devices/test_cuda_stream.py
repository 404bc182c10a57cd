"""The stream of a replica on a GPU, on the stand-in for CuPy: captures, threads, and torch adopting the stream."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hasfaas.devices import cuda_memory
from hasfaas.devices.base import Failure
from hasfaas.devices.cuda_stream import CudaStream
from hasfaas.executor.gates import Calibration
from hasfaas.executor.tokens import SlotLease, TokenTable
from tests.fakes import standin_cupy
from tests.fakes.torch_cuda import TOTAL_BYTES, FakeTorch

MS = 1_000_000
LIMIT_BYTES = 64 << 20
Open = Callable[[], CudaStream]


@pytest.fixture
def cupy() -> Iterator[Any]:
    with standin_cupy.imported() as made:
        yield made


@pytest.fixture
def open_stream(cupy: Any) -> Iterator[Open]:
    """Opens a stream of a process that has not imported torch."""
    made: list[CudaStream] = []

    def opened() -> CudaStream:
        made.append(CudaStream.opened(LIMIT_BYTES, 132))
        return made[-1]

    yield opened
    for stream in made:
        stream.close()


@pytest.fixture
def torch(cupy: Any, open_stream: Open) -> FakeTorch:
    """A fake torch that was imported already."""
    return _imported(FakeTorch(cupy))


def _imported(torch: FakeTorch) -> FakeTorch:
    modules: dict[str, Any] = sys.modules
    modules["torch"] = torch
    return torch


def test_opening_makes_the_stream_current_and_counts_the_sms(cupy: Any, open_stream: Open) -> None:
    stream = open_stream()
    current = cupy.cuda.get_current_stream()
    assert isinstance(current, cupy.cuda.Stream) and current.ptr != 0
    assert stream.granted_percent == 100.0
    assert cupy.get_default_memory_pool().get_limit() == LIMIT_BYTES


def test_what_users_launch_is_what_events_stand_for(cupy: Any, open_stream: Open) -> None:
    stream = open_stream()
    array = cupy.asarray([1.0, 2.0]) + 1
    cupy.standin.launch(30)
    event = stream.record()
    assert not stream.query(event)
    stream.wait(event)
    assert list(array.get()) == [2.0, 3.0]


def test_a_stream_of_the_users_own_is_followed_while_it_is_current(cupy: Any, open_stream: Open) -> None:
    stream = open_stream()
    with cupy.cuda.Stream(non_blocking=True):
        start = stream.timer.mark()
        cupy.standin.launch(30)
        event, end = stream.record(), stream.timer.mark()
        assert not stream.query(event)
    assert stream.query(stream.record()) or stream.timer.elapsed_ns(start, end) >= 30 * MS
    assert stream.timer.elapsed_ns(start, end) >= 30 * MS


def test_draining_waits_for_every_stream_of_the_process(cupy: Any, open_stream: Open) -> None:
    stream = open_stream()
    done: list[str] = []
    other = cupy.cuda.Stream(non_blocking=True)
    with other:
        cupy.standin.launch(40, lambda: done.append("other"))
    cupy.standin.launch(1, lambda: done.append("ours"))
    stream.drain()
    assert sorted(done) == ["other", "ours"]


# -- captures ----------------------------------------------------------------------------------------------------------


def test_within_a_capture_no_call_asks_the_device(cupy: Any, open_stream: Open) -> None:
    stream = open_stream()
    cupy.standin.launch(30)
    before, mark = stream.record(), stream.timer.mark()
    ours = cupy.cuda.get_current_stream()
    ours.begin_capture()
    assert stream.record() is None
    assert stream.query(before) and stream.query(None)
    stream.wait(before)
    stream.drain()
    assert stream.timer.mark() is None
    assert stream.timer.elapsed_ns(mark, mark) == 0
    cupy.standin.launch(1)
    graph = ours.end_capture()  # would raise, had one of these spoilt it
    assert len(graph.work) == 1
    assert not stream.query(before), "what ran before the capture is still under way"
    assert stream.timer.elapsed_ns(None, stream.timer.mark()) == 0


def test_the_stand_in_would_have_noticed(cupy: Any, open_stream: Open) -> None:
    """The control of the last test."""
    open_stream()
    event = cupy.cuda.Event()
    ours = cupy.cuda.get_current_stream()
    for spoil in (lambda: event.done, event.synchronize, cupy.cuda.runtime.deviceSynchronize):
        ours.begin_capture()
        with pytest.raises(RuntimeError, match="StreamCaptureUnsupported"):
            spoil()
        with pytest.raises(RuntimeError, match="StreamCaptureInvalidated"):
            ours.end_capture()


def test_a_legacy_stream_beside_a_capture_counts_as_capturing(cupy: Any, open_stream: Open) -> None:
    stream = open_stream()

    def refused(_: int) -> bool:
        raise cupy.cuda.runtime.CUDARuntimeError(906)

    cupy.cuda.runtime.streamIsCapturing = refused
    assert stream.record() is None
    stream.drain()


# -- gates -------------------------------------------------------------------------------------------------------------


def test_raw_kernels_meet_the_gate_on_the_launching_thread_alone(cupy: Any, open_stream: Open) -> None:
    stream = open_stream()
    gates: list[int] = []
    stream.gated(lambda: gates.append(threading.get_ident()))
    kernel = cupy.RawKernel("", "f")
    kernel((1,), (1,), ())
    other = threading.Thread(target=lambda: kernel((1,), (1,), ()))
    other.start()
    other.join()
    assert gates == [threading.get_ident()]
    stream.close()
    cupy.RawKernel("", "f")((1,), (1,), ())
    assert len(gates) == 1


def test_a_long_sequence_of_raw_kernels_keeps_to_its_lease(cupy: Any, open_stream: Open) -> None:
    """Nothing in the user's code but launches: the gates of the kernels themselves bound what runs ahead."""
    path = Path(f"/dev/shm/hasfaas-test-{os.getpid()}-{time.monotonic_ns()}.tokens")
    table = TokenTable.create(path, window_ns=20 * MS, quantum_ns=5 * MS)
    try:
        slot = table.admit(0, 500_000)
        table.attach(slot)
        stream = open_stream()
        lease = SlotLease(table, slot, stream)
        stream.gated(lease.gate)
        cupy.standin.define("f", 2.0)
        kernel = cupy.RawKernel("", "f")
        with lease:
            for _ in range(30):
                kernel((1,), (1,), ())
        usage = table.usage(slot)
        assert usage.grants > 3
        assert usage.used_ns >= 60 * MS
    finally:
        table.close()
        table.unlink()


# -- torch -------------------------------------------------------------------------------------------------------------


def test_torch_that_is_there_adopts_stream_and_memory(cupy: Any, open_stream: Open, torch: FakeTorch) -> None:
    open_stream()
    assert torch.cuda.current_stream().cuda_stream == cupy.cuda.get_current_stream().ptr
    assert torch.fraction == LIMIT_BYTES / TOTAL_BYTES
    kept = cupy.empty(100, "u1")
    assert [size for size, _ in torch.allocated.values()] == [100]
    del kept


def test_torch_without_cuda_is_left_alone(cupy: Any, open_stream: Open) -> None:
    made = _imported(FakeTorch(cupy, available=False))
    stream = open_stream()
    stream.gated(lambda: None)
    assert made.cuda.current_stream().cuda_stream == 0 and made.fraction is None
    assert stream.record() is not None


def test_torch_that_comes_with_the_users_code_adopts_them_too(
    open_stream: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(
        "import cupy, sys\n"
        "from tests.fakes.torch_cuda import FakeTorch\n"
        "made = FakeTorch(cupy)\n"
        "cuda, fake, Tensor = made.cuda, made, made.Tensor\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stream = open_stream()
    gates: list[str] = []
    stream.gated(lambda: gates.append("gate"))
    import torch

    fake: FakeTorch = vars(torch)["fake"]
    assert fake.fraction == LIMIT_BYTES / TOTAL_BYTES
    assert fake.cuda.current_stream().cuda_stream != 0
    graph = fake.cuda.CUDAGraph()
    with fake.captured(graph):
        fake.launch("a")
    graph.replay()
    assert gates == ["gate"]


def test_events_follow_the_stream_that_torch_has_current(cupy: Any, open_stream: Open, torch: FakeTorch) -> None:
    stream = open_stream()
    side = torch.side_stream()
    with torch.stream(side):
        cupy.cuda.runtime.events.clear()
        cupy.standin.launch(1)  # on ours
        with cupy.cuda._BaseStream(side.cuda_stream):
            cupy.standin.launch(50)
        event = stream.record()
        cupy.cuda.get_current_stream().synchronize()
        assert not stream.query(event)
        stream.wait(event)


def test_a_graph_of_torch_is_cut_where_the_lease_is_asked(open_stream: Open, torch: FakeTorch) -> None:
    stream = open_stream()
    stream.gated(lambda: torch.log.append("gate"))
    graph = torch.cuda.CUDAGraph()
    with torch.captured(graph):
        torch.launch("a")
        assert stream.timer.mark() is None  # measuring cuts nothing
        assert stream.record() is None
        torch.launch("b")
    graph.replay()
    assert torch.log == ["gate", "a", "gate", "b"]


def test_a_replay_longer_than_a_lease_yields(cupy: Any, open_stream: Open, torch: FakeTorch) -> None:
    """The gates of a capture and of its replays are those of a real lease."""
    path = Path(f"/dev/shm/hasfaas-test-{os.getpid()}-{time.monotonic_ns()}.tokens")
    table = TokenTable.create(path, window_ns=20 * MS, quantum_ns=2 * MS)
    try:
        slot = table.admit(0, 500_000)
        table.attach(slot)
        stream = open_stream()
        lease = SlotLease(table, slot, stream)
        stream.gated(lease.gate)
        graph = torch.cuda.CUDAGraph()
        with lease, torch.captured(graph):
            for _ in range(10):
                torch.launch("kernel")
                lease.gate()
        before = table.usage(slot).grants
        torch.log = _Launching(cupy, 3.0)
        with lease:
            graph.replay()
        assert table.usage(slot).grants - before > 2
    finally:
        table.close()
        table.unlink()


class _Launching(list[str]):
    """A log that launches what is written to it."""

    def __init__(self, cupy: Any, ms: float) -> None:
        super().__init__()
        self._cupy, self._ms = cupy, ms

    def extend(self, names: Any) -> None:
        for _ in names:
            self._cupy.standin.launch(self._ms)


# -- errors, and how they come -----------------------------------------------------------------------------------------


def test_memory_is_refused_by_the_pool_and_the_process_goes_on(cupy: Any, open_stream: Open) -> None:
    stream = open_stream()
    with pytest.raises(MemoryError) as caught:
        cupy.empty(LIMIT_BYTES + 1, "u1")
    assert stream.failure(caught.value) is Failure.MEMORY
    stream.drain()
    cupy.empty(1000, "u1")


def test_a_fault_is_fatal_wherever_it_comes_up(cupy: Any, open_stream: Open) -> None:
    stream = open_stream()
    cupy.standin.fault()
    for call in (stream.record, stream.drain, lambda: cupy.empty(1)):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert stream.failure(caught.value) is Failure.FATAL


# -- placing gates -----------------------------------------------------------------------------------------------------


@pytest.fixture
def beside_real_torch() -> Iterator[Any]:
    """The stand-in, and a torch without CUDA."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this torch has CUDA, of which the stand-in for CuPy knows nothing")
    with standin_cupy.imported(hide_torch=False) as cupy:
        yield cupy


def test_gates_are_placed_by_the_devices_time_and_not_by_that_of_launches(beside_real_torch: Any) -> None:
    import torch

    cupy, stream = beside_real_torch, CudaStream.opened(LIMIT_BYTES, 132)

    class Layer(torch.nn.Module):
        def __init__(self, ms: float) -> None:
            super().__init__()
            self.ms = ms

        def forward(self, x: Any) -> Any:
            cupy.standin.launch(self.ms)
            return x

    net = torch.nn.Sequential(*(Layer(6.0) for _ in range(4)))
    calibration = Calibration(lambda: None, target_ms=8.0, timer=stream.timer)
    calibration.watch({"net": net})
    for _ in range(3):
        calibration.begin()
        net(1)
    (report,) = calibration.reports
    calibration.uninstall()
    assert report.gates is not None and len(report.gates) == 3, report
    assert report.max_distance_ms >= 6.0


def test_the_context_is_left_out_of_the_limit() -> None:
    assert cuda_memory.usable_bytes(LIMIT_BYTES + cuda_memory.CONTEXT_BYTES) == LIMIT_BYTES
