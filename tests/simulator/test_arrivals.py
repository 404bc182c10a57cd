"""Arrivals: rates change by thinning and superposition only, counts are kept, and made-up load has its statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.simulator import synthetic
from hasfaas.simulator.arrivals import COPY_WITHIN_S, SPREADS, counted, dispersion, draw, rotated
from hasfaas.simulator.trace import Trace

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=20).filter(any)


def counts_trace(counts: list[int], interval_s: float = 1.0) -> Trace:
    return Trace.of_counts(np.array([counts]), interval_s, ("f",))


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.sampled_from(SPREADS), st.sampled_from([1.0, 60.0]), st.integers(0, 5))
def test_counts_are_kept_whatever_the_spread(counts: list[int], spread: str, interval_s: float, seed: int) -> None:
    (times,) = draw(counts_trace(counts, interval_s), seed=seed, spread=spread)
    assert np.all(np.diff(times) >= 0.0)
    assert counted(times, len(counts) * interval_s, interval_s).tolist() == counts


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.sampled_from([0.3, 1.0, 2.5, 7.0]), st.integers(0, 5))
def test_more_is_copies_and_less_is_thinned(counts: list[int], factor: float, seed: int) -> None:
    trace = counts_trace(counts)
    (times,) = draw(trace, seed=seed, rps=factor * trace.mean_rps)
    drawn, before = counted(times, len(counts)), np.array(counts)
    assert np.all(drawn >= np.floor(factor + 1e-9) * before)
    assert np.all(drawn <= np.ceil(factor - 1e-9) * before)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.0, 99.0), min_size=1, max_size=60).map(sorted),
    st.sampled_from([0.5, 1.0, 3.0, 3.4]),
    st.integers(0, 3),
)
def test_copies_of_requests_stay_near_them(times_s: list[float], factor: float, seed: int) -> None:
    trace = Trace.of_requests((np.array(times_s),), ("f",), duration_s=100.0)
    (drawn,) = draw(trace, seed=seed, rps=factor * trace.mean_rps)
    assert np.all(np.diff(drawn) >= 0.0)
    assert np.all((drawn >= 0.0) & (drawn < 100.0))
    near = np.abs(drawn[:, None] - np.array(times_s)).min(axis=1, initial=np.inf)
    assert np.all(near <= (COPY_WITHIN_S / 2.0 + 1e-9 if factor > 1.0 else 1e-12))
    assert np.floor(factor) * len(times_s) <= len(drawn) <= np.ceil(factor) * len(times_s)


def test_as_traced_is_exactly_as_traced() -> None:
    times = np.array([0.5, 0.5, 1.25, 3.0])
    (drawn,) = draw(Trace.of_requests((times,), ("f",)), seed=1)
    assert drawn.tolist() == times.tolist()


def test_a_mean_rate_is_met_and_bursts_keep_their_length() -> None:
    """A burst of 20 s at 50 per second, scaled in both directions, is still one of 20 s."""
    counts = np.zeros(600, np.int64)
    counts[300:320] = 50
    for rps in (0.2, 10.0):
        (times,) = draw(counts_trace(counts.tolist()), seed=3, rps=rps)
        assert len(times) / 600 == pytest.approx(rps, rel=0.15)
        assert times.min() >= 300.0 and times.max() < 320.0


def test_one_factor_for_all_keeps_busy_functions_busy() -> None:
    trace = Trace.of_counts(np.array([[90] * 100, [10] * 100]), 1.0, ("busy", "quiet"))
    busy, quiet = draw(trace, seed=0, rps=10.0)
    assert (len(busy) + len(quiet)) / 200 == pytest.approx(10.0, rel=0.1)
    assert len(busy) / len(quiet) == pytest.approx(9.0, rel=0.15)


def test_the_spreads_differ_as_they_should() -> None:
    """Gaps: none varies when even, as much as their mean for Poisson, and far more in gamma's lumps."""
    trace = counts_trace([1000] * 60, 60.0)
    variation = {}
    for spread in SPREADS:
        gaps = np.diff(draw(trace, seed=5, spread=spread)[0])
        variation[spread] = gaps.std() / gaps.mean()
    assert variation["even"] < 1e-6
    assert variation["poisson"] == pytest.approx(1.0, abs=0.05)
    assert variation["gamma"] == pytest.approx(4.0, abs=0.4)


def test_one_seed_one_load_and_functions_do_not_lean_on_each_other() -> None:
    both = Trace.of_counts(np.array([[5] * 50, [7] * 50]), 1.0, ("a", "b"))
    first = draw(both, seed=9)
    assert all(np.array_equal(a, b) for a, b in zip(first, draw(both, seed=9), strict=True))
    assert np.array_equal(first[0], draw(both.of(("a",)), seed=9)[0])
    assert not np.array_equal(first[0], draw(both, seed=10)[0])


