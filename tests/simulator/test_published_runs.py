"""The simulator against published runs: what is read, what is replayed, and the arithmetic of the fit."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import simulator_fit as fit
from benchmarks import simulator_published as published
from benchmarks import simulator_replay, simulator_runs
from benchmarks.simulator_fit import Figures, Fit, Sample
from benchmarks.simulator_published import Slices
from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.surface import Surface
from hasfaas.simulator.grid import LatencyGrid
from hasfaas.simulator.models import Model

NAME = "fast-gshare__1-resnet__fastgshare-x.csv.gz"


def write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def client_sends(rates: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What a client that nothing hinders does: a pause of 1 / rate and a little after each call."""
    pauses = np.concatenate([np.full(round(5 * rate), 1.0 / rate + 0.0002) for rate in rates])
    return np.concatenate([[0.0], np.cumsum(pauses)[:-1]])


def made_up(latency_ms: float) -> Model:
    """A model that takes so long at quota 100 %, whatever the batch, and as much longer as the quota is smaller."""
    quotas = np.array([10.0, 50.0, 100.0])
    grid = LatencyGrid((1, 4), (5, 100), quotas, np.broadcast_to(latency_ms * 100.0 / quotas, (2, 2, 3)))
    hold_ms = np.full((2, 2), latency_ms)
    return Model("made_up", Surface((1, 4), (5, 100), hold_ms, np.full((2, 2), 0.03)), 0, grid)


# -- reading ------------------------------------------------------------------------------------------------------------


def test_a_call_was_sent_before_its_answer_was_noted(tmp_path: Path) -> None:
    columns = ("duration", "mode", "status_code", "success", "timestamp")
    rows = [
        (0.5, "image", 200, "True", "2025-03-17T10:00:02.500000"),
        (3.0, "image", 502, "False", "2025-03-17T10:00:04.000000"),
    ]
    write(tmp_path / NAME, columns, rows)
    run = published.read(tmp_path / NAME)
    assert run.sent_s.tolist() == [0.0, 1.0]
    assert run.latency_ms.tolist() == [3000.0, 500.0]
    assert run.failed.tolist() == [True, False]
    assert (run.system, run.model, run.stress, run.slices) == ("fast-gshare", "resnet50", False, ())


def test_sums_over_pods_become_slices_of_one_pod(tmp_path: Path) -> None:
    write(tmp_path / NAME, ("duration", "success", "timestamp"), [(1.0, "True", "2025-03-17T10:00:11")])
    columns = ("timestamp", "node_name", "gpu_id", "sm_partition", "quota", "pod_counts")
    rows = [
        (f"2025-03-17T10:00:{second:02}Z", "n", "g", 30 * pods, 50 * pods, pods)
        for second, pods in ((2, 1), (4, 1), (6, 2), (8, 2), (20, 3))
    ]
    write(tmp_path / NAME.replace("__fastgshare-", "__fastgshare-usage-"), columns, rows)
    run = published.read(tmp_path / NAME)
    assert [(s.at_s, s.pods) for s in run.slices] == [(-8.0, 1), (-4.0, 2), (10.0, 3)]
    assert [s.pods for s in run.during_load] == [2, 3]
    assert run.one_slice
    assert {(s.sm_percent, s.quota_percent) for s in run.slices} == {(30.0, 50.0)}


def test_rates_are_read_off_the_sending_times() -> None:
    rates = (8.0, 25.0, 1.0, 1.0, 25.0, 3.0)
    assert published.rates(client_sends(rates)) == rates


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=str(tmp_path)):
        published.published(tmp_path)


def test_the_published_loads_are_whole(data: Path) -> None:
    base, stress = published.base_rps(data), published.stress_rps(data)
    assert (len(base), 5 * sum(base)) == (50, 2690)
    assert (len(stress), 5 * sum(stress)) == (50, 4890)
    runs = {run.file: run for run in published.published(data)}
    # The list that is published is what a run's times show, and two systems show the same heavier one.
    assert published.rates(runs["HAS__1-mobilenet__has-120-50-50-15.csv.gz"].sent_s) == base
    assert published.rates(runs["HAS__1-mobilenet-stress__has-120-50-50-15-mobile-stress.csv.gz"].sent_s) == stress


def test_the_logs_are_those_that_the_reference_describes(data: Path) -> None:
    logged = [run for run in published.published(data) if run.slices]
    assert len(logged) == 17
    assert sum(run.one_slice for run in logged) == 11
    paths = {run.run: run.during_load for run in logged if run.system == "HAS"}
    assert all(s.pods == 1 and s.sm_percent == 30.0 for path in paths.values() for s in path)
    assert [s.quota_percent for s in paths["1-convnext"]] == [30.0, 100.0]


