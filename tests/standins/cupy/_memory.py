"""Memory of the stand-in: a pool with a limit, as CuPy's, and allocators of one's own."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from ._machine import CUDARuntimeError, machine


class OutOfMemoryError(MemoryError):
    """The pool's limit, or the device's."""


class MemoryPointer:
    """An allocation, freed with this."""

    host: Any

    def __init__(self, ptr: int, free: Callable[[], None]) -> None:
        self.ptr = ptr
        weakref.finalize(self, free).atexit = False

    def memset(self, value: int, size: int) -> None:
        """Fills bytes."""
        self.host.view("u1")[:size] = value


class MemoryPool:
    """Counts what is used, and refuses more than its limit. What is freed goes back to the device."""

    def __init__(self) -> None:
        self._limit = 0
        self._used = 0

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        """0 is none. As in CuPy this starts CUDA."""
        machine.start()
        self._limit = size or 0

    def get_limit(self) -> int:
        """As set."""
        return self._limit

    def total_bytes(self) -> int:
        """Held of the device."""
        return self._used

    used_bytes = total_bytes

    def free_all_blocks(self) -> None:
        """There are none."""

    def malloc(self, size: int) -> MemoryPointer:
        """An allocation. Raises OutOfMemoryError."""
        if self._limit and self._used + size > self._limit:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (limit set to: {self._limit:,} bytes).")
        try:
            pointer = machine.allocate(size)
        except CUDARuntimeError as exc:
            if exc.status != 2:
                raise
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes.") from exc
        self._used += size

        def free() -> None:
            self._used -= size
            machine.free(pointer)

        return MemoryPointer(pointer, free)


class PythonFunctionAllocator:
    """An allocator made of two functions."""

    def __init__(self, malloc_func: Callable[[int, int], int], free_func: Callable[[int, int], None]) -> None:
        self._malloc, self._free = malloc_func, free_func

    def malloc(self, size: int) -> MemoryPointer:
        """An allocation."""
        pointer = self._malloc(size, 0)
        return MemoryPointer(pointer, lambda: self._free(pointer, 0))


default_pool = MemoryPool()
_allocator: list[Callable[[int], MemoryPointer]] = [default_pool.malloc]


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    """What arrays are allocated by."""
    _allocator[:] = [allocator or default_pool.malloc]


def alloc(size: int) -> MemoryPointer:
    """By the current allocator."""
    return _allocator[0](size)
