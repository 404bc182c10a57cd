"""Memory on the GPU: the wall that MPS is, the polite errors before it, and one allocator for torch and CuPy.

Each check is `python -m benchmarks.gpu_process benchmarks.gpu_memory:NAME`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attrs

from benchmarks import gpu_kernels
from benchmarks.gpu_box import Box, Client, box, clients, needs_torch
from benchmarks.gpu_client import Seat
from benchmarks.gpu_sheet import Sheet
from hasfaas.devices.base import Failure

MIB = 1 << 20
LIMIT_BYTES = 2048 * MIB
STEP_BYTES = 64 * MIB
# A CUDA context with its libraries is a part of the limit; 300 MiB are typical.
CONTEXT_BYTES = 1024 * MIB
ARRAY_BYTES = 256 * MIB
RUNS = 200


@attrs.frozen
class Filled:
    """How far allocations went, what refused the next (its type and what the stream makes of it; None: nothing did), and
    whether the process could go on."""

    bytes: int
    error: str | None
    failure: Failure | None
    goes_on: bool


def filled(seat: Seat, most_bytes: int) -> None:
    """Tells a `Filled` for torch, for CuPy, and for CUDA's own allocation, one after the other."""
    import cupy
    import torch

    def of_torch() -> object:
        return torch.empty(STEP_BYTES, dtype=torch.uint8, device="cuda")

    def of_cupy() -> object:
        return cupy.empty(STEP_BYTES, dtype="u1")

    spin = gpu_kernels.spin()
    for allocate, give_back in (
        (of_torch, lambda held: held.clear()),
        (of_cupy, lambda held: held.clear()),
        (lambda: cupy.cuda.runtime.malloc(STEP_BYTES), lambda held: [cupy.cuda.runtime.free(p) for p in held]),
    ):
        seat.say(_fill(seat, allocate, give_back, most_bytes, spin))
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()


def _fill(
    seat: Seat,
    allocate: Callable[[], object],
    give_back: Callable[[list[Any]], object],
    most_bytes: int,
    spin: Callable[[int], None],
) -> Filled:
    held: list[Any] = []
    error, failure = None, None
    try:
        while len(held) * STEP_BYTES < most_bytes:
            held.append(allocate())
    except Exception as exc:
        error, failure = type(exc).__name__, seat.stream.failure(exc)
    size = len(held) * STEP_BYTES
    give_back(held)
    held.clear()
    try:
        spin(1000)
        seat.stream.drain()
    except Exception:
        return Filled(size, error, failure, False)
    return Filled(size, error, failure, True)


def wall(sheet: Sheet) -> None:
    """A replica of 2 GiB: torch, CuPy and CUDA itself refuse within it, all are the one memory error, and it goes on."""
    needs_torch()
    with box(sheet) as home:
        client = Client(home, filled, 2 * LIMIT_BYTES, memory_bytes=LIMIT_BYTES)
        with clients(client):
            for name in ("torch", "CuPy", "cudaMalloc"):
                found: Filled = client.heard()
                if name == "cudaMalloc" and home.partitions == "none":
                    sheet.remark("without MPS there is no wall: cudaMalloc is not bounded")
                    continue
                least, most = (LIMIT_BYTES - CONTEXT_BYTES) / MIB, LIMIT_BYTES / MIB
                given = found.bytes / MIB
                sheet.figure(f"{name}: given of 2048 MiB", given, "MiB", least=least, most=most, note=found.error or "")
                sheet.claim(f"{name}: its error is the memory error", found.failure is Failure.MEMORY)
                sheet.claim(f"{name}: the process goes on", found.goes_on)


def shared(seat: Seat) -> None:
    """Tells what torch counts for an array of CuPy's, before, while and after it is there; and whether arrays cross without a
    copy in both directions, with the us that a crossing takes."""
    import cupy
    import torch

    torch.zeros(1, device="cuda")
    counts = [torch.cuda.memory_allocated()]
    array = cupy.empty(ARRAY_BYTES, dtype="u1")
    array.data.memset(1, array.nbytes)  # needs no kernel of CuPy's, and so no compiler
    seat.stream.drain()  # it is on the null stream, for which ours does not wait
    counts.append(torch.cuda.memory_allocated())
    tensor = torch.utils.dlpack.from_dlpack(array)
    there = tensor.data_ptr() == array.data.ptr
    tensor.fill_(7)
    back = cupy.from_dlpack(tensor)
    there_and_back = back.data.ptr == array.data.ptr
    seen = int(array[-1:].get()[0]) == 7  # one stream for both: nothing was waited for
    began_ns = time.perf_counter_ns()
    for _ in range(RUNS):
        torch.utils.dlpack.from_dlpack(array)
    crossing_us = (time.perf_counter_ns() - began_ns) / RUNS / 1e3
    del tensor, array, back
    counts.append(torch.cuda.memory_allocated())
    seat.say((counts, there and there_and_back, seen, crossing_us))


def allocator(sheet: Sheet) -> None:
    """CuPy takes its memory from torch's allocator and gives it back there; arrays cross by DLPack without a copy, in the
    order of one stream."""
    needs_torch()
    with box(sheet) as home:
        allocated(sheet, home)


def allocated(sheet: Sheet, home: Box) -> None:
    """The same in an open box."""
    client = Client(home, shared)
    with clients(client):
        (before, during, after), same, ordered, crossing_us = client.heard()
    taken, kept = (during - before) / MIB, (after - before) / MIB
    size = ARRAY_BYTES / MIB
    sheet.figure("torch counts for 256 MiB of CuPy's", taken, "MiB", least=size, most=size + 4)
    sheet.figure("torch counts when they are gone", kept, "MiB", most=1.0)
    sheet.claim("arrays cross without a copy, both ways", same)
    sheet.claim("what torch wrote is what CuPy reads next", ordered)
    sheet.figure("a crossing by DLPack", crossing_us, "us")
