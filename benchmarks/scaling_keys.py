"""The figures of the grid: ratios between policies over cells, each with its target, and the cells that ours loses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from benchmarks.scaling_cells import Cell, Whole, whole
from benchmarks.scaling_rows import COSTS, FEASIBLE, Row
from benchmarks.scaling_runs import ABLATIONS, OURS
from benchmarks.scaling_statistics import Array, Figure, geometric, share

# Below these, differences say nothing: of late calls, and of GPU-seconds where nobody called.
LEAST_VIOLATIONS, LEAST_GPU_S = 1e-4, 0.01
LOW_RPS, FULL_GPUS = 20.0, 0.5
# How much dearer than the tuned fixed slice ours may never be.
DEARER_AT_MOST = 1.05
# Ranges of load, in whole GPUs.
CURVE_GPUS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 4.0)


@attrs.frozen(eq=False)
class Grid:
    """The rows of a grid by (cell, policy), each list in the order of the seeds."""

    cells: tuple[Cell, ...]
    rows: Mapping[tuple[str, str], tuple[Row, ...]]
    wholes: Mapping[str, Whole]

    @classmethod
    def of(cls, cells: Iterable[Cell], rows: Iterable[Row]) -> Grid:
        """Of cells, and of rows in any order."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            found.setdefault((row.cell, row.policy), []).append(row)
        ordered = {key: tuple(sorted(own, key=lambda row: row.seed)) for key, own in found.items()}
        cells = tuple(cells)
        return cls(cells, ordered, {cell.name: whole(cell) for cell in cells})

    def both(self, policy: str, other: str = OURS, *, extra: bool = False) -> tuple[Cell, ...]:
        """The cells that two policies ran in; `extra` ones with `extra` only."""
        return tuple(
            cell
            for cell in self.cells
            if (extra or not cell.extra) and (cell.name, policy) in self.rows and (cell.name, other) in self.rows
        )

    def column(self, cells: Sequence[Cell], policy: str, field: str) -> Array:
        """One number of each run [cell, seed]: of the seeds that all of these cells have."""
        lists = [self.rows[cell.name, policy] for cell in cells]
        seeds = min(map(len, lists), default=0)
        return np.array([[getattr(row, field) for row in rows[:seeds]] for rows in lists], float).reshape(
            len(cells), seeds
        )

    def feasible(self, cell: Cell, policy: str) -> bool:
        """Whether a policy keeps the promise of a cell in the mean over seeds."""
        return bool(np.mean([row.violations for row in self.rows[cell.name, policy]]) <= FEASIBLE)

    def costs(self, cells: Sequence[Cell], policy: str, other: str = OURS) -> Array:
        """Reserved share of `policy` over that of `other` [cell, seed]."""
        return self.over(cells, policy, other, "reserved_gpu_s", LEAST_GPU_S)

    def violations(self, cells: Sequence[Cell], policy: str, other: str = OURS) -> Array:
        """Share of late calls under `policy` over that under `other` [cell, seed], none taken as less than 0.01 %."""
        return self.over(cells, policy, other, "violations", LEAST_VIOLATIONS)

    def over(self, cells: Sequence[Cell], policy: str, other: str, field: str, least: float) -> Array:
        """One number of `policy` over that of `other` [cell, seed], neither taken as less than `least`; of the first seeds,
        that both have."""
        theirs, ours = (np.maximum(self.column(cells, name, field), least) for name in (policy, other))
        seeds = min(theirs.shape[1], ours.shape[1])
        return np.asarray(theirs[:, :seeds] / ours[:, :seeds])


def sets(grid: Grid) -> dict[str, tuple[Cell, ...]]:
    """The cells that each figure is taken over."""
    low = tuple(cell for cell in grid.both("kpa") if cell.rps <= LOW_RPS)
    wholes = grid.wholes
    full = tuple(
        cell
        for cell in grid.both("kpa", extra=True)
        if wholes[cell.name].load_gpus >= FULL_GPUS and np.isfinite(wholes[cell.name].bound)
    )
    return {
        "kpa_cost_ratio_low": low,
        "kpa_full_over_bound": full,
        **{f"{name}_{what}_ratio": grid.both(name) for name in ("has", "fast") for what in ("cost", "violation")},
        "tuned_fixed_cost_ratio": fair_cells(grid, "fixed"),
        "oracle_gap": fair_cells(grid, "oracle"),
        "cells_within_1pct": grid.both(OURS),
    }


def figures(grid: Grid) -> dict[str, Figure]:
    """All figures of the grid by their key; those whose policies did not run have no cells."""
    cells = sets(grid)
    low, full = cells["kpa_cost_ratio_low"], cells["kpa_full_over_bound"]
    fair, known, own = (cells[key] for key in ("tuned_fixed_cost_ratio", "oracle_gap", "cells_within_1pct"))
    has, fast = cells["has_cost_ratio"], cells["fast_cost_ratio"]
    return {
        "kpa_cost_ratio_low": geometric(grid.costs(low, "kpa"), 10.8),
        "kpa_full_over_bound": geometric(grid.costs(full, "kpa") / _bounds(grid, full)[:, None], 0.7),
        "has_cost_ratio": geometric(grid.costs(has, "has"), 2.0),
        "has_violation_ratio": geometric(grid.violations(has, "has"), 10.0),
        "fast_cost_ratio": geometric(grid.costs(fast, "fast"), 1.72),
        "fast_violation_ratio": geometric(grid.violations(fast, "fast"), 4.8),
        "tuned_fixed_cost_ratio": geometric(grid.costs(fair, "fixed"), 1.0),
        "oracle_gap": geometric(1.0 / grid.costs(known, "oracle"), 1.4, more=False),
        "cells_within_1pct": share(grid.column(own, OURS, "violations"), 0.95, limit=FEASIBLE),
    }


