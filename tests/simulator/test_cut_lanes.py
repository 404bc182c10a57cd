"""Devices that were cut into lanes in advance, simulated: only those are opened, and the hybrid keeps the promise in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.decision import AddReplica
from hasfaas.sdk.cli import cli
from hasfaas.simulator import engine, models, run
from hasfaas.simulator.scenario import Scenario, SimDevice
from tests.fakes.scripted_policy import ScriptedPolicy

LANES = (50.0, 25.0, 25.0)


def scenario(names: str, lanes: tuple[float, ...] | None = LANES, gpus: int = 2, **options: bool) -> Scenario:
    found = models.named(names.split(","), None)
    load = run.made_up(found, "diurnal", rps=10.0, duration_s=300.0, seed=4)
    return run.scenario(found, load, gpus=gpus, lanes=lanes, seed=4, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("units", "lanes", "cut"),
    [(80, LANES, (40, 20, 20)), (132, (33.0, 33.0, 33.0), (44, 44, 44)), (15, LANES, (7, 4, 4)), (80, (100.0,), (80,))],
)
def test_lanes_are_whole_units(units: int, lanes: tuple[float, ...], cut: tuple[int, ...]) -> None:
    assert SimDevice("d", units, lanes=lanes).lane_units == cut
    assert SimDevice("d", units).lane_units == ()


@pytest.mark.parametrize("lanes", [(), (60.0, 60.0), (0.0,), (-5.0, 50.0), (101.0,), (10.0,) * 9, (float("nan"),)])
def test_lanes_that_cannot_be_cut_are_refused(lanes: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="lanes=") as caught:
        SimDevice("d", lanes=lanes)
    assert caught.value.reason == "BAD_SCENARIO"


@pytest.mark.parametrize(("lane", "sm_percent", "granted"), [(0, 50.0, 50.0), (0, 10.0, 50.0), (2, 25.0, 25.0)])
def test_a_replica_gets_all_of_the_lane_that_was_cut(lane: int, sm_percent: float, granted: float) -> None:
    add = AddReplica("resnet50", "gpu0", lane, sm_percent, 50.0, 1, "a test")
    result = engine.run(scenario("resnet50"), ScriptedPolicy({0.0: [add]}))
    assert [replica.sm_percent for replica in result.replicas] == [granted]


@pytest.mark.parametrize(("lane", "sm_percent"), [(3, 10.0), (1, 30.0), (0, 51.0)])
def test_another_lane_is_refused_with_those_that_there_are(lane: int, sm_percent: float) -> None:
    add = AddReplica("resnet50", "gpu0", lane, sm_percent, 50.0, 1, "a test")
    result = engine.run(scenario("resnet50"), ScriptedPolicy({0.0: [add]}))
    (refusal,) = result.refusals
    assert f"no lane {lane} of" in refusal.why and "its lanes have 40, 20, 20" in refusal.why


@pytest.mark.parametrize("lanes", [LANES, (25.0,) * 4, (60.0, 40.0)])
@pytest.mark.parametrize("policy", ["hybrid", "hybrid:pooling=true"])
def test_the_hybrid_keeps_the_promise_on_fixed_lanes(lanes: tuple[float, ...], policy: str) -> None:
    names = "resnet50,mobilenet_v3_large,vgg16"
    simulated = scenario(names, lanes, lend="pooling" in policy)
    result = engine.run(simulated, run.policy(run.chosen(policy)[0], simulated))
    shares = {replica.sm_percent for replica in result.replicas}
    assert result.replicas and shares <= set(lanes), shares
    assert result.violations() <= 0.01
    # It is no constant slice that does it: quotas follow the load.
    assert len({action.quota_percent for _, action in result.actions if hasattr(action, "quota_percent")}) > 3


def test_a_function_that_needs_more_than_one_lane_can_give_gets_several() -> None:
    found = models.named(["convnext_large"], None)
    load = run.made_up(found, "steady", rps=60.0, duration_s=120.0, seed=1)
    simulated = run.scenario(found, load, gpus=2, lanes=LANES, seed=1, cold_start_s=2.0, warmup_s=60.0)
    result = engine.run(simulated, run.policy(run.chosen("hybrid")[0], simulated))
    held = [replica for replica in result.replicas if replica.gone_ns is None]
    assert len(held) > 1 and len({replica.sm_percent for replica in held}) == 1
    assert len({(replica.device, replica.lane) for replica in held}) == len(held)
    assert result.violations() <= 0.01


def simulate(*arguments: object) -> tuple[int, str, str]:
    short = ("simulate", "--duration", 60, "--rps", 10, "--gpus", 2, *arguments)
    result = CliRunner().invoke(cli, [*map(str, short)])
    return result.exit_code, result.stdout, result.stderr


def test_people_say_how_gpus_are_cut_and_are_told_it() -> None:
    code, out, err = simulate("--lanes", "50,25,25", "--policies", "hybrid,kpa")
    assert code == 0, err
    assert "cut into lanes of 50, 25, 25 % of the SMs" in out
    assert "kpa: asks for whole GPUs, and none of the lanes is one" in err
    code, out, _ = simulate("--lanes", "50,25,25", "--policies", "hybrid", "--json", "-")
    assert json.loads(out)["lanes"] == [50.0, 25.0, 25.0]
    code, out, err = simulate("--policies", "kpa", "--json", "-")
    assert json.loads(out)["lanes"] is None and json.loads(out)["notes"] == []
    code, out, err = simulate("--policies", "kpa", "--lanes", "100")
    assert "whole GPUs, and" not in err and np.isfinite(float(out.splitlines()[1].split()[1]))


@pytest.mark.parametrize(("lanes", "said"), [("half", "50,25,25"), ("60,60", "sum to at most 100"), ("", "1 to 8")])
def test_a_wrong_cut_is_explained(lanes: str, said: str) -> None:
    code, out, err = simulate("--lanes", lanes)
    assert (code, out) == (2, "") and said in err and "Traceback" not in err
