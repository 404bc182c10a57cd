"""Which points are measured, and which measurements are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.probe import Point, Probe, check, choose, rising

BATCHES, SHARES, QUOTAS = (1, 2, 4, 8), tuple(range(5, 101, 5)), tuple(range(10, 101, 10))


def cells(points: Sequence[Point]) -> list[tuple[int, float]]:
    return [(point.batch, point.sm_percent) for point in points]


def test_sixteen_points_of_a_gpu() -> None:
    points = choose(16, BATCHES, SHARES, QUOTAS)
    full = [point for point in points if point.quota_percent == 100]
    assert len(points) == len(set(points)) == 16
    assert len(full) == len(set(cells(full))) == 13
    assert {(1, 5), (1, 100), (8, 5), (8, 100)} <= set(cells(full[:4]))
    lower = [point.quota_percent for point in points if point.quota_percent < 100]
    assert len(set(lower)) == 3
    # No batch size and no third of the SM axis is left out.
    assert {batch for batch, _ in cells(full)} == set(BATCHES)
    assert {(share - 1) // 34 for _, share in cells(full)} == {0, 1, 2}


def test_sixteen_points_of_two_cores() -> None:
    points = choose(16, BATCHES, (50, 100), (25, 50, 75, 100))
    assert len(set(points)) == 16
    assert len({point for point in points if point.quota_percent == 100}) == 8
    assert len(set(cells(points))) == 8
    assert {point.quota_percent for point in points} == {25, 50, 75, 100}


def test_four_points_are_the_corners() -> None:
    points = choose(4, BATCHES, (50, 100), QUOTAS)
    assert set(points) == {Point(b, s, 100) for b in (1, 8) for s in (50, 100)}


@given(
    st.integers(4, 24),
    st.lists(st.integers(1, 64), min_size=1, max_size=5),
    st.lists(st.sampled_from(SHARES), min_size=1, max_size=8),
    st.lists(st.sampled_from(QUOTAS), min_size=1, max_size=4),
)
def test_any_axes(count: int, batches: list[int], shares: list[int], quotas: list[int]) -> None:
    points = choose(count, batches, shares, quotas)
    grid = len(set(batches)) * len(set(shares)) * len(set(quotas))
    assert len(points) == len(set(points))
    assert len(points) <= count
    # All that was asked for, but what the grid cannot give.
    if len(set(quotas)) > 1 or len(points) == count:
        assert len(points) == min(count, grid)
    else:
        assert len(points) == grid
    assert points == choose(count, batches[::-1], shares[::-1], quotas[::-1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((3, BATCHES, SHARES, QUOTAS), "points=3 is too few"),
        ((16, (), SHARES, QUOTAS), r"batches=\(\)"),
        ((16, BATCHES, (0,), QUOTAS), r"sm_percents=\(0,\)"),
        ((16, BATCHES, SHARES, (float("nan"),)), "quotas="),
    ],
)
def test_bad_axes(arguments: tuple[int, Sequence[int], Sequence[float], Sequence[float]], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        choose(*arguments)


# -- checking


def probe(batch: int, share: float, hold_ms: float, **more: float) -> Probe:
    quota = more.pop("quota", 100.0)
    return Probe(Point(batch, share, quota), hold_ms, log_spread=more.get("log_spread", 0.01), runs=10)


def test_no_probes() -> None:
    with pytest.raises(InvalidRequestError, match="empty") as caught:
        check([])
    assert caught.value.reason == "EMPTY_PROBES"


@pytest.mark.parametrize("hold_ms", [float("nan"), 0.0, -1.0, float("inf")])
def test_a_hold_that_is_no_time(hold_ms: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"hold_ms=.* of the probe at batch 1, SM 50 %"):
        check([probe(1, 50, hold_ms)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"response_ms": float("nan")}, "response_ms=nan"),
        ({"runs": 0}, "runs=0"),
        ({"log_spread": -0.1}, "log_spread=-0.1"),
        ({"point": Point(0, 50)}, "batch=0"),
        ({"point": Point(1, 150)}, "above 100 %"),
    ],
)
def test_other_values_that_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        check([attrs.evolve(probe(1, 50, 1.0), **change)])


@pytest.mark.parametrize(
    "pair",
    [
        (probe(1, 50, 10.0), probe(4, 50, 5.0)),
        (probe(2, 50, 5.0), probe(2, 100, 10.0)),
        (probe(8, 50, 5.0), probe(1, 100, 10.0)),
    ],
)
def test_non_monotone_probes_name_both_points_and_the_cure(pair: tuple[Probe, Probe]) -> None:
    for order in (pair, pair[::-1]):
        with pytest.raises(InvalidRequestError, match="non-monotone") as caught:
            check(order)
        assert caught.value.reason == "NON_MONOTONE_PROBES"
        assert all(str(one.point) in str(caught.value) for one in pair)
        assert "quiet machine" in str(caught.value)


def test_noise_is_no_contradiction() -> None:
    check([probe(1, 50, 10.0), probe(2, 50, 9.5), probe(1, 100, 10.5)])
    # Half as long, but of a function that varies by a factor of two.
    check([probe(1, 50, 10.0, log_spread=0.7), probe(4, 50, 5.0, log_spread=0.7)])
    # A smaller batch on fewer SMs may be either.
    check([probe(1, 10, 50.0), probe(8, 100, 5.0)])


def test_duplicates_that_disagree() -> None:
    check([probe(1, 50, 10.0), probe(1, 50, 10.4, quota=30.0)])
    with pytest.raises(InvalidRequestError, match="disagree") as caught:
        check([probe(1, 50, 10.0), probe(1, 50, 20.0, quota=30.0)])
    assert caught.value.reason == "DISAGREEING_PROBES"
    assert "quota 30 %" in str(caught.value)


def test_holds_that_fall_with_the_batch_are_pooled() -> None:
    holds = {1: 3.0, 2: 5.6, 3: 7.9, 4: 5.4, 8: 9.0}
    probes = [Probe(Point(batch, 50.0, 100.0), hold, None, 9, 0.01) for batch, hold in holds.items()]
    level = {p.point.batch: p.hold_ms for p in rising(probes)}
    pooled = (7.9 * 5.4) ** 0.5
    assert level == pytest.approx({1: 3.0, 2: 5.6, 3: pooled, 4: pooled, 8: 9.0})
    check(rising(probes))


def test_holds_that_rise_stay_as_they_are() -> None:
    probes = [
        Probe(Point(batch, share, 100.0), batch * 100.0 / share, None, 9, 0.01)
        for batch in (1, 2)
        for share in (50.0, 100.0)
    ]
    assert rising(probes) == probes
