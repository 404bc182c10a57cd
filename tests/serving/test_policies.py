from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.serving.policies import ReplicaLoad, pick

L = ReplicaLoad


@pytest.mark.parametrize(
    ("loads", "most", "chosen"),
    [
        ([], 2, None),
        ([L(0, 50)], 2, 0),
        ([L(1, 50), L(0, 50)], 2, 1),  # the least loaded
        ([L(0, 20), L(0, 80)], 2, 1),  # among equals the larger quota
        ([L(1, 100), L(0, 1)], 2, 1),  # load counts more than quota
        ([L(0, 50), L(0, 50)], 2, 0),  # then the first
        ([L(1, 50, 3.0), L(1, 50, 2.0)], 2, 1),  # the one that began first ends first
        ([L(1, 50, 3.0), L(1, 60, 4.0)], 2, 1),  # the quota counts more
        ([L(2, 50), L(2, 50)], 2, None),  # all full
        ([L(2, 100), L(1, 1)], 2, 1),
        ([L(0, 0)], 2, None),  # a quota of 0 runs nothing
        ([L(0, 0), L(1, 10)], 2, 1),
        ([L(1, 50)], 1, None),
    ],
)
def test_who_is_picked(loads: list[ReplicaLoad], most: int, chosen: int | None) -> None:
    assert pick(loads, most=most) == chosen


LOADS = st.lists(st.builds(ReplicaLoad, st.integers(0, 3), st.floats(0, 100), st.floats(0, 9)), max_size=8)


@given(LOADS, st.integers(1, 3))
def test_who_is_picked_has_room_and_time_and_nobody_with_both_has_less_to_do(
    loads: list[ReplicaLoad], most: int
) -> None:
    open_ones = [load for load in loads if load.executions < most and load.quota_percent > 0]
    chosen = pick(loads, most=most)
    if chosen is None:
        assert not open_ones
        return
    best = loads[chosen]
    assert best in open_ones
    assert best.executions == min(load.executions for load in open_ones)
    assert best.quota_percent == max(x.quota_percent for x in open_ones if x.executions == best.executions)
    equals = [x for x in open_ones if (x.executions, x.quota_percent) == (best.executions, best.quota_percent)]
    assert best.began_s == min(x.began_s for x in equals)
    assert loads.index(best) == chosen
