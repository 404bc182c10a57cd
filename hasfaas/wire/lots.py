"""How many frames of a session go in one message."""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeVar

LOT_FRAMES = 64
LOT_BYTES = 1 << 20


class Sized(Protocol):
    """A message that knows its size."""

    def ByteSize(self) -> int: ...  # noqa: N802 - protobuf's name


F = TypeVar("F", bound=Sized)


def lot(waiting: deque[F]) -> list[F]:
    """Takes the next frames off the queue: at least one, at most 64, and about 1 MiB, so that a message stays small."""
    taken = [waiting.popleft()]
    if not waiting:
        return taken
    size = taken[0].ByteSize()
    while waiting and len(taken) < LOT_FRAMES and (size := size + waiting[0].ByteSize()) <= LOT_BYTES:
        taken.append(waiting.popleft())
    return taken
