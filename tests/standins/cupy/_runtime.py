"""The runtime API of the stand-in."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from ._machine import MEMORY_BYTES, CUDARuntimeError, machine

__all__ = ["CUDARuntimeError"]

cudaDevAttrMultiProcessorCount, cudaDevAttrL2CacheSize = 16, 38
streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = 0, 1, 2
events: WeakValueDictionary[int, Any] = WeakValueDictionary()


def driverGetVersion() -> int:
    return 13010


def runtimeGetVersion() -> int:
    return 12090


def getDevice() -> int:
    machine.start()
    return 0


def getDeviceCount() -> int:
    machine.start()
    return 1


def deviceGetAttribute(attribute: int, _device: int) -> int:
    machine.start()
    return {cudaDevAttrMultiProcessorCount: machine.sms, cudaDevAttrL2CacheSize: 4 << 20}[attribute]


def deviceSynchronize() -> None:
    machine.start()
    machine.must_not_capture()
    for queue in list(machine.queues.values()):
        queue.drain()
    machine.start()


def memGetInfo() -> tuple[int, int]:
    machine.start()
    total_bytes = min(machine.memory_bytes, MEMORY_BYTES)
    return total_bytes - machine.used_bytes, total_bytes


def malloc(size: int) -> int:
    return machine.allocate(size)


def free(pointer: int) -> None:
    machine.start()
    machine.free(pointer)


def streamSynchronize(pointer: int) -> None:
    queue = machine.queue(pointer)
    machine.must_not_capture()
    queue.drain()
    machine.start()


def streamIsCapturing(pointer: int) -> bool:
    return machine.queue(pointer).captured is not None


def eventRecord(event: int, stream: int) -> None:
    found = events[event]
    found.reached.clear()
    machine.queue(stream).put(0, found.reach)


def eventQuery(event: int) -> int:
    machine.start()
    machine.must_not_capture()
    return 0 if events[event].reached.is_set() else 600


def eventSynchronize(event: int) -> None:
    machine.start()
    machine.must_not_capture()
    events[event].reached.wait()
    machine.start()
