"""Learns how often each exponent of the SM law occurs, on the curves of the shared V100 table at full quota.

Source: KontonGu/RaPP (Apache-2.0, Copyright 2025 HAS-GPU Authors), `v100/v100_latency_sm_quota_batch.csv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasfaas.rapp import sm_law
from hasfaas.rapp.table import BATCHES, SM_PERCENTS, LatencyTable, read_table

Array = np.ndarray[Any, Any]
# (model, SM shares in %, latencies in ms)
Curve = tuple[str, Array, Array]
PSEUDO_COUNT = 2.0  # an exponent that did not occur stays possible
NOISES = (0.01, 0.02, 0.04)


def fit(data: Path) -> dict[str, Array]:
    """The prior from all curves in the folder of shared data: arrays `p`, `log_prior`, `noise`, for `SmPrior.from_arrays`."""
    return fit_curves(curves(read_table(data / "v100" / "v100_latency_sm_quota_batch.csv")))


def fit_curves(measured: Sequence[Curve]) -> dict[str, Array]:
    """The prior from these curves, and the noise with which three points of each predict its others best."""
    found = np.array([sm_law.fit(sm, latency).p for _, sm, latency in measured])
    counts = np.array([np.sum(found == p) for p in sm_law.P_GRID]) + PSEUDO_COUNT
    log_prior = np.log(counts / counts.sum())
    priors = [sm_law.SmPrior(sm_law.P_GRID, log_prior, noise) for noise in NOISES]
    means = [np.mean([error_from_three(curve, prior).mean() for curve in measured]) for prior in priors]
    return {"p": sm_law.P_GRID.copy(), "log_prior": log_prior, "noise": np.array([NOISES[int(np.argmin(means))]])}


def error_from_three(curve: Curve, prior: sm_law.SmPrior | None) -> Array:
    """The errors, in %, at the shares not probed. Probed: the lowest, the one at a third of the list, the highest."""
    _, sm, latency = curve
    probed = np.zeros(len(sm), bool)
    probed[[0, len(sm) // 3, -1]] = True
    law = sm_law.fit(sm[probed], latency[probed], prior)
    return np.asarray(100 * np.abs(law.latency_ms(sm[~probed]) / latency[~probed] - 1))


def curves(table: LatencyTable) -> list[Curve]:
    """One curve per model and batch at quota 100 %, of at least 4 shares."""
    shares = np.array(SM_PERCENTS, float)
    out = []
    for model in table.models():
        for latency in table.grid(model)[: len(BATCHES), :, -1]:
            known = np.isfinite(latency)
            if known.sum() >= 4:
                out.append((model, shares[known], latency[known]))
    return out
