"""Which replica gets the next batch. Values in, an index out."""

from __future__ import annotations

from collections.abc import Sequence

import attrs


@attrs.frozen
class ReplicaLoad:
    """What the router knows of one ready replica: executions it holds (running or queued on its socket) and its quota."""

    executions: int
    quota_percent: float


def pick(loads: Sequence[ReplicaLoad], *, most: int) -> int | None:
    """Index of the least loaded replica that holds fewer than `most` executions, None when there is none.

    Among equals the larger quota goes first, then the lower index. A replica at quota 0 is never chosen.
    """
    best: int | None = None
    for index, load in enumerate(loads):
        if load.executions >= most or load.quota_percent <= 0.0:
            continue
        if best is None or (load.executions, -load.quota_percent) < (
            loads[best].executions,
            -loads[best].quota_percent,
        ):
            best = index
    return best
