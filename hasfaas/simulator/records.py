"""The state of a simulation as arrays of records: what compiled code can read and change.

A slot is a replica with its account, as `executor.quota.Slot` has it, field by field, so that the arithmetic of quota.py
works on it as it is. Times are integer nanoseconds from the start. Calls of all functions lie in one row, a function's
next to each other in the order of arrival; -1 stands for none.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from hasfaas.executor.quota import Timing

Array = np.ndarray[Any, Any]

FOREVER_NS = 1 << 62
# What `done_ns` holds of a call that has no answer.
PENDING, DROPPED = -1, -2
# Replicas of one device; as many as a token table of the node agent has.
SLOTS_OF_DEVICE = 32


def _record(integers: str, reals: str = "") -> np.dtype[Any]:
    columns = [(name, np.int64) for name in integers.split()] + [(name, np.float64) for name in reals.split()]
    return np.dtype((np.record, columns))


SLOT = _record(
    # executor.quota.Slot
    "state quota_ppm tokens_ns carry stamp_ns lease_start_ns lease_end_ns used_ns wait_ns throttled_ns granted_ns overrun_ns "
    "lent_ns grants v_ns lend borrowed generation acknowledged acknowledged_ns taken_ns "
    # where it is, and what the router knows of it: the execution that runs and the one that was sent ahead
    "function lane life gone_ns batch executions in_flight began_ns first count ahead_first ahead_count "
    # what is left of the execution at `ran_ns`, since when it runs; when it does something next, and its place in the heap
    "left_ns ran_ns next_ns heap_at "
    # What is counted already: of the reservation, of the used time for the bill, and of it for the policy.
    "charged_ns billed_ns seen_ns",
    "share reserved",
)
# executor.quota.Lane, and who is in it: replicas, and those of them that have work.
LANE = _record("holder v_ns handoffs offered offered_ns seats busy")
FUNCTION = _record(
    # Calls: the first one, those that have arrived, those that have left the queue, and the end. Replicas in the router.
    "first arrived head end ready depth in_flight drop_ns slo_ns overhead_ns completed late dropped executions",
    "reserved used billed",
)
CLIENT = _record("stage sent under_way start_ns freed_ns")
STAGE = _record("calls length_ns most", "period_ns")
# `gone`: replicas that have left since somebody looked. Costs count between `from_ns` and `to_ns`.
CLOCK = _record("now_ns alarms merged gone from_ns to_ns", "interference")


class KernelTiming(NamedTuple):
    """`executor.quota.Timing` as compiled code can take it."""

    window_ns: int
    quantum_ns: int
    lag_ns: int


class World(NamedTuple):
    """All state. `clock` and `client` have one row; `seats` [lane, seat] and `ready` [function, place] hold slots; `hold_ns`
    [slot, batch] is what a batch holds its lane for; `order` names the function of each arrival in order of time; `stages`
    is empty without a closed-loop client; `heap` holds the slots that will do something, the soonest first."""

    timing: Timing
    lanes_law: bool
    clock: Array
    slots: Array
    lanes: Array
    seats: Array
    functions: Array
    ready: Array
    arrival_ns: Array
    done_ns: Array
    order: Array
    hold_ns: Array
    factors: Array
    heap: Array
    client: Array
    stages: Array


def timing_of(timing: Timing) -> Timing:
    """The same numbers, as a `KernelTiming`; for a type checker it is what it stands for."""
    return cast(Timing, KernelTiming(timing.window_ns, timing.quantum_ns, timing.lag_ns))
