"""A device in one file, for tests: its stream is a thread. Copied to where devices are looked for, it is one of them."""

from __future__ import annotations

from collections.abc import Sequence

from hasfaas.devices.base import DeviceInfo, DeviceRequest, DeviceSlice, Stream, Unkept
from tests.fakes.async_stream import AsyncStream

UNITS = 4


class ThreadStream(AsyncStream):
    """An asynchronous stream that tells its share."""

    def __init__(self, granted_percent: float) -> None:
        super().__init__()
        self._granted_percent = granted_percent

    @property
    def granted_percent(self) -> float | None:
        """As its lane has it."""
        return self._granted_percent


keeper = Unkept


def inventory(request: DeviceRequest) -> Sequence[DeviceInfo]:
    """As many as are asked for."""
    request.only("threads")
    memory_bytes = request.memory_bytes or 1 << 30
    return [DeviceInfo("", "threads", tuple(range(UNITS)), memory_bytes) for _ in range(request.count or 1)]


def wall(memory_bytes: int) -> None:
    """None."""


def enter(part: DeviceSlice) -> Stream:
    """The stream."""
    return ThreadStream(100.0 * len(part.units) / UNITS)
