"""One overhead a model, fitted on some runs and judged on others: arithmetic on latencies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

Array = np.ndarray[Any, Any]

SLO_MS = 200.0
# What counts as reproduced (issue 5).
PERCENTILES_WITHIN = 0.20
VIOLATIONS_WITHIN_POINTS = 3.0
OVERHEADS_MS = tuple(float(value) for value in range(151))
SPREADS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
# A run that is off by more than a factor of two says nothing about the overhead, so it pulls no harder than this.
_MOST = np.log(2.0)


@attrs.frozen
class Figures:
    """Of one run: percentiles in ms over all calls, and the percentage that took over 200 ms or failed."""

    p50_ms: float
    p95_ms: float
    over_percent: float


@attrs.frozen(eq=False)
class Sample:
    """One run, measured and simulated. `latency_ms` is the simulated one without the overhead."""

    name: str
    model: str
    measured: Figures
    latency_ms: Array


@attrs.frozen
class Fit:
    """`overhead_ms` by model, in the median of calls; `spread` is the standard deviation of its logarithm, for all models."""

    overhead_ms: Mapping[str, float]
    spread: float


def figures(latency_ms: Array, failed: Array | None = None) -> Figures:
    """The figures of all calls; one that failed is a violation however fast it did."""
    over = latency_ms > SLO_MS if failed is None else (latency_ms > SLO_MS) | failed
    p50_ms, p95_ms = np.percentile(latency_ms, [50.0, 95.0])
    return Figures(float(p50_ms), float(p95_ms), 100.0 * float(np.mean(over)))


def simulated(sample: Sample, fit: Fit) -> Figures:
    """The figures with the overhead, which is drawn for each call."""
    return _figures(sample, fit.overhead_ms[sample.model], _factors(sample, fit.spread))


def passes(found: Figures, measured: Figures) -> tuple[bool, bool, bool]:
    """Whether (p50, p95, violations) are within the bounds."""
    return (
        abs(found.p50_ms / measured.p50_ms - 1.0) <= PERCENTILES_WITHIN,
        abs(found.p95_ms / measured.p95_ms - 1.0) <= PERCENTILES_WITHIN,
        abs(found.over_percent - measured.over_percent) <= VIOLATIONS_WITHIN_POINTS,
    )


def halves(samples: Iterable[Sample]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(fitted, judged): of each model's runs, in the order of their names, the first, the third ... and the others."""
    by_model: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.name):
        by_model.setdefault(sample.model, []).append(sample)
    return (
        tuple(sample for runs in by_model.values() for sample in runs[::2]),
        tuple(sample for runs in by_model.values() for sample in runs[1::2]),
    )


def fitted(samples: Sequence[Sample]) -> Fit:
    """The least sum of |ln(simulated / measured)| of p50 and p95, each at most ln 2, over `OVERHEADS_MS` and `SPREADS`."""
    best: tuple[float, Fit] | None = None
    models = sorted({sample.model for sample in samples})
    for spread in SPREADS:
        chosen = {model: _overhead([s for s in samples if s.model == model], spread) for model in models}
        miss = sum(miss for miss, _ in chosen.values())
        if best is None or miss < best[0]:
            best = miss, Fit({model: overhead_ms for model, (_, overhead_ms) in chosen.items()}, spread)
    assert best is not None, "SPREADS is not empty"
    return best[1]


def _overhead(samples: Sequence[Sample], spread: float) -> tuple[float, float]:
    """(the miss, the overhead in ms that has it)."""
    factors = [_factors(s, spread) for s in samples]
    return min(
        (sum(_miss(_figures(s, at_ms, f), s.measured) for s, f in zip(samples, factors, strict=True)), at_ms)
        for at_ms in OVERHEADS_MS
    )


def _factors(sample: Sample, spread: float) -> Array:
    """By what each call's overhead differs from the median: the same draws whatever is fitted."""
    return np.asarray(np.exp(spread * np.random.default_rng(0).standard_normal(len(sample.latency_ms))))


def _figures(sample: Sample, overhead_ms: float, factors: Array) -> Figures:
    return figures(sample.latency_ms + overhead_ms * factors)


def _miss(found: Figures, measured: Figures) -> float:
    return sum(
        min(float(_MOST), abs(float(np.log(a / b))))
        for a, b in ((found.p50_ms, measured.p50_ms), (found.p95_ms, measured.p95_ms))
    )
