"""The steps of one lane over records: what executor/quota.py does with a mapping of slots, in a form that compiles.

The arithmetic of an account (`refresh`, `settle`, `threshold` ...) is quota.py's own; only what walks over the slots of a
lane stands here once more. A test drives both with the same instants and holds them equal. Differences: the device counts
as drained when a lease ends, and nobody dies, so there are no suspects.

A step returns (granted, wake, timeout_ns): whether the slot may run, whom to wake (-1: nobody), how long to sleep if not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hasfaas.executor import quota
from hasfaas.executor.quota import GRACE_NS, MAX_BORROWED_NS, MAX_THROTTLE_NS, MAX_WAIT_NS, OFFER_NS, SlotState, Timing

Array = np.ndarray[Any, Any]
Answer = tuple[bool, int, int]

# The same functions: names that compiled code may use.
refresh, settle, solvent, affordable, shortfall_ns = (
    quota.refresh,
    quota.settle,
    quota._solvent,
    quota._affordable,
    quota.shortfall_ns,
)
run_ns, threshold, cap, restated = quota.run_ns, quota.threshold, quota.cap, quota._restated
ARITHMETIC = (run_ns, threshold, cap, restated, shortfall_ns, solvent, affordable, refresh, settle)
# What a slot is ahead of its lane, at most: beyond it the outcome of a re-size is the same, and products would overflow.
_FAR_NS = 4 * 10**12


def best(slots: Array, seats: Array, count: int, now_ns: int, timing: Timing, other_than: int) -> int:
    """quota.best, -1 for nobody."""
    found, least = -1, 0
    for place in range(count):
        index = seats[place]
        slot = slots[index]
        if index == other_than or slot.state != SlotState.WAIT:
            continue
        refresh(slot, now_ns, timing)
        if solvent(slot, timing) and (found < 0 or slot.v_ns < least):
            found, least = index, slot.v_ns
    return found


def acquire(slots: Array, lane: Any, seats: Array, me: int, now_ns: int, timing: Timing) -> Answer:
    """quota.acquire."""
    slot = slots[me]
    refresh(slot, now_ns, timing)
    if slot.state != SlotState.WAIT:
        slot.state = SlotState.WAIT
        if lane.holder:
            holder = slots[lane.holder - 1]
            settle(holder, now_ns, timing)
            lane.v_ns = max(lane.v_ns, holder.v_ns)
        slot.v_ns = max(slot.v_ns, lane.v_ns - timing.lag_ns)
    if lane.holder:
        return behind(slots, lane, me, now_ns, timing)
    first = best(slots, seats, lane.seats, now_ns, timing, -1)
    if first == me or (first < 0 and slot.lend):
        return take(lane, slot, me, now_ns, timing, first < 0, 1)
    if first < 0:
        return False, -1, denied_ns(slot, timing)
    return offer(slots, lane, me, first, now_ns, timing)


def renew(slots: Array, lane: Any, seats: Array, me: int, now_ns: int, timing: Timing) -> Answer:
    """quota.renew of a drained device."""
    slot = slots[me]
    settle(slot, now_ns, timing)
    first = best(slots, seats, lane.seats, now_ns, timing, me)
    rich = solvent(slot, timing)
    goes_on = (rich or slot.lend != 0) if first < 0 else (rich and slot.v_ns <= slots[first].v_ns)
    if goes_on:
        leases = affordable(slot, timing) if first < 0 and rich else 1
        return take(lane, slot, me, now_ns, timing, not rich, leases)
    slot.state = SlotState.WAIT
    vacate(lane, slot)
    found = heir(slots, seats, lane.seats, first, me)
    if found < 0:
        return False, -1, denied_ns(slot, timing)
    return offer(slots, lane, me, found, now_ns, timing)


def release(slots: Array, lane: Any, seats: Array, me: int, now_ns: int, timing: Timing) -> int:
    """quota.release; whom to wake."""
    slot = slots[me]
    settle(slot, now_ns, timing)
    slot.state = SlotState.IDLE
    slot.tokens_ns = min(slot.tokens_ns, cap(slot.quota_ppm, timing))
    if lane.holder == me + 1:
        vacate(lane, slot)
    if lane.holder:
        return -1
    found = heir(slots, seats, lane.seats, best(slots, seats, lane.seats, now_ns, timing, -1), -1)
    if found >= 0 and lane.offered != found + 1:
        lane.offered = found + 1
        lane.offered_ns = now_ns
    return found


def resize(slots: Array, lane: Any, me: int, quota_ppm: int, now_ns: int, timing: Timing) -> None:
    """quota.resize; the slot itself is to be woken."""
    slot = slots[me]
    settle(slot, now_ns, timing)
    ahead_ns = min(max(slot.v_ns - lane.v_ns, -_FAR_NS), _FAR_NS)
    slot.v_ns = lane.v_ns + restated(ahead_ns, slot.quota_ppm, quota_ppm, timing.lag_ns)
    slot.quota_ppm = quota_ppm
    most_ns = cap(quota_ppm, timing) if slot.state == SlotState.IDLE else run_ns(quota_ppm, timing)
    slot.tokens_ns = min(slot.tokens_ns, most_ns)
    if slot.state == SlotState.RUN:
        slot.lease_end_ns = min(slot.lease_end_ns, now_ns)


def take(lane: Any, slot: Any, me: int, now_ns: int, timing: Timing, borrowed: bool, leases: int) -> Answer:
    """quota._take."""
    lease_ns = run_ns(slot.quota_ppm, timing) * leases
    if slot.state != SlotState.RUN:
        slot.state = SlotState.RUN
        slot.lease_start_ns = now_ns
        lane.handoffs += 1
    lane.holder = me + 1
    lane.offered = 0
    lane.v_ns = max(lane.v_ns, slot.v_ns)
    slot.borrowed = 1 if borrowed else 0
    slot.taken_ns = now_ns
    slot.grants += 1
    slot.lease_end_ns = now_ns + (min(lease_ns, MAX_BORROWED_NS) if borrowed else lease_ns)
    return True, -1, 0


def behind(slots: Array, lane: Any, me: int, now_ns: int, timing: Timing) -> Answer:
    """quota._behind."""
    holder, slot = slots[lane.holder - 1], slots[me]
    if not solvent(slot, timing):
        return False, -1, denied_ns(slot, timing)
    rightful_end_ns = now_ns if holder.borrowed else holder.taken_ns + run_ns(holder.quota_ppm, timing)
    holder.lease_end_ns = min(holder.lease_end_ns, max(rightful_end_ns, now_ns))
    until_end_ns = max(holder.lease_end_ns - now_ns, 0)
    return False, -1, min(until_end_ns + GRACE_NS, MAX_WAIT_NS)


def offer(slots: Array, lane: Any, me: int, first: int, now_ns: int, timing: Timing) -> Answer:
    """quota._offer."""
    if lane.offered != first + 1:
        lane.offered = first + 1
        lane.offered_ns = now_ns
    slot = slots[me]
    if not solvent(slot, timing):
        return False, first, denied_ns(slot, timing)
    if now_ns - lane.offered_ns >= GRACE_NS:
        return take(lane, slot, me, now_ns, timing, False, 1)
    return False, first, OFFER_NS


def heir(slots: Array, seats: Array, count: int, first: int, me: int) -> int:
    """quota._heir."""
    if first >= 0:
        return first
    found, least = -1, 0
    for place in range(count):
        index = seats[place]
        slot = slots[index]
        if slot.lend and slot.state == SlotState.WAIT and index != me and (found < 0 or slot.v_ns < least):
            found, least = index, slot.v_ns
    return found


def vacate(lane: Any, slot: Any) -> None:
    """quota._vacate."""
    slot.lease_end_ns = 0
    lane.holder = 0


def denied_ns(slot: Any, timing: Timing) -> int:
    """The time-out of quota._denied."""
    return min(shortfall_ns(slot, timing), MAX_THROTTLE_NS)


STEPS = (denied_ns, vacate, heir, take, offer, behind, best, acquire, renew, release, resize)
