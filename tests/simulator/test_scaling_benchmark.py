"""The scaling benchmark: its statistics and figures on made-up rows, and every part of it once, on little."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scaling, scaling_keys, scaling_print, scaling_runs, scaling_studies, scaling_tenants
from benchmarks.scaling_cells import MODELS, Cell, Setting, grid, whole
from benchmarks.scaling_keys import Grid
from benchmarks.scaling_loads import NAMES, load
from benchmarks.scaling_rows import Row
from benchmarks.scaling_statistics import geometric, share
from benchmarks.scaling_tenants import Size

SHORT = Setting(window_s=60.0)
CELL = Cell("has-rps", 5.0, "resnet50", SHORT)
KEYS = {
    *("kpa_cost_ratio_low", "kpa_full_over_bound", "has_cost_ratio", "has_violation_ratio", "fast_cost_ratio"),
    *("fast_violation_ratio", "tuned_fixed_cost_ratio", "oracle_gap", "cells_within_1pct"),
}


def row(
    cell: str = CELL.name,
    policy: str = "hybrid",
    cost: float = 10.0,
    late: float = 0.0,
    *,
    seed: int = 1,
    text: str = "",
) -> Row:
    return Row(
        cell=cell,
        policy=policy,
        text=text or policy,
        seed=seed,
        requests=1000,
        violations=late,
        worst_minute=late,
        worst_function=late,
        reserved_gpu_s=cost,
        provisioned_gpu_s=10.0 * cost,
        used_gpu_s=cost / 2.0,
        billed_gpu_s=cost,
        p50_ms=10.0,
        p95_ms=20.0,
        p99_ms=30.0,
        cold_starts=1,
        actions_per_min=1.0,
        refused=0,
        peak_gpus=1,
    )


def one_cell(late: Mapping[str, float], costs: Mapping[str, float]) -> Grid:
    rows = [row(policy=p, cost=costs[p], late=late[p], seed=seed) for p in costs for seed in (1, 2)]
    return Grid.of([CELL], rows)


# -- statistics -------------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 100.0), st.integers(1, 6), st.integers(1, 5))
def test_equal_ratios_have_themselves_as_their_mean_and_interval(ratio: float, cells: int, seeds: int) -> None:
    figure = geometric(np.full((cells, seeds), ratio), 1.0)
    assert (figure.value, figure.low, figure.high) == pytest.approx((ratio, ratio, ratio))
    assert figure.n == cells


@given(st.lists(st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3), min_size=1, max_size=8))
def test_a_reversed_ratio_has_the_reversed_figure(ratios: list[list[float]]) -> None:
    there, back = geometric(np.array(ratios), 1.0), geometric(1.0 / np.array(ratios), 1.0)
    assert (there.value, there.low, there.high) == pytest.approx((1 / back.value, 1 / back.high, 1 / back.low))
    assert there.low <= there.high


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        figure = geometric(np.exp(rng.normal(0.7, 0.5, size=(40, 1)) + rng.normal(0.0, 0.1, size=(40, 5))), 1.0)
        covered += figure.low <= np.exp(0.7) <= figure.high
    assert 50 <= covered <= 60


def test_a_share_counts_cells_by_their_mean_over_seeds() -> None:
    figure = share(np.array([[0.0, 0.018], [0.02, 0.02], [0.0, 0.0], [0.0, 0.0]]), 0.95, limit=0.01)
    assert figure.value == 0.75
    assert not figure.met


def test_a_figure_without_cells_is_not_met_and_has_no_value() -> None:
    figure = geometric(np.zeros((0, 0)), 1.0, more=False)
    assert figure.to_dict() == {"value": None, "low": None, "high": None, "target": 1.0, "met": False, "n": 0}


# -- figures ----------------------------------------------------------------------------------------------------------


def test_ratios_are_theirs_over_ours_and_rare_lateness_counts_as_one_in_ten_thousand() -> None:
    found = one_cell({"hybrid": 0.0, "has": 0.002}, {"hybrid": 10.0, "has": 30.0})
    figures = scaling_keys.figures(found)
    assert figures["has_cost_ratio"].value == pytest.approx(3.0)
    assert figures["has_violation_ratio"].value == pytest.approx(20.0)
    assert figures["fast_cost_ratio"].n == 0
    assert {*figures} == KEYS


@pytest.mark.parametrize(("ours", "theirs", "cells"), [(0.0, 0.0, 1), (0.02, 0.0, 0), (0.0, 0.02, 0)])
def test_the_fixed_slice_is_compared_where_both_keep_the_promise(ours: float, theirs: float, cells: int) -> None:
    found = one_cell({"hybrid": ours, "fixed": theirs}, {"hybrid": 10.0, "fixed": 9.0})
    assert scaling_keys.figures(found)["tuned_fixed_cost_ratio"].n == cells


@pytest.mark.parametrize(
    ("ours", "theirs", "cost", "why"),
    [
        (0.0, 0.0, 9.0, "cheaper"),
        (0.02, 0.0, 99.0, "only it keeps the promise"),
        (0.0, 0.0, 11.0, None),
        (0.0, 0.02, 1.0, None),
        (0.02, 0.02, 1.0, None),
    ],
)
def test_a_cell_is_lost_to_who_is_cheaper_or_alone_in_time(
    ours: float, theirs: float, cost: float, why: str | None
) -> None:
    found = one_cell({"hybrid": ours, "fixed": theirs}, {"hybrid": 10.0, "fixed": cost})
    assert [one["why"] for one in scaling_keys.lost(found)] == ([why] if why else [])
    assert [one["cell"] for one in scaling_keys.missed(found)] == ([CELL.name] if ours else [])


def test_more_than_five_percent_dearer_than_the_fixed_slice_is_said() -> None:
    late = {"hybrid": 0.0, "fixed": 0.0}
    assert scaling_keys.dearer(one_cell(late, {"hybrid": 10.0, "fixed": 9.6})) == []
    assert scaling_keys.dearer(one_cell(late, {"hybrid": 10.0, "fixed": 9.4})) == [CELL.name]


def test_ablations_are_compared_on_the_seed_that_they_ran_with() -> None:
    rows = [row(cost=10.0), row(cost=1000.0, seed=2), row(policy="no vertical", cost=15.0, late=0.05)]
    (found,) = scaling_keys.ablations(Grid.of([CELL], rows)).values()
    assert found["cost_ratio"] == pytest.approx(1.5)
    assert found["cells_within_1pct"] == 0.0


def test_hindsight_takes_the_cheapest_that_keeps_the_promise_else_the_least_late() -> None:
    cheap, fair, dear = row(cost=1.0, late=0.05), row(cost=3.0, late=0.01), row(cost=9.0)
    assert scaling_runs.best_of([cheap, fair, dear]) is fair
    assert scaling_runs.best_of([row(cost=1.0, late=0.5), cheap]) is cheap


def test_rows_survive_their_json_form() -> None:
    one = attrs.evolve(row(), p99_ms=float("inf"))
    assert Row.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert one.usd_per_1k("reserved") == pytest.approx(10.0 / 3600.0 * 2.48)


# -- cells ------------------------------------------------------------------------------------------------------------


def test_the_grid_is_the_protocols() -> None:
    cells = grid()
    assert len({cell.name for cell in cells}) == len(cells)
    assert len([cell for cell in cells if not cell.extra]) == len(NAMES) * 3 * len(MODELS) == 108
    assert [whole(cell).load_gpus for cell in cells if cell.extra] == pytest.approx([1.0] * len(MODELS))


def test_slices_are_never_dearer_than_whole_gpus_and_save_less_as_the_load_grows() -> None:
    for model in MODELS:
        found = [whole(Cell("has-rps", rps, model)) for rps in (1.0, 5.0, 20.0)]
        assert [w.bound for w in found] == sorted((w.bound for w in found), reverse=True)
        assert all(w.bound >= 1.0 and w.load_gpus > 0.0 for w in found)


@pytest.mark.parametrize("name", NAMES)
def test_every_load_can_be_drawn_at_its_rate(data: Path, name: str) -> None:
    found = load(name, data, 120.0)
    scenario = Cell(name, 20.0, "resnet50", Setting(window_s=120.0)).scenario(data, 1)
    assert scenario.duration_s == found.duration_s == 120.0
    assert len(scenario.arrivals[0]) / 120.0 == pytest.approx(20.0, rel=0.15)


# -- all of it, on little -----------------------------------------------------------------------------------------------


def test_a_small_plan_fills_the_whole_report(data: Path) -> None:
    extra = attrs.evolve(CELL, rps=30.0, extra=True)
    plan = scaling.Plan(
        data, (CELL, extra), ("grid", "ablations", "tenants"), seeds=2, tenants=Size(6, 2, 60.0), tenant_seeds=1, jobs=1
    )
    report = json.loads(json.dumps(scaling.measure(plan), allow_nan=False))
    assert {key for key, value in report.items() if isinstance(value, dict) and "met" in value} == KEYS | {
        "tenant_vs_tuned_fixed",
        "tenant_gpu_hours_ratio",
    }
    runs = {cell["cell"]: [(run["policy"], run["seed"]) for run in cell["runs"]] for cell in report["cells"]}
    both = {(policy, seed) for policy in scaling_runs.POLICIES for seed in (1, 2)}
    assert {*runs[CELL.name]} == both | {(name, 1) for name in scaling_runs.ABLATIONS}
    assert {*runs[extra.name]} == {(policy, seed) for policy in ("hybrid", "kpa") for seed in (1, 2)}
    assert {*report["ablations"]} == {*scaling_runs.ABLATIONS, "no pooling"}
    tried = [run["text"] for run in report["tried"] if run["cell"] == CELL.name]
    assert len(tried) == len({*tried}) == 4 + 16
    assert "kpa_cost_ratio_low" in scaling_print.text(report)


def test_the_same_task_gives_the_same_rows(data: Path) -> None:
    task = scaling_runs.Task(CELL, data, (3,), ("hybrid", "kpa", "oracle"), ablations=False)
    assert scaling_runs.run(task).rows == scaling_runs.run(task).rows


@pytest.mark.parametrize("study", scaling_studies.STUDIES, ids=lambda study: study.setting.name)
def test_every_study_has_cells_of_its_own_setting(study: scaling_studies.Study) -> None:
    found = scaling_studies.cells_of(study, (CELL, attrs.evolve(CELL, extra=True)))
    assert [(cell.load, cell.model) for cell in found] == [(CELL.load, CELL.model)]
    assert attrs.evolve(found[0].setting, window_s=study.setting.window_s) == study.setting


def test_a_study_of_the_second_law_runs_and_is_labelled(data: Path) -> None:
    study = next(study for study in scaling_studies.STUDIES if study.setting.law == "table")
    found = scaling_studies.run(study, (CELL,), data, (1,), 1)
    assert found["setting"]["name"] == scaling_studies.TABLE_LAW
    assert {line["policy"] for line in found["summary"]} == {*scaling_runs.POLICIES}


def test_cost_at_equal_violations_sweeps_both(data: Path) -> None:
    found = scaling_studies.pareto((CELL,), data, 1, 1)
    assert {name: len(points) for name, points in found["curves"].items()} == {"ours": 10, "fixed": 16}
    ours = {point["setting"]: point["cost_ratio"] for point in found["curves"]["ours"]}
    assert ours["hybrid:late_factor=0.05"] > ours["hybrid:late_factor=4.0"] > 0.0
    assert [part["limit"] for part in found["at_equal_violations"]] == [0.01, 0.001]


def test_tenants_keep_their_skew_and_need_what_they_should(data: Path) -> None:
    size = Size(10, 3, 300.0)
    found = [len(times) for times in scaling_tenants.tenants(data, 1, size).arrivals]
    assert len(found) == 10
    assert max(found) == found[0] > 0.3 * sum(found)
    other = scaling_tenants.tenants(data, 2, size)
    assert other.names[:3] == scaling_tenants.tenants(data, 1, size).names[:3]
    assert other.names[3:] != scaling_tenants.tenants(data, 1, size).names[3:]


def test_the_best_baseline_keeps_the_promise_before_it_is_cheap() -> None:
    rows = [row(policy="fast", cost=1.0, late=0.5), row(policy="kpa", cost=50.0, late=0.009), row(cost=20.0)]
    best = scaling_tenants.chosen([*rows, row(policy="kpa", cost=40.0, late=0.01, text="kpa:cc=1")])
    assert scaling_tenants.best_baseline(best) == "kpa"
    assert best["kpa"][0].text == "kpa:cc=1"
    figures = scaling_tenants.figures([row for own in best.values() for row in own])
    assert figures["tenant_gpu_hours_ratio"].value == pytest.approx(0.5)
    assert figures["tenant_vs_tuned_fixed"].n == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--only", "grit"], "--only 'grit' is unknown"),
        (["--cells", "nothing"], "--cells 'nothing' is in no cell's name"),
        (["--policies", "faro"], "--policies 'faro' is unknown"),
        (["--seeds", "0"], "--seeds 0"),
    ],
)
def test_wrong_options_are_told(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["--data", "/nowhere", *given]) == 2
    assert said in capsys.readouterr().err
