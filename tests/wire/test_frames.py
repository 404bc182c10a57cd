from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.wire import frames
from hasfaas.wire.frames import HEADER, Buffer, Frame, FrameKind, FrameReader, RawPayload

Sent = tuple[FrameKind, int, object, bytes]

HEADS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
SENT = st.lists(
    st.tuples(st.sampled_from(FrameKind), st.integers(0, 2**64 - 1), HEADS, st.binary(max_size=300)), max_size=6
)


def blob(pieces: Sequence[Buffer]) -> bytes:
    """Pieces as they lie on the wire."""
    return b"".join(pieces)


def read(data: bytes, cuts: Sequence[int] = (), reader: FrameReader | None = None) -> list[Frame]:
    """What a reader makes of `data` when it comes in pieces that end at `cuts`."""
    reader = reader or FrameReader()
    found: list[Frame] = []
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        piece = memoryview(data)[start:end]
        while piece:
            room = reader.buffer()
            assert len(room) > 0, "there is always room for the next bytes"
            taken = min(len(room), len(piece))
            room[:taken] = piece[:taken]
            found += reader.advance(taken)
            piece = piece[taken:]
    return found


def plain(found: Sequence[Frame]) -> list[Sent]:
    return [(frame.kind, frame.call_id, frame.head, bytes(frame.body)) for frame in found]


# -- one frame after another -----------------------------------------------------------------------------------------


def test_a_frame_is_24_bytes_then_head_then_body() -> None:
    data = blob(frames.pack(FrameKind.RESULT, 7, (1, b"h"), [b"bo", b"dy"]))
    assert HEADER.size == 24
    assert HEADER.unpack_from(data) == (FrameKind.RESULT, len(data) - 24 - 4, 7, 4)
    assert data.endswith(b"body")


def test_a_body_is_passed_on_uncopied() -> None:
    body = bytearray(b"x" * 100)
    assert any(piece is body for piece in frames.pack(FrameKind.ITEM, 1, None, [body]))


@given(SENT, st.lists(st.integers(0, 10**6), max_size=12))
def test_however_the_stream_is_cut_the_same_frames_come_out(sent: list[Sent], cuts: list[int]) -> None:
    data = b"".join(blob(frames.pack(kind, call_id, head, [body])) for kind, call_id, head, body in sent)
    assert plain(read(data, cuts)) == sent


@given(SENT.filter(bool))
def test_byte_by_byte_each_frame_comes_with_its_last_byte(sent: list[Sent]) -> None:
    reader = FrameReader()
    for kind, call_id, head, body in sent:
        data = blob(frames.pack(kind, call_id, head, [body]))
        found = [read(data[i : i + 1], reader=reader) for i in range(len(data))]
        assert [len(part) for part in found] == [0] * (len(data) - 1) + [1]
        assert plain(found[-1]) == [(kind, call_id, head, body)]


