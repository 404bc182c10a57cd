"""How arguments and results become bytes: a small head, and large buffers that travel beside it uncopied.

`encode` writes PLAIN whenever the value is made of plain values, arrays and tensors, else PICKLE5. Whoever
only forwards a payload never looks inside. Reading PLAIN never unpickles; reading PICKLE5 needs
`allow_pickle=True`, which only a replica, or a caller that trusts its gateway, may say.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import attrs

from hasfaas.core.errors import SerializationError
from hasfaas.wire.pickle_path import describe
from hasfaas.wire.pickled import decode_pickled, encode_pickled
from hasfaas.wire.plain import NotPlainError, decode_plain, encode_plain
from hasfaas.wire.tensors import Buffer

# A cache line, and more than any dtype asks for: tensors can be views wherever the blob itself is aligned.
ALIGN_BYTES = 64
_PADDING = bytes(ALIGN_BYTES)
# A head travels in one message and is parsed at once; buffers have no such limit.
MAX_HEAD_BYTES = 64 * 2**20


class Codec(enum.IntEnum):
    """How a head is written. The numbers are those of the wire, where 0 is unspecified."""

    PLAIN = 1
    PICKLE5 = 2


@attrs.frozen
class Payload:
    """One encoded value. Its buffers share memory with the value: do not change that before it is sent."""

    codec: Codec
    head: bytes
    buffers: tuple[Buffer, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """The size of each buffer in bytes, without padding."""
        return tuple(memoryview(buffer).nbytes for buffer in self.buffers)

    @property
    def nbytes(self) -> int:
        """Head and buffers, without padding."""
        return len(self.head) + sum(self.lengths)


def encode(value: object, *, name: str = "value") -> Payload:
    """The value as a payload.

    Raises SerializationError, which names what cannot be sent by a path that starts with `name`.
    """
    return _encode(value, {name: value})


def encode_arguments(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Payload:
    """The arguments of a call, as the payload of (args, kwargs). Errors read `args[0].model.lock: ...`."""
    keywords = dict(kwargs)
    return _encode((args, keywords), {"args": args, "kwargs": keywords})


def decode(payload: Payload, *, allow_pickle: bool) -> object:
    """The value. Arrays are views on the payload's buffers, writable where the buffer is.

    Tensors too, but a tensor from a read-only buffer is a copy. Raises SerializationError for whatever cannot
    be rebuilt, with the reason as its cause.
    """
    if payload.codec is Codec.PICKLE5 and not allow_pickle:
        raise SerializationError(
            "the payload is a pickle and pickles are not accepted here; send plain values, lists, dicts, "
            "numpy arrays or torch tensors, or allow pickles where the sender is trusted"
        )
    read = decode_pickled if payload.codec is Codec.PICKLE5 else decode_plain
    try:
        return read(payload.head, payload.buffers)
    except (MemoryError, SerializationError):
        raise
    except Exception as exc:
        raise SerializationError(
            f"the {payload.codec.name} payload cannot be rebuilt: {type(exc).__name__}: {describe(exc)}"
        ) from exc


def decode_arguments(payload: Payload, *, allow_pickle: bool) -> tuple[tuple[object, ...], dict[str, object]]:
    """The pair (args, kwargs) that `encode_arguments` wrote. Raises SerializationError for anything else."""
    match decode(payload, allow_pickle=allow_pickle):
        case (tuple() as args, dict() as kwargs) if all(isinstance(key, str) for key in kwargs):
            return args, kwargs
        case other:
            raise SerializationError(
                f"a call's payload holds (args, kwargs), not {type(other).__name__}; use encode_arguments"
            )


def segments(payload: Payload) -> list[Buffer]:
    """What to write, in this order, for one blob of all buffers, each starting at a multiple of 64 bytes."""
    pieces: list[Buffer] = []
    end = 0
    for buffer, start, size in zip(payload.buffers, _starts(payload.lengths), payload.lengths, strict=True):
        if start > end and size:
            pieces.append(_PADDING[: start - end])
        if size:
            pieces.append(buffer)
            end = start + size
    return pieces


def blob_bytes(sizes: Sequence[int]) -> int:
    """The length of the blob that `segments` makes of buffers of these sizes, padding included."""
    return max((start + size for start, size in zip(_starts(sizes), sizes, strict=True) if size), default=0)


def from_bytes(codec: int, head: bytes, sizes: Sequence[int], blob: Buffer) -> Payload:
    """The payload whose buffers lie in `blob` as `segments` wrote them, sliced without a copy.

    Raises SerializationError if the sizes do not fit the blob, or nobody knows the codec.
    """
    if codec not in tuple(Codec):
        raise SerializationError(f"payload codec {codec} is unknown; known: {', '.join(map(str, Codec))}")
    view = memoryview(blob).cast("B")
    if any(size < 0 for size in sizes) or blob_bytes(sizes) != view.nbytes:
        raise SerializationError(
            f"buffers of {list(sizes)[:8]} bytes need a blob of {blob_bytes(sizes)} bytes, not {view.nbytes}"
        )
    buffers = tuple(view[start : start + size] for start, size in zip(_starts(sizes), sizes, strict=True))
    return Payload(Codec(codec), bytes(head), buffers)


def _encode(value: object, roots: Mapping[str, object]) -> Payload:
    try:
        payload = Payload(Codec.PLAIN, *encode_plain(value))
    except NotPlainError:
        payload = Payload(Codec.PICKLE5, *encode_pickled(value, roots))
    if len(payload.head) > MAX_HEAD_BYTES:
        raise SerializationError(
            f"{', '.join(roots)}: {len(payload.head) >> 20} MiB lie in lists, dicts and objects, and at most "
            f"{MAX_HEAD_BYTES >> 20} MiB may; send large data as numpy arrays, torch tensors or bytes, which travel beside",
            reason="PAYLOAD_TOO_LARGE",
        )
    return payload


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where each buffer starts: at the next multiple of 64 after the last one. An empty one takes no room."""
    starts = []
    end = 0
    for size in sizes:
        start = end + -end % ALIGN_BYTES
        starts.append(start)
        end = start + size if size else end
    return starts
