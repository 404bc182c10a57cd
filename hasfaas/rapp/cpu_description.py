"""The description of this machine's CPU, measured on the spot: an edge, for it reads a clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.description import DeviceDescription

# Products of 64 x 64: OpenBLAS gives them one thread (up to 2^18 multiply-adds). A product over several threads waits for
# the slowest, which on a busy machine measures the neighbours (1 GFLOP/s in place of 200 was seen).
_SIDE, _STACK = 64, 64
_COPIED = 1 << 24  # elements of 4 bytes: 64 MiB, larger than most last-level caches
_BUDGET_S = 0.4  # for each of the two measurements
_L2_BYTES = 2.0**20  # of one core; not measured
_MEMORY_BYTES = 2.0**33  # no part of the roofline; not measured
_LAUNCH_S = 2e-6  # a torch operator on a few elements, by order of magnitude


def measure_cpu(cores: float) -> DeviceDescription:
    """Measures fp32 FLOP/s and bandwidth of this machine in under 2 s, and describes `cores` of its cores.

    One core is timed on small products and counted `cores` times: what the machine has if nothing else runs and its
    clock holds. The bandwidth is that of one core's copies, a lower bound of the machine's.
    `cores` stands for the SMs: the steps in which a share can be given. Raises InvalidRequestError
    (BAD_CORES) unless `cores` is at least 1.
    """
    if not cores >= 1:
        raise InvalidRequestError(f"cores={cores}: give the number of CPU cores, at least 1", reason="BAD_CORES")
    left = np.random.default_rng(0).standard_normal((_STACK, _SIDE, _SIDE)).astype(np.float32)
    product = np.empty_like(left)
    flops_per_s = int(cores) * 2.0 * _STACK * _SIDE**3 / _fastest_s(lambda: np.matmul(left, left, out=product))
    source = np.ones(_COPIED, np.float32)
    target = np.empty_like(source)
    bytes_per_s = 2.0 * source.nbytes / _fastest_s(lambda: np.copyto(target, source))
    return DeviceDescription(
        name="cpu",
        sms=int(cores),
        lanes_per_sm=8,
        fp32_flops_per_s=flops_per_s,
        tensor_flops_per_s=flops_per_s,
        bandwidth_bytes_per_s=bytes_per_s,
        l2_bytes=_L2_BYTES * int(cores),
        memory_bytes=_MEMORY_BYTES,
        launch_s=_LAUNCH_S,
        source="measured on this machine",
    )


def _fastest_s(run: Callable[[], object]) -> float:
    """The shortest of the runs that fit in the budget; two at least, of which the first warms up."""
    run()
    best, end = float("inf"), time.perf_counter() + _BUDGET_S
    while True:
        began = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - began)
        if now > end:
            return best
