"""Scoring a fixed model on a table: probes are not tested, gaps are borne, totals pool the cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.evaluate import TOTAL, check_features, evaluate, score_cells, summary
from hasfaas.rapp.launch_gated import BATCH_OF, CELL, CELLS, QUOTA_OF, SHAPE, SM_OF, LaunchGatedModel, cell_of
from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS, LatencyTable
from hasfaas.rapp.train_launch_gated import fit_log_ms, probe

Array = np.ndarray[Any, Any]


def synthetic(count: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    batch = np.array(BATCHES, float)[:, None, None]
    share = np.array(SM_PERCENTS)[None, :, None] / 100.0
    quota = np.array(QUOTA_PERCENTS)[None, None, :] / 100.0
    out = []
    for _ in range(count):
        gpu = np.exp(rng.normal(0.5, 1.0)) * batch / share + 1.0
        host = np.exp(rng.normal(2.7, 0.5)) / quota**1.2
        out.append(np.maximum(gpu, host) * np.exp(0.02 * rng.standard_normal(SHAPE)))
    return np.stack(out)


def table_of(grids: dict[str, Array]) -> LatencyTable:
    names, cells, values = [], [], []
    for name, grid in grids.items():
        known = CELL[np.isfinite(grid.ravel())]
        names += [name] * len(known)
        cells.append(known)
        values.append(grid.ravel()[known])
    index = np.concatenate(cells)
    return LatencyTable(
        np.array(names),
        np.array(BATCHES)[BATCH_OF[index]],
        np.array(SM_PERCENTS, float)[SM_OF[index]],
        np.array(QUOTA_PERCENTS, float)[QUOTA_OF[index]],
        np.concatenate(values),
    )


@pytest.fixture(scope="module")
def model() -> LaunchGatedModel:
    return LaunchGatedModel.from_arrays(fit_log_ms(np.log(synthetic(10))))


def test_scores_each_model_and_all_of_them(model: LaunchGatedModel) -> None:
    one, two = synthetic(2, seed=1)
    scores = evaluate(table_of({"one": one, "two": two}), model)
    assert [(s.model, s.probes) for s in scores] == [(m, k) for k in (16, 11) for m in ("one", "two", TOTAL)]
    for each in scores:
        assert each.errors.shape == each.inside.shape
        assert 0.0 < each.mape < 15.0
        assert 0.5 < each.coverage <= 1.0
    assert [len(s.errors) for s in scores[:3]] == [CELLS - 16, CELLS - 16, 2 * (CELLS - 16)]
    assert scores[2].mape == pytest.approx((scores[0].mape + scores[1].mape) / 2.0)


def test_only_probes_are_seen(model: LaunchGatedModel) -> None:
    grid = synthetic(1, seed=2)[0]
    cells = np.array([cell_of(p.batch, p.sm_percent, p.quota_percent) for p in probe(model, grid)])
    scaled = grid * 2.0
    scaled.ravel()[cells] = grid.ravel()[cells]
    before, after = score_cells("x", grid, model, cells), score_cells("x", scaled, model, cells)
    # The prediction is the same, so each error follows from the other: p/y - 1 against p/(2y) - 1.
    tested = np.setdiff1d(CELL, cells)
    predicted = model.predict_cells(cells, np.log(grid.ravel()[cells])).latency_ms.ravel()[tested]
    np.testing.assert_allclose(before.errors, 100.0 * np.abs(predicted / grid.ravel()[tested] - 1.0))
    np.testing.assert_allclose(after.errors, 100.0 * np.abs(predicted / scaled.ravel()[tested] - 1.0))
    assert after.mape > 5.0 * before.mape
    assert after.coverage < before.coverage


def test_a_table_with_gaps_is_scored_on_what_it_has(model: LaunchGatedModel) -> None:
    grid = synthetic(1, seed=3)[0]
    grid[3] = np.nan
    grid[:, :2, :9] = np.nan
    known = int(np.isfinite(grid).sum())
    scores = evaluate(table_of({"gaps": grid}), model, probe_counts=(16,))
    assert [len(s.errors) for s in scores] == [known - 16, known - 16]
    assert scores[0].mape < 15.0


def test_too_small_a_table_is_refused(model: LaunchGatedModel) -> None:
    grid = np.full(SHAPE, np.nan)
    grid.ravel()[:16] = 1.0
    with pytest.raises(InvalidRequestError, match="16 probes leave none"):
        evaluate(table_of({"small": grid}), model)
    with pytest.raises(InvalidRequestError, match="probe cell"):
        score_cells("small", grid, model, np.array([20]))


def test_the_summary_tells_each_model_and_the_whole(model: LaunchGatedModel) -> None:
    one, two = synthetic(2, seed=4)
    scores = evaluate(table_of({"one": one, "two": two}), model)
    found = summary(scores)
    assert list(found) == ["16", "11"]
    assert set(found["16"]["models"]) == {"one", "two"}
    assert found["16"]["mape"] == pytest.approx(np.mean([m["mape"] for m in found["16"]["models"].values()]))
    assert found["11"]["n"] == 2 * (CELLS - 11)


def test_features_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    np.savez(path, one__graph=np.zeros(10), one__nodes=np.zeros((3, 38)))
    assert check_features(path, ["one", "two"]) == {"one": True, "two": False}
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InvalidRequestError, match="__graph"):
        check_features(path, ["one"])
    path.write_text("no archive")
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        check_features(path, ["one"])
