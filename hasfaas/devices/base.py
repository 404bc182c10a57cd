"""The seam between enforcement and an accelerator: four calls, an inventory, and what a replica must set before it starts.

Everything that meters, gates and re-sizes is written once, against `Stream`. A device that runs synchronously (a CPU)
records `None` events, which are always done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Protocol

import attrs

from hasfaas.core.errors import InvalidRequestError


@attrs.frozen
class DeviceInfo:
    """One device of this machine.

    `units` are its SMs (on a CPU its cores, by the kernel's numbers): a lane owns whole units, and a request is rounded
    up to them. `auto_sm_percent` is the partition given to a function that nobody has sized yet. `options` are the
    device's own settings, handed to the replica as they are.
    """

    device_id: str
    kind: str
    units: tuple[int, ...]
    memory_bytes: int
    auto_sm_percent: float = 100.0
    cold_start_s: float = 0.0
    options: Mapping[str, object] = attrs.field(factory=dict, hash=False)


@attrs.frozen
class DeviceSlice:
    """The part of a device that one replica may use: the units of its lane, and that lane's number."""

    device_id: str
    kind: str
    lane: int
    units: tuple[int, ...]
    sm_percent: float
    options: Mapping[str, object] = attrs.field(factory=dict, hash=False)


class Stream(Protocol):
    """An in-order queue of device work, owned by one replica. Events are opaque; `None` stands for "already done"."""

    def record(self) -> object | None:
        """An event that is done when all work launched so far is done."""
        ...

    def query(self, event: object | None) -> bool:
        """Whether the event is done. Never blocks."""
        ...

    def wait(self, event: object | None) -> None:
        """Blocks until the event is done."""
        ...

    def drain(self) -> None:
        """Blocks until all work launched so far is done."""
        ...

    def serve(self, function: str, batch: int, gate: Callable[[], None]) -> None:
        """Called inside the lease after the user's code ran. A real device does nothing; an emulated one launches the
        device time that the code would have taken, with a `gate` between kernels."""
        ...


class DeviceModule(Protocol):
    """What each file of this folder offers by name; `cuda` will be one more."""

    def enter(self, part: DeviceSlice) -> Stream:
        """Confines this process to `part`, before any compute library starts threads, and opens its stream."""
        ...


KINDS = ("cpu", "sim")


def enter(part: DeviceSlice) -> Stream:
    """Confines this process to its slice and opens its stream. The device's file is imported on this first use.

    Raises InvalidRequestError for a kind that does not exist, naming those that do.
    """
    if part.kind not in KINDS:
        raise InvalidRequestError(f"device kind {part.kind!r} is unknown; known kinds: {', '.join(KINDS)}")
    module: DeviceModule = import_module(f"hasfaas.devices.{part.kind}")
    return module.enter(part)
