"""What gateway and node agents tell each other: every message survives its frame, and what is none is refused by name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import attrs
import pytest

from hasfaas.backends.cluster import messages as m
from hasfaas.core.allocation import Usage
from hasfaas.core.errors import InvalidRequestError
from hasfaas.devices.base import Condition, DeviceInfo, Health
from hasfaas.node.agent import Order, ReplicaRequest
from hasfaas.node.lanes import Placement, Want
from hasfaas.wire import frames
from hasfaas.wire.frames import Frame, FrameKind, FrameReader

DEVICE = DeviceInfo(
    "sim0",
    "sim",
    tuple(range(8)),
    2**34,
    fixed_lanes=((0, 1), (2,)),
    lane_percents=(25.0, 12.5),
    options={"profile": {"batches": (1, 2), "name": None}},
    facts={"driver": 1.5},
)
ORDER = Order(
    "f-1",
    ReplicaRequest(
        "f",
        "v",
        "python",
        ("numpy",),
        Path("abc.bundle"),
        b"\x00\xff",
        8,
        Want(2**30, "auto", 50.0, None, True, 1),
        True,
    ),
    Placement("sim0", 1, (1, 2), 25.0, 50.0, True, (("g-1", 2.0),)),
)
EACH = [
    m.Hello(3, "id", "/usr/bin/python", 0.5, 3.0),
    m.Welcome((DEVICE,), "/run/descriptors.sock"),
    m.Superseded(4),
    m.Beat(7),
    m.Bundle("ab" * 32),
    m.CheckBundle(1, "python", ("numpy",), "ab" * 32),
    m.Launch(2, ORDER),
    m.Answer(2, pid=5, lines=("a",), status=b"\x08\x05"),
    m.Quotas(3, (("f-1", 12.5), ("g-1", 50.0))),
    m.Lend("f-1", True),
    m.Kill("f-1"),
    m.CloseNurseries("f", None),
    m.BringLogs(9),
    m.Goodbye(),
    m.Usages({"f-1": Usage(quota_ppm=1, used_ns=2)}),
    m.InForce("f-1", 3),
    m.Exited("f-1", None),
    m.Found("sim0", Condition(Health.RECOVERING, "a fault", "wait", None)),
    m.Log("f-1"),
]


def through(message: m.Message, body: bytes = b"") -> Frame:
    reader, found = FrameReader(), []
    left = memoryview(b"".join(m.pack(message, body)))
    while left:
        room = reader.buffer()
        count = min(len(room), len(left))
        room[:count] = left[:count]
        left = left[count:]
        found += reader.advance(count)
    [frame] = found
    return frame


def test_every_kind_is_tried() -> None:
    assert {type(message).__name__ for message in EACH} == set(m.KINDS)


@pytest.mark.parametrize("message", EACH, ids=lambda message: type(message).__name__)
def test_a_message_survives_its_frame(message: m.Message) -> None:
    frame = through(message, b"body")
    assert m.unpack(frame) == message
    assert bytes(frame.body) == b"body"


def test_a_path_crosses_as_its_name_alone() -> None:
    order = attrs.evolve(ORDER, request=attrs.evolve(ORDER.request, bundle_path=Path("/var/lib/hasfaas/abc.bundle")))
    found = m.unpack(through(m.Launch(1, order)))
    assert isinstance(found, m.Launch)
    assert found.order.request.bundle_path == Path("abc.bundle")
    forged = Frame(FrameKind.CONTROL, 0, _with_bundle("../../etc/passwd"), b"")
    found = m.unpack(forged)
    assert isinstance(found, m.Launch)
    assert found.order.request.bundle_path == Path("passwd")


def _with_bundle(path: str) -> object:
    head: Any = through(m.Launch(1, ORDER)).head
    name, fields = head
    fields["order"]["request"]["bundle_path"] = path
    return name, fields


@pytest.mark.parametrize(
    "head",
    [
        None,
        "Beat",
        ("Beat",),
        ("Beat", {}),
        ("Beat", {"number": "seven"}),
        ("Beat", {"number": 1, "more": 2}),
        ("Nobody", {}),
        ("__class__", {}),
        ("Quotas", {"number": 1, "changes": ((1,),)}),
        ("Usages", {"by_replica": {"f": {"quota_ppm": "x"}}}),
    ],
    ids=repr,
)
def test_what_is_no_message_is_refused(head: object) -> None:
    with pytest.raises(InvalidRequestError, match="message"):
        m.unpack(Frame(FrameKind.CONTROL, 0, head, b""))


def _classes(kind: Any, seen: set[type]) -> set[type]:
    """All value classes that a message is made of."""
    if inspect.isclass(kind) and attrs.has(kind) and kind not in seen:
        seen.add(kind)
        attrs.resolve_types(kind)
        for field in attrs.fields(kind):
            _classes(field.type, seen)
    for argument in getattr(kind, "__args__", ()):
        _classes(argument, seen)
    return seen


def test_no_instant_crosses_from_host_to_host() -> None:
    """Durations and counts do. What names an instant here ends as the fields of instants do everywhere else."""
    seen: set[type] = set()
    for kind in m.KINDS.values():
        _classes(kind, seen)
    assert {Usage, DeviceInfo, Order, Want} <= seen
    names = {f"{cls.__name__}.{field.name}" for cls in seen for field in attrs.fields(cls)}
    instants = (
        "_at_s",
        "at_ns",
        "_at",
        "now_s",
        "now_ns",
        "since_s",
        "deadline_s",
        "asked_s",
        "arrived_s",
        "expires_s",
    )
    assert not [name for name in names if name.endswith(instants)]
    durations = {name for name in names if name.endswith(("_s", "_ms", "_ns"))}
    assert durations == {
        "Hello.beat_s",
        "Hello.lost_after_s",
        "DeviceInfo.cold_start_s",
        *(f"Usage.{field.name}" for field in attrs.fields(Usage) if field.name.endswith("_ns")),
    }


def test_frames_of_data_lines_hold_no_instant_either() -> None:
    head = frames.unpack_execute(_read(frames.pack_execute([(1, frames.RawPayload(1, b"h", (3,), (b"abc",)))])))[0][0]
    assert {field.name for field in attrs.fields(type(head))} == {
        "call_id",
        "codec",
        "head",
        "sizes",
        "blob_bytes",
        "segment",
        "replies_in_segments",
    }


def _read(pieces: list[Any]) -> Frame:
    reader = FrameReader()
    data = b"".join(pieces)
    reader.buffer()[: len(data)] = data
    [frame] = reader.advance(len(data))
    return frame
