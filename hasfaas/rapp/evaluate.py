"""Scores the launch-gated predictor on a latency table, few-shot and without refitting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.launch_gated import LaunchGatedModel, cell_of
from hasfaas.rapp.table import LatencyTable

Array = np.ndarray[Any, Any]

PROBE_COUNTS = (16, 11)
TOTAL = "all models"


@attrs.frozen(eq=False)
class ModelScore:
    """One model (or all) predicted from `probes` points, which are not tested themselves.

    `errors` [cells] are absolute percentage errors; `inside` [cells] says whether the measured latency lies in the
    nominal 90 % interval.
    """

    model: str
    probes: int
    errors: Array
    inside: Array

    @property
    def mape(self) -> float:
        """Mean absolute percentage error, %."""
        return float(self.errors.mean())

    @property
    def coverage(self) -> float:
        """Share of the cells inside the interval."""
        return float(self.inside.mean())


def evaluate(
    table: LatencyTable,
    model: LaunchGatedModel,
    probe_counts: Sequence[int] = PROBE_COUNTS,
    report: Callable[[str], None] = lambda _: None,
) -> list[ModelScore]:
    """Each model of the table, then `TOTAL` (all cells pooled), for each number of probes, the most first.

    The probes are read from the table, each chosen after those before it, as on a device; a cell that the table lacks
    is never chosen. `report` is told each model's name. Raises InvalidRequestError if a table's model is off the grid
    of the V100 table or holds no more cells than probes.
    """
    counts = sorted(set(probe_counts), reverse=True)
    scores: dict[int, list[ModelScore]] = {count: [] for count in counts}
    for name in table.models():
        report(name)
        for count, scored in zip(counts, score(name, table.grid(name), model, counts), strict=True):
            scores[count].append(scored)
    return [each for count in counts for each in (*scores[count], pooled(scores[count]))]


def score(name: str, latency_ms: Array, model: LaunchGatedModel, counts: Sequence[int]) -> list[ModelScore]:
    """One model's latencies [4, 20, 10] in ms (NaN: not measured), from the first so many probes of one profile."""
    flat, most = latency_ms.ravel(), max(counts)
    if np.isfinite(flat).sum() <= most:
        raise InvalidRequestError(
            f"model={name!r} has {int(np.isfinite(flat).sum())} cells: {most} probes leave none to score",
            reason="TOO_FEW_CELLS",
        )
    probes = model.profile(lambda at: float(flat[cell_of(*at)]), most, np.isfinite(flat))
    cells = np.array([cell_of(p.batch, p.sm_percent, p.quota_percent) for p in probes])
    return [score_cells(name, latency_ms, model, cells[:count]) for count in counts]


def score_cells(name: str, latency_ms: Array, model: LaunchGatedModel, cells: Array) -> ModelScore:
    """As `score`, with the probes at the given cell numbers."""
    measured = latency_ms.ravel()
    tested = np.isfinite(measured)
    if not np.isfinite(measured[cells]).all():
        raise InvalidRequestError(f"model={name!r} lacks a probe cell: choose measured cells", reason="BAD_PROBE")
    tested[cells] = False
    if not tested.any():
        raise InvalidRequestError(
            f"model={name!r} holds no cell beside its {len(cells)} probes: measure more cells", reason="TOO_FEW_CELLS"
        )
    predicted = model.predict_cells(cells, np.log(measured[cells]))
    low, high = predicted.quantiles_ms[0].ravel()[tested], predicted.quantiles_ms[-1].ravel()[tested]
    truth = measured[tested]
    return ModelScore(
        name,
        len(cells),
        100.0 * np.abs(predicted.latency_ms.ravel()[tested] / truth - 1.0),
        (truth >= low) & (truth <= high),
    )


def pooled(scores: Sequence[ModelScore]) -> ModelScore:
    """All cells of the scores as one, named `TOTAL`."""
    return ModelScore(
        TOTAL,
        scores[0].probes,
        np.concatenate([each.errors for each in scores]),
        np.concatenate([each.inside for each in scores]),
    )


def summary(scores: Sequence[ModelScore]) -> dict[str, Any]:
    """By number of probes: MAPE, median model, 90th percentile, coverage of the 90 % interval, and each model's."""
    found = {}
    for total in (s for s in scores if s.model == TOTAL):
        each = [s for s in scores if s.probes == total.probes and s.model != TOTAL]
        found[str(total.probes)] = {
            "n": len(total.errors),
            "mape": total.mape,
            "median_model": float(np.median([s.mape for s in each])),
            "p90": float(np.percentile(total.errors, 90)),
            "coverage_90": total.coverage,
            "models": {s.model: {"mape": s.mape, "coverage_90": s.coverage} for s in each},
        }
    return found


def check_features(path: Path, models: Iterable[str]) -> Mapping[str, bool]:
    """Which models have operator features in a .npz file of the shared form. They are counted, not used: see docs/rapp.md.

    Raises InvalidRequestError if the file cannot be read or holds no `<model>__graph` array.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = {name.removesuffix("__graph") for name in arrays.files if name.endswith("__graph")}
    except (OSError, ValueError) as exc:
        raise InvalidRequestError(f"features={str(path)!r} cannot be read: {exc}", reason="BAD_FEATURES") from exc
    if not names:
        raise InvalidRequestError(f"features={str(path)!r} holds no <model>__graph array", reason="BAD_FEATURES")
    return {model: model in names for model in models}
