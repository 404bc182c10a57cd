"""Which replica gets the next batch. Values in, an index out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs


@attrs.frozen
class ReplicaLoad:
    """What the router knows of one ready replica: executions it holds (running or queued on its socket), its quota, and when
    the one that runs began."""

    executions: int
    quota_percent: float
    began_s: float = 0.0


def pick(loads: Sequence[ReplicaLoad], *, most: int) -> int | None:
    """Index of the least loaded replica that holds fewer than `most` executions, None when there is none.

    Among equals the larger quota goes first, then the one whose execution began first, since it will end first (choosing by
    index cost 5 to 25 % of the capacity of several replicas, simulated: benchmarks/rapp_capacity.py), then the lower index.
    A replica at quota 0 is never chosen.
    """
    best: int | None = None
    # Who holds `most` executions or more does not come before this.
    executions, quota, began_s = most, math.inf, 0.0
    for index, load in enumerate(loads):
        if load.quota_percent > 0.0 and precedes(
            load.executions, load.quota_percent, load.began_s, executions, quota, began_s
        ):
            best, executions, quota, began_s = index, load.executions, load.quota_percent, load.began_s
    return best


def precedes(
    executions: int, quota: float, began: float, other_executions: int, other_quota: float, other_began: float
) -> bool:
    """Whether one replica comes before another. Numbers only: the simulator compiles this function."""
    if executions != other_executions:
        return executions < other_executions
    if quota != other_quota:
        return quota > other_quota
    return began < other_began
