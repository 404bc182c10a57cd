"""The kernels that checks launch: one that takes a given time, one that does a given work, one that is a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hasfaas.devices import kernels

OPTIONS = ("--std=c++17",)
NAMES = ("spin", "illegal")
SOURCE = r"""
extern "C" {

// Takes `ns` nanoseconds, whatever else runs.
__global__ void spin(long long ns) {
    long long began, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(began));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - began < ns);
}

// Writes where nothing is: an illegal address.
__global__ void illegal(long long address) {
    *(volatile int*)address = 1;
}

}
"""

WORK_BLOCKS = 4096
"""Many times what any GPU holds at once: the time of a `work` goes with one over the SMs."""


def spin() -> Callable[[int], None]:
    """A launch that occupies the current stream for so many nanoseconds."""
    import numpy

    kernel = _module(SOURCE).get_function("spin")
    return lambda ns: kernel((1,), (1,), (numpy.int64(ns),))


def illegal() -> Callable[[], None]:
    """A launch that ends this process's use of the device."""
    import numpy

    kernel = _module(SOURCE).get_function("illegal")
    return lambda: kernel((1,), (1,), (numpy.int64(64),))


def work() -> Callable[[int], None]:
    """A launch of WORK_BLOCKS blocks with so many rounds of multiply-adds each."""
    import cupy
    import numpy

    kernel = cupy.RawModule(code=kernels.SOURCE, options=kernels.OPTIONS).get_function("multiply_add")
    out = cupy.empty(WORK_BLOCKS * kernels.THREADS, dtype=numpy.float32)
    half, one = numpy.float32(0.5), numpy.float32(1.0)
    return lambda rounds: kernel((WORK_BLOCKS,), (kernels.THREADS,), (out, half, one, numpy.int32(rounds)))


def _module(source: str) -> Any:
    import cupy

    return cupy.RawModule(code=source, options=OPTIONS)
