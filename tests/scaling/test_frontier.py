from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import SLOInfeasibleError
from hasfaas.executor.quota import Timing
from hasfaas.scaling.capacity import slice_rps
from hasfaas.scaling.frontier import PEAKS, QUOTA_PERCENTS, RATES_RPS, REPLICAS, Frontier, FrontierSettings, feasible
from hasfaas.scaling.stack import COUNTS, QUOTAS, Stack, count_rows, quota_rows
from tests.fakes.plant import surface

SURFACE = surface(10.0)
FRONTIER = Frontier.of(SURFACE, 60.0, 0.01, Timing(), batch_max=8)


def test_more_quota_never_carries_less() -> None:
    assert np.all(np.diff(FRONTIER.rps, axis=-1) >= 0.0)


def test_the_grid_is_the_capacity_rule() -> None:
    row, share, quota = REPLICAS.index(2), 7, QUOTA_PERCENTS.index(50)
    batches = (1, 2, 3, 4, 6, 8)
    hold_ms = SURFACE.over(batches, SURFACE.sm_percents).quantile_ms(0.9)[:, share]
    rps = slice_rps(2, batches, hold_ms, 0.5, 60.0, Timing(), late_share=0.005)
    assert FRONTIER.rps[row, share, quota] >= rps.max()
    assert FRONTIER.batch[row, share, quota] == batches[int(rps.argmax())]


@pytest.mark.parametrize("insurance", [0.0, 0.3])
@pytest.mark.parametrize("most", [None, (3,) * 20])
def test_the_best_shape_is_that_of_the_greatest_peak_within_the_insurance(
    insurance: float, most: tuple[int, ...] | None
) -> None:
    rules = FrontierSettings(insurance=insurance, least_quota=0.1, sm_percents=SURFACE.sm_percents, most=most)
    frontier = Frontier.of(SURFACE, 60.0, 0.01, Timing(), batch_max=8, settings=rules)
    counts, shares = np.asarray(REPLICAS)[:, None], frontier.sm_percents
    for column in range(0, len(RATES_RPS), 7):
        rate = RATES_RPS[column]
        enough = frontier.rps >= rate
        quota = np.maximum(np.asarray(QUOTA_PERCENTS)[enough.argmax(axis=-1)] / 100.0, rules.least_quota)
        price = np.where(enough[..., -1], counts * (shares * quota / 100.0 + rules.replica_price), np.inf)
        able = [np.where(frontier.rps[..., -1] >= peak * rate, price, np.inf) for peak in PEAKS]
        for row, own in enumerate(able):
            if not np.isfinite(own.min()):
                assert frontier.best[row, column] == -1
                continue
            paid = [peak for peak, each in enumerate(able) if each.min() <= own.min() * (1.0 + insurance)]
            assert frontier.best[row, column] == int(able[paid[-1]].argmin())


@settings(deadline=None)
@given(st.floats(0.1, 300.0))
def test_the_cheapest_shape_carries_the_rate_and_none_of_one_replica_is_cheaper(rate: float) -> None:
    shape = FRONTIER.cheapest(rate)
    assert shape is not None
    assert shape.capacity_rps >= rate
    for share in FRONTIER.sm_percents:
        alone = FRONTIER.need(1, float(share), rate)
        if alone is not None:
            assert shape.area + 0.003 * shape.replicas <= alone.area + 0.003 + 1e-9


@settings(deadline=None)
@given(st.floats(0.1, 100.0), st.floats(1.0, 8.0))
def test_a_peak_can_be_carried_once_the_quota_is_raised(rate: float, factor: float) -> None:
    shape = FRONTIER.cheapest(rate, rate * factor)
    assert shape is not None
    whole = FRONTIER.need(shape.replicas, shape.sm_percent, rate * factor)
    assert whole is not None and whole.sm_percent == shape.sm_percent


def test_what_cannot_be_carried_is_none() -> None:
    assert FRONTIER.cheapest(1e9) is None
    assert FRONTIER.need(1, 5.0, 1e6) is None


def test_one_that_calls_one_at_a_time_is_planned_with_batches_of_one() -> None:
    assert np.all(Frontier.of(SURFACE, 60.0, 0.01, Timing(), batch_max=1).batch == 1)


def test_insurance_buys_greater_peaks_and_costs_no_more_than_it_may() -> None:
    bare, insured = (
        Frontier.of(SURFACE, 60.0, 0.01, Timing(), batch_max=8, settings=FrontierSettings(insurance=share))
        for share in (0.0, 0.3)
    )
    column = int(np.searchsorted(RATES_RPS, 50.0))
    rate = float(RATES_RPS[column])
    shapes = []
    for frontier in (bare, insured):
        count, share = divmod(int(frontier.best[0, column]), len(frontier.sm_percents))
        shape = frontier.need(REPLICAS[count], float(frontier.sm_percents[share]), rate)
        assert shape is not None
        shapes.append((shape, float(frontier.rps[count, share, -1])))
    (cheap, least), (dear, most) = shapes
    assert most >= least
    assert dear.area + 0.003 * dear.replicas <= 1.3 * (cheap.area + 0.003 * cheap.replicas) + 1e-9


def test_an_slo_that_cannot_be_kept_is_refused_with_the_nearest_that_can() -> None:
    with pytest.raises(
        SLOInfeasibleError, match=r"slo_ms=5 cannot be kept.*nearest SLO that can is (\d+\.?\d*) ms"
    ) as e:
        feasible(SURFACE, 5.0, 0.01, Timing(), batch_max=8)
    nearest_ms = float(str(e.value).split("nearest SLO that can is ")[1].split(" ms")[0])
    assert 10.0 < nearest_ms < 30.0
    assert feasible(SURFACE, 1.02 * nearest_ms, 0.01, Timing(), batch_max=8).rps.max() > 0.0


def test_a_stack_reads_what_its_frontiers_say() -> None:
    narrow = Frontier.of(SURFACE, 60.0, 0.01, Timing(), settings=FrontierSettings(sm_percents=(30.0, 50.0)))
    stack = Stack.of(np.array([1, 0, -1]), [FRONTIER, narrow])
    rate = np.array([7.0, 7.0, 7.0])
    count, share, known = stack.cheapest(rate, rate)
    assert known.tolist() == [True, True, False]
    assert stack.sm_percents[stack.kind, share][0] in (30.0, 50.0)
    quota = QUOTAS[stack.quota_row(count, share, rate)]
    for row, frontier in ((0, narrow), (1, FRONTIER)):
        own = frontier.need(int(COUNTS[count[row]]), float(stack.sm_percents[stack.kind[row], share[row]]), 7.0)
        assert own is not None and own.quota_percent == quota[row]


def test_rows_are_those_of_the_greatest_value_that_is_not_above() -> None:
    assert COUNTS[count_rows(np.array([0, 1, 8, 9, 63, 64, 1000]))].tolist() == [1, 1, 8, 8, 56, 64, 64]
    assert QUOTAS[quota_rows(np.array([2.0, 11.0, 100.0]))].tolist() == [2.0, 10.0, 100.0]
