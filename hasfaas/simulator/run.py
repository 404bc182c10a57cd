"""Puts a simulation together: models and a trace make a scenario, names make policies, and each runs on the same load.

models = models.named(["resnet50"])
load = made_up(models, "diurnal", rps=20, duration_s=900, seed=1)
outcomes = compare(scenario(models, load, seed=1), chosen("hybrid,kpa"))
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor.quota import Timing
from hasfaas.rapp.description import describe
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.baselines import lookup
from hasfaas.scaling.policy import Policy
from hasfaas.scaling.settings import ScalerSettings
from hasfaas.simulator import arrivals, engine, synthetic
from hasfaas.simulator.models import TABLE_IN_DATA, Model
from hasfaas.simulator.outcome import Outcome
from hasfaas.simulator.scenario import Law, Scenario, SimDevice, SimFunction
from hasfaas.simulator.trace import Array, Trace

BATCH_MAX = 8
# What counts in no figure at the start, where nothing is said: a minute, but no more than a fifth of a short run.
WARMUP_S, WARMUP_SHARE = 60.0, 0.2


@attrs.frozen
class Chosen:
    """A policy as a person writes it: `kpa`, or with options, `fixed:f=0.6:rho=0.7`."""

    text: str
    name: str
    options: Mapping[str, Any] = attrs.field(factory=dict, hash=False)


def chosen(text: str) -> tuple[Chosen, ...]:
    """Policies from a list with commas. Raises InvalidRequestError (BAD_POLICY) for an unknown or a doubled one."""
    found = tuple(_one(part.strip()) for part in text.split(",") if part.strip())
    texts = [policy.text for policy in found]
    if not found or len(set(texts)) < len(texts):
        problem = f"{max(texts, key=texts.count)!r} is named twice" if found else "no policy is named"
        raise _bad(f"policies={text!r}: {problem}; known are {', '.join(lookup.NAMES)}")
    return found


def policy(choice: Chosen, scenario: Scenario) -> Policy:
    """A fresh policy. One that knows the load beforehand (fixed, oracle) is told that of the scenario.

    Raises InvalidRequestError (BAD_POLICY) for unknown options, listing the known.
    """
    options: dict[str, Any] = dict(choice.options)
    if choice.name == "hybrid" and options:
        return lookup.named("hybrid", settings=_settings(options))
    if choice.name == "fixed":
        options.setdefault("mean_rps", np.array([len(times) / scenario.duration_s for times in scenario.arrivals]))
    if choice.name == "oracle":
        options.setdefault("rates_rps", rates_rps(scenario))
    try:
        return lookup.named(choice.name, **options)
    except TypeError as exc:  # a number compared with text
        raise _bad(f"policy={choice.text!r}: an option has a value of the wrong kind: {exc}") from exc


def rates_rps(scenario: Scenario) -> Array:
    """What really arrives [function, second]."""
    return np.stack([arrivals.counted(times, scenario.duration_s) for times in scenario.arrivals]).astype(float)


def made_up(models: Sequence[Model], load: str, *, rps: float, duration_s: float, seed: int) -> Trace:
    """Synthetic load, another draw for each model, `rps` in the mean of each. Raises InvalidRequestError (BAD_ARRIVALS)."""
    _check("models", len(models), 1, "a list of one name at least")
    rows = [synthetic.made(load, rps, duration_s, seed + 1_000 * row).counts[0] for row in range(len(models))]
    return Trace.of_counts(np.stack(rows), 1.0, _own_names(models))


def scenario(
    models: Sequence[Model],
    trace: Trace,
    *,
    seed: int = 0,
    rps: float | None = None,
    spread: str = "poisson",
    start_s: float = 0.0,
    duration_s: float | None = None,
    smear_s: float = 0.0,
    slo_factor: float = 5.0,
    gpus: int = 10,
    gpu: str = "v100",
    lanes: Sequence[float] | None = None,
    cold_start_s: float = 10.0,
    warmup_s: float | None = None,
    predictor_error: float = 0.0,
    interference: float = 1.0,
    noise: float = 0.03,
    lend: bool = False,
    law: Law = "lane",
    timing: Timing | None = None,
) -> Scenario:
    """A scenario from a trace. Functions of the trace are given the models in turn.

    Where the trace has one series and there are several models, each model gets the series, rotated so that their peaks do
    not meet. The SLO of a function is `slo_factor` times one call of its model on a whole device. `predictor_error` is
    the mean absolute error of what the scaler is told, as a share: 0.1 is 10 %. `lanes` are the SM percents of the lanes that
    each device was cut into in advance (None: any lane is made). For `rps`, `spread`, `start_s`,
    `duration_s` and `smear_s` see `arrivals.draw`. Raises InvalidRequestError that says what is wrong.
    """
    _check("models", len(models), 1, "a list of one name at least")
    _check("gpus", gpus, 1, "a whole number from 1 on")
    _check("slo_factor", slo_factor, 1.0, "at least 1: one call on a whole device")
    _check("predictor_error", predictor_error, 0.0, "a share from 0 to 1: 0.1 is 10 %", most=1.0)
    drawn = arrivals.draw(
        trace, seed=seed, rps=rps, spread=spread, start_s=start_s, duration_s=duration_s, smear_s=smear_s
    )
    length_s = trace.duration_s - start_s if duration_s is None else duration_s
    if len(trace.names) == 1 and len(models) > 1:
        parts = [length_s * row / len(models) for row in range(len(models))]
        drawn = tuple(arrivals.rotated(drawn[0], by_s, length_s) for by_s in parts)
    names = _names(models, trace)
    told = np.random.default_rng([seed, 3])
    functions = [
        _function(
            name,
            models[row % len(models)],
            slo_factor=slo_factor,
            cold_start_s=cold_start_s,
            law=law,
            bias=float(np.exp(told.normal(0.0, _sigma(predictor_error)))),
            doubt=_sigma(predictor_error),
        )
        for row, name in enumerate(names)
    ]
    return Scenario(
        functions=functions,
        devices=[attrs.evolve(_device(gpu), name=f"gpu{number}", lanes=lanes) for number in range(gpus)],
        arrivals=drawn,
        duration_s=length_s,
        warmup_s=min(WARMUP_S, WARMUP_SHARE * length_s) if warmup_s is None else warmup_s,
        timing=timing or Timing(),
        law=law,
        noise=noise,
        interference=interference,
        lend=lend,
        seed=seed,
    )


def compare(
    scenario: Scenario,
    policies: Sequence[Chosen],
    *,
    told: Callable[[str, float], None] | None = None,
    clock_s: Callable[[], float] | None = None,
) -> tuple[Outcome, ...]:
    """Runs each policy on the same scenario.

    `told` hears a policy's name and how much of its run is done, 0 to 1. `clock_s` measures how long decisions take.
    """
    made = [policy(choice, scenario) for choice in policies]  # a wrong option is told before the first long run
    return tuple(_run(scenario, c.text, each, told, clock_s) for c, each in zip(policies, made, strict=True))


# -- leaves -------------------------------------------------------------------------------------------------------------


def _run(
    scenario: Scenario,
    name: str,
    policy: Policy,
    told: Callable[[str, float], None] | None,
    clock_s: Callable[[], float] | None,
) -> Outcome:
    def progress(done: float) -> None:
        if told is not None:
            told(name, done)

    return Outcome.of(name, engine.run(scenario, policy, progress=progress, clock_s=clock_s))


def _one(text: str) -> Chosen:
    name, *parts = text.split(":")
    if name not in lookup.NAMES:
        raise _bad(f"policy={name!r} is unknown; known are {', '.join(lookup.NAMES)}")
    options = {}
    for part in parts:
        key, mark, value = part.partition("=")
        if not (mark and key and value):
            raise _bad(f"policy={text!r}: {part!r} is no option; write options as in fixed:f=0.6:rho=0.7")
        options[key] = _value(value)
    return Chosen(text, name, options)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _settings(options: Mapping[str, Any]) -> ScalerSettings:
    known = attrs.asdict(ScalerSettings(), recurse=False)
    for key, value in options.items():
        if key not in known:
            raise _bad(f"option {key!r} of policy 'hybrid' is unknown: use one of {', '.join(known)}")
        kind = type(known[key])
        if not isinstance(value, (int, float) if kind is float else kind) or (
            kind is float and isinstance(value, bool)
        ):
            raise _bad(f"option {key}={value!r} of policy 'hybrid' must be like {known[key]!r}")
    return ScalerSettings(**options)


def _names(models: Sequence[Model], trace: Trace) -> tuple[str, ...]:
    if len(trace.names) == 1:
        return _own_names(models)
    if len(models) > len(trace.names):
        raise InvalidRequestError(
            f"{len(models)} models for the {len(trace.names)} functions of the trace: name fewer models, or more functions",
            reason="BAD_SCENARIO",
        )
    return trace.names


def _own_names(models: Sequence[Model]) -> tuple[str, ...]:
    """A model's name for its function; numbered where a model has several."""
    names = [model.name for model in models]
    return tuple(
        f"{name}-{names[: row + 1].count(name)}" if names.count(name) > 1 else name for row, name in enumerate(names)
    )


