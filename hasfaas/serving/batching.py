"""When to send how many calls to a replica. Values in, a decision out."""

from __future__ import annotations

import attrs

from hasfaas.core.spec import Batch

# One execution runs and one waits on the replica's socket, so that the lane does not idle for a round trip.
PIPELINE_DEPTH = 2


@attrs.frozen
class Send:
    """Send so many calls now."""

    count: int


@attrs.frozen
class Wait:
    """Send nothing; ask again after so many seconds, or, with None, when something changes."""

    delay_s: float | None = None


def capped(batch: Batch | None, most: int | None) -> Batch | None:
    """The function's batching, with at most `most` calls in one execution (None: its own greatest)."""
    if batch is None or most is None or most >= batch.max_size:
        return batch
    return attrs.evolve(batch, max_size=most)


def decide(
    queued: int, oldest_wait_s: float, batch: Batch | None, executions: int, *, streams: bool = False
) -> Send | Wait:
    """What a replica that holds `executions` gets of a queue of `queued` calls.

    An idle replica takes what is there, at once, or after `batch.max_wait_ms` of the oldest call. A busy one is given
    its next execution ahead only when that costs no batch fill: without batching, or when a full batch waits. A stream is
    never sent ahead, since the one before it may last.
    """
    size = 1 if batch is None else batch.max_size
    count = ready(queued, size, executions, 1 if streams else PIPELINE_DEPTH)
    if batch is None or count in (0, size):
        return Send(count) if count else Wait()
    left_s = batch.max_wait_ms / 1000.0 - oldest_wait_s
    return Wait(left_s) if left_s > 0.0 else Send(count)


def ready(queued: int, size: int, executions: int, depth: int) -> int:
    """How many calls of `queued` can go to a replica that holds `executions` of at most `depth`; fewer than `size`, a full
    batch, may be made to wait for more. Whole numbers only: the simulator compiles this function."""
    if queued <= 0 or executions >= depth:
        return 0
    if queued >= size:
        return size
    return queued if executions == 0 else 0
