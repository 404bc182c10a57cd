"""Putting a simulation together: what becomes of models, traces and names of policies."""

from __future__ import annotations

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.decision import Decision
from hasfaas.scaling.observation import Observation
from hasfaas.simulator import models, run
from hasfaas.simulator.trace import Trace

BOTH = models.named(["resnet50", "vgg16"])


def trace_of(*rates: int, names: tuple[str, ...] | None = None, seconds: int = 60) -> Trace:
    counts = np.repeat(np.array(rates)[:, None], seconds, axis=1)
    return Trace.of_counts(counts, 1.0, names or tuple(f"f{i}" for i in range(len(rates))))


def test_functions_take_the_models_in_turn() -> None:
    scenario = run.scenario(BOTH, trace_of(1, 2, 3), slo_factor=4.0, gpus=2)
    assert scenario.names == ("f0", "f1", "f2")
    slos = [function.slo_ms for function in scenario.functions]
    assert slos == [4.0 * BOTH[0].base_ms, 4.0 * BOTH[1].base_ms, 4.0 * BOTH[0].base_ms]
    assert [(d.name, d.units, d.memory_bytes >> 30) for d in scenario.devices] == [("gpu0", 80, 16), ("gpu1", 80, 16)]
    assert [len(times) for times in scenario.arrivals] == [60, 120, 180]


def test_models_that_share_a_series_peak_at_other_times() -> None:
    counts = np.zeros((1, 100), np.int64)
    counts[0, 10] = 500
    scenario = run.scenario(BOTH, Trace.of_counts(counts, 1.0, ("one",)))
    assert scenario.names == ("resnet50", "vgg16")
    assert [int(np.median(times)) for times in scenario.arrivals] == [10, 60]


def test_a_model_may_serve_several_functions() -> None:
    twice = (BOTH[0], BOTH[0], BOTH[1])
    assert run.made_up(twice, "steady", rps=5, duration_s=30, seed=0).names == ("resnet50-1", "resnet50-2", "vgg16")
    assert run.scenario(twice, trace_of(9)).names == ("resnet50-1", "resnet50-2", "vgg16")


def test_a_short_run_has_a_short_warm_up() -> None:
    assert run.scenario(BOTH, trace_of(5, 5)).warmup_s == pytest.approx(12.0)
    assert run.scenario(BOTH, trace_of(5, 5, seconds=900)).warmup_s == 60.0
    assert run.scenario(BOTH, trace_of(5, 5), warmup_s=0.0).warmup_s == 0.0


def test_the_scaler_is_told_what_is_wrong_by_so_much() -> None:
    biases = []
    for seed in range(200):
        (function,) = run.scenario(BOTH[:1], trace_of(1), predictor_error=0.1, seed=seed).functions
        assert function.told is not None
        biases.append(function.told.hold_ms[0, 0] / function.truth.hold_ms[0, 0])
    assert np.mean(np.abs(np.log(biases))) == pytest.approx(0.1, rel=0.15)
    assert run.scenario(BOTH[:1], trace_of(1)).functions[0].told is None


