"""Asynchronous launches: what is debited is what the device did, and little runs ahead of a gate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasfaas.devices.base import Stream
from hasfaas.executor.tokens import SlotLease, TokenTable
from tests.fakes.async_stream import AsyncStream
from tests.fakes.replica_processes import MS, Lane

pytestmark = pytest.mark.alone


class HandStream(Stream):
    """An asynchronous stream whose kernels end when the test says so; a wait ends what it waits for, and is
    noted.
    """

    def __init__(self) -> None:
        self.launched = 0
        self.done = 0
        self.waits: list[int] = []
        self.drains = 0

    def record(self) -> object | None:
        return self.launched

    def query(self, event: object | None) -> bool:
        assert isinstance(event, int)
        return self.done >= event

    def wait(self, event: object | None) -> None:
        assert isinstance(event, int)
        self.waits.append(event)
        self.done = max(self.done, event)

    def drain(self) -> None:
        self.drains += 1
        self.done = self.launched

    def serve(self, function: str, batch: int, gate: Callable[[], None]) -> None:
        return


@pytest.fixture
def table() -> Iterator[TokenTable]:
    # Windows so long that no lease ends by itself during a test.
    path = Path(f"/dev/shm/hasfaas-test-{os.getpid()}-{time.monotonic_ns()}.tokens")
    made = TokenTable.create(path, window_ns=100_000 * MS, quantum_ns=100_000 * MS)
    yield made
    made.close()
    made.unlink()


def _lease(table: TokenTable, stream: HandStream, quota_ppm: int = 1_000_000) -> SlotLease:
    slot = table.admit(0, quota_ppm)
    table.attach(slot)
    lease = SlotLease(table, slot, stream)
    lease.acquire()
    return lease


def test_a_gate_leaves_one_burst_under_way_at_most(table: TokenTable) -> None:
    stream = HandStream()
    lease = _lease(table, stream)
    for _ in range(5):
        stream.launched += 3
        lease.gate()
        assert stream.launched - stream.done <= 3
    assert stream.waits == [3, 6, 9, 12]
    assert stream.drains == 0


def test_a_gate_waits_for_nothing_that_is_done(table: TokenTable) -> None:
    stream = HandStream()
    lease = _lease(table, stream)
    for _ in range(5):
        stream.launched += 1
        stream.done = stream.launched
        lease.gate()
    assert stream.waits == []


def test_giving_the_lane_up_drains_first(table: TokenTable) -> None:
    stream = HandStream()
    lease = _lease(table, stream)
    stream.launched += 4
    lease.gate()
    assert lease.suspend()
    assert stream.done == stream.launched
    lease.resume()
    stream.launched += 1
    lease.release()
    assert (stream.drains, stream.done) == (2, stream.launched)


def test_a_failing_drain_still_gives_the_lane_up(table: TokenTable) -> None:
    class Broken(HandStream):
        def drain(self) -> None:
            raise RuntimeError("device lost")

    lease = _lease(table, Broken())
    with pytest.raises(RuntimeError, match="device lost"):
        lease.release()
    assert not lease.held
    other = table.admit(0, 0, lend=True)
    table.attach(other)
    SlotLease(table, other, HandStream()).acquire()  # would hang if the lane were still held


def test_renewing_alone_leaves_the_device_at_work() -> None:
    path = Path(f"/dev/shm/hasfaas-test-{os.getpid()}-{time.monotonic_ns()}.tokens")
    table = TokenTable.create(path, window_ns=MS, quantum_ns=MS)
    try:
        stream = HandStream()
        lease = _lease(table, stream)
        for _ in range(3):
            stream.launched += 1
            time.sleep(0.002)
            lease.gate()
        assert table.usage(0).grants == 4
        assert stream.drains == 0
    finally:
        table.close()
        table.unlink()


def test_a_thread_stream_runs_in_order_and_says_when() -> None:
    stream = AsyncStream()
    stream.launch(20 * MS)
    first = stream.record()
    stream.launch(20 * MS)
    assert not stream.query(stream.record())
    stream.wait(first)
    assert stream.kernels == 1
    stream.drain()
    assert stream.query(stream.record())
    assert stream.busy_ns >= 40 * MS


@pytest.mark.parametrize("stream", ["thread", "sim"])
def test_the_quota_is_device_time_not_launch_time(stream: str) -> None:
    with Lane() as lane:
        slot = lane.add(0.3, stream=stream, work=40)
        lane.wait_running()
        before, after = lane.measure(1.5)
    assert after.device_shares(before)[slot] == pytest.approx(0.3, abs=0.08)
    assert after.hold_shares(before)[slot] == pytest.approx(0.3, abs=0.05)


def test_metering_launches_alone_would_let_far_more_through() -> None:
    """The control: the same replica, when its stream hides what is still under way."""
    with Lane() as lane:
        slot = lane.add(0.3, stream="hidden", work=40)
        lane.wait_running()
        before, after = lane.measure(1.0)
    assert after.device_shares(before)[slot] > 0.6
