"""What `--full` adds to the scaling benchmark: the same cells under other settings, and cost at equal violations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from benchmarks import scaling_keys, scaling_loads, scaling_runs
from benchmarks.scaling_cells import Cell, Setting, grid
from benchmarks.scaling_keys import Grid
from benchmarks.scaling_pool import spread
from benchmarks.scaling_rows import Row
from benchmarks.scaling_runs import OURS, POLICIES, SWEPT, Done, Task
from benchmarks.scaling_statistics import geometric

MOST_RPS = (400.0,)
LIMITS = (0.01, 0.001)
# Two laws are never mixed in one figure; this name says which one it is.
TABLE_LAW = "launch-gated table (second law)"


@attrs.frozen
class Study:
    """Cells under one setting; None means those of the primary grid."""

    setting: Setting
    rates_rps: tuple[float, ...] | None = None


STUDIES: tuple[Study, ...] = (
    *(Study(Setting(f"SLO {factor:g}x", slo_factor=factor)) for factor in (2.0, 3.0, 10.0)),
    *(Study(Setting(f"cold start {cold_s:g} s", cold_start_s=cold_s)) for cold_s in (2.0, 30.0, 60.0)),
    Study(Setting("400 rps"), MOST_RPS),
    Study(Setting("gamma arrivals, CV 4", spread="gamma")),
    *(Study(Setting(f"predictor error {error:.0%}", predictor_error=error)) for error in (0.05, 0.10)),
    *(Study(Setting(f"interference {factor:g}", interference=factor)) for factor in (1.1, 1.25)),
    Study(Setting("whole hours", window_s=scaling_loads.FULL_S)),
    Study(Setting(TABLE_LAW, law="table")),
)


def run(study: Study, cells: Sequence[Cell], data: Path, seeds: tuple[int, ...], jobs: int) -> dict[str, Any]:
    """The figures of one study, on the loads and models of `cells`."""
    own = cells_of(study, cells)
    tasks = [Task(cell, data, seeds, POLICIES, ablations=False) for cell in own]
    done = list(spread(scaling_runs.run, tasks, jobs, study.setting.name))
    found = Grid.of([d.cell for d in done], [row for d in done for row in d.rows])
    figures = scaling_keys.figures(found)
    return {
        "setting": attrs.asdict(study.setting),
        "figures": {key: figure.to_dict() for key, figure in figures.items() if figure.n},
        "summary": scaling_keys.summary(found),
        "missed": scaling_keys.missed(found),
        "lost": scaling_keys.lost(found),
    }


def cells_of(study: Study, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells of a study: their loads and models are those of `cells`, and so are their windows where it says nothing."""
    plain = [cell for cell in cells if not cell.extra]
    whole = study.setting.window_s != scaling_loads.WINDOW_S
    window_s = study.setting.window_s if whole else min(cell.setting.window_s for cell in plain)
    rates_rps = study.rates_rps or tuple(dict.fromkeys(cell.rps for cell in plain))
    return grid(
        attrs.evolve(study.setting, window_s=window_s),
        loads=tuple(dict.fromkeys(cell.load for cell in plain)),
        rates_rps=rates_rps,
        names=tuple(dict.fromkeys(cell.model for cell in plain)),
        one_gpu=False,
    )


def pareto(cells: Sequence[Cell], data: Path, seed: int, jobs: int) -> dict[str, Any]:
    """Cost against violations, of ours by `late_factor` and of the fixed slice by its settings: on one seed, and each cell's
    cheapest settings at equal violations. Hindsight chooses for both."""
    tasks = [Task(cell, data, (seed,), (OURS, "fixed", SWEPT), ablations=False) for cell in cells if not cell.extra]
    done = list(spread(scaling_runs.run, tasks, jobs, "cost at equal violations"))
    names = {SWEPT: "ours", "fixed": "fixed"}
    return {
        "curves": {label: _curve(done, policy) for policy, label in names.items()},
        "at_equal_violations": [_equal(done, limit) for limit in LIMITS],
    }


# -- leaves -------------------------------------------------------------------------------------------------------------


def _curve(done: Sequence[Done], policy: str) -> list[dict[str, Any]]:
    """A point for each setting: over the cells, its cost over ours at the default and its late calls."""
    default = {d.cell.name: row.reserved_gpu_s for d in done for row in d.rows if row.policy == OURS}
    points: dict[str, list[Row]] = {}
    for d in done:
        for row in d.tried:
            if row.policy == policy:
                points.setdefault(row.text, []).append(row)
    return [
        {
            "setting": text,
            "cost_ratio": float(np.exp(np.mean([np.log(row.reserved_gpu_s / default[row.cell]) for row in rows]))),
            "mean_violations": float(np.mean([row.violations for row in rows])),
            "median_violations": float(np.median([row.violations for row in rows])),
            **{f"within_{limit:g}": float(np.mean([row.violations <= limit for row in rows])) for limit in LIMITS},
        }
        for text, rows in points.items()
    ]


def _equal(done: Sequence[Done], limit: float) -> dict[str, Any]:
    """The cheapest fixed setting over our cheapest, where both have one within the limit; and who alone has one."""
    best = [{policy: _cheapest(d, policy, limit) for policy in ("fixed", SWEPT)} for d in done]
    ratios = [b["fixed"] / b[SWEPT] for b in best if np.isfinite(b["fixed"]) and np.isfinite(b[SWEPT])]
    figure = geometric(np.array(ratios)[:, None] if ratios else np.zeros((0, 0)), 1.25)
    return {
        "limit": limit,
        "fixed_over_ours": figure.to_dict(),
        "only_ours": sum(np.isfinite(b[SWEPT]) and not np.isfinite(b["fixed"]) for b in best),
        "only_fixed": sum(np.isfinite(b["fixed"]) and not np.isfinite(b[SWEPT]) for b in best),
    }


def _cheapest(done: Done, policy: str, limit: float) -> float:
    return min(
        (row.reserved_gpu_s for row in done.tried if row.policy == policy and row.violations <= limit),
        default=float("inf"),
    )
