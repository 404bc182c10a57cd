"""The price and the order of a lane's time: who may run next, for how long, and what it costs.

One lane is held by at most one replica (slot) at a time. What a replica pays is its *hold*: from the grant
until its work has drained. Tokens say whether it may start a lease (the hard cap), a virtual time says who
goes first among those who may (start-time fair queueing), so losses and over-subscription are shared in
proportion to the quotas.

Law: nothing here reads a clock, waits or wakes. Each step is handed the instant, changes the words of one
lane, whose lock the caller holds, and returns an instruction. The same code runs over shared memory, in tests
over plain objects, and in a simulator over virtual time. All times are integer nanoseconds, all quotas parts
per million (ppm).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Protocol

import attrs

from hasfaas.core.errors import InvalidRequestError

PPM = 1_000_000
MIN_LEASE_NS = 100_000
MAX_BORROWED_NS = 5_000_000
# A holder that is this late is looked at: is its process alive?
GRACE_NS = 20_000_000
# A waiter that was offered a free lane and has not taken it for this long is looked at too.
OFFER_NS = 5_000_000
MAX_WAIT_NS = 250_000_000
MAX_THROTTLE_NS = 1_000_000_000


class SlotState(enum.IntEnum):
    """FREE: no replica. IDLE: nothing to run. WAIT: queued for the lane. RUN: holds the lane."""

    FREE = 0
    IDLE = 1
    WAIT = 2
    RUN = 3


LEGAL: Mapping[SlotState, frozenset[SlotState]] = {
    SlotState.FREE: frozenset({SlotState.IDLE}),
    SlotState.IDLE: frozenset({SlotState.WAIT, SlotState.FREE}),
    SlotState.WAIT: frozenset({SlotState.RUN, SlotState.IDLE}),
    SlotState.RUN: frozenset({SlotState.WAIT, SlotState.IDLE}),
}


class Slot(Protocol):
    """One replica's account. `borrowed` marks a lease on time that nobody was entitled to, `lend` who may
    have one.

    `carry` is the part of a nanosecond, in ppm, that was earned and is not in the tokens yet.
    """

    state: int
    quota_ppm: int
    tokens_ns: int
    carry: int
    stamp_ns: int
    lease_start_ns: int
    lease_end_ns: int
    used_ns: int
    wait_ns: int
    throttled_ns: int
    granted_ns: int
    overrun_ns: int
    lent_ns: int
    grants: int
    v_ns: int
    lend: int
    borrowed: int
    generation: int
    acknowledged: int
    acknowledged_ns: int
    taken_ns: int


class Lane(Protocol):
    """`holder` and `offered` are a slot's index + 1, or 0; `v_ns` is the lane's virtual time."""

    holder: int
    v_ns: int
    handoffs: int
    offered: int
    offered_ns: int


Slots = Mapping[int, Slot]


@attrs.frozen
class Timing:
    """Window W, quantum Q and the greatest credit of an idle replica (`lag`, in lane time; the window by
    default).
    """

    window_ns: int = 100_000_000
    quantum_ns: int = 10_000_000
    lag_ns: int = attrs.field()

    @lag_ns.default
    def _lag_is_the_window(self) -> int:
        return self.window_ns

    def __attrs_post_init__(self) -> None:
        if not MIN_LEASE_NS <= self.quantum_ns <= self.window_ns:
            raise InvalidRequestError(
                f"quantum_ns={self.quantum_ns} must lie in [{MIN_LEASE_NS}, window_ns={self.window_ns}]",
                reason="BAD_TIMING",
            )


@attrs.frozen
class Step:
    """What the edge does after it has unlocked: wake `wake`; then run on (`granted`), or drain and call
    `renew` again (`drain`), or sleep at most `timeout_ns` and call `acquire`. If `suspect`'s process is dead,
    `bury` it and decide anew.
    """

    granted: bool = False
    wake: int | None = None
    timeout_ns: int = 0
    suspect: int | None = None
    drain: bool = False


GRANTED = Step(granted=True)
DRAIN = Step(drain=True)


# -- the arithmetic of one account ---------------------------------------------------------------------------


def run_ns(quota_ppm: int, timing: Timing) -> int:
    """Length of one lease: min(Q, W q), never below 0.1 ms. At W = 100, Q = 10 ms: 10 ms from a quota of 10 %
    up.
    """
    return max(min(timing.quantum_ns, timing.window_ns * quota_ppm // PPM), MIN_LEASE_NS)


def threshold(quota_ppm: int, timing: Timing) -> int:
    """Tokens that a lease takes to start: run (1 - q), what the account loses while it runs."""
    return run_ns(quota_ppm, timing) * (PPM - quota_ppm) // PPM


def cap(quota_ppm: int, timing: Timing) -> int:
    """Most tokens that an idle replica keeps: the same lag in lane time for all, and at least two leases'
    worth.
    """
    return max(timing.lag_ns * quota_ppm // PPM, 2 * threshold(quota_ppm, timing))


def refresh(slot: Slot, now_ns: int, timing: Timing) -> None:
    """Brings the account to `now_ns`: earns q dt, pays dt of an own lease (a borrowed one is free), clamps to
    the cap.

    The cap is doubled outside IDLE: a replica that waits for others does not forfeit what it is owed. The
    stamp is written first: death in between loses what was earned, and never earns it twice.
    """
    dt = now_ns - slot.stamp_ns
    if dt <= 0:
        return
    state, quota = slot.state, slot.quota_ppm
    if state == SlotState.WAIT:
        slot.wait_ns += dt
        slot.throttled_ns += min(dt, shortfall_ns(slot, timing))
    earned, carry = divmod(quota * dt + slot.carry, PPM)
    limit = cap(quota, timing) * (1 if state == SlotState.IDLE else 2)
    slot.stamp_ns = now_ns
    slot.carry = carry
    slot.granted_ns += earned
    if state == SlotState.RUN:
        earned = 0 if slot.borrowed else earned - dt
    slot.tokens_ns = min(slot.tokens_ns + earned, limit)


def settle(slot: Slot, now_ns: int, timing: Timing) -> None:
    """`refresh`, and books the hold so far. May be called at any instant of a lease, any number of times.

    A hold at quota 0 (re-sized while it ran) moves no virtual time: its debt in tokens is what it pays with.
    """
    refresh(slot, now_ns, timing)
    hold = now_ns - slot.lease_start_ns
    if slot.state != SlotState.RUN or hold <= 0:
        return
    late = now_ns - max(slot.lease_end_ns, slot.lease_start_ns)
    slot.lease_start_ns = now_ns
    slot.used_ns += hold
    slot.overrun_ns += max(late, 0)
    if slot.borrowed:
        slot.lent_ns += hold
    elif slot.quota_ppm:
        slot.v_ns += hold * PPM // slot.quota_ppm


def eligible(slot: Slot, timing: Timing) -> bool:
    """Whether a (refreshed) slot that waits has the tokens to start a lease."""
    return slot.state == SlotState.WAIT and _solvent(slot, timing)


def _solvent(slot: Slot, timing: Timing) -> bool:
    quota = slot.quota_ppm
    return quota > 0 and slot.tokens_ns >= threshold(quota, timing)


def shortfall_ns(slot: Slot, timing: Timing) -> int:
    """How long the account must earn until a lease may start; a second at a time at quota 0, when it never
    may.
    """
    quota = slot.quota_ppm
    if quota == 0:
        return MAX_THROTTLE_NS
    missing = threshold(quota, timing) - slot.tokens_ns
    return -(-missing * PPM // quota) if missing > 0 else 0


def best(slots: Slots, now_ns: int, timing: Timing, *, other_than: int | None = None) -> int | None:
    """The eligible slot with the least virtual time; refreshes all that wait."""
    found: int | None = None
    least = 0
    for index, slot in slots.items():
        if index == other_than or slot.state != SlotState.WAIT:
            continue
        refresh(slot, now_ns, timing)
        if _solvent(slot, timing) and (found is None or slot.v_ns < least):
            found, least = index, slot.v_ns
    return found


# -- the steps of one lane -----------------------------------------------------------------------------------


def acquire(lane: Lane, slots: Slots, me: int, now_ns: int, timing: Timing) -> Step:
    """Queues `me`, and takes the lane if it is free and `me` is next. To be called again after each sleep."""
    slot = slots[me]
    refresh(slot, now_ns, timing)
    _acknowledge(slot, now_ns)
    if slot.state != SlotState.WAIT:
        _move(slot, SlotState.WAIT)
        _catch_up(lane, slots, now_ns, timing)
        slot.v_ns = max(slot.v_ns, lane.v_ns - timing.lag_ns)
    if lane.holder:
        return _behind(lane, slots, me, now_ns, timing)
    first = best(slots, now_ns, timing)
    if first == me or (first is None and slot.lend):
        return _take(lane, slot, me, now_ns, timing, borrowed=first is None)
    if first is None:
        return _denied(slot, timing)
    return _offer(lane, slots, me, first, now_ns, timing)


def renew(lane: Lane, slots: Slots, me: int, now_ns: int, timing: Timing, *, drained: bool) -> Step:
    """The lease of `me` has ended: goes on, or gives the lane up and queues.

    Going on needs no drained device, since the hold does not end. Only giving up does, so the edge asks first
    with `drained=False` and may be told to drain and ask again. Who is alone goes on for several leases at once;
    whoever becomes eligible meanwhile cuts that back to one (`_behind`).
    """
    slot = slots[me]
    settle(slot, now_ns, timing)
    _acknowledge(slot, now_ns)
    first = best(slots, now_ns, timing, other_than=me)
    solvent = _solvent(slot, timing)
    goes_on = (solvent or slot.lend) if first is None else solvent and slot.v_ns <= slots[first].v_ns
    if goes_on:
        leases = _affordable(slot, timing) if first is None and solvent else 1
        return _take(lane, slot, me, now_ns, timing, borrowed=not solvent, leases=leases)
    if not drained:
        return DRAIN
    _move(slot, SlotState.WAIT)
    _vacate(lane, slot)
    heir = _heir(slots, first, me)
    if heir is None:
        return _denied(slot, timing)
    return _offer(lane, slots, me, heir, now_ns, timing)


def release(lane: Lane, slots: Slots, me: int, now_ns: int, timing: Timing) -> Step:
    """`me` has nothing more to run (its device is drained), or gives up waiting: wakes the next."""
    slot = slots[me]
    settle(slot, now_ns, timing)
    if slot.state != SlotState.IDLE:
        _move(slot, SlotState.IDLE)
    slot.tokens_ns = min(slot.tokens_ns, cap(slot.quota_ppm, timing))
    if lane.holder == me + 1:
        _vacate(lane, slot)
    return _wake_next(lane, slots, now_ns, timing)


def bury(lane: Lane, slots: Slots, dead: int, now_ns: int, timing: Timing) -> Step:
    """`release` for a process that died: it pays until now, since until now nobody else could run."""
    return release(lane, slots, dead, now_ns, timing)


def resize(lane: Lane, slots: Slots, index: int, quota_ppm: int, now_ns: int, timing: Timing) -> Step:
    """A new quota, in force from now. Pays at the old rate first; a holder decides anew at its next gate.

    Tokens are clamped, so none are made: an idle replica keeps its credit up to the new cap, one that has work keeps one
    lease's worth, so that its share follows the new quota within two windows. (A full cap at quota 0.8 would let it run at
    1.0 for four windows more.) Virtual time counts holds divided by the quota, so
    what it is ahead of the lane's is restated at the new quota, and kept within one lag: else a hold at a
    small quota would starve the replica at its new, larger one.
    """
    slot = slots[index]
    settle(slot, now_ns, timing)
    slot.v_ns = lane.v_ns + _restated(slot.v_ns - lane.v_ns, slot.quota_ppm, quota_ppm, timing.lag_ns)
    slot.quota_ppm = quota_ppm
    most_ns = cap(quota_ppm, timing) if slot.state == SlotState.IDLE else run_ns(quota_ppm, timing)
    slot.tokens_ns = min(slot.tokens_ns, most_ns)
    slot.generation += 1
    if slot.state == SlotState.RUN:
        slot.lease_end_ns = min(slot.lease_end_ns, now_ns)
    return Step(wake=index)


def in_force(slot: Slot) -> bool:
    """Whether the replica has decided by its latest quota, to run on or to wait; while idle it need not."""
    return slot.acknowledged == slot.generation or slot.state in (SlotState.FREE, SlotState.IDLE)


def repair(lane: Lane, slots: Slots, now_ns: int, timing: Timing) -> None:
    """After the lock's owner died half-way: at most one RUN, and it is the holder.

    Only the dead process itself can have been on its way into or out of RUN, so whatever disagrees is its own
    and becomes IDLE. Accounts are clamped, stamps never lie ahead.
    """
    holder = slots.get(lane.holder - 1)
    if holder is None or holder.state != SlotState.RUN:
        lane.holder = 0
    lane.offered = 0
    for index, slot in slots.items():
        if slot.state == SlotState.RUN and lane.holder != index + 1:
            slot.state = SlotState.IDLE
            slot.lease_end_ns = 0
        slot.stamp_ns = min(slot.stamp_ns, now_ns)
        slot.tokens_ns = min(slot.tokens_ns, 2 * cap(slot.quota_ppm, timing))


# -- leaves --------------------------------------------------------------------------------------------------


def _move(slot: Slot, to: SlotState) -> None:
    assert to in LEGAL[SlotState(slot.state)], f"a slot cannot go from {slot.state} to {to.name}"
    slot.state = to


def _affordable(slot: Slot, timing: Timing) -> int:
    """How many leases in a row the account can start, a window's worth at most.

    Who is alone would renew so often anyway, and on a busy core each renewal costs 60 us of cold caches: 0.6 % at 10 ms.
    """
    need = threshold(slot.quota_ppm, timing)
    most = timing.window_ns // run_ns(slot.quota_ppm, timing)
    return max(1, min(most, slot.tokens_ns // need)) if need else most


def _catch_up(lane: Lane, slots: Slots, now_ns: int, timing: Timing) -> None:
    """A holder that was alone may have been running for a window: the lane's virtual time is where it has got to."""
    holder = slots.get(lane.holder - 1)
    if holder is not None:
        settle(holder, now_ns, timing)
        lane.v_ns = max(lane.v_ns, holder.v_ns)


