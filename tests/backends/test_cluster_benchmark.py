"""The pure parts of the cluster benchmark: its load, what its figures count, and what it calls a loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest

from benchmarks import cluster, cluster_cost, cluster_failure, cluster_live, cluster_load, cluster_tenants
from benchmarks.cluster_cost import Measured
from benchmarks.cluster_failure import Event
from benchmarks.cluster_live import DEVICES, NODES, Offered
from benchmarks.cluster_tenants import PROFILES, SLO_FACTOR, tenants
from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.observation import Life
from hasfaas.simulator.trace import Trace
from tests.fakes.plant import Member, Plant, surface

SECONDS = 60.0


def _trace(per_minute: Sequence[int]) -> Trace:
    return Trace.of_counts(
        np.array([[count] for count in per_minute]), SECONDS, tuple(f"f{n}" for n in range(len(per_minute)))
    )


def test_the_load_takes_the_share_of_the_devices_that_was_asked_for() -> None:
    arrived_s = cluster_tenants.drawn(_trace(range(20, 20 + len(PROFILES))), 3.0, SECONDS, seed=1)
    assert cluster_tenants.device_share(arrived_s, DEVICES, SECONDS) == pytest.approx(0.3, rel=0.1)
    assert len(arrived_s[-1]) > len(arrived_s[0])  # skewed as the trace is


def test_more_calls_than_the_machine_is_meant_to_carry_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="--share"):
        cluster_tenants.drawn(_trace([100] * len(PROFILES)), 9.0, SECONDS, seed=1)


def test_without_the_traces_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="azure_functions_2019"):
        cluster_tenants.load(tmp_path, 0.3, DEVICES, SECONDS, 1)


def test_a_tenant_has_the_latency_that_it_was_dealt_and_five_times_of_it_promised() -> None:
    for tenant, (_, base_ms) in zip(tenants(careful=(1,)), PROFILES, strict=True):
        assert tenant.table["latency_ms"][0][-1] == pytest.approx(base_ms)
        assert tenant.slo_ms == tenant.deployed.spec.slo_ms == SLO_FACTOR * base_ms
        assert base_ms >= 5.0
    assert [each.deployed.spec.idempotent for each in tenants(careful=(1,))[:3]] == [True, False, True]


def test_devices_lie_over_all_nodes_and_are_of_one_model() -> None:
    given = cluster_live.devices(tenants(), DEVICES)
    assert {name: tables[0].count for name, tables in given.items()} == dict(zip(NODES, (4, 3, 3), strict=True))
    assert len({tables[0].model for tables in given.values()}) == 1


def test_what_is_billed_is_the_greater_of_what_was_reserved_and_what_was_used() -> None:
    plant = Plant([surface()], devices=2)
    for number, (sm_percent, quota_percent) in enumerate(((50.0, 40.0), (100.0, 10.0))):
        name = f"r{number}"
        plant.members[name] = Member(name, 0, number, 0, sm_percent, quota_percent, 1, 0.0, Life.READY)
    seen = plant.observe([0])
    seen = attrs.evolve(seen, replicas=attrs.evolve(seen.replicas, used_s=np.array([0.1, 0.5])), interval_s=1.0)
    assert cluster_load.billed_gpu_s(seen) == pytest.approx(0.5 * 0.4 + 1.0 * 0.5)


def test_the_forecast_is_judged_by_cost_in_percent_and_by_late_calls_in_points() -> None:
    measured = {"billed_gpu_s": 100.0, "provisioned_gpu_s": 50.0, "violations_percent": 0.5}
    found = cluster_load.agree(measured, {"billed_gpu_s": 90.0, "provisioned_gpu_s": 55.0, "violations_percent": 1.25})
    assert found == pytest.approx({"cost_percent": 10.0, "provisioned_percent": 10.0, "violations_points": 0.75})


def _offered(failures: tuple[tuple[int, float, str, str], ...] = ()) -> Offered:
    """The first tenant is called at 29, 31 and 33 s, and the second call waits for two seconds; nobody else is called."""
    others = (np.zeros(0),) * (len(PROFILES) - 1)
    return Offered(0.0, (np.array([29.0, 31.0, 33.0]), *others), (np.array([50.0, 2000.0, 50.0]), *others), failures)


def test_a_node_is_recovered_once_its_functions_are_placed_and_have_answered() -> None:
    event = Event("agent killed", 30.0, "beta", (tenants()[0].name,), 1, detection_s=0.2, replaced_s=2.5)
    found = cluster_failure.figures(tenants(), _offered(), [event], 32.0, 0)
    assert found["recovery_s"] == pytest.approx(3.0)  # the call of 31 s was answered at 33 s
    assert found["gateway_reconnect_s"] == pytest.approx(1.05)
    assert (found["detection_s"], found["lost_requests"], found["nothing_lost_met"]) == (0.2, 0, True)


def test_what_never_recovers_is_not_called_recovered() -> None:
    event = Event("agent killed", 30.0, "beta", (tenants()[0].name,), 1, detection_s=0.2)
    found = cluster_failure.figures(tenants(), _offered(), [event], 32.0, 0)
    assert found["recovery_s"] is None
    assert not cluster.met(found)


def test_only_calls_that_could_have_been_sent_again_count_as_lost() -> None:
    lost, careful = (0, 31.0, "UnavailableError", "gone"), (1, 31.0, "UnavailableError", "gone")
    found = cluster_failure.figures(tenants(careful=(1,)), _offered((lost, careful)), [], 32.0, 0)
    assert (found["lost_requests"], found["failed_non_idempotent"], found["all_failures_typed"]) == (1, 1, True)
    untyped = cluster_failure.figures(tenants(careful=(1,)), _offered(((1, 31.0, "KeyError", ""),)), [], 32.0, 0)
    assert untyped["lost_requests"] == 0
    assert not untyped["nothing_lost_met"]


def test_ratios_compare_the_same_round() -> None:
    slow, quick = Measured(300.0, 900.0, 50.0), Measured(100.0, 300.0, 200.0)
    found = {("100 B", 1): {"network": [quick, slow], "far": [slow, slow], "near": [quick, slow]}}
    rows = {(row["of"], row["to"]): row for row in cluster_cost.ratios(found)}
    assert rows["near", "network"]["p50"] == 1.0
    assert rows["far", "network"]["p50_spread"] == [1.0, 3.0]
    assert rows["far", "network"]["time_per_call_spread"] == [1.0, 4.0]
    assert ("near", "serve") not in rows  # without Ray Serve


def test_small_calls_one_by_one_are_judged_by_the_same_kind_of_client() -> None:
    ways = {"local": 100.0, "own-near": 110.0, "own-far": 150.0, "network": 400.0, "near": 480.0, "far": 500.0}
    found = {("100 B", 1): {way: [Measured(p50_us, p50_us, 1.0)] for way, p50_us in ways.items()}}
    made = cluster_cost.ratios(found)
    document = {"rows": cluster_cost.rows(found), "ratios": made} | cluster_cost.verdict(made)
    assert (document["cost_ratio_near"], document["cost_ratio_far"]) == pytest.approx((1.2, 1.5))
    assert (document["cost_near_met"], document["cost_far_met"]) == (True, False)
    assert "serve_met" not in document
    assert "far/network: p50 1.25 (1.25..1.25)" in cluster_cost.text(document)
