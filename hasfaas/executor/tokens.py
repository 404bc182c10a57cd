"""The token table of one device: the edge between the pure protocol (quota.py) and shared memory (shm.py).

Law: a step is lock, read the clock, decide, write, unlock, and only then wake or sleep. `TokenTable` belongs
to the node agent (admit, re-size, free, read) and is opened by its replicas; `SlotLease` belongs to the one
launching thread of a replica. What is debited is the hold: from the grant until the stream has drained, by
the host's monotonic clock.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic_ns

from hasfaas.core.allocation import Usage
from hasfaas.core.errors import BackendError, CancelledError, InvalidRequestError, PlacementError
from hasfaas.devices.base import Stream
from hasfaas.executor import quota, shm
from hasfaas.executor.quota import PPM, SlotState, Step, Timing
from hasfaas.executor.shm import LaneView, Segment, SlotView

_MAGIC = 0x68617366_61617301
_HEADER_WORDS = 32
_HEADER_MUTEX = 16
_MAX_SLOTS = 63  # one bit each in a lane's word of members
# Bursts that may be under way behind a gate: 1 ms bursts then overrun a lease by about one gate.
_OUTSTANDING = 1

Members = Mapping[int, SlotView]
Decide = Callable[[LaneView, Members, int, int, Timing], Step]
_ask_to_renew: Decide = functools.partial(quota.renew, drained=False)
_renew_drained: Decide = functools.partial(quota.renew, drained=True)


class TokenTable:
    """Quotas, accounts and holders of all lanes of one device. Made with `create` or `open`."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        words = segment.words
        if len(words) < _HEADER_WORDS or words[0] != _MAGIC:
            raise BackendError(f"path={str(segment.path)!r} is not a token table of this version")
        lanes, slots = words[1], words[2]
        if len(words) != _size_words(lanes, slots):
            raise BackendError(
                f"path={str(segment.path)!r} was cut: {len(words)} words for {lanes} lanes, {slots} slots"
            )
        self.timing = Timing(window_ns=words[3], quantum_ns=words[4], lag_ns=words[5])
        self._lanes = [LaneView(words, _lane_base(i)) for i in range(lanes)]
        self._slots = [SlotView(words, _slot_base(lanes, i)) for i in range(slots)]
        # The members of a lane by its mask, as last seen.
        self._cached: list[tuple[int, Members]] = [(0, {})] * lanes

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        lanes: int = 8,
        slots: int = 32,
        window_ns: int = 100_000_000,
        quantum_ns: int = 10_000_000,
    ) -> TokenTable:
        """A new table for one device. Raises InvalidRequestError for sizes it cannot have, BackendError if
        `path` exists.
        """
        timing = Timing(window_ns=window_ns, quantum_ns=quantum_ns)
        if not 1 <= slots <= _MAX_SLOTS:
            raise InvalidRequestError(f"slots={slots} must lie in [1, {_MAX_SLOTS}]", reason="BAD_TABLE")
        if lanes < 1:
            raise InvalidRequestError(f"lanes={lanes} must be at least 1", reason="BAD_TABLE")
        segment = Segment.create(Path(path), _size_words(lanes, slots))
        segment.init_mutex(_HEADER_MUTEX)
        for lane in range(lanes):
            segment.init_mutex(_lane_base(lane))
        header = (lanes, slots, timing.window_ns, timing.quantum_ns, timing.lag_ns)
        for word, value in enumerate(header, start=1):
            segment.words[word] = value
        segment.words[0] = _MAGIC  # last: who opens the file before this sees no table
        return cls(segment)

    @classmethod
    def open(cls, path: str | Path) -> TokenTable:
        """The table that a node agent made. Raises BackendError if there is none at `path`, or another
        version's.
        """
        return cls(Segment.open(Path(path)))

    @property
    def path(self) -> Path:
        """Where the table is."""
        return self._segment.path

    def close(self) -> None:
        """Unmaps the table in this process."""
        if not self._segment.closed:
            self._segment.close()

    def unlink(self) -> None:
        """Removes the file; who has it mapped keeps it."""
        self._segment.path.unlink(missing_ok=True)

    # -- the node agent's side -------------------------------------------------------------------------------

    def admit(self, lane: int, quota_ppm: int, *, lend: bool = False) -> int:
        """Reserves a slot of `lane` with this quota (ppm of the lane's time); an empty account, state IDLE.

        `lend` lets the replica run on time that no other is entitled to. Raises PlacementError if the lane's
        quotas would sum to more than 1,000,000 or no slot is free.
        """
        if not 0 <= lane < len(self._lanes):
            raise InvalidRequestError(f"lane={lane} must lie in [0, {len(self._lanes) - 1}]", reason="BAD_LANE")
        _check_quota(quota_ppm)
        with self._pool_locked(), self._locked(lane) as (view, members):
            _check_sum(lane, members, quota_ppm)
            index = next((i for i, slot in enumerate(self._slots) if slot.state == SlotState.FREE), None)
            if index is None:
                raise PlacementError(f"all {len(self._slots)} slots of the device are taken: free a replica first")
            self._open_account(index, lane, quota_ppm, lend)
            view.members |= 1 << index
        return index

    def _open_account(self, index: int, lane: int, quota_ppm: int, lend: bool) -> None:
        slot = self._slots[index]
        epoch, futex = slot.epoch, slot.futex
        for word in range(slot.base, slot.base + shm.SLOT_WORDS):
            self._segment.words[word] = 0
        slot.epoch, slot.futex = epoch + 1, futex
        slot.lane, slot.quota_ppm, slot.lend = lane, quota_ppm, int(lend)
        slot.v_ns = self._lanes[lane].v_ns
        slot.stamp_ns = monotonic_ns()
        slot.state = SlotState.IDLE  # last: a half-made account stays free

    def resize(self, slot: int, quota_ppm: int) -> None:
        """Changes a replica's quota in place, in force at its next gate or wake-up (`in_force` says whether).

        Raises InvalidRequestError outside [0, 1,000,000], PlacementError if the lane's quotas would exceed
        that.
        """
        _check_quota(quota_ppm)

        def decide(lane: LaneView, members: Members, me: int, now_ns: int, timing: Timing) -> Step:
            _check_sum(members[me].lane, members, quota_ppm, other_than=me)
            return quota.resize(lane, members, me, quota_ppm, now_ns, timing)

        self.step(slot, self.view(slot).epoch, decide)

    def set_lend(self, slot: int, lend: bool) -> None:
        """Whether the replica may run on time that nobody is entitled to; in force at its next gate or wake-up."""

        def decide(_lane: LaneView, members: Members, me: int, now_ns: int, _timing: Timing) -> Step:
            members[me].lend = int(lend)
            if not lend and members[me].borrowed:
                members[me].lease_end_ns = min(members[me].lease_end_ns, now_ns)
            return Step(wake=me)

        self.step(slot, self.view(slot).epoch, decide)

    def in_force(self, slot: int) -> bool:
        """Whether the replica has decided something by its latest quota. Takes no lock."""
        return quota.in_force(self.view(slot))

    def free(self, slot: int) -> None:
        """Takes a slot back: its replica has ended. The lane goes on at once if that replica held it."""

        def decide(lane: LaneView, members: Members, me: int, now_ns: int, timing: Timing) -> Step:
            step = quota.bury(lane, members, me, now_ns, timing)
            lane.members &= ~(1 << me)
            members[me].state = SlotState.FREE  # last: from here on the slot may open in another lane
            return step

        self.step(slot, self.view(slot).epoch, decide)

    def usage(self, slot: int) -> Usage:
        """What the replica was granted and took since it was admitted, the running lease included."""
        view = self.view(slot)
        with self._locked(view.lane):
            quota.settle(view, monotonic_ns(), self.timing)
            return Usage(
                quota_ppm=view.quota_ppm,
                granted_ns=view.granted_ns,
                used_ns=view.used_ns,
                throttled_ns=view.throttled_ns,
                wait_ns=view.wait_ns,
                overrun_ns=view.overrun_ns,
                lent_ns=view.lent_ns,
                grants=view.grants,
            )

    def view(self, slot: int) -> SlotView:
        """The slot's words, for reading. Raises InvalidRequestError if nobody was admitted there."""
        if not 0 <= slot < len(self._slots) or self._slots[slot].state == SlotState.FREE:
            raise InvalidRequestError(f"slot={slot} is not admitted in this table", reason="BAD_SLOT")
        return self._slots[slot]

    # -- the replica's side ----------------------------------------------------------------------------------

    def attach(self, slot: int) -> None:
        """Called by the replica on the thread that will launch: from now on the slot is this process's.

        Raises BackendError if another live process has it; what a dead one left half-way is buried.
        """
        view = self.view(slot)
        if view.pid != os.getpid() and shm.alive(view.pid, view.started):
            raise BackendError(f"slot={slot} belongs to process {view.pid}, which lives: free it first")
        self.step(slot, view.epoch, quota.bury)
        view.started = shm.start_time(os.getpid()) or 0
        view.pid = os.getpid()
        shm.tighten_timers()

    def step(self, slot: int, epoch: int, decide: Decide) -> tuple[Step, int]:
        """One step of the protocol: the instruction, and the count to sleep on. Wakes whom the step names.

        Raises BackendError if the slot was freed, or admitted anew, since the caller learnt its `epoch`.
        """
        view = self._slots[slot]
        with self._locked(view.lane) as (lane, members):
            if view.epoch != epoch or view.state == SlotState.FREE:
                raise BackendError(f"slot={slot} was freed or given to another replica: this process must end")
            step = decide(lane, members, slot, monotonic_ns(), self.timing)
            while step.suspect is not None and self._bury_if_dead(lane, members, step.suspect):
                step = decide(lane, members, slot, monotonic_ns(), self.timing)
            if step.wake is not None:
                members[step.wake].futex += 1
            ticket = view.futex
        if step.wake is not None:
            self._segment.wake(members[step.wake].word("futex"))
        return step, ticket

    def sleep(self, slot: int, ticket: int, timeout_ns: int) -> None:
        """Sleeps until a step wakes this slot, at most `timeout_ns`; `ticket` is what `step` returned."""
        self._segment.sleep(self._slots[slot].word("futex"), ticket, timeout_ns)

    def _bury_if_dead(self, lane: LaneView, members: Members, suspect: int) -> bool:
        view = members[suspect]
        if shm.alive(view.pid, view.started):
            return False
        quota.bury(lane, members, suspect, monotonic_ns(), self.timing)
        return True

    # -- locks -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, lane: int) -> Iterator[tuple[LaneView, Members]]:
        view = self._lanes[lane]
        died = self._segment.lock(view.base)
        try:
            if died:
                self._repair(lane)
            yield view, self._members(lane)
        finally:
            self._segment.unlock(view.base)

    @contextlib.contextmanager
    def _pool_locked(self) -> Iterator[None]:
        """Two threads must not take one free slot for two lanes. Nothing half-done can stay: see
        `_open_account`.
        """
        self._segment.lock(_HEADER_MUTEX)
        try:
            yield
        finally:
            self._segment.unlock(_HEADER_MUTEX)

    def _members(self, lane: int) -> Members:
        mask = self._lanes[lane].members
        known, members = self._cached[lane]
        if known != mask:
            members = {i: slot for i, slot in enumerate(self._slots) if mask >> i & 1}
            self._cached[lane] = (mask, members)
        return members

    def _repair(self, lane: int) -> None:
        """The lock's last owner died in a step: words agree again, and the dead no longer hold or wait."""
        view = self._lanes[lane]
        taken = (i for i, slot in enumerate(self._slots) if slot.state != SlotState.FREE and slot.lane == lane)
        view.members = sum(1 << i for i in taken)
        members = self._members(lane)
        quota.repair(view, members, monotonic_ns(), self.timing)
        for index, slot in members.items():
            if slot.state != SlotState.IDLE:
                self._bury_if_dead(view, members, index)


