"""Unseen models and unseen families on the launch-gated V100 table: few-shot, refitted in each fold.

Protocols of rapp.md 7. Ten folds by model or by family; whatever is learned (prior, probe design, interval) is learned
from the training models of the fold. The probes of a test model are its only cells seen, and are not tested. Nothing
here is drawn at random: the seeds shuffle which models share a fold (the first seed keeps the order of GroupKFold).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rapp_row import Row, row
from hasfaas.rapp.evaluate import ModelScore, pooled, score, score_cells
from hasfaas.rapp.launch_gated import FIRST_PROBES, LaunchGatedModel, cell_of, nearest_cells
from hasfaas.rapp.table import QUOTA_PERCENTS, read_table
from hasfaas.rapp.train_launch_gated import TABLE, fit_log_ms

Array = np.ndarray[Any, Any]
Scores = dict[str, dict[str, ModelScore]]

FOLDS = 10
# rapp.md section 5, and RaPP's own profile with the table's cells (section 6.5).
PROFILE_16 = (
    *((1, 50, quota) for quota in QUOTA_PERCENTS),
    *((batch, share, 100) for batch in (1, 8) for share in (5, 20, 100)),
)
PROFILE_11 = (
    *((1, share, 100) for share in (5, 10, 30, 60, 80, 100)),
    *((4, 100, quota) for quota in (20, 40, 60, 80, 100)),
)
# rapp.md 6.5 counts only the models with a features file.
WITHOUT_FEATURES = ("efficientnet_b6", "efficientnet_b7")
ROWS: tuple[tuple[str, str, str, float | None, str], ...] = (
    ("unseen_models_16_mape", "models", "own 16", 6.0, "RaPP 5.29 (other models), reference 6.38"),
    ("unseen_models_11_mape", "models", "own 11", 8.0, "RaPP 5.29 (other models), reference 8.58"),
    ("families_16_mape", "families", "own 16", 7.0, "reference 7.52"),
    ("unseen_models_profile16_mape", "models", "profile 16", None, "reference 6.38"),
    ("unseen_models_profile11_mape", "models", "profile 11", None, "reference 8.58"),
    ("families_profile16_mape", "families", "profile 16", None, "reference 7.52"),
    ("families_11_mape", "families", "own 11", None, "reference 12.1 (RaPP's points)"),
)


def family(model: str) -> str:
    """The name up to its first digit or underscore."""
    return re.split(r"[0-9_]", model)[0]


def folds(groups: Sequence[str], weights: Sequence[int], seed: int | None) -> Array:
    """The fold of each entry: groups by weight, heaviest first, each to the lightest fold; `seed` shuffles ties."""
    names = sorted(set(groups))
    if seed is not None:
        names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    total = {n: sum(w for g, w in zip(groups, weights, strict=True) if g == n) for n in names}
    load, place = [0] * FOLDS, {}
    for name in sorted(names, key=lambda n: -total[n]):
        place[name] = load.index(min(load))
        load[place[name]] += total[name]
    return np.array([place[g] for g in groups])


def held_out(grids: Mapping[str, Array], fold: Array, report: Callable[[str], None]) -> Scores:
    """Scores by probe set and model, each model predicted by a fit without its fold."""
    names, scores = list(grids), Scores()
    for number in range(FOLDS):
        training = [grids[n] for n, f in zip(names, fold, strict=True) if f != number]
        model = LaunchGatedModel.from_arrays(fit_log_ms(np.log(np.stack(training)), FIRST_PROBES))
        for name in (n for n, f in zip(names, fold, strict=True) if f == number):
            for probes, result in _score(name, grids[name], model).items():
                scores.setdefault(probes, {})[name] = result
        report(f"  fold {number + 1}/{FOLDS}")
    return scores


def _score(name: str, grid: Array, model: LaunchGatedModel) -> dict[str, ModelScore]:
    known = np.isfinite(grid).ravel()
    sixteen, eleven = score(name, grid, model, (16, 11))
    out = {"own 16": sixteen, "own 11": eleven}
    for label, points in (("profile 16", PROFILE_16), ("profile 11", PROFILE_11)):
        cells = nearest_cells(np.array([cell_of(*point) for point in points]), known)
        out[label] = score_cells(name, grid, model, cells)
    return out


def rows(data: Path, seeds: Sequence[int], report: Callable[[str], None]) -> list[Row]:
    """The figures of `ROWS`: all models of the table, with the mean over those with features in the note."""
    table = read_table(data / TABLE)
    grids = {name: table.grid(name) for name in table.models()}
    weights = [int(np.isfinite(grid).sum()) for grid in grids.values()]
    groups = {"models": list(grids), "families": [family(name) for name in grids]}
    found: dict[str, list[Scores]] = {"models": [], "families": []}
    for kind, labels in groups.items():
        for position, seed in enumerate(seeds):
            report(f"{kind} held out, seed {seed}")
            found[kind].append(held_out(grids, folds(labels, weights, seed if position else None), report))
    return [_row(*entry, found[entry[1]]) for entry in ROWS]


def _row(key: str, kind: str, probes: str, target: float | None, published: str, by_seed: Sequence[Scores]) -> Row:
    every = [list(scores[probes].values()) for scores in by_seed]
    reference = float(np.mean([pooled(_with_features(scores)).mape for scores in every]))
    means = {s.model: float(np.mean([scores[probes][s.model].mape for scores in by_seed])) for s in every[0]}
    median = float(np.median(list(means.values())))
    below = float(np.mean([value < 5.29 for value in means.values()]))
    return row(
        key,
        f"{kind} held out, {FOLDS} folds, {probes} probes, all {len(means)} models",
        [pooled(scores).errors for scores in every],
        target=target,
        published=published,
        group_errors=sorted(means.items()),
        coverage=float(np.mean([pooled(scores).coverage for scores in every])),
        note=f"{reference:.2f} on the models with features; median model {median:.2f}; {below:.0%} below 5.29",
    )


def _with_features(scores: Sequence[ModelScore]) -> list[ModelScore]:
    return [each for each in scores if each.model not in WITHOUT_FEATURES]
