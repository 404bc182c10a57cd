"""Which replica gets the next batch. Values in, an index out."""

from __future__ import annotations

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
    least = (0, 0.0, 0.0)
    for index, load in enumerate(loads):
        if load.executions >= most or load.quota_percent <= 0.0:
            continue
        order = (load.executions, -load.quota_percent, load.began_s)
        if best is None or order < least:
            best, least = index, order
    return best