def _take(lane: Lane, slot: Slot, me: int, now_ns: int, timing: Timing, *, borrowed: bool, leases: int = 1) -> Step:
    lease_ns = run_ns(slot.quota_ppm, timing) * leases
    if slot.state != SlotState.RUN:
        _move(slot, SlotState.RUN)
        slot.lease_start_ns = now_ns
        lane.handoffs += 1
    lane.holder = me + 1
    lane.offered = 0
    lane.v_ns = max(lane.v_ns, slot.v_ns)
    slot.borrowed = int(borrowed)
    slot.taken_ns = now_ns
    slot.grants += 1
    slot.lease_end_ns = now_ns + (min(lease_ns, MAX_BORROWED_NS) if borrowed else lease_ns)
    return GRANTED


def _restated(ahead_ns: int, old_ppm: int, new_ppm: int, lag_ns: int) -> int:
    if old_ppm and new_ppm:
        ahead_ns = ahead_ns * old_ppm // new_ppm
    elif not old_ppm:
        ahead_ns = min(ahead_ns, 0)
    return min(max(ahead_ns, -lag_ns), lag_ns)


def _vacate(lane: Lane, slot: Slot) -> None:
    slot.lease_end_ns = 0
    lane.holder = 0


def _acknowledge(slot: Slot, now_ns: int) -> None:
    if slot.acknowledged != slot.generation:
        slot.acknowledged = slot.generation
        slot.acknowledged_ns = now_ns


