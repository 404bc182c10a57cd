"""When a point has been run often enough, and which of its runs count."""

from __future__ import annotations

import numpy as np
import pytest

from hasfaas.executor.measuring import FEWEST_RUNS, WARM_UP_RUNS, Runs, examples, log_spread, relative_error
from hasfaas.executor.quota import PPM, Timing

MS = 1_000_000
TIMING = Timing()


def filled(runs: Runs, pairs: list[tuple[float, float]]) -> Runs:
    for hold_ms, response_ms in pairs:
        runs.add(round(hold_ms * MS), round(response_ms * MS))
    return runs


def until_enough(runs: Runs, hold_ms: float, response_ms: float, noise: float = 0.0) -> int:
    random = np.random.default_rng(0)
    while not runs.enough:
        factor = float(np.exp(noise * random.standard_normal()))
        runs.add(round(hold_ms * factor * MS), round(response_ms * factor * MS))
    return len(runs.holds_ns)


def test_steady_runs_are_enough_soon_and_noisy_ones_go_on_to_the_bound() -> None:
    steady = until_enough(Runs.at(PPM, TIMING, 1.5), 2.0, 2.0)
    noisy = until_enough(Runs.at(PPM, TIMING, 1.5), 2.0, 2.0, noise=0.5)
    assert steady * 2.0 == pytest.approx(250.0, rel=0.1)
    assert noisy * 2.0 == pytest.approx(1500.0, rel=0.2)


@pytest.mark.parametrize("hold_ms", [0.05, 5.0, 900.0, 30_000.0])
def test_it_ends_and_something_counts(hold_ms: float) -> None:
    runs = Runs.at(PPM // 10, TIMING, 1.5)
    made = until_enough(runs, hold_ms, 10.0 * hold_ms, noise=0.3)
    assert 2 <= made <= 2_000
    assert runs.measured()["runs"] >= 1


def test_warm_up_runs_do_not_count() -> None:
    runs = filled(Runs.at(PPM, TIMING, 1.5), [(50.0, 50.0)] * WARM_UP_RUNS + [(2.0, 2.0)] * FEWEST_RUNS)
    told = runs.measured()
    assert (told["hold_ns"], told["response_ns"], told["runs"]) == (2 * MS, 2 * MS, FEWEST_RUNS)


def test_below_the_whole_quota_only_whole_turns_without_credit_count() -> None:
    """Quota 50 %: ten runs of 1 ms from credit, then turns of a wait of 10 ms and ten runs; the last one is cut off."""
    credit = [(1.0, 1.0)] * 10
    turn = [(1.0, 11.0)] + [(1.0, 1.0)] * 9
    runs = filled(Runs.at(PPM // 2, TIMING, 1.5), credit + turn * 4 + turn[:6])
    told = runs.measured()
    assert told["runs"] == 40
    assert told["response_ns"] == 2 * MS  # hold / quota


def test_an_interruption_moves_neither_hold_nor_spread() -> None:
    pairs = [(2.0 + 0.001 * i, 2.1) for i in range(20)] + [(400.0, 400.0)]
    runs = filled(Runs.at(PPM, TIMING, 1.5), [(2.0, 2.0)] * WARM_UP_RUNS + pairs)
    assert runs.measured()["hold_ns"] == pytest.approx(2.01 * MS, rel=0.01)
    assert runs.measured()["log_spread"] < 0.01


def test_spread_and_error_are_those_of_a_normal_sample() -> None:
    holds = [round(v) for v in 1e6 * np.exp(0.1 * np.random.default_rng(1).standard_normal(4_000))]
    assert log_spread(holds) == pytest.approx(0.1, rel=0.1)
    assert relative_error(holds) == pytest.approx(1.2533 * 0.1 / 4_000**0.5, rel=0.1)


def test_an_example_is_stacked_already_and_becomes_calls() -> None:
    calls = examples(lambda b: (np.arange(3 * b).reshape(b, 3), "word", np.zeros(7)), 2, batched=True)
    assert [call.args[0].tolist() for call in calls] == [[0, 1, 2], [3, 4, 5]]
    assert all(call.args[1] == "word" and call.args[2].shape == (7,) for call in calls)
    (alone,) = examples(lambda b: np.ones((b, 2)), 1, batched=False)
    assert alone.args[0].shape == (1, 2)
