"""A device's keeper as the agent's event loop sees it: one call at a time, each off the loop, in the order of asking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from hasfaas.devices.base import Condition, DeviceInfo, Keeper, Unkept

T = TypeVar("T")


class Kept:
    """One keeper. `acts` is false for a plain `Unkept`, of which there is nothing to wait for: then no call leaves the loop.
    A keeper that derives from it is asked like any other."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._turn = asyncio.Lock()
        self._open: set[int] = set()
        self.acts = type(keeper) is not Unkept

    async def start(self) -> DeviceInfo:
        """Makes the device ready."""
        return await self._do(self._keeper.start)

    async def open_lane(self, lane: int, units: tuple[int, ...]) -> None:
        """Sets the lane aside with its first replica; the others of that lane wait until it is. Raises PlacementError."""

        def opened() -> None:
            if lane not in self._open:
                self._keeper.open_lane(lane, units)
                self._open.add(lane)

        await self._do(opened)

    async def environment(self, lane: int, memory_bytes: int) -> Mapping[str, str | None]:
        """What a replica of an open lane must have in its environment."""
        return await self._do(lambda: self._keeper.environment(lane, memory_bytes))

    async def close_lane(self, lane: int) -> None:
        """Its last replica has gone."""

        def closed() -> None:
            if lane in self._open:
                self._open.discard(lane)
                self._keeper.close_lane(lane)

        await self._do(closed)

    async def before_kill(self, pid: int) -> None:
        """Ends a process's work on the device."""
        await self._do(lambda: self._keeper.before_kill(pid))

    async def check(self) -> Condition:
        """Looks at the device."""
        return await self._do(self._keeper.check)

    async def stop(self) -> None:
        """Takes back what `start` made."""
        await self._do(self._keeper.stop)

    async def _do(self, call: Callable[[], T]) -> T:
        if not self.acts:
            return call()
        async with self._turn:
            return await asyncio.to_thread(call)