class SlotLease:
    """The right of one replica to run on its lane: core.lease.Lease over one slot and one stream.

    For one thread, the one that launches and that called `TokenTable.attach`. While `should_stop()` is true,
    waiting for the lane ends in CancelledError; it is asked at each wake-up, at least every second.
    """

    def __init__(
        self, table: TokenTable, slot: int, stream: Stream, *, should_stop: Callable[[], bool] | None = None
    ) -> None:
        view = table.view(slot)
        self._table, self._slot, self._epoch = table, slot, view.epoch
        self._stream = stream
        self._should_stop = should_stop
        self._words, self._end = view.words, view.word("lease_end_ns")
        self._asynchronous = stream.record() is not None
        self._pending: deque[object] = deque()
        self._held = False

    @property
    def held(self) -> bool:
        """Whether the lane is held now."""
        return self._held

    @property
    def held_ns(self) -> int:
        """How long the lane was held in all, until now. Takes no lock: twice a call, for what an execution held."""
        view = self._table.view(self._slot)
        while True:
            used_ns, start_ns = view.used_ns, view.lease_start_ns
            if view.used_ns == used_ns:  # else somebody has just settled the account
                return used_ns + (monotonic_ns() - start_ns if self._held else 0)

    @property
    def quota_ppm(self) -> int:
        """The quota in parts per million, as it is now."""
        return self._table.view(self._slot).quota_ppm

    @property
    def timing(self) -> Timing:
        """The timing of the lane."""
        return self._table.timing

    def acquire(self) -> None:
        """Waits until the lane is held. While it is held already, this is a gate: the lease is kept."""
        if self._held:
            self.gate()
            return
        self._wait(*self._table.step(self._slot, self._epoch, quota.acquire))

    def release(self) -> None:
        """Drains the device, pays for the hold, and wakes the next. Does nothing if the lane is not held."""
        if not self._held:
            return
        try:
            self._drain()
        finally:
            self._held = False
            self._table.step(self._slot, self._epoch, quota.release)

    def gate(self) -> None:
        """Returns at once while the lease lasts, else waits for the next one. Outside of a lease it does
        nothing.

        Takes no lock. On an asynchronous stream it also bounds what runs ahead of it to one burst.
        """
        if self._asynchronous:
            self._bound()
        if monotonic_ns() >= self._words[self._end] and self._held:
            self._renew()

    def suspend(self) -> bool:
        """Gives the lane up for host work; says whether it was held."""
        held = self._held
        self.release()
        return held

    def resume(self) -> None:
        """Takes the lane back."""
        self.acquire()

    def __enter__(self) -> SlotLease:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _bound(self) -> None:
        stream, pending = self._stream, self._pending
        event = stream.record()
        if not self._held:
            return  # nothing to bound, but a graph that is being captured has been cut
        pending.append(event)
        while pending and stream.query(pending[0]):
            pending.popleft()
        while len(pending) > _OUTSTANDING:
            stream.wait(pending.popleft())

    def _drain(self) -> None:
        self._pending.clear()
        self._stream.drain()

    def _renew(self) -> None:
        step, ticket = self._table.step(self._slot, self._epoch, _ask_to_renew)
        if step.drain:
            self._drain()
            step, ticket = self._table.step(self._slot, self._epoch, _renew_drained)
        if not step.granted:
            self._wait(step, ticket)

    def _wait(self, step: Step, ticket: int) -> None:
        self._held = False
        try:
            while not step.granted:
                if self._should_stop is not None and self._should_stop():
                    raise CancelledError(f"slot={self._slot} was told to stop while it waited for its lane")
                self._table.sleep(self._slot, ticket, step.timeout_ns)
                step, ticket = self._table.step(self._slot, self._epoch, quota.acquire)
            self._held = True
        except BaseException:
            # Whatever ends the wait, nobody may be left waiting for a replica that no longer wants the lane.
            self._table.step(self._slot, self._epoch, quota.release)
            raise


def _lane_base(lane: int) -> int:
    return _HEADER_WORDS + lane * shm.LANE_WORDS


def _size_words(lanes: int, slots: int) -> int:
    return _slot_base(lanes, slots)


def _slot_base(lanes: int, slot: int) -> int:
    return _lane_base(lanes) + slot * shm.SLOT_WORDS


def _check_quota(quota_ppm: int) -> None:
    if not 0 <= quota_ppm <= PPM:
        raise InvalidRequestError(f"quota_ppm={quota_ppm} must lie in [0, {PPM}]", reason="BAD_QUOTA")


def _check_sum(lane: int, members: Members, quota_ppm: int, *, other_than: int | None = None) -> None:
    others = sum(slot.quota_ppm for index, slot in members.items() if index != other_than)
    if others + quota_ppm > PPM:
        raise PlacementError(
            f"quota_ppm={quota_ppm} would bring the quotas of lane {lane} to {others + quota_ppm}, "
            f"above {PPM}: ask for at most {PPM - others}, shrink a neighbour first, or use another lane",
            reason="QUOTA_SUM",
        )