# -- replaying ----------------------------------------------------------------------------------------------------------


def test_a_quota_is_in_force_from_the_logged_instant() -> None:
    slices = (Slices(-10.0, 1, 30.0, 50.0), Slices(10.0, 1, 30.0, 100.0))
    latency_ms = simulator_replay.replay(made_up(40.0), slices, [2.0] * 4, 1)
    assert len(latency_ms) == 40
    assert np.median(latency_ms[:20]) == pytest.approx(80.0, rel=0.05)
    assert np.median(latency_ms[20:]) == pytest.approx(40.0, rel=0.05)


def test_pods_come_and_go_as_logged() -> None:
    one, many = Slices(-10.0, 1, 30.0, 50.0), Slices(-2.0, 3, 30.0, 50.0)
    alone = simulator_replay.replay(made_up(100.0), (one,), [10.0] * 8, 1)
    # More work than one pod can do, until two others have started; later they go again.
    back = Slices(25.0, 1, 30.0, 50.0)
    helped = simulator_replay.replay(made_up(100.0), (one, many, back), [10.0] * 8, 1)
    assert np.median(alone) > 2.0 * np.median(helped)
    in_the_middle, at_the_end = helped[150:250], helped[-20:]
    assert np.percentile(in_the_middle, 95) < np.median(at_the_end)


# -- fitting ------------------------------------------------------------------------------------------------------------


def sample(name: str, model: str, latency_ms: float, overhead_ms: float) -> Sample:
    """One that is right if its model takes so long outside the pod."""
    raw = np.full(200, latency_ms)
    return Sample(name, model, fit.figures(raw + overhead_ms), raw)


def test_the_overhead_of_each_model_is_found() -> None:
    samples = [sample("a1", "a", 20.0, 63.0), sample("a2", "a", 50.0, 63.0), sample("b1", "b", 20.0, 12.0)]
    found = fit.fitted(samples)
    assert found == Fit({"a": 63.0, "b": 12.0}, 0.0)
    assert all(fit.passes(fit.simulated(s, found), s.measured) == (True, True, True) for s in samples)


def test_a_run_that_is_far_off_does_not_pull_the_others() -> None:
    samples = [sample(f"a{i}", "a", 20.0 + i, 63.0) for i in range(3)]
    broken = Sample("a9", "a", Figures(5000.0, 9000.0, 100.0), np.full(200, 20.0))
    assert fit.fitted([*samples, broken]).overhead_ms["a"] == 63.0


def test_the_spread_is_found_from_percentiles() -> None:
    draws = np.exp(0.2 * np.random.default_rng(5).standard_normal(20_000))
    raw = np.full(20_000, 20.0)
    found = fit.fitted([Sample("a1", "a", fit.figures(raw + 70.0 * draws), raw)])
    assert found.spread == 0.2
    assert found.overhead_ms["a"] == pytest.approx(70.0, abs=1.0)


def test_halves_alternate_within_each_model() -> None:
    names = ("a3", "a1", "b2", "a2", "b1")
    first, second = fit.halves([sample(name, name[0], 20.0, 50.0) for name in names])
    assert [s.name for s in first] == ["a1", "a3", "b1"]
    assert [s.name for s in second] == ["a2", "b2"]


def test_failures_are_violations() -> None:
    found = fit.figures(np.array([10.0, 10.0, 300.0, 10.0]), np.array([True, False, False, False]))
    assert found.over_percent == 50.0


@pytest.mark.parametrize(
    ("found", "within"),
    [
        (Figures(119.0, 239.0, 12.9), (True, True, True)),
        (Figures(121.0, 159.0, 13.1), (False, False, False)),
        (Figures(81.0, 161.0, 7.1), (True, True, True)),
    ],
)
def test_bounds(found: Figures, within: tuple[bool, bool, bool]) -> None:
    assert fit.passes(found, Figures(100.0, 200.0, 10.0)) == within


def test_every_run_is_listed_and_the_single_pods_are_met(data: Path) -> None:
    rows, found, turned = simulator_runs.rows_of(data)
    assert len(rows) == 27
    roles = [row.role for row in rows]
    assert {role: roles.count(role) for role in set(roles)} == {"fitted": 10, "judged": 7, "other": 7, "no log": 3}
    assert len(turned) == 10
    assert set(found.overhead_ms) == set(published.MODELS.values())
    single = [row for row in rows if row.role == "judged" and row.run.system == "HAS"]
    assert sum(bool(row.passed) for row in single) >= 0.6 * len(single)
