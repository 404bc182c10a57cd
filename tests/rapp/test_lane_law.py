"""The lane law over arrays: equal to the scalar law, and to what the very arithmetic of the token table does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor import quota
from hasfaas.executor.quota import PPM, Timing
from hasfaas.rapp import lane_law
from tests.fakes.virtual_lane import MS, VirtualLane, saturated

TIMING = Timing()
TIMINGS = st.sampled_from(
    [TIMING, Timing(50 * MS, 5 * MS), Timing(20 * MS, 5 * MS), Timing(100 * MS, 40 * MS, 10 * MS)]
)
HOLDS_MS = st.floats(0.01, 5000.0)
SHARES = st.floats(0.0, 1.0)
OVERRUNS_MS = st.sampled_from([0.0, 0.1, 1.0])
RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)
QUOTAS = (0.1, 0.3, 0.5, 0.8, 1.0)
GRID = list(itertools.product(RATIOS, (0.02, *QUOTAS)))


# -- arrays and scalars ------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    holds_ms=st.lists(HOLDS_MS, min_size=1, max_size=4),
    shares=st.lists(SHARES, min_size=1, max_size=4),
    timing=TIMINGS,
    late_ms=OVERRUNS_MS,
)
def test_arrays_equal_the_scalar_law(
    holds_ms: list[float], shares: list[float], timing: Timing, late_ms: float
) -> None:
    hold, share = np.array(holds_ms)[:, None], np.array(shares)
    found = {
        "mean": (lane_law.saturated_mean_ms(hold, share), quota.saturated_mean_ms),
        "worst": (
            lane_law.saturated_worst_ms(hold, share, timing, late_ms),
            lambda h, q: quota.saturated_worst_ms(h, q, timing, late_ms),
        ),
        "idle": (lane_law.idle_ms(hold, share, timing, late_ms), lambda h, q: quota.idle_ms(h, q, timing, late_ms)),
    }
    for name, (array, scalar) in found.items():
        expected = np.array([[scalar(h, q) for q in shares] for h in holds_ms])
        np.testing.assert_allclose(array, expected, rtol=1e-9, err_msg=name)


def lease_by_lease_ms(hold_ms: float, share: float, timing: Timing) -> float:
    """The idle response by following the account through each lease, without any closed form."""
    ppm = round(share * PPM)
    lease_ms, need_ms = quota.run_ns(ppm, timing) / 1e6, quota.threshold(ppm, timing) / 1e6
    tokens_ms, left_ms, total_ms = quota.cap(ppm, timing) / 1e6, hold_ms, 0.0
    while left_ms > 1e-9 * lease_ms:
        wait_ms = max(need_ms - tokens_ms, 0.0) / share
        served_ms = min(lease_ms, left_ms)
        tokens_ms += wait_ms * share - served_ms * (1.0 - share)
        total_ms += wait_ms + served_ms
        left_ms -= served_ms
    return total_ms


@settings(max_examples=200, deadline=None)
@given(hold_us=st.integers(1, 500_000), percent=st.integers(1, 100), timing=TIMINGS)
def test_the_closed_form_of_idle_follows_every_lease(hold_us: int, percent: int, timing: Timing) -> None:
    hold_ms, share = hold_us / 1e3, percent / 100
    assert lane_law.idle_ms(hold_ms, share, timing) == pytest.approx(
        lease_by_lease_ms(hold_ms, share, timing), rel=1e-9
    )


def test_a_surface_is_one_call_and_broadcasts() -> None:
    hold = np.linspace(1.0, 300.0, 5 * 4 * 20).reshape(5, 4, 20, 1)
    shares = np.linspace(0.1, 1.0, 10)
    idle, mean, worst = (lane_law.latency_ms(hold, shares, TIMING, law) for law in ("idle", "mean", "worst"))
    assert idle.shape == mean.shape == worst.shape == (5, 4, 20, 10)
    assert np.all(hold <= idle)
    assert np.all(idle <= worst)
    assert np.all(mean <= worst + 1e-9)
    assert np.all(np.diff(worst, axis=-1) <= 1e-9)  # more quota is never slower
    np.testing.assert_allclose(idle[..., -1], hold[..., 0])
    assert float(lane_law.throughput_rps(8, 20.0, 0.5)) == pytest.approx(200.0)


# -- what the token table does ----------------------------------------------------------------------------------------------


def saturated_responses_ms(hold_ns: int, share: float, unit_ns: int, *, others: tuple[float, ...] = ()) -> np.ndarray:
    """Responses of a replica that is never idle, once its first credit is spent."""
    world = VirtualLane(TIMING)
    for other in (share, *others):
        world.add(round(other * PPM), saturated(hold_ns), unit_ns=unit_ns)
    holds = 40 + 40 * quota.run_ns(round(share * PPM), TIMING) // hold_ns
    world.run_until(round(holds * hold_ns / share) + 1000 * MS)
    return np.diff(world.replicas[0].done_ns)[10:] / MS


@pytest.mark.parametrize(("ratio", "share"), GRID)
def test_saturated_mean_and_worst_are_those_of_the_token_arithmetic(ratio: float, share: float) -> None:
    hold_ns = round(ratio * quota.run_ns(round(share * PPM), TIMING))
    took_ms = saturated_responses_ms(hold_ns, share, unit_ns=min(MS, hold_ns))
    assert took_ms.mean() == pytest.approx(float(lane_law.saturated_mean_ms(hold_ns / MS, share)), rel=0.05)
    if quota.run_ns(round(share * PPM), TIMING) % min(MS, hold_ns) == 0 and hold_ns % MS in (0, hold_ns):
        assert took_ms.max() == pytest.approx(float(lane_law.saturated_worst_ms(hold_ns / MS, share, TIMING)), rel=1e-4)


@pytest.mark.parametrize(("ratio", "share"), GRID)
def test_the_response_after_idling_is_that_of_the_token_arithmetic(ratio: float, share: float) -> None:
    hold_ns, idle_ns = round(ratio * quota.run_ns(round(share * PPM), TIMING)), 20_000 * MS
    world = VirtualLane(TIMING)
    world.add(round(share * PPM), itertools.cycle([(idle_ns, hold_ns)]), unit_ns=min(MS, hold_ns))
    world.run_until(idle_ns + round(2 * hold_ns / share) + 1000 * MS)
    took_ms = (world.replicas[0].done_ns[0] - idle_ns) / MS
    assert took_ms == pytest.approx(float(lane_law.idle_ms(hold_ns / MS, share, TIMING)), rel=1e-3)


@pytest.mark.parametrize(("hold_us", "unit_us"), [(2_100, 700), (7_000, 700), (14_700, 2_100), (70_000, 3_000)])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.8])
def test_leases_that_overrun_between_gates_stay_below_the_worst_case_with_that_overrun(
    hold_us: int, unit_us: int, share: float
) -> None:
    took_ms = saturated_responses_ms(hold_us * 1000, share, unit_us * 1000)
    plain, bound = (
        float(lane_law.saturated_worst_ms(hold_us / 1e3, share, TIMING, late)) for late in (0.0, unit_us / 1e3)
    )
    # A whole number of longer leases may be fewer, and leases differ in length: to 5 %, the greater of both.
    assert took_ms.max() <= 1.05 * max(plain, bound)
    assert took_ms.max() >= 0.6 * bound


@pytest.mark.parametrize("shares", [(0.3, 0.3), (0.5, 0.5), (0.1, 0.4, 0.5), (0.25, 0.25, 0.25, 0.25)], ids=str)
@pytest.mark.parametrize("hold_ms", [1, 10, 30])
def test_each_busy_neighbour_adds_at_most_one_lease(shares: tuple[float, ...], hold_ms: int) -> None:
    took_ms = saturated_responses_ms(hold_ms * MS, shares[0], MS, others=shares[1:])
    bound = float(lane_law.saturated_worst_ms(hold_ms, shares[0], TIMING, neighbours=len(shares) - 1))
    assert 0.5 * bound <= took_ms.max() <= 1.05 * bound


# -- bad input ---------------------------------------------------------------------------------------------------------------


def test_quota_zero_serves_nothing() -> None:
    for law in lane_law.LAWS:
        assert lane_law.latency_ms([1.0, 50.0], 0.0, TIMING, law).tolist() == [math.inf, math.inf]
    assert lane_law.throughput_rps(4, 10.0, 0.0) == 0.0
    assert math.isinf(quota.idle_ms(1.0, 0.0, TIMING))
    assert math.isinf(quota.saturated_worst_ms(1.0, 0.0, TIMING))
    assert math.isinf(quota.saturated_mean_ms(1.0, 0.0))


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: lane_law.idle_ms([1.0, math.nan], 0.5, TIMING), r"hold_ms=nan .*1 of 2"),
    (lambda: lane_law.saturated_mean_ms(-1.0, 0.5), r"hold_ms=-1\.0"),
    (lambda: lane_law.saturated_worst_ms(math.inf, 0.5, TIMING), r"hold_ms=inf"),
    (lambda: lane_law.idle_ms(0.0, 0.5, TIMING), r"hold_ms=0\.0"),
    (lambda: lane_law.saturated_mean_ms(1.0, [0.5, 30.0]), r"quota=30\.0 must lie in \[0, 1\]"),
    (lambda: lane_law.saturated_mean_ms(1.0, -0.1), r"quota=-0\.1"),
    (lambda: lane_law.credit_ms(math.nan, TIMING), r"quota=nan"),
    (lambda: lane_law.throughput_rps(0, 1.0, 0.5), r"batch=0"),
    (lambda: lane_law.idle_ms(1.0, 0.5, TIMING, -0.1), r"overrun_ms=-0\.1"),
    (lambda: lane_law.idle_ms(1.0, 0.5, TIMING, neighbours=-1), r"neighbours=-1"),
    (lambda: lane_law.latency_ms(1.0, 0.5, TIMING, "best"), r"law='best'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_is_named(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        call()
    assert caught.value.reason == "BAD_LANE_LAW"
