"""A stand-in for CuPy. It is not CuPy, computes on no GPU, and proves nothing about one.

It has the calls that hasfaas makes, under CuPy's names, so that a whole replica process of kind "cuda" runs where there is
no GPU: put its parent folder first on PYTHONPATH (tests/fakes/standin_cupy.py says how). Streams are threads, kernels sleep,
arrays are numpy's. What MPS would grant, refuse or spoil comes from tests/fakes/mps_daemon.py. As in CuPy, nothing starts
before a call needs the device. `cupy.standin` is what a test program has to say to it.
"""

from __future__ import annotations

from typing import Any

from . import _core, cuda, standin
from ._arrays import array, asarray, asnumpy, empty, ndarray, zeros
from ._core import RawKernel, RawModule
from ._memory import MemoryPool, default_pool

__all__ = [
    "RawKernel",
    "RawModule",
    "_core",
    "array",
    "asarray",
    "asnumpy",
    "cuda",
    "empty",
    "get_default_memory_pool",
    "is_available",
    "ndarray",
    "standin",
    "zeros",
]
__version__ = "0.0+standin"


def get_default_memory_pool() -> MemoryPool:
    """The pool."""
    return default_pool


def is_available() -> bool:
    """There always is a device."""
    return True


def __getattr__(name: str) -> Any:
    raise AttributeError(f"this is a stand-in, tests/standins/cupy, and has no cupy.{name}: add it there")
