"""Frames that are ready together share a message, within bounds, in order."""

from __future__ import annotations

from collections import deque

from hasfaas.wire.lots import LOT_BYTES, LOT_FRAMES, lot
from hasfaas.wire.v1 import functions_pb2 as pb


def frames(*sizes: int) -> deque[pb.SessionCall]:
    return deque(pb.SessionCall(call_id=i + 1, chunk=bytes(size)) for i, size in enumerate(sizes))


def test_all_that_is_small_goes_together_in_order() -> None:
    waiting = frames(10, 20, 30)
    assert [frame.call_id for frame in lot(waiting)] == [1, 2, 3]
    assert not waiting


def test_a_message_is_bounded_in_frames_and_bytes() -> None:
    waiting = frames(*[1] * (LOT_FRAMES + 5))
    assert (len(lot(waiting)), len(waiting)) == (LOT_FRAMES, 5)
    waiting = frames(LOT_BYTES // 2, LOT_BYTES // 3, LOT_BYTES // 2)
    assert [frame.call_id for frame in lot(waiting)] == [1, 2]


def test_a_frame_larger_than_the_bound_goes_alone() -> None:
    waiting = frames(3 * LOT_BYTES, 1)
    assert [frame.call_id for frame in lot(waiting)] == [1]
    assert [frame.call_id for frame in lot(waiting)] == [2]