def bounds(grid: Grid) -> dict[str, float | None]:
    """Beside each figure: the most that slices alone can save over whole GPUs, a geometric mean over its cells."""
    found = {key: _mean(_bounds(grid, cells)) for key, cells in sets(grid).items()}
    return {key: value if np.isfinite(value) else None for key, value in found.items()}


def fair_cells(grid: Grid, policy: str) -> tuple[Cell, ...]:
    """The cells in which both a policy and ours keep the promise."""
    return tuple(cell for cell in grid.both(policy) if grid.feasible(cell, policy) and grid.feasible(cell, OURS))


def dearer(grid: Grid) -> list[str]:
    """The cells in which both keep the promise and ours costs more than DEARER_AT_MOST times the tuned fixed slice."""
    return [
        cell.name for cell in fair_cells(grid, "fixed") if _mean(grid.costs([cell], "fixed")) < 1.0 / DEARER_AT_MOST
    ]


def lost(grid: Grid) -> list[dict[str, Any]]:
    """The cells in which a policy beats ours: cheaper where both keep the promise, or the only one that keeps it."""
    found = []
    for policy in _rivals(grid):
        for cell in grid.both(policy):
            theirs, ours = grid.feasible(cell, policy), grid.feasible(cell, OURS)
            ratio = _mean(grid.costs([cell], policy))
            if theirs and not ours:
                why = "only it keeps the promise"
            elif theirs and ours and ratio < 1.0:
                why = "cheaper"
            else:
                continue
            found.append({
                "cell": cell.name,
                "to": policy,
                "why": why,
                "cost_ratio": ratio,
                "violations": float(grid.column([cell], policy, "violations").mean()),
                "our_violations": float(grid.column([cell], OURS, "violations").mean()),
            })  # fmt: skip
    return found


def missed(grid: Grid) -> list[dict[str, Any]]:
    """The cells in which ours does not keep the promise, and what share is late under each policy there."""
    policies = [p for p in dict.fromkeys(policy for _, policy in grid.rows) if p not in ABLATIONS]
    return [
        {
            "cell": cell.name,
            "violations": {
                policy: float(grid.column([cell], policy, "violations").mean())
                for policy in policies
                if (cell.name, policy) in grid.rows
            },
        }
        for cell in grid.both(OURS)
        if not grid.feasible(cell, OURS)
    ]


def curve(grid: Grid) -> list[dict[str, Any]]:
    """KPA's cost over ours by load, in whole GPUs, with the bound: geometric means over the cells of each range."""
    cells = [cell for cell in grid.both("kpa", extra=True) if np.isfinite(grid.wholes[cell.name].bound)]
    found = []
    for low, high in itertools.pairwise(CURVE_GPUS):
        own = [cell for cell in cells if low <= grid.wholes[cell.name].load_gpus < high]
        if own:
            found.append({
                "load_gpus": [low, high],
                "cells": len(own),
                "cost_ratio": _mean(grid.costs(own, "kpa")),
                "bound": _mean(_bounds(grid, own)),
                "kpa_violations": float(grid.column(own, "kpa", "violations").mean()),
                "our_violations": float(grid.column(own, OURS, "violations").mean()),
            })  # fmt: skip
    return found


def ablations(grid: Grid) -> dict[str, dict[str, float]]:
    """What ours costs and misses without each of its parts, over ours with all of them, on the same (first) seed."""
    found = {}
    for name in ABLATIONS:
        cells = grid.both(name)
        if cells:
            late = grid.column(cells, name, "violations")
            found[name] = {
                "cost_ratio": _mean(grid.costs(cells, name)[:, 0]),
                "violation_ratio": _mean(grid.violations(cells, name)[:, 0]),
                "cells_within_1pct": float((late[:, 0] <= FEASIBLE).mean()),
                "cells": len(cells),
            }
    return found


def summary(grid: Grid) -> list[dict[str, Any]]:
    """A line a policy: what it costs over ours, and how it keeps its promise."""
    lines = []
    for policy in dict.fromkeys(policy for _, policy in grid.rows):
        cells = grid.both(policy)
        if not cells or policy in ABLATIONS:
            continue
        late = grid.column(cells, policy, "violations").mean(axis=1)
        costs = {
            f"{cost}_over_ours": _mean(grid.over(cells, policy, OURS, f"{cost}_gpu_s", LEAST_GPU_S)) for cost in COSTS
        }
        lines.append({
            "policy": policy,
            **costs,
            "median_violations": float(np.median(late)),
            "mean_violations": float(late.mean()),
            "cells_within_1pct": float((late <= FEASIBLE).mean()),
            "actions_per_min": float(grid.column(cells, policy, "actions_per_min").mean()),
            "cells": len(cells),
        })  # fmt: skip
    return lines


# -- leaves -------------------------------------------------------------------------------------------------------------


def _rivals(grid: Grid) -> tuple[str, ...]:
    return tuple(p for p in dict.fromkeys(policy for _, policy in grid.rows) if p not in (OURS, "oracle", *ABLATIONS))


def _bounds(grid: Grid, cells: Sequence[Cell]) -> Array:
    return np.array([grid.wholes[cell.name].bound for cell in cells], float)


def _mean(ratios: Array) -> float:
    known = ratios[np.isfinite(ratios)]
    return float(np.exp(np.log(known).mean())) if known.size else float("nan")
