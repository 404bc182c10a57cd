"""What HAS-GPU takes a pod to be capable of (has-gpu reference, 5.2 and 5.3).

    cap = 1000 / (latency_ms + 70) x (batch + 1) / 2        requests per second

70 ms are pre-processing and HTTP, (batch + 1) / 2 the mean fill of a batch. The latency is that of a saturated replica on
our lanes, t / q: the published one came from RaPP, on launch-gated quotas.
"""

from __future__ import annotations

import itertools

from hasfaas.rapp.surface import Surface
from hasfaas.scaling.baselines.slices import Slice, hold_ms

PREPROCESSING_MS = 70.0
DEFAULT_BATCH, SHUFFLENET_BATCH = 4, 8
DEFAULT_SM_PERCENT = DEFAULT_QUOTA_PERCENT = 30.0
EFFICIENT_LEAST_RPS = 35.0
SM_PERCENTS = tuple(range(5, 101, 5))
QUOTA_PERCENTS = tuple(range(10, 101, 10))


def pod_rps(surface: Surface, portion: Slice) -> float:
    """Capacity of one pod; 0 without quota."""
    if portion.quota_percent <= 0.0:
        return 0.0
    latency_ms = hold_ms(surface, portion.batch, portion.sm_percent) * 100.0 / portion.quota_percent
    return 1e3 / (latency_ms + PREPROCESSING_MS) * (portion.batch + 1) / 2.0


def model_batch(name: str, batch_max: int) -> int:
    """The batch that HAS-GPU starts this model with, as far as the function allows it."""
    return max(1, min(SHUFFLENET_BATCH if "shufflenet" in name.lower() else DEFAULT_BATCH, batch_max))


def default_slice(batch: int) -> Slice:
    """The first configuration of every pod."""
    return Slice(DEFAULT_SM_PERCENT, DEFAULT_QUOTA_PERCENT, batch)


def efficient_slice(surface: Surface, batch: int) -> Slice:
    """The most capacity per sm x quota of at least 35 rps; the default where none has that, which by the formula is always so
    for batches of 4 and latencies above 1.4 ms (defect 7)."""
    grid = (Slice(float(sm), float(q), batch) for sm, q in itertools.product(SM_PERCENTS, QUOTA_PERCENTS))
    enough = [portion for portion in grid if pod_rps(surface, portion) >= EFFICIENT_LEAST_RPS]
    return max(enough, key=lambda s: pod_rps(surface, s) / s.area, default=default_slice(batch))


def empty_row_sm_percent(name: str, gap_rps: float) -> float:
    """The SM share that the published code gives a new row, by the model's name and how much is missing."""
    lowered = name.lower()
    for model, bound_rps, large, small in (
        ("resnet", 25.0, 50.0, 30.0),
        ("bert", 30.0, 70.0, 50.0),
        ("convnext", 30.0, 70.0, 30.0),
        ("mobilenet", 40.0, 70.0, 30.0),
    ):
        if model in lowered:
            return large if gap_rps > bound_rps else small
    return 80.0 if "gpt" in lowered else 50.0
