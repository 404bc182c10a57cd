"""The part with many functions: Azure's, at their own skew, on 32 GPUs; judged by GPU-hours provisioned and late calls.

Of the 500 functions there are the busiest and a random sample of the others that are called within the window at all (one
that nobody calls would only flatter those that scale to zero). The four models are dealt in turn, busiest first. One factor
on all rates makes the cheapest slices that carry the mean loads occupy TARGET_GPUS; arrivals are Poisson within a minute.
Each seed draws another sample and other arrivals, and what is tuned in hindsight is tuned anew for each.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from benchmarks import scaling_loads, scaling_runs
from benchmarks.scaling_cells import LATE_SHARE, MODELS
from benchmarks.scaling_keys import LEAST_VIOLATIONS
from benchmarks.scaling_rows import FEASIBLE, Row
from benchmarks.scaling_runs import OURS, TUNED
from benchmarks.scaling_statistics import Array, Figure, geometric
from hasfaas.executor.quota import Timing
from hasfaas.scaling.frontier import Frontier, FrontierSettings
from hasfaas.simulator import models
from hasfaas.simulator.run import scenario
from hasfaas.simulator.scenario import Scenario
from hasfaas.simulator.trace import Trace
from hasfaas.simulator.trace_file import read_trace

POOLED, ALONE = OURS, "hybrid without pooling"
GPUS = 32
TARGET_GPUS = 3.0
SLO_FACTOR = 5.0
NAME = "azure tenants"


@attrs.frozen
class Size:
    """How many functions, and for how long. `busiest` of them are the first ranks."""

    functions: int = 48
    busiest: int = 12
    duration_s: float = 1500.0


@attrs.frozen
class Run:
    """One policy with one setting; `lend` lets replicas run on time that nobody is entitled to."""

    policy: str
    text: str
    lend: bool = False


RUNS: tuple[Run, ...] = (
    # As a gateway has it by default.
    Run(POOLED, "hybrid:pooling=true:keep_alive_s=60", lend=True),
    Run(ALONE, "hybrid"),
    *(Run("fixed", text) for text in TUNED["fixed"]),
    Run("fast", "fast"),
    Run("has", "has"),
    Run("has-repaired", "has-repaired"),
    *(Run("kpa", text) for text in TUNED["kpa"]),
    Run("ray", "ray"),
    Run("ray", "ray:tuned=true"),
)


@attrs.frozen
class Task:
    """One run of one seed for one process."""

    run: Run
    seed: int
    data: Path
    size: Size = attrs.field(factory=Size)


def run(task: Task) -> Row:
    """Runs a task; the same task gives the same row."""
    own = attrs.evolve(tenants(task.data, task.seed, task.size), lend=task.run.lend)
    return scaling_runs.one(own, NAME, task.run.policy, task.run.text, task.seed)


@functools.lru_cache(maxsize=4)
def tenants(data: Path, seed: int, size: Size) -> Scenario:
    """The scenario of a seed, nothing lent."""
    trace = sample(read_trace(data / scaling_loads.AZURE, "azure-functions"), seed, size)
    dealt = models.named(MODELS)
    return scenario(
        dealt,
        trace,
        seed=seed,
        rps=_factor(trace) * trace.mean_rps / len(trace.names),
        slo_factor=SLO_FACTOR,
        gpus=GPUS,
    )


def sample(trace: Trace, seed: int, size: Size) -> Trace:
    """The window of the functions of a seed, busiest first. Raises InvalidRequestError (BAD_TRACE) for a shorter trace."""
    part = trace.window(scaling_loads.LATER_S, size.duration_s)
    called = np.flatnonzero(part.counts.sum(axis=1))
    others = called[called >= size.busiest]
    count = min(size.functions - size.busiest, len(others))
    drawn = np.sort(np.random.default_rng([seed, 5]).choice(others, count, replace=False))
    rows = [*called[called < size.busiest].tolist(), *drawn.tolist()]
    return part.of(tuple(part.names[row] for row in rows))


def chosen(rows: Iterable[Row]) -> dict[str, tuple[Row, ...]]:
    """The row of each policy and seed, by policy: of several settings the one that hindsight takes."""
    tries: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        tries.setdefault((row.policy, row.seed), []).append(row)
    best: dict[str, list[Row]] = {}
    for policy, seed in sorted(tries):
        best.setdefault(policy, []).append(scaling_runs.best_of(tries[policy, seed], "provisioned_gpu_s"))
    return {policy: tuple(own) for policy, own in best.items()}


def figures(rows: Iterable[Row]) -> dict[str, Figure]:
    """The two figures of this part; without runs they have no cells. The best baseline is one for all seeds."""
    best = chosen(rows)
    ours = best.get(POOLED, ())
    fixed = geometric(_hours(best.get("fixed", ()), ours), 1.25)
    rival = best_baseline(best)
    gap = geometric(1.0 / _hours(best[rival], ours), 0.6, more=False) if rival else geometric(_hours((), ()), 0.6)
    return {"tenant_vs_tuned_fixed": fixed, "tenant_gpu_hours_ratio": gap}


def best_baseline(best: dict[str, tuple[Row, ...]]) -> str | None:
    """Of those that keep the promise in the mean over seeds the one of fewest GPU-hours, else the one with fewest late."""
    rivals = {name: rows for name, rows in best.items() if name not in (POOLED, ALONE)}
    late = {name: float(np.mean([row.violations for row in rows])) for name, rows in rivals.items()}
    hours = {name: float(np.mean([row.provisioned_gpu_s for row in rows])) for name, rows in rivals.items()}
    return min(rivals, key=lambda name: (max(late[name], FEASIBLE), hours[name]), default=None)


def summary(best: dict[str, tuple[Row, ...]]) -> list[dict[str, Any]]:
    """A line a policy: means over the seeds."""
    return [
        {
            "policy": policy,
            "settings": sorted({row.text for row in rows}),
            **{
                name: float(np.mean([getattr(row, name) for row in rows]))
                for name in ("violations", "worst_function", "actions_per_min", "cold_starts", "refused", "peak_gpus")
            },
            **{
                f"{cost}_gpu_h": float(np.mean([getattr(row, f"{cost}_gpu_s") for row in rows])) / 3600.0
                for cost in ("provisioned", "reserved", "used", "billed")
            },
        }
        for policy, rows in best.items()
    ]


def without_pooling(best: dict[str, tuple[Row, ...]]) -> dict[str, float]:
    """What ours costs (provisioned) and misses without pooling, over ours with it: means over the seeds."""
    alone, pooled = best[ALONE], best[POOLED]

    def mean(rows: Sequence[Row], field: str, least: float = 0.0) -> float:
        return max(float(np.mean([getattr(row, field) for row in rows])), least)

    return {
        "cost_ratio": mean(alone, "provisioned_gpu_s") / mean(pooled, "provisioned_gpu_s"),
        "violation_ratio": mean(alone, "violations", LEAST_VIOLATIONS) / mean(pooled, "violations", LEAST_VIOLATIONS),
    }


# -- leaves -------------------------------------------------------------------------------------------------------------


def _hours(theirs: Sequence[Row], ours: Sequence[Row]) -> Array:
    """Provisioned of theirs over ours [1, seed], of the seeds that both have."""
    own = {row.seed: row.provisioned_gpu_s for row in ours}
    ratios = [row.provisioned_gpu_s / own[row.seed] for row in theirs if row.seed in own]
    return np.array([ratios], float) if ratios else np.zeros((0, 0))


def _factor(trace: Trace) -> float:
    """On all rates, so that the cheapest slices occupy TARGET_GPUS. By bisection: more load never needs less."""
    rates = trace.counts.sum(axis=1) / trace.duration_s
    frontiers = [_frontier(name) for name in MODELS]

    def area(factor: float) -> float:
        shapes = [frontiers[row % len(frontiers)].cheapest(factor * rate) for row, rate in enumerate(rates)]
        return sum(float("inf") if shape is None else shape.area for shape in shapes)

    low, high = 1e-3, 1e3
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if area(middle) < TARGET_GPUS else (low, middle)
    return low


@functools.lru_cache(maxsize=16)
def _frontier(name: str) -> Frontier:
    model = models.named([name])[0]
    return Frontier.of(
        model.surface,
        SLO_FACTOR * model.base_ms,
        LATE_SHARE,
        Timing(),
        batch_max=8,
        settings=FrontierSettings(late_factor=1.0),
    )