def test_one_seed_one_scenario() -> None:
    first, again, other = (run.scenario(BOTH, trace_of(20, 20), rps=7.0, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.arrivals[1], again.arrivals[1])
    assert not np.array_equal(first.arrivals[1], other.arrivals[1])
    assert np.mean([len(times) for times in first.arrivals]) / 60 == pytest.approx(7.0, rel=0.1)


def test_policies_are_named_with_options() -> None:
    first, second = run.chosen(" kpa, fixed:f=0.6:rho=0.7 ")
    assert (first.name, first.options) == ("kpa", {})
    assert (second.text, second.name, second.options) == ("fixed:f=0.6:rho=0.7", "fixed", {"f": 0.6, "rho": 0.7})
    hybrid = run.chosen("hybrid:vertical=false")[0]
    assert run.policy(hybrid, run.scenario(BOTH, trace_of(1, 1))).settings.vertical is False  # type: ignore[attr-defined]
    # One whose default depends on another setting is an option as well.
    insured = run.chosen("hybrid:pooling=true:insurance=0.2")[0]
    assert run.policy(insured, run.scenario(BOTH, trace_of(1, 1))).settings.insurance == 0.2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("magic", "known are hybrid"),
        ("", "no policy is named"),
        ("kpa,kpa", "twice"),
        ("kpa:cc", "write options as"),
        ("hybrid:speed=3", "use one of"),
        ("kpa:speed=3", "use one of"),
        ("hybrid:tick_s=soon", "must be like 1.0"),
        ("hybrid:vertical=1", "must be like True"),
        ("kpa:cc=many", "cc"),
        ("fast:slice=thick", "use artefact or efficient"),
    ],
)
def test_a_wrong_name_or_option_lists_the_known(text: str, said: str) -> None:
    scenario = run.scenario(BOTH, trace_of(1, 1))
    with pytest.raises(InvalidRequestError, match=said) as caught:
        for choice in run.chosen(text):
            run.policy(choice, scenario)
    assert caught.value.reason == "BAD_POLICY"


def test_those_told_beforehand_are_told_the_truth() -> None:
    scenario = run.scenario(BOTH, trace_of(4, 8), spread="even")
    rates = run.rates_rps(scenario)
    assert rates.shape == (2, 60)
    assert rates.mean(axis=1).tolist() == [4.0, 8.0]
    fixed = run.policy(run.chosen("fixed")[0], scenario)
    assert fixed.mean_rps.tolist() == [4.0, 8.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": 0}, "gpus=0"),
        ({"gpu": "abacus"}, "abacus"),
        ({"slo_factor": 0.5}, "slo_factor=0.5"),
        ({"slo_factor": float("nan")}, "slo_factor=nan"),
        ({"predictor_error": -0.1}, "predictor_error"),
        ({"law": "table"}, "--table"),
        ({"law": "magic"}, "law"),
        ({"cold_start_s": -1.0}, "cold_start_s"),
        ({"warmup_s": 60.0}, "warmup_s"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        run.scenario(BOTH, trace_of(1, 1), **options)  # type: ignore[arg-type]


def test_more_models_than_functions_are_refused() -> None:
    three = models.named(["resnet50", "vgg16", "convnext_large"])
    with pytest.raises(InvalidRequestError, match="3 models for the 2 functions"):
        run.scenario(three, trace_of(1, 1))
    with pytest.raises(InvalidRequestError, match="one name at least"):
        run.scenario((), trace_of(1))


class Idle:
    """A policy that looks on."""

    def decide(self, observation: Observation) -> Decision:
        return Decision((), "looks on", observation.now_s + 1.0)


def test_a_comparison_runs_all_on_the_same_load(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = run.scenario(BOTH[:1], trace_of(10), gpus=2)
    heard: list[tuple[str, float]] = []
    kpa, fast = run.compare(scenario, run.chosen("kpa,fast"), told=lambda name, done: heard.append((name, done)))
    assert (kpa.policy, fast.policy) == ("kpa", "fast")
    assert kpa.requests == fast.requests == np.sum(scenario.arrivals[0] >= scenario.warmup_s)
    assert list(dict.fromkeys(name for name, _ in heard)) == ["kpa", "fast"]
    assert all(0.0 <= done <= 1.0 for _, done in heard)
    # A whole GPU each against half of 30 %: that is what the names mean, whatever else.
    assert kpa.reserved_gpu_s > 2.0 * fast.reserved_gpu_s
    assert kpa.late_share < 0.5
    # Nobody serves under a policy that looks on.
    monkeypatch.setattr(run, "policy", lambda choice, scenario: Idle())
    (idle,) = run.compare(scenario, run.chosen("kpa"))
    assert (idle.late_share, idle.reserved_gpu_s, idle.cold_starts, idle.peak_gpus) == (1.0, 0.0, 0, 0)
    assert idle.to_dict(2.48)["p99_ms"] is None
