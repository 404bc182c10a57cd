"""What a gateway and a node agent tell each other, as values, and their form in CONTROL frames.

Law: no instant crosses from one host to the other, only durations and counts: clocks of two machines agree on nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from cattrs import BaseValidationError, Converter

from hasfaas.core.allocation import Usage
from hasfaas.core.errors import InvalidRequestError
from hasfaas.devices.base import Condition, DeviceInfo
from hasfaas.node.agent import Order
from hasfaas.wire import frames
from hasfaas.wire.frames import Buffer, Frame, FrameKind

# Of one message, either way.
MAX_HEAD_BYTES = 4 * 2**20
# Of one replica's log, in one message: a replica that writes more is followed at this rate.
LOG_PIECE_BYTES = 64 * 1024


@attrs.frozen
class Hello:
    """Gateway: from now on I am the one, in place of any of a lower generation; what runs for that is to end first. `python`
    is the interpreter that it names for functions of clients elsewhere: on each node hasfaas's own there."""

    generation: int
    node_id: str
    python: str
    beat_s: float
    lost_after_s: float


@attrs.frozen
class Welcome:
    """Agent: nothing of anybody runs here, and these are the devices. `descriptors` is the socket by which a process of this
    very node gets a replica's line, empty to one of another."""

    devices: tuple[DeviceInfo, ...]
    descriptors: str = ""


@attrs.frozen
class Superseded:
    """Agent: a gateway of a greater generation was here."""

    generation: int


@attrs.frozen
class Beat:
    """Gateway: a sign of life, which an agent returns as it is."""

    number: int


@attrs.frozen
class Bundle:
    """Gateway: the file of a bundle, in the frame's body."""

    sha256: str


@attrs.frozen
class CheckBundle:
    """Gateway: what keeps an interpreter from loading a bundle? Answered by `Answer` with the lines."""

    ask: int
    python: str
    packages: tuple[str, ...]
    sha256: str


@attrs.frozen
class Launch:
    """Gateway: fork a replica; the bundle's path is its name alone. Answered by `Answer` with the process's number."""

    ask: int
    order: Order


@attrs.frozen
class Answer:
    """Agent: what was asked has come to this, or to `status`, a google.rpc.Status."""

    ask: int
    pid: int = 0
    lines: tuple[str, ...] = ()
    status: bytes = b""


@attrs.frozen
class Quotas:
    """Gateway: new quotas in percent, in this order. `InForce` says when each replica has acted on its own."""

    number: int
    changes: tuple[tuple[str, float], ...]


@attrs.frozen
class Lend:
    """Gateway: whether a replica lends and borrows idle lane time."""

    replica_id: str
    lend: bool


@attrs.frozen
class Kill:
    """Gateway: end a replica."""

    replica_id: str


@attrs.frozen
class CloseNurseries:
    """Gateway: end the parents of a function's replicas."""

    function: str
    keep_version: str | None


@attrs.frozen
class BringLogs:
    """Gateway: tell all that replicas have printed so far. Answered by `Answer`, after the last piece."""

    ask: int


@attrs.frozen
class Goodbye:
    """Gateway: it ends; so is all that runs for it."""


@attrs.frozen
class Usages:
    """Agent: what replicas took so far, those alone of which it has changed."""

    by_replica: dict[str, Usage]


@attrs.frozen
class InForce:
    """Agent: a replica has acted on its quota of the message of that number."""

    replica_id: str
    number: int


@attrs.frozen
class Exited:
    """Agent: a replica's process has ended."""

    replica_id: str
    code: int | None


@attrs.frozen
class Found:
    """Agent: a device's health."""

    device_id: str
    condition: Condition


@attrs.frozen
class Log:
    """Agent: more of a replica's log, in the frame's body."""

    replica_id: str


Message = (
    Hello
    | Welcome
    | Superseded
    | Beat
    | Bundle
    | CheckBundle
    | Launch
    | Answer
    | Quotas
    | Lend
    | Kill
    | CloseNurseries
    | BringLogs
    | Goodbye
    | Usages
    | InForce
    | Exited
    | Found
    | Log
)
KINDS: Mapping[str, type[Any]] = {cls.__name__: cls for cls in Message.__args__}
# What is no message must not be taken for one: unknown fields are refused like missing ones.
_converter = Converter(forbid_extra_keys=True)
_converter.register_unstructure_hook(Path, lambda path: path.name)
_converter.register_structure_hook(Path, lambda name, _: Path(Path(name).name))
_converter.register_structure_hook(bytes, lambda value, _: bytes(value))
_converter.register_structure_hook_func(lambda cls: cls is object, lambda value, _: value)


def pack(message: Message, body: Buffer = b"") -> list[Buffer]:
    """The frame that carries a message."""
    head = (type(message).__name__, _converter.unstructure(message))
    return frames.pack(FrameKind.CONTROL, 0, head, (body,) if len(body) else ())


def unpack(frame: Frame) -> Message:
    """The message of a CONTROL frame. Raises InvalidRequestError where there is none."""
    match frame.head:
        case (str(name), dict(fields)) if name in KINDS:
            try:
                message: Message = _converter.structure(fields, KINDS[name])
            except (BaseValidationError, TypeError, ValueError) as exc:
                raise InvalidRequestError(f"a message {name} that is none: {exc}") from exc
            return message
    raise InvalidRequestError(f"a frame {frame.kind.name} without a message: {frame.head!r:.80}")
