"""The token table between real processes, on a simulated device.

Times on a shared machine are noisy, so shares are compared with wide margins, and the device's own count with
debits.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns

import pytest

from hasfaas.core.errors import BackendError, CancelledError, InvalidRequestError, PlacementError
from hasfaas.devices.cpu import SynchronousStream
from hasfaas.executor import shm
from hasfaas.executor.quota import GRACE_NS, SlotState
from hasfaas.executor.tokens import SlotLease, TokenTable
from tests.fakes.replica_processes import MS, Lane

pytestmark = pytest.mark.alone


@pytest.fixture
def table() -> Iterator[TokenTable]:
    path = Path(f"/dev/shm/hasfaas-test-{os.getpid()}-{time.monotonic_ns()}.tokens")
    made = TokenTable.create(path, lanes=2, slots=4)
    yield made
    made.close()
    made.unlink()


# -- shares between processes --------------------------------------------------------------------------------


def test_shares_follow_quotas_and_debits_follow_the_device() -> None:
    with Lane() as lane:
        slots = [lane.add(q) for q in (0.15, 0.3, 0.45)]
        lane.wait_running()
        before, after = lane.measure(1.5)
    hold, device = after.hold_shares(before), after.device_shares(before)
    assert [hold[s] for s in slots] == pytest.approx([0.15, 0.3, 0.45], abs=0.05)
    assert sum(hold.values()) <= 1.0
    for slot in slots:
        # What is debited covers what the device did: a hold ends when its kernels have.
        assert device[slot] <= hold[slot] + 0.01
        assert device[slot] >= 0.8 * hold[slot]
        usage = after.usage[slot]
        assert usage.used_ns <= usage.granted_ns + 200 * MS
        assert usage.throttled_ns <= usage.wait_ns


def test_a_resize_moves_the_share_while_the_replica_runs() -> None:
    with Lane() as lane:
        slot = lane.add(0.2)
        lane.wait_running()
        before, after = lane.measure(0.8)
        small = after.hold_shares(before)[slot]
        lane.table.resize(slot, 800_000)
        lane.wait_until(lambda: lane.table.in_force(slot))
        time.sleep(0.2)
        before, after = lane.measure(0.8)
        assert small == pytest.approx(0.2, abs=0.06)
        assert after.hold_shares(before)[slot] == pytest.approx(0.8, abs=0.08)
        lane.table.resize(slot, 0)
        lane.wait_until(lambda: lane.table.view(slot).state == SlotState.WAIT)
        before, after = lane.measure(0.3)
        assert after.usage[slot].used_ns == before.usage[slot].used_ns
        assert lane.processes[slot].poll() is None


def test_lending_uses_what_the_others_leave() -> None:
    with Lane() as lane:
        strict = lane.add(0.3)
        lender = lane.add(0.1, lend=True)
        lane.wait_running()
        before, after = lane.measure(1.0)
    hold = after.hold_shares(before)
    assert hold[lender] > 0.5
    assert hold[strict] == pytest.approx(0.3, abs=0.06)
    assert after.usage[lender].lent_ns > 0 == after.usage[strict].lent_ns


# -- death ---------------------------------------------------------------------------------------------------


def test_a_killed_holder_lets_the_others_go_on() -> None:
    with Lane() as lane:
        doomed, survivor = lane.add(0.5), lane.add(0.5)
        lane.wait_running()
        lane.wait_until(lambda: lane.table.view(doomed).state == SlotState.RUN)
        lane.kill(doomed)
        killed_ns = monotonic_ns()
        lane.wait_until(lambda: lane.table.view(survivor).taken_ns > killed_ns)
        delay_ns = lane.table.view(survivor).taken_ns - killed_ns
        assert lane.table.view(doomed).state == SlotState.IDLE  # buried by the survivor, not by its parent
        # A lease, the grace, and much room for a busy machine.
        assert delay_ns < 10 * MS + GRACE_NS + 150 * MS
        lane.table.free(doomed)
        reused = lane.table.admit(0, 500_000)
        assert reused == doomed
        assert lane.table.usage(reused).used_ns == 0
        lane.processes.pop(doomed).wait()
        lane.start(reused)
        lane.wait_running()
        assert lane.table.usage(reused).used_ns > 0


def test_a_replica_killed_while_it_waits_does_not_block_the_lane() -> None:
    with Lane() as lane:
        doomed, survivor = lane.add(0.5), lane.add(0.5)
        lane.wait_running()
        lane.wait_until(lambda: lane.table.view(doomed).state == SlotState.WAIT)
        lane.kill(doomed)
        time.sleep(0.1)
        before, after = lane.measure(0.6)
        assert after.hold_shares(before)[survivor] == pytest.approx(0.5, abs=0.1)


def test_a_stopped_waiter_is_passed_over() -> None:
    with Lane() as lane:
        stopped, other = lane.add(0.5), lane.add(0.5)
        lane.wait_running()
        pid = lane.processes[stopped].pid
        try:
            for _ in range(50):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.01)
                if lane.table.view(stopped).state == SlotState.WAIT:
                    break
                os.kill(pid, signal.SIGCONT)  # it held the lane: that is another story
                time.sleep(0.007)
            before, after = lane.measure(0.6)
            assert lane.table.view(stopped).state == SlotState.WAIT
            assert after.hold_shares(before)[other] > 0.1
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("die", [1, 5])
def test_a_process_killed_inside_the_lock_is_repaired(die: int) -> None:
    with Lane() as lane:
        survivor = lane.add(0.5)
        lane.wait_running()
        doomed = lane.add(0.5, die=die)
        lane.wait_until(lambda: lane.processes[doomed].poll() == -signal.SIGKILL)
        killed_ns = monotonic_ns()
        lane.wait_until(lambda: lane.table.view(survivor).taken_ns > killed_ns)
        before, after = lane.measure(0.6)
        assert lane.table.view(doomed).state == SlotState.IDLE
        assert after.hold_shares(before)[survivor] == pytest.approx(0.5, abs=0.1)


def test_freeing_a_holder_wakes_the_next(table: TokenTable) -> None:
    holder, waiter = table.admit(0, 500_000), table.admit(0, 500_000)
    table.attach(holder)
    time.sleep(0.02)  # both have tokens
    SlotLease(table, holder, SynchronousStream()).acquire()
    view = table.view(waiter)
    view.state = SlotState.WAIT
    woken = view.futex
    table.free(holder)
    assert view.futex == woken + 1
    with pytest.raises(InvalidRequestError, match="not admitted"):
        table.usage(holder)


# -- one process ---------------------------------------------------------------------------------------------


def test_the_file_is_private_and_made_once(table: TokenTable) -> None:
    path = table.path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(BackendError, match="exists"):
        TokenTable.create(path)
    other = TokenTable.open(path)
    slot = table.admit(1, 300_000)
    assert other.usage(slot).quota_ppm == 300_000
    other.close()


def test_what_is_no_table_is_refused(tmp_path: Path, table: TokenTable) -> None:
    with pytest.raises(BackendError, match="does not exist"):
        TokenTable.open(tmp_path / "none")
    (tmp_path / "junk").write_bytes(b"x" * 4096)
    with pytest.raises(BackendError, match="not a token table"):
        TokenTable.open(tmp_path / "junk")
    (tmp_path / "cut").write_bytes(table.path.read_bytes()[:-8])
    with pytest.raises(BackendError, match="was cut"):
        TokenTable.open(tmp_path / "cut")


def test_quotas_of_a_lane_sum_to_one_at_most(table: TokenTable) -> None:
    first = table.admit(0, 600_000)
    with pytest.raises(PlacementError, match=r"1100000.*at most 400000"):
        table.admit(0, 500_000)
    table.admit(1, 500_000)  # another lane
    second = table.admit(0, 400_000)
    with pytest.raises(PlacementError, match="at most 600000"):
        table.resize(first, 600_001)
    assert table.usage(first).quota_ppm == 600_000
    table.free(second)
    table.resize(first, 1_000_000)


@pytest.mark.parametrize("quota_ppm", [-1, 1_000_001])
def test_a_quota_outside_its_range_is_refused(table: TokenTable, quota_ppm: int) -> None:
    slot = table.admit(0, 0)
    with pytest.raises(InvalidRequestError, match=f"quota_ppm={quota_ppm}"):
        table.resize(slot, quota_ppm)
    with pytest.raises(InvalidRequestError, match=f"quota_ppm={quota_ppm}"):
        table.admit(0, quota_ppm)


def test_bad_lanes_slots_and_sizes_are_refused(table: TokenTable, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="lane=2"):
        table.admit(2, 1)
    with pytest.raises(InvalidRequestError, match="slot=3 is not admitted"):
        table.usage(3)
    for _ in range(4):
        table.admit(0, 0)
    with pytest.raises(PlacementError, match="all 4 slots"):
        table.admit(0, 0)
    with pytest.raises(InvalidRequestError, match="slots=64"):
        TokenTable.create(tmp_path / "t", slots=64)


def test_a_lease_of_a_slot_that_was_given_away_ends(table: TokenTable) -> None:
    slot = table.admit(0, 500_000)
    table.attach(slot)
    lease = SlotLease(table, slot, SynchronousStream())
    lease.acquire()
    table.free(slot)
    assert table.admit(0, 500_000) == slot
    with pytest.raises(BackendError, match="was freed"):
        lease.release()


def test_a_slot_of_a_live_process_cannot_be_attached(table: TokenTable) -> None:
    slot = table.admit(0, 500_000)
    view = table.view(slot)
    view.pid, view.started = os.getppid(), shm.start_time(os.getppid()) or 0
    with pytest.raises(BackendError, match="lives"):
        table.attach(slot)


def test_a_wait_can_be_stopped_and_leaves_nothing_behind(table: TokenTable) -> None:
    slot = table.admit(0, 0)
    table.attach(slot)
    asked = iter([False, True])
    lease = SlotLease(table, slot, SynchronousStream(), should_stop=lambda: next(asked))
    with pytest.raises(CancelledError, match="told to stop"):
        lease.acquire()
    assert not lease.held
    assert table.view(slot).state == SlotState.IDLE


def test_a_lease_is_kept_until_it_is_released(table: TokenTable) -> None:
    slot = table.admit(0, 1_000_000)
    table.attach(slot)
    lease = SlotLease(table, slot, SynchronousStream())
    lease.gate()  # outside of a lease: nothing
    assert not lease.suspend()
    with lease:
        grants = table.usage(slot).grants
        lease.acquire()  # held already
        assert table.usage(slot).grants == grants == 1
        assert lease.suspend()
        assert not lease.held
        lease.resume()
        assert lease.held
    assert table.view(slot).state == SlotState.IDLE
    used = table.usage(slot)
    assert used.used_ns > 0
    assert used.grants == 2


def test_usage_includes_the_running_lease(table: TokenTable) -> None:
    slot = table.admit(0, 1_000_000)
    table.attach(slot)
    with SlotLease(table, slot, SynchronousStream()):
        first = table.usage(slot).used_ns
        time.sleep(0.002)
        assert table.usage(slot).used_ns >= first + 2 * MS


def test_what_a_lease_has_held_is_what_the_account_says(table: TokenTable) -> None:
    slot = table.admit(0, 1_000_000)
    table.attach(slot)
    lease = SlotLease(table, slot, SynchronousStream())
    assert lease.held_ns == 0
    for _ in range(2):
        with lease:
            before = lease.held_ns
            time.sleep(0.002)
            assert before + 2 * MS <= lease.held_ns <= table.usage(slot).used_ns
        assert lease.held_ns == table.usage(slot).used_ns
    assert lease.quota_ppm == 1_000_000


def test_a_closed_table_says_so(table: TokenTable) -> None:
    other = TokenTable.open(table.path)
    other.close()
    other.close()
    with pytest.raises((BackendError, ValueError)):
        other.admit(0, 1)


# -- who lives -----------------------------------------------------------------------------------------------


def test_a_zombie_and_a_recycled_pid_are_dead() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    deadline = time.monotonic() + 10
    while shm.start_time(pid) is not None:
        assert time.monotonic() < deadline
    assert not shm.alive(pid, 0)
    os.waitpid(pid, 0)
    assert shm.start_time(pid) is None
    started = shm.start_time(os.getpid())
    assert started is not None
    assert shm.alive(os.getpid(), started)
    assert not shm.alive(os.getpid(), started - 1)
    assert not shm.alive(0, 0)