def _denied(slot: Slot, timing: Timing) -> Step:
    """No tokens: until they are earned."""
    return Step(timeout_ns=min(shortfall_ns(slot, timing), MAX_THROTTLE_NS))


def _behind(lane: Lane, slots: Slots, me: int, now_ns: int, timing: Timing) -> Step:
    """Another holds the lane. Who is entitled revokes borrowed time, and leases that were given ahead; an overdue
    holder may be dead.
    """
    index = lane.holder - 1
    holder, slot = slots[index], slots[me]
    suspect = index if now_ns >= holder.lease_end_ns + GRACE_NS else None
    if not _solvent(slot, timing):
        return attrs.evolve(_denied(slot, timing), suspect=suspect)
    rightful_end_ns = now_ns if holder.borrowed else holder.taken_ns + run_ns(holder.quota_ppm, timing)
    holder.lease_end_ns = min(holder.lease_end_ns, max(rightful_end_ns, now_ns))
    until_end = max(holder.lease_end_ns - now_ns, 0)
    return Step(timeout_ns=min(until_end + GRACE_NS, MAX_WAIT_NS), suspect=suspect)


def _offer(lane: Lane, slots: Slots, me: int, first: int, now_ns: int, timing: Timing) -> Step:
    """The lane is free and another goes first: wakes it. One that does not answer is suspect, and later
    passed over.
    """
    if lane.offered != first + 1:
        lane.offered = first + 1
        lane.offered_ns = now_ns
    unanswered = now_ns - lane.offered_ns
    slot = slots[me]
    if not _solvent(slot, timing):
        return attrs.evolve(_denied(slot, timing), wake=first)
    if unanswered >= GRACE_NS:
        return _take(lane, slot, me, now_ns, timing, borrowed=False)
    suspect = first if unanswered >= OFFER_NS else None
    return Step(wake=first, timeout_ns=OFFER_NS, suspect=suspect)


