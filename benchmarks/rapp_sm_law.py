"""The SM law from three points, on V100 (MPS) and on A100 (MIG), and the composition max(G, H(q)) on V100."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.rapp_row import Row, row
from hasfaas.rapp import train_sm_law
from hasfaas.rapp.launch_law import LaunchLaw, compare
from hasfaas.rapp.sm_law import SmPrior
from hasfaas.rapp.table import QUOTA_PERCENTS, SM_PERCENTS, read_table
from hasfaas.rapp.train_sm_law import Curve

V100_TABLE = Path("v100") / "v100_latency_sm_quota_batch.csv"
FOLDS = 10


def rows(data: Path, seeds: Sequence[int], report: Callable[[str], None]) -> list[Row]:
    """Three figures. Nothing in them is random, so `seeds` changes nothing."""
    table = read_table(data / V100_TABLE)
    v100, mig = train_sm_law.curves(table), mig_curves(data / "profiles" / "ParvaGPU")
    report(f"SM law from 3 points: {len(v100)} V100 curves, {len(mig)} MIG curves")
    shipped = SmPrior.from_arrays(train_sm_law.fit_curves(v100))
    return [
        _figure(
            "sm_law_3pt_mape",
            f"3 of up to 20 SM shares of each V100 curve at full quota; prior from the other models, {FOLDS}-fold by model",
            _by_fold(v100),
            5.2,
            "rapp.md: 5.2 (p-norm), 7.4 (A/s + B)",
        ),
        _figure(
            "sm_law_mig_mape",
            "3 of up to 5 MIG sizes of each ParvaGPU curve, one process; prior from the V100 curves alone",
            ((curve[0], train_sm_law.error_from_three(curve, shipped)) for curve in mig),
            5.0,
            "rapp.md: 5.0 (p-norm)",
        ),
        _composition(data),
    ]


def mig_curves(folder: Path) -> list[Curve]:
    """ParvaGPU's curves: one process, latency = batch / throughput, share = GPCs / 7, at least 4 sizes."""
    out = []
    for path in sorted(path for path in folder.glob("*.csv") if not path.stem.startswith("SLO")):
        with path.open() as stream:
            alone = [
                line
                for line in csv.DictReader(stream)
                if line["Workload Number"] == "1" and float(line["Throughput"]) > 0
            ]
        for batch in sorted({int(line["Batch size"]) for line in alone}):
            points = sorted(
                (int(line["Mig instance"]) * 100 / 7, 1e3 * batch / float(line["Throughput"]))
                for line in alone
                if int(line["Batch size"]) == batch
            )
            if len(points) >= 4:
                out.append((path.stem, np.array([sm for sm, _ in points]), np.array([ms for _, ms in points])))
    return out


def folds(curves: Sequence[Curve], count: int = FOLDS) -> dict[str, int]:
    """The fold of each model: models by number of curves, each to the lightest fold."""
    size = {model: sum(curve[0] == model for curve in curves) for model, _, _ in curves}
    load, fold = [0] * count, {}
    for model in sorted(size, key=lambda name: (-size[name], name)):
        fold[model] = int(np.argmin(load))
        load[fold[model]] += size[model]
    return fold


def _by_fold(curves: Sequence[Curve]) -> Iterable[tuple[str, np.ndarray]]:
    fold = folds(curves)
    for number in range(FOLDS):
        prior = SmPrior.from_arrays(train_sm_law.fit_curves([curve for curve in curves if fold[curve[0]] != number]))
        for curve in curves:
            if fold[curve[0]] == number:
                yield curve[0], train_sm_law.error_from_three(curve, prior)


def _figure(key: str, protocol: str, errors: Iterable[tuple[str, np.ndarray]], target: float, published: str) -> Row:
    """The mean over curves of each curve's mean error."""
    curves = [(model, float(error.mean())) for model, error in errors]
    names = sorted({model for model, _ in curves})
    groups = [(name, float(np.mean([error for model, error in curves if model == name]))) for name in names]
    means = np.array([error for _, error in curves])
    return row(key, protocol, [means], target=target, published=published, group_errors=groups, note="n counts curves")


def _composition(data: Path) -> Row:
    table = read_table(data / V100_TABLE)
    quotas = np.array(QUOTA_PERCENTS, float)
    errors: list[np.ndarray] = []
    for model in table.models():
        law = LaunchLaw.from_cells(table.of(model))
        grid = table.grid(model).reshape(-1, len(QUOTA_PERCENTS))
        known = np.isfinite(grid[:, :-1]) & np.isfinite(grid[:, -1:])
        gpu = np.broadcast_to(grid[:, -1:], known.shape)[known]
        quota = np.broadcast_to(quotas[:-1], known.shape)[known]
        cell = np.full(known.shape, np.nan)
        cell[known] = compare(law, gpu, quota, grid[:, :-1][known])
        errors.append(cell)
    by_cell = np.concatenate(errors)
    by_quota = [(f"q={quota:g}", float(np.nanmean(by_cell[:, k]))) for k, quota in enumerate(quotas[:-1])]
    assert len(SM_PERCENTS) * 4 * len(table.models()) == len(by_cell)
    return row(
        "composition_mape",
        "max(G, H(q)) below full quota with each cell's own G at full quota; H(q) is a median over the model's own cells",
        [by_cell[np.isfinite(by_cell)]],
        published="rapp.md: 4.75; latency / quota 46.9",
        group_errors=by_quota,
        note="in-sample by its nature: G and H(q) are taken from the table that is scored",
    )
