from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.allocation import Allocation, Usage, lane_units
from hasfaas.core.errors import InvalidRequestError

GIB = 2**30


@given(st.floats(1, 100), st.floats(0, 100))
def test_occupancy_is_the_product_of_both_shares(sm_percent: float, quota_percent: float) -> None:
    made = Allocation(sm_percent, quota_percent, GIB)
    assert 0.0 <= made.occupancy <= 1.0
    assert made.occupancy == pytest.approx(sm_percent / 100 * quota_percent / 100)


@given(st.integers(0, 1_000_000))
def test_a_quota_in_parts_per_million_survives_the_percent(ppm: int) -> None:
    assert Allocation(100.0, ppm / 10_000, GIB).quota_ppm == ppm


def test_a_worked_allocation() -> None:
    made = Allocation(sm_percent=50, quota_percent=30, memory_bytes=2 * GIB)
    assert made.occupancy == pytest.approx(0.15)
    assert made.quota_ppm == 300_000


@pytest.mark.parametrize(
    ("sm_percent", "quota_percent", "memory_bytes", "named"),
    [
        (0.5, 50.0, GIB, "sm_percent=0.5"),
        (100.5, 50.0, GIB, "sm_percent=100.5"),
        (math.nan, 50.0, GIB, "sm_percent=nan"),
        (50.0, -1.0, GIB, "quota_percent=-1.0"),
        (50.0, 101.0, GIB, "quota_percent=101.0"),
        (50.0, 50.0, 0, "memory_bytes=0"),
    ],
)
def test_what_is_no_slice_of_a_device_is_refused_by_name(
    sm_percent: float, quota_percent: float, memory_bytes: int, named: str
) -> None:
    with pytest.raises(InvalidRequestError, match=named) as caught:
        Allocation(sm_percent, quota_percent, memory_bytes)
    assert caught.value.reason == "BAD_ALLOCATION"


def test_a_quota_of_zero_is_an_allocation_and_a_partition_of_zero_is_not() -> None:
    assert Allocation(1.0, 0.0, 1).occupancy == 0.0
    with pytest.raises(InvalidRequestError):
        Allocation(0.0, 100.0, 1)


def test_usage_starts_at_nothing() -> None:
    assert set(attrs.astuple(Usage())) == {0}


def test_lanes_are_rounded_up_and_fitted() -> None:
    assert lane_units(16, (50, 25, 25)) == (8, 4, 4)
    assert lane_units(15, (50, 25, 25)) == (7, 4, 4)  # the chunks of an H100
    assert lane_units(15, (30,)) == (5,)
    assert lane_units(4, (50, 25)) == (2, 1)
    assert lane_units(3, (98, 1, 1)) == (1, 1, 1)


@pytest.mark.parametrize("percents", [(60, 50), (0, 50), (), (10,) * 9, (101,), (float("nan"),), (50, -5)])
def test_lanes_that_are_more_than_the_device_are_refused(percents: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequestError, match=r"lanes=.* cannot be cut from 15 units; give 1 to 8") as caught:
        lane_units(15, percents)
    assert caught.value.reason == "BAD_OPTION"


def test_a_device_has_no_more_lanes_than_units() -> None:
    with pytest.raises(InvalidRequestError, match="from 2 units; give 1 to 2"):
        lane_units(2, (20, 20, 20))


@given(st.integers(1, 200), st.lists(st.integers(1, 100), min_size=1, max_size=8))
def test_lanes_fit_the_device_and_none_is_empty(units: int, percents: list[int]) -> None:
    if sum(percents) > 100 or len(percents) > units:
        return
    counts = lane_units(units, percents)
    assert sum(counts) <= units and min(counts) >= 1
    # Nobody gained a whole unit by rounding, and nobody lost one, but for what lanes of less than a unit had to be lifted by.
    exact = [units * percent / 100 for percent in percents]
    lifted = sum(max(0.0, 1 - share) for share in exact)
    assert all(share - 1 - lifted < count < share + 1 + 1e-9 for share, count in zip(exact, counts, strict=True))


def test_a_lane_of_less_than_a_unit_takes_a_whole_one_from_a_larger() -> None:
    assert lane_units(4, (1, 1, 1, 50)) == (1, 1, 1, 1)