def _heir(slots: Slots, first: int | None, me: int | None) -> int | None:
    """Who is told that the lane is free: the next by right, else one who may borrow."""
    if first is not None:
        return first
    lenders = [i for i, s in slots.items() if s.lend and s.state == SlotState.WAIT and i != me]
    return min(lenders, key=lambda i: slots[i].v_ns, default=None)


def _wake_next(lane: Lane, slots: Slots, now_ns: int, timing: Timing) -> Step:
    if lane.holder:
        return Step()
    heir = _heir(slots, best(slots, now_ns, timing), None)
    if heir is not None and lane.offered != heir + 1:
        lane.offered = heir + 1
        lane.offered_ns = now_ns
    return Step(wake=heir)


# -- the law that predictions stand on -----------------------------------------------------------------------


def saturated_mean_ms(hold_ms: float, quota: float) -> float:
    """Mean time per hold of a replica that never idles: t / q (any rate server; never the latency of one
    request). Infinite at quota 0, as the two below.
    """
    return hold_ms / quota if round(quota * PPM) > 0 else math.inf


def saturated_worst_ms(hold_ms: float, quota: float, timing: Timing, overrun_ms: float = 0.0) -> float:
    """Most that one hold takes when no credit is left: t + ceil(t / lease) (lease / q - lease), run = min(Q, W q).

    Source: with an empty account each lease that is started first earns its `threshold`, run (1 - q), at rate
    q. A lease ends at the first gate after it is over, and drains: it lasts run + overrun, and what it overran is
    earned before the next (`Usage.overrun_ns` counts it). Add one lease per neighbour of the lane.
    """
    quota_ppm = round(quota * PPM)
    if quota_ppm <= 0:
        return math.inf
    lease_ms = run_ns(quota_ppm, timing) / 1e6 + overrun_ms
    debt_ms = overrun_ms * (1.0 - quota)
    need_ms = threshold(quota_ppm, timing) / 1e6 + debt_ms
    return hold_ms + math.ceil(hold_ms / lease_ms - 1e-9) * need_ms / quota