def test_a_window_need_not_begin_with_an_interval() -> None:
    (times,) = draw(counts_trace([0, 600, 0], 60.0), seed=2, spread="even", start_s=90.0, duration_s=45.0)
    assert len(times) == 300
    assert times.max() < 30.0


def test_lumps_can_be_smeared() -> None:
    lumps = Trace.of_requests((np.repeat(np.arange(0.0, 90.0, 3.0), 10),), ("f",))
    (times,) = draw(lumps, seed=1, smear_s=3.0)
    assert len(times) == 300
    assert dispersion(counted(times, 88.0)) < 0.5 * dispersion(counted(lumps.times_s[0], 88.0))


def test_rotated_is_the_same_load_later() -> None:
    assert rotated(np.array([1.0, 2.0, 7.0]), 5.0, 10.0).tolist() == [2.0, 6.0, 7.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spread": "uniform"}, "known are poisson"),
        ({"rps": 0.0}, "rps=0.0"),
        ({"rps": float("nan")}, "rps=nan"),
        ({"rps": 1e12}, "choose a lower rps"),
        ({"smear_s": -1.0}, "smear_s"),
        ({"start_s": 2.0}, "no request in the window"),
        ({"duration_s": 99.0}, "does not lie in the trace"),
    ],
)
def test_a_bad_wish_is_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        draw(counts_trace([1, 1, 0, 0]), seed=0, **options)  # type: ignore[arg-type]


# -- made up ------------------------------------------------------------------------------------------------------------


def test_three_days_have_the_statistics_of_the_twitter_stream() -> None:
    """scaling.md 1.2: CV 0.64; IDC 26, 125, 740, 1460 in windows of 1, 5, 30, 60 s; p99 / mean 3.9; 2 % empty."""
    series = [synthetic.diurnal(63.7, 3 * synthetic.DAY_S, seed, part="all").counts[0] for seed in range(3)]
    mean = np.mean([counts.mean() for counts in series])
    assert mean == pytest.approx(63.7, rel=0.02)
    assert np.mean([counts.std() / counts.mean() for counts in series]) == pytest.approx(0.64, rel=0.15)
    for seconds, known in ((1, 26.0), (5, 125.0), (30, 740.0), (60, 1460.0)):
        found = np.mean([dispersion(counts, seconds) for counts in series])
        assert found == pytest.approx(known, rel=0.25), seconds
    assert 2.7 < np.mean([np.percentile(counts, 99) for counts in series]) / mean < 4.2
    assert np.mean([np.mean(counts == 0) for counts in series]) == pytest.approx(0.02, abs=0.005)


def test_the_steepest_rise_rises_and_the_spike_is_one() -> None:
    rise = synthetic.diurnal(20.0, 3600.0, 0, part="rise").counts[0]
    assert rise[1800:].mean() > 1.3 * rise[:1800].mean()
    spike = synthetic.diurnal(20.0, 3600.0, 0, part="spike").counts[0]
    assert spike.max() > 2.5 * spike.mean()
    assert min(rise.reshape(-1, 60).sum(axis=1)) > 0


def test_a_step_and_bursts() -> None:
    step = synthetic.step(40.0, 200.0, 0).counts[0]
    assert step[100:].mean() / step[:100].mean() == pytest.approx(3.0, rel=0.15)
    bursts = synthetic.bursts(20.0, 3600.0, 0).counts[0]
    assert bursts.mean() == pytest.approx(20.0, rel=0.05)
    assert dispersion(bursts) > 5.0
    assert dispersion(synthetic.steady(20.0, 3600.0, 0).counts[0]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("load", synthetic.LOADS)
def test_each_load_is_seeded_and_has_its_mean(load: str) -> None:
    made = synthetic.made(load, 30.0, 900.0, 4)
    assert np.array_equal(made.counts, synthetic.made(load, 30.0, 900.0, 4).counts)
    assert not np.array_equal(made.counts, synthetic.made(load, 30.0, 900.0, 5).counts)
    assert made.mean_rps == pytest.approx(30.0, rel=0.06)
    assert made.duration_s == 900.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: synthetic.made("tides", 1.0, 10.0, 0),
        lambda: synthetic.steady(-1.0, 10.0, 0),
        lambda: synthetic.steady(1.0, 0.0, 0),
        lambda: synthetic.diurnal(1.0, 4.0 * synthetic.DAY_S, 0),
        lambda: synthetic.diurnal(1.0, 10.0, 0, part="fall"),
    ],
)
def test_made_up_load_has_bounds(make: Callable[[], Trace]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert caught.value.reason == "BAD_ARRIVALS"
