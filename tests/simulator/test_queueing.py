"""The engine against what is known about queues. Formulas and their sources: the scaling reference, section 4."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hasfaas.rapp.surface import Surface
from hasfaas.simulator.engine import run
from hasfaas.simulator.result import Result
from hasfaas.simulator.scenario import Scenario, SimDevice, SimFunction
from tests.fakes.scripted_policy import ScriptedPolicy, add

Array = np.ndarray[Any, Any]

HOLD_MS = 10.0
CALLS = 400_000


def linear(first_ms: float, each_ms: float, most: int) -> Surface:
    """A batch of b takes first + each b, whatever its SM share."""
    batches = range(1, most + 1)
    return Surface(tuple(batches), (100.0,), [[first_ms + each_ms * b] for b in batches], [[0.0]] * most)


def served(
    rps: float, servers: int, truth: Surface, *, exponential: bool = False, calls: int = CALLS, **options: Any
) -> Result:
    """Poisson arrivals at `servers` replicas, each with a lane for itself; with exponential service times if asked."""
    random = np.random.default_rng(3)
    arrivals = np.cumsum(random.exponential(1.0 / rps, calls))
    function = SimFunction("f", 1e6, truth, cold_start_s=0.0, memory_bytes=1, **options)
    scenario = Scenario(
        (function,),
        (SimDevice("d0"),),
        (arrivals,),
        duration_s=float(arrivals[-1]) + 1.0,
        warmup_s=20.0 / rps * 100.0,
        noise=0.0,
        factors=random.exponential(1.0, calls) if exponential else None,
        drop_after_s=1e5,
    )
    script = {0.0: [add(lane=i, sm=100.0 / 8.0, batch=function.batch_max) for i in range(servers)]}
    return run(scenario, ScriptedPolicy(script, tick_s=30.0))


def waits_ms(result: Result) -> Array:
    """Latency less one service time."""
    return result.counted()[1] - HOLD_MS


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.8])
def test_one_server_of_constant_service_waits_as_m_d_1(rho: float) -> None:
    result = served(1e3 * rho / HOLD_MS, 1, linear(HOLD_MS, 0.0, 1), batch_max=1)
    assert waits_ms(result).mean() == pytest.approx(HOLD_MS * rho / (2.0 * (1.0 - rho)), rel=0.04)


@pytest.mark.parametrize(("rho", "p99"), [(0.3, 2.9), (0.5, 4.4), (0.7, 7.6)])
def test_its_tail_is_that_of_the_reference(rho: float, p99: float) -> None:
    result = served(1e3 * rho / HOLD_MS, 1, linear(HOLD_MS, 0.0, 1), batch_max=1)
    assert result.percentile_ms(99.0) / HOLD_MS == pytest.approx(p99, rel=0.05)


def erlang_c(servers: int, load: float) -> float:
    """P(an arrival waits) in M/M/c."""
    last = load**servers / math.factorial(servers) / (1.0 - load / servers)
    return last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize(("servers", "rho"), [(1, 0.6), (2, 0.7), (4, 0.8), (8, 0.9)])
def test_exponential_service_waits_as_m_m_c(servers: int, rho: float) -> None:
    # A stream is never sent ahead, so its replicas draw from one queue, as the formula has it.
    result = served(
        1e3 * rho * servers / HOLD_MS, servers, linear(HOLD_MS, 0.0, 1), exponential=True, batch_max=1, streams=True
    )
    theory_ms = erlang_c(servers, rho * servers) * HOLD_MS / (servers * (1.0 - rho))
    assert result.counted()[1].mean() - HOLD_MS == pytest.approx(theory_ms, rel=0.08)


@pytest.mark.parametrize(("servers", "rho"), [(2, 0.7), (4, 0.8)])
def test_several_servers_of_constant_service_wait_as_m_d_c(servers: int, rho: float) -> None:
    # Sent ahead to the execution that began first, which ends first: as good as one queue. Cosmetatos' approximation.
    result = served(1e3 * rho * servers / HOLD_MS, servers, linear(HOLD_MS, 0.0, 1), batch_max=1)
    exponential_ms = erlang_c(servers, rho * servers) * HOLD_MS / (servers * (1.0 - rho))
    correction = (1.0 - rho) * (servers - 1) * (math.sqrt(4.0 + 5.0 * servers) - 2.0) / (16.0 * rho * servers)
    assert waits_ms(result).mean() == pytest.approx(0.5 * exponential_ms * (1.0 + correction), rel=0.06)


@pytest.mark.parametrize(("load", "rel"), [(0.3, 0.02), (0.5, 0.02), (0.7, 0.02), (0.9, 0.05)])
def test_batches_take_as_long_as_inoue_says(load: float, rel: float) -> None:
    # L(b) = t0 + a b, batches of what is there; `load` is lambda a. The bound is nearly met (reference, 4.8).
    each_ms, first_ms = 1.0, 10.0
    result = served(1e3 * load / each_ms, 1, linear(first_ms, each_ms, 512), batch_max=512)
    rate = load / each_ms
    bound_ms = 1.5 * first_ms / (1.0 - rate * each_ms)
    bound_ms += 0.5 * each_ms * (rate * each_ms + 2.0) / (1.0 - (rate * each_ms) ** 2)
    assert result.counted()[1].mean() == pytest.approx(bound_ms, rel=rel)


@pytest.mark.parametrize("quota", [20.0, 50.0])
def test_a_quota_that_is_short_of_the_load_serves_its_share(quota: float) -> None:
    # Throughput of a replica that never idles: q b / t (the lane law).
    random = np.random.default_rng(1)
    arrivals = np.sort(random.uniform(0.0, 200.0, 20_000))
    function = SimFunction("f", 1e6, linear(HOLD_MS, 0.0, 1), cold_start_s=0.0, batch_max=1)
    scenario = Scenario(
        (function,), (SimDevice("d0"),), (arrivals,), duration_s=200.0, warmup_s=20.0, noise=0.0, drop_after_s=5.0
    )
    result = run(scenario, ScriptedPolicy({0.0: [add(quota=quota)]}))
    served_calls = np.isfinite(result.counted()[1]).sum()
    assert served_calls / 180.0 == pytest.approx(quota / 100.0 / HOLD_MS * 1e3, rel=0.02)
    assert result.used_gpu_s == pytest.approx(result.reserved_gpu_s, rel=0.01)
