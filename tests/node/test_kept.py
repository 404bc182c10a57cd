"""A keeper's calls leave the event loop one at a time, in the order of asking."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping

import attrs
import pytest

from hasfaas.core.errors import PlacementError
from hasfaas.devices.base import NO_GPU, Condition, DeviceInfo, Health, Unkept
from hasfaas.node.kept import Kept

INFO = DeviceInfo("d", "any", (0, 1), 2**30)


@attrs.define(eq=False)
class RecordingKeeper:
    """Remembers what it was told, and that no two calls overlapped."""

    told: list[object] = attrs.field(factory=list)
    refuse: bool = False
    threads: set[int] = attrs.field(factory=set)
    inside: int = 0

    def _tell(self, *what: object) -> None:
        self.inside += 1
        assert self.inside == 1, "two calls at once"
        self.threads.add(threading.get_ident())
        time.sleep(0.002)
        self.told.append(what)
        self.inside -= 1

    def start(self) -> DeviceInfo:
        self._tell("start")
        return INFO

    def open_lane(self, lane: int, units: tuple[int, ...]) -> None:
        self._tell("open", lane, units)
        if self.refuse:
            raise PlacementError("no such partition")

    def environment(self, lane: int, memory_bytes: int) -> Mapping[str, str | None]:
        return {"LANE": str(lane), "GONE": None}

    def close_lane(self, lane: int) -> None:
        self._tell("close", lane)

    def before_kill(self, pid: int) -> None:
        self._tell("before_kill", pid)

    def check(self) -> Condition:
        self._tell("check")
        return Condition(Health.LOST, "unplugged")

    def stop(self) -> None:
        self._tell("stop")


async def test_a_lane_is_opened_once_and_closed_once() -> None:
    keeper = RecordingKeeper()
    kept = Kept(keeper)
    assert kept.acts
    assert await kept.start() == INFO
    await asyncio.gather(*(kept.open_lane(1, (0,)) for _ in range(5)))
    assert dict(await kept.environment(1, 5)) == {"LANE": "1", "GONE": None}
    await kept.close_lane(1)
    await kept.close_lane(1)
    await kept.open_lane(1, (0, 1))
    assert keeper.told == [("start",), ("open", 1, (0,)), ("close", 1), ("open", 1, (0, 1))]
    assert threading.get_ident() not in keeper.threads


async def test_calls_keep_their_order_and_never_overlap() -> None:
    keeper = RecordingKeeper()
    kept = Kept(keeper)
    conditions = await asyncio.gather(
        kept.check(), kept.before_kill(7), kept.open_lane(0, (0,)), kept.close_lane(0), kept.stop()
    )
    assert keeper.told == [("check",), ("before_kill", 7), ("open", 0, (0,)), ("close", 0), ("stop",)]
    assert conditions[0] == Condition(Health.LOST, "unplugged")


async def test_a_lane_that_was_refused_is_asked_for_again_and_never_closed() -> None:
    keeper = RecordingKeeper(refuse=True)
    kept = Kept(keeper)
    for _ in range(2):
        with pytest.raises(PlacementError):
            await kept.open_lane(0, (0,))
    await kept.close_lane(0)
    assert keeper.told == [("open", 0, (0,))] * 2


async def test_a_device_that_needs_no_care_never_leaves_the_loop() -> None:
    kept = Kept(Unkept(INFO))
    assert not kept.acts
    await kept.open_lane(0, (0,))
    assert await kept.environment(0, 5) == NO_GPU
    assert await kept.check() == Condition()
    assert await kept.start() is INFO


async def test_a_keeper_that_derives_from_it_is_asked_like_any_other() -> None:
    class Watchful(Unkept):
        def check(self) -> Condition:
            return Condition(Health.LOST, "unplugged")

    assert (await Kept(Watchful(INFO)).check()).health is Health.LOST