def _function(
    name: str, model: Model, *, slo_factor: float, cold_start_s: float, law: Law, bias: float, doubt: float
) -> SimFunction:
    if law == "table" and model.grid is None:
        raise InvalidRequestError(
            f"model={model.name!r} has no whole table for the law 'table'; the built-in models have none: give --table with "
            f"{TABLE_IN_DATA.name} of HAS-GPU, or with the folder that holds v100/ (HASFAAS_DATA); or use the law 'lane'",
            reason="BAD_SCENARIO",
        )
    truth = model.surface
    told = Surface(
        truth.batches, truth.sm_percents, truth.hold_ms * bias, np.hypot(truth.log_sigma, doubt)
    ) if doubt else None  # fmt: skip
    return SimFunction(
        name=name,
        slo_ms=slo_factor * model.base_ms,
        truth=truth,
        told=told,
        memory_bytes=model.memory_bytes,
        cold_start_s=cold_start_s,
        batch_max=min(BATCH_MAX, truth.batches[-1]),
        table=model.grid,
    )


def _sigma(predictor_error: float) -> float:
    """Of a normal error whose mean absolute value is that."""
    return predictor_error * float(np.sqrt(np.pi / 2.0))


def _device(gpu: str) -> SimDevice:
    described = describe(gpu)
    # Data sheets say GB where the cards have GiB.
    return SimDevice(described.name, described.sms, round(described.memory_bytes / 1e9) * 2**30)


def _check(name: str, value: float, least: float, rule: str, most: float = sys.float_info.max) -> None:
    if not least <= value <= most:
        raise InvalidRequestError(f"{name}={value}: give {rule}", reason="BAD_SCENARIO")


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_POLICY")
