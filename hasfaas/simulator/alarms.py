"""When each slot does something next: a heap of slots, the soonest first, each in it at most once. Compiled.

Of two at one instant the lower slot comes first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hasfaas.simulator.records import World

Array = np.ndarray[Any, Any]


def schedule(world: World, index: int, at_ns: int) -> None:
    """The slot does something at `at_ns`, and at no other time."""
    slot, clock = world.slots[index], world.clock[0]
    slot.next_ns = at_ns
    if slot.heap_at < 0:
        slot.heap_at = clock.alarms
        clock.alarms += 1
    sift(world.slots, world.heap, clock.alarms, slot.heap_at, index)


def cancel(world: World, index: int) -> None:
    """The slot does nothing."""
    slot, clock = world.slots[index], world.clock[0]
    place = slot.heap_at
    if place < 0:
        return
    slot.heap_at = -1
    clock.alarms -= 1
    if place < clock.alarms:
        sift(world.slots, world.heap, clock.alarms, place, world.heap[clock.alarms])


def sift(slots: Array, heap: Array, size: int, place: int, index: int) -> None:
    """Puts `index` at `place` of the heap, or above or below it, where it belongs."""
    while place > 0 and sooner(slots, index, heap[(place - 1) // 2]):
        heap[place] = heap[(place - 1) // 2]
        slots[heap[place]].heap_at = place
        place = (place - 1) // 2
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and sooner(slots, heap[child + 1], heap[child]):
            child += 1
        if not sooner(slots, heap[child], index):
            break
        heap[place] = heap[child]
        slots[heap[place]].heap_at = place
        place = child
    heap[place] = index
    slots[index].heap_at = place


def sooner(slots: Array, one: int, other: int) -> bool:
    """Whether one slot comes before another."""
    if slots[one].next_ns != slots[other].next_ns:
        return bool(slots[one].next_ns < slots[other].next_ns)
    return one < other


STEPS = (sooner, sift, schedule, cancel)