@pytest.mark.parametrize("body_bytes", [frames.SCRATCH_BYTES - 24, frames.SCRATCH_BYTES + 1, 5 * 2**20 + 3])
@pytest.mark.parametrize("before", [0, 1, 1000])
def test_large_bodies_and_what_surrounds_them(body_bytes: int, before: int) -> None:
    small = blob(frames.pack(FrameKind.CANCEL, 3)) * before
    body = bytes(range(256)) * (body_bytes // 256) + b"\x01" * (body_bytes % 256)
    data = small + blob(frames.pack(FrameKind.EXECUTE, 0, None, [body])) + blob(frames.pack(FrameKind.SHUTDOWN))
    found = read(data, range(0, len(data), 65_521))
    assert [frame.kind for frame in found] == [FrameKind.CANCEL] * before + [FrameKind.EXECUTE, FrameKind.SHUTDOWN]
    assert bytes(found[before].body) == body


def test_a_large_body_is_received_into_its_own_buffer() -> None:
    """Once the header is in, the room offered is the rest of that body, so that the kernel writes it there."""
    reader = FrameReader()
    data = blob(frames.pack(FrameKind.RESULT, 1, None, [bytes(10 * 2**20)]))
    read(data[:100], reader=reader)
    assert len(reader.buffer()) == len(data) - 100
    (frame,) = read(data[100:], reader=reader)
    assert len(frame.body) == 10 * 2**20


def test_a_head_larger_than_the_scratch_buffer() -> None:
    head = (b"h" * (3 * frames.SCRATCH_BYTES), 1)
    data = blob(frames.pack(FrameKind.EXECUTE, 9, head, [b"body"])) * 2
    assert plain(read(data, range(0, len(data), 100_003))) == [(FrameKind.EXECUTE, 9, head, b"body")] * 2


def test_bodies_of_frames_that_came_together_do_not_share_memory() -> None:
    first, second = read(blob(frames.pack(FrameKind.ITEM, 1, None, [b"one"])) * 2)
    assert isinstance(first.body, bytearray)
    first.body[:] = b"two"
    assert second.body == b"one"


# -- what no peer of ours sends --------------------------------------------------------------------------------------


def test_an_unknown_kind_is_refused_by_number() -> None:
    with pytest.raises(InvalidRequestError, match="unknown kind 99"):
        read(HEADER.pack(99, 0, 0, 0))


@pytest.mark.parametrize(
    ("head_bytes", "body_bytes"),
    [(frames.MAX_HEAD_BYTES + 1, 0), (0, frames.MAX_BODY_BYTES + 1), (2**32 - 1, 2**64 - 1)],
)
def test_an_oversized_announcement_is_refused_before_any_memory_is_taken(head_bytes: int, body_bytes: int) -> None:
    reader = FrameReader()
    with pytest.raises(InvalidRequestError, match=f"head of {head_bytes} and a body of {body_bytes} bytes"):
        read(HEADER.pack(FrameKind.RESULT, head_bytes, 0, body_bytes), reader=reader)
    assert len(reader.buffer()) <= frames.SCRATCH_BYTES


@pytest.mark.parametrize(
    "head",
    [b"\xc1", b"\x92\x01", b"\x01\x02", b"\xa2\xff\xfe", b"\x81\x91\x01\x02", b"\xd6\xff"],
    ids=["unused code", "too short", "too long", "no text", "list as key", "cut extension"],
)
def test_a_head_that_is_not_msgpack_is_refused_as_such(head: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="is not msgpack"):
        read(HEADER.pack(FrameKind.RESULT, len(head), 0, 0) + head)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_garbage_is_waited_for_or_refused_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    try:
        read(data, cuts)
    except InvalidRequestError as exc:
        assert "frame" in str(exc)


# -- payloads --------------------------------------------------------------------------------------------------------

PAYLOADS = st.builds(
    RawPayload,
    st.integers(0, 255),
    st.binary(max_size=20),
    st.lists(st.integers(0, 2**63 - 1), max_size=4).map(tuple),
    st.lists(st.binary(max_size=150), max_size=4).map(tuple),
)


@given(PAYLOADS, st.sampled_from([FrameKind.RESULT, FrameKind.ITEM]))
def test_a_payload_comes_back_with_its_pieces_joined(payload: RawPayload, kind: FrameKind) -> None:
    (frame,) = read(blob(frames.pack_payload(kind, 5, payload)))
    back = frames.unpack_payload(frame)
    assert (frame.kind, frame.call_id) == (kind, 5)
    assert (back.codec, back.head, back.sizes) == (payload.codec, payload.head, payload.sizes)
    assert blob(back.chunks) == blob(payload.chunks)
    assert len(back.chunks) <= 1
    assert back.nbytes == payload.nbytes


@pytest.mark.parametrize(
    "head",
    [
        None,
        3,
        (1, b"h"),
        (1, b"h", (), 1),
        ("1", b"h", ()),
        (1, "h", ()),
        (1, b"h", (-1,)),
        (1, b"h", ("3",)),
        (256, b"", ()),
    ],
)
def test_a_result_whose_head_is_not_one_of_a_payload_is_refused(head: object) -> None:
    (frame,) = read(blob(frames.pack(FrameKind.RESULT, 5, head)))
    with pytest.raises(InvalidRequestError, match="RESULT without a payload's head"):
        frames.unpack_payload(frame)


@given(st.lists(st.tuples(st.integers(1, 2**64 - 1), PAYLOADS), max_size=6))
def test_a_batch_comes_back_call_by_call_and_aligned(calls: list[tuple[int, RawPayload]]) -> None:
    (frame,) = read(blob(frames.pack_execute(calls)))
    items = frames.unpack_execute(frame)
    assert frame.kind is FrameKind.EXECUTE
    assert [(item.call_id, item.codec, item.head, item.sizes) for item, _ in items] == [
        (call_id, payload.codec, payload.head, payload.sizes) for call_id, payload in calls
    ]
    assert [bytes(view) for _, view in items] == [blob(payload.chunks) for _, payload in calls]
    assert [item.blob_bytes for item, _ in items] == [payload.blob_bytes for _, payload in calls]
    starts = [offset_in(frame, view) for _, view in items if len(view)]
    assert all(start % frames.ALIGNMENT == 0 for start in starts)
    assert len(frame.body) % frames.ALIGNMENT == 0


def offset_in(frame: Frame, view: memoryview) -> int:
    """Where a view begins in its frame's body."""
    import numpy as np

    base, at = np.frombuffer(frame.body, np.uint8), np.frombuffer(view, np.uint8)
    return int(at.__array_interface__["data"][0] - base.__array_interface__["data"][0])


@given(st.integers(0, 10**6))
def test_padding_reaches_the_next_multiple_of_64_and_no_further(nbytes: int) -> None:
    added = frames.padding(nbytes)
    assert (nbytes + added) % 64 == 0
    assert 0 <= added < 64


def test_a_call_id_of_any_64_bits_survives_a_batch() -> None:
    """msgpack and the header both carry it."""
    payload = RawPayload(1, msgpack.packb(None), (), ())
    (frame,) = read(blob(frames.pack_execute([(2**64 - 1, payload)])))
    assert frames.unpack_execute(frame)[0][0].call_id == 2**64 - 1