def idle_ms(hold_ms: float, quota: float, timing: Timing, overrun_ms: float = 0.0) -> float:
    """Time that one hold takes in a free lane after a long idle time: at full speed while the credit lasts.

    Credit for n leases in a row carries n run + overrun of the hold (only a lease that gives the lane up overruns), then
    it is a lease at a time. It waits for what the account lacks to start the last one. Without overrun this is
    t + max(0, ceil(t / run) threshold - cap) / q.
    """
    quota_ppm = round(quota * PPM)
    if quota_ppm <= 0:
        return math.inf
    run_ms, need_ms = run_ns(quota_ppm, timing) / 1e6, threshold(quota_ppm, timing) / 1e6
    cap_ms, lease_ms = cap(quota_ppm, timing) / 1e6, run_ms + overrun_ms
    if need_ms == 0.0:
        return hold_ms
    # Gates come a little late: where they do, credit for exactly n leases is short of the n-th.
    leases = math.ceil(cap_ms / need_ms - 1e-9) - 1 if overrun_ms else math.floor(cap_ms / need_ms + 1e-9)
    later = math.ceil((hold_ms - leases * run_ms - overrun_ms) / lease_ms - 1e-9)
    if later <= 0:
        return hold_ms
    debt_ms = overrun_ms * (1.0 - quota)
    lacking_ms = (leases + later) * need_ms + later * debt_ms - cap_ms
    return hold_ms + max(lacking_ms, 0.0) / quota
