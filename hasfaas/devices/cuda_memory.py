"""The polite limit on a GPU's memory: an error of the library that allocates, before MPS refuses the process.

MPS is the wall (`CUDA_MPS_PINNED_DEVICE_MEM_LIMIT`, which the node agent sets); it counts everything the process has, the
CUDA context too. The libraries know of their own allocations only, so they are given the rest. There is one allocator: CuPy
takes its memory from torch where torch is there, so that what one of them frees the other can use.
"""

from __future__ import annotations

from typing import Any

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.memory import format_memory

# What a CUDA context with lazily loaded kernels takes, about (pytorch/pytorch#107667: CUDA 11.7 and later; #20532). It
# differs by GPU and driver: where it is larger, MPS refuses instead of the library.
CONTEXT_BYTES = 300 << 20


def usable_bytes(function_bytes: int) -> int:
    """What is left for arrays of the memory that a function was granted. Raises InvalidRequestError where nothing is."""
    left = function_bytes - CONTEXT_BYTES
    if left <= 0:
        asked = format_memory(function_bytes) if function_bytes else "none"
        raise InvalidRequestError(
            f"memory={asked} leaves nothing on a GPU, where the CUDA context alone takes about "
            f"{format_memory(CONTEXT_BYTES)}: give the function more, @function(memory=...)",
            reason="MEMORY_TOO_SMALL",
        )
    return left


def limit_cupy(cupy: Any, limit_bytes: int) -> None:
    """Bounds CuPy's own pool: what holds as long as torch is not there."""
    cupy.get_default_memory_pool().set_limit(size=limit_bytes)


def share_with_torch(cupy: Any, torch: Any, limit_bytes: int) -> None:
    """Bounds torch's allocator, and has CuPy allocate from it from now on. What CuPy holds already is subtracted.

    torch counts in shares of a total: older ones of what `cudaMemGetInfo` says, newer ones of the device's properties. Under
    MPS either may be the process's limit or the whole device. The smaller one is taken: torch is then never bounded below the
    limit, and where it is bounded above, MPS refuses instead.
    """
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    _, told_bytes = cupy.cuda.runtime.memGetInfo()
    total_bytes = min(told_bytes, torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    left_bytes = max(limit_bytes - pool.total_bytes(), 0)
    torch.cuda.set_per_process_memory_fraction(min(left_bytes / total_bytes, 1.0))

    def allocate(size_bytes: int, device: int) -> int:
        # On CuPy's stream: freed, it may be used again by work that is queued there.
        pointer: int = torch.cuda.caching_allocator_alloc(size_bytes, device, cupy.cuda.get_current_stream().ptr)
        return pointer

    def free(pointer: int, _device: int) -> None:
        torch.cuda.caching_allocator_delete(pointer)

    cupy.cuda.set_allocator(cupy.cuda.PythonFunctionAllocator(allocate, free).malloc)
