"""How well replicas are packed: the bound is what a person would count, and no placement is better than it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.allocation import MAX_LANES
from hasfaas.scaling.decision import AddReplica
from hasfaas.sdk.cli import cli
from hasfaas.simulator import engine, models, run
from hasfaas.simulator.packing import Packing
from hasfaas.simulator.result import Result
from hasfaas.simulator.scenario import Scenario
from tests.fakes.scripted_policy import ScriptedPolicy

GPUS, FUNCTIONS = 10, 50


def scenario(gpus: int = 4, functions: int = 1, seconds: float = 20.0) -> Scenario:
    found = models.named(["vgg16"])
    load = run.made_up(found, "steady", rps=1.0, duration_s=seconds, seed=1).repeated(functions)
    return run.scenario(found, load, gpus=gpus, warmup_s=5.0, seed=1)


def placed(*places: tuple[int, int, float, float], gpus: int = 4) -> Result:
    """Replicas of one function on (device, lane, SM percent, quota percent) from 0 s on."""
    adds = [AddReplica("vgg16", f"gpu{gpu}", lane, sm, quota, 1, "a test") for gpu, lane, sm, quota in places]
    result = engine.run(scenario(gpus), ScriptedPolicy({0.0: adds}))
    assert not result.refusals
    return result


def test_lanes_that_would_fit_one_gpu_are_seen_on_three() -> None:
    packing = Packing.of(placed((0, 0, 30.0, 50.0), (1, 0, 30.0, 50.0), (2, 0, 50.0, 100.0)))
    assert packing is not None
    assert (packing.replicas, packing.devices, packing.bound) == (3.0, 3.0, 1.0)
    assert packing.quality == pytest.approx(1 / 3)
    assert packing.units_share == pytest.approx((24 + 24 + 40) / 240)
    assert packing.quota_share == pytest.approx((24 * 0.5 + 24 * 0.5 + 40) / (24 + 24 + 40))


def test_quotas_that_do_not_fit_one_lane_need_another() -> None:
    packing = Packing.of(placed((0, 0, 60.0, 60.0), (1, 0, 60.0, 60.0)))
    assert packing is not None
    assert (packing.devices, packing.by_units, packing.bound) == (2.0, 2.0, 2.0)


def test_memory_bounds_what_units_do_not() -> None:
    # Nine of vgg16 fit a GPU of 16 GiB.
    places = [(number // 9, 0, 5.0, 5.0) for number in range(18)]
    packing = Packing.of(placed(*places))
    assert packing is not None
    assert (packing.devices, packing.by_memory, packing.by_units) == (2.0, 2.0, 1.0)
    assert packing.memory_share == pytest.approx(18 * 1.753430176e9 / 2**35, rel=1e-6)


def test_nothing_in_use_has_no_packing() -> None:
    assert Packing.of(engine.run(scenario(), ScriptedPolicy({}))) is None


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([5.0, 20.0, 30.0]), st.integers(0, 60)))
)
def test_no_placement_is_better_than_the_bound(wishes: list[tuple[int, int, float, int]]) -> None:
    adds = [AddReplica("vgg16", f"gpu{gpu}", lane, sm, float(q), 1, "a test") for gpu, lane, sm, q in wishes]
    packing = Packing.of(engine.run(scenario(), ScriptedPolicy({0.0: adds})))
    assert (packing is None) == (not wishes)
    if packing is not None:
        assert 1.0 <= packing.bound <= packing.devices
        assert max(packing.memory_share, packing.units_share, packing.quota_share) <= 1.0


@pytest.mark.parametrize("policy", ["hybrid:pooling=true:keep_alive_s=60", "hybrid"])
def test_a_small_cluster_is_never_over_committed(policy: str) -> None:
    found = models.named(["resnet50", "mobilenet_v3_large", "vgg16"])
    load = run.made_up(found, "diurnal", rps=5.0, duration_s=60.0, seed=2).repeated(FUNCTIONS)
    simulated = run.scenario(found, load, gpus=GPUS, lend=True, seed=2)
    result = engine.run(simulated, run.policy(run.chosen(policy)[0], simulated))
    series = result.series
    assert series.lane_sm_percent.shape[1:] == (GPUS, MAX_LANES)
    assert series.lane_sm_percent.sum(axis=2).max() <= 100.0 + 1e-3
    assert series.lane_quota_percent.max() <= 100.0 + 1e-3
    edges = [(life.asked_ns, life) for life in result.replicas]
    for now_ns, _ in edges:
        held = np.zeros(GPUS)
        for asked_ns, life in edges:
            if asked_ns <= now_ns and (life.gone_ns is None or life.gone_ns > now_ns):
                held[life.device] += simulated.functions[life.function].memory_bytes
        assert held.max() <= simulated.devices[0].memory_bytes
    packing = Packing.of(result)
    assert packing is not None
    assert 1.0 <= packing.bound <= packing.devices <= GPUS
    # Placed by somebody who packs, not one on each GPU.
    assert packing.replicas > 2 * packing.devices


def test_the_command_tells_what_grows_with_size() -> None:
    few = ("--rps", 5, "--duration", 30, "--policies", "hybrid:pooling=true", "--lend", "--gateway-rps", 100)
    size = ("--functions", FUNCTIONS, "--gpus", GPUS, "--models", "resnet50,vgg16")
    result = CliRunner().invoke(cli, ["simulate", *map(str, (*few, *size, "--scale"))])
    assert result.exit_code == 0, result.output
    told = result.stdout.splitlines()[-2:]
    assert "a decision took" in told[0] and "however packed" in told[0]
    assert "gateways at 100 each" in told[1]
    found = json.loads(CliRunner().invoke(cli, ["simulate", *map(str, (*few, *size, "--json", "-"))]).stdout)
    assert len(found["functions"]) == FUNCTIONS
    assert len({function["name"] for function in found["functions"]}) == FUNCTIONS
    assert found["gateways"] == int(np.ceil(found["rps"] / 100))
    (outcome,) = found["policies"]
    assert 0.0 < outcome["packing"]["quality"] <= 1.0
    assert outcome["decide_mean_ms"] > 0.0 and outcome["decide_ms"] <= outcome["decide_p99_ms"]
