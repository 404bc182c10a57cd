"""Runs the policies of one cell on the same arrivals, and tunes in hindsight those that are tuned.

`kpa` and `fixed` are tuned on the first seed: of all settings the cheapest by reserved share with at most 1 % of the calls
late, else the one with the fewest late. The chosen setting then runs on every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from benchmarks.scaling_cells import Cell
from benchmarks.scaling_rows import FEASIBLE, Row
from hasfaas.scaling.baselines.fixed_slice import GRID
from hasfaas.simulator import engine
from hasfaas.simulator.run import chosen, policy
from hasfaas.simulator.scenario import Scenario

OURS = "hybrid"
POLICIES = (OURS, "has", "has-repaired", "fast", "kpa", "fixed", "oracle")
ABLATIONS = {
    "no vertical": "hybrid:vertical=false",
    "no forecast": "hybrid:forecast=false",
    "no frontier": "hybrid:frontier=false",
}
# containerConcurrency of KPA, (f, rho) of the fixed slice; ours is not tuned, and only swept for a picture (--full).
SWEPT = "hybrid swept"
TUNED = {
    SWEPT: tuple(f"hybrid:late_factor={factor}" for factor in (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.5, 4.0)),
    "kpa": tuple(f"kpa:cc={cc}" for cc in (1, 4, 8, 15)),
    "fixed": tuple(f"fixed:f={f}:rho={rho}" for f, rho in GRID),
}


@attrs.frozen
class Task:
    """One cell for one process. With `ablations` ours also runs without each of its parts, on the first seed."""

    cell: Cell
    data: Path
    seeds: tuple[int, ...]
    policies: tuple[str, ...] = POLICIES
    ablations: bool = True


@attrs.frozen
class Done:
    """What came of a task. `tried` holds the runs that settings were chosen by."""

    cell: Cell
    rows: tuple[Row, ...]
    tried: tuple[Row, ...]


def run(task: Task) -> Done:
    """Runs a task; the same task gives the same rows."""
    rows: list[Row] = []
    tried: list[Row] = []
    texts: dict[str, str] = {}
    for seed in task.seeds:
        scenario = task.cell.scenario(task.data, seed)
        for name in task.policies:
            if name not in texts:
                tries = [one(scenario, task.cell.name, name, text, seed) for text in TUNED.get(name, (name,))]
                best = best_of(tries)
                texts[name] = best.text
                rows.append(best)
                tried += tries if len(tries) > 1 else []
            else:
                rows.append(one(scenario, task.cell.name, name, texts[name], seed))
        if task.ablations and seed == task.seeds[0]:
            rows += [one(scenario, task.cell.name, name, text, seed) for name, text in ABLATIONS.items()]
    return Done(task.cell, tuple(rows), tuple(tried))


def one(scenario: Scenario, cell: str, name: str, text: str, seed: int) -> Row:
    """One policy on one scenario."""
    made = policy(chosen(text)[0], scenario)
    return Row.of(engine.run(scenario, made), cell=cell, policy=name, text=text, seed=seed)


def best_of(rows: Sequence[Row], cost: str = "reserved_gpu_s") -> Row:
    """The cheapest of those that keep the promise; where none does, the one with the fewest late calls, then the cheapest."""
    feasible = [row for row in rows if row.violations <= FEASIBLE]
    if feasible:
        return min(feasible, key=lambda row: getattr(row, cost))
    return min(rows, key=lambda row: (row.violations, getattr(row, cost)))
