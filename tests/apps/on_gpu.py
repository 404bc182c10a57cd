"""Functions for a cuda device. In a test's replica `cupy` is the stand-in of tests/standins."""

import os
import time

import cupy

import hasfaas
from hasfaas import function

LIMITS = {"memory": "2GiB", "device": "cuda", "timeout_s": 30}


@function(slo_ms=500, idempotent=True, **LIMITS)
def granted():
    """What this replica was given, as it sees it: CUDA's variables, its SMs, its process."""
    seen = {name: value for name, value in os.environ.items() if name.startswith(("CUDA_MPS_", "CUDA_VISIBLE"))}
    return seen, cupy.standin.sms(), os.getpid()


@function(slo_ms=500, idempotent=True, **LIMITS)
def kernels(count=20, each_ms=1.0):
    """Launches device time, and gates as code does that has no torch modules."""
    for _ in range(count):
        cupy.standin.launch(each_ms)
        hasfaas.gate()
    return os.getpid()


@function(slo_ms=500, **LIMITS)
def greedy(gib):
    """Takes device memory."""
    cupy.standin.allocate(int(gib * 2**30))
    return os.getpid()


@function(slo_ms=500, **LIMITS)
def array():
    """An array that lies on the device."""
    return {"x": cupy.asarray([1.0, 2.0, 3.0])}


@function(slo_ms=500, **LIMITS)
def faulty():
    """Does what a kernel must not."""
    cupy.standin.fault()
    cupy.cuda.runtime.deviceSynchronize()


@function(slo_ms=500, **LIMITS)
def stuck():
    """Never comes back."""
    while True:
        time.sleep(1.0)
