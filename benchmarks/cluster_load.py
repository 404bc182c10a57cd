"""The load part of the cluster benchmark: our scaler live on ten devices, whole GPUs by Ray Serve's rules live as well, and
what the simulator says of ours.

Costs are GPU-seconds after the warm-up. `billed` is what each replica occupies between two ticks: the greater of what it
reserves (SM share x quota) and what it uses (SM share x device time), so that lent time counts. `provisioned` counts devices
with a replica. A whole GPU costs the same by both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from benchmarks import cluster_gateway, cluster_live
from benchmarks.cluster_live import DEVICES, MODEL, NODES, UNITS, HostMeter, Offered, report
from benchmarks.cluster_tenants import BATCH, MEMORY_BYTES, Array, Tenant, device_share, load, tenants
from hasfaas.rapp.surface import Surface
from hasfaas.scaling import journal
from hasfaas.scaling.observation import Observation
from hasfaas.sdk.cli_replay import fresh
from hasfaas.simulator import engine
from hasfaas.simulator.result import Result
from hasfaas.simulator.scenario import Scenario, SimDevice, SimFunction
from tests.clustered import Cluster

# The rival cannot share a device, and has no room for twelve functions on ten: it gets as many as it asks for.
RIVAL_DEVICES = 24
WARMUP_SHARE, WARMUP_S = 0.2, 60.0
TICK_S = 1.0
# What observing, deciding and acting take on a gateway, beside what a start takes.
ACT_DELAY_S = 0.05
TARGET_VIOLATIONS_PERCENT, TARGET_HOST_PERCENT, TARGET_SIM_PERCENT, TARGET_SIM_POINTS = 1.0, 70.0, 15.0, 1.0


@attrs.frozen(eq=False)
class Run:
    """A run on a cluster: its calls, what the gateway saw at each tick, and how busy the host was."""

    offered: Offered
    seen: tuple[Observation, ...]
    begin: journal.Begin
    refused: int
    host: Mapping[str, float]


def measure(data: Path, minutes: float, share: float, seed: int) -> dict[str, Any]:
    """Ours and the rival, on the same arrivals."""
    seconds = 60.0 * minutes
    warmup_s = min(WARMUP_S, WARMUP_SHARE * seconds)
    all_tenants = tenants()
    arrived_s = load(data, share, DEVICES, seconds, seed)
    calls = sum(len(each) for each in arrived_s)
    report(f"load: {calls} calls in {seconds:g} s; profiling")
    with cluster_live.running(all_tenants) as cluster:
        surfaces = cluster_live.surfaces(cluster, all_tenants)
        report("load: ours")
        ours = _served(cluster, all_tenants, arrived_s)
        own = figures(ours, all_tenants, warmup_s, seconds)
        report(f"load: ours: {_short(own)}; whole GPUs")
        _replace(cluster, all_tenants)
        theirs = _served(cluster, all_tenants, arrived_s)
    rival = figures(theirs, all_tenants, warmup_s, seconds)
    report(f"load: whole GPUs: {_short(rival)}; the simulator")
    scenario = forecast(ours, all_tenants, surfaces, seconds, warmup_s, seed)
    expected = simulated(engine.run(scenario, fresh(ours.begin)))
    crowded = simulated(engine.run(attrs.evolve(scenario, lend=False), cluster_gateway.whole_gpus()))
    agreement = agree(own, expected)
    return {
        "calls": calls,
        "rps": calls / seconds,
        "device_share_percent": 100.0 * device_share(arrived_s, DEVICES, seconds),
        "seconds": seconds,
        "warmup_s": warmup_s,
        "ours": own,
        "whole_gpus": {"devices": RIVAL_DEVICES, **rival},
        "simulated_ours": expected,
        "simulated_whole_gpus_on_ten": crowded,
        "agreement": agreement,
        "violations_pct": own["violations_percent"],
        "cost_ratio_vs_whole_gpu": rival["billed_gpu_s"] / own["billed_gpu_s"],
        "provisioned_ratio_vs_whole_gpu": rival["provisioned_gpu_s"] / own["provisioned_gpu_s"],
        "sim_agreement_pct": agreement["cost_percent"],
        "host_cpu_pct": own["host_cpu_percent"],
        "violations_met": own["violations_percent"] <= TARGET_VIOLATIONS_PERCENT,
        "host_cpu_met": own["host_cpu_percent"] < TARGET_HOST_PERCENT,
        "sim_met": agreement["cost_percent"] <= TARGET_SIM_PERCENT
        and agreement["violations_points"] <= TARGET_SIM_POINTS,
    }


def _short(row: Mapping[str, Any]) -> str:
    return (
        f"{row['violations_percent']:.2f} % late, {row['billed_gpu_s']:.0f} GPU-s, host {row['host_cpu_percent']:.0f} %"
    )


# -- on a cluster -----------------------------------------------------------------------------------------------------------


def _served(cluster: Cluster, all_tenants: Sequence[Tenant], arrived_s: Sequence[Array]) -> Run:
    meter = HostMeter(cluster)
    found = asyncio.run(cluster_live.offered(all_tenants, arrived_s))
    host = meter.read()
    log = Path(cluster.client.run(cluster.client.explain(all_tenants[0].name))["log"])
    # The last line may still be being written.
    text = log.read_text()
    entries = [entry for _, entry in journal.read(text[: text.rfind("\n") + 1].splitlines())]
    ticks = [e for e in entries if isinstance(e, journal.Tick) and e.observation.now_s > found.began_s]
    assert isinstance(entries[0], journal.Begin)
    refused = sum(len(tick.refused) for tick in ticks)
    return Run(found, tuple(tick.observation for tick in ticks), entries[0], refused, host)


def _replace(cluster: Cluster, all_tenants: Sequence[Tenant]) -> None:
    """The rival's gateway and its devices in the place of ours; what is deployed and profiled is in the cluster's state."""
    assert cluster.gateway is not None
    cluster.gateway.end()
    for name, given in cluster_live.devices(all_tenants, RIVAL_DEVICES).items():
        node = cluster.nodes[name]
        assert node.process is not None
        node.process.end()
        node.process, node.devices = None, given
    cluster.gateway, cluster.gateway_module = None, cluster_gateway.MODULE
    cluster.up()


# -- figures ----------------------------------------------------------------------------------------------------------------


def figures(run: Run, all_tenants: Sequence[Tenant], warmup_s: float, seconds: float) -> dict[str, Any]:
    """What a run came to after its warm-up."""
    took, promised = run.offered.all(all_tenants, warmup_s)
    begun_s = run.offered.began_s + warmup_s
    seen = [each for each in run.seen if begun_s < each.now_s <= run.offered.began_s + seconds]
    p50_ms, p99_ms = np.percentile(took, (50, 99), method="inverted_cdf")
    return {
        "calls": len(took),
        "failed": int(np.sum(~np.isfinite(took))),
        "violations_percent": 100.0 * float(np.mean(took > promised)),
        "worst_function_percent": max(
            100.0 * float(np.mean(latency_ms[due_s >= warmup_s] > tenant.slo_ms)) if np.any(due_s >= warmup_s) else 0.0
            for tenant, due_s, latency_ms in zip(all_tenants, run.offered.due_s, run.offered.latency_ms, strict=True)
        ),
        "p50_ms": float(p50_ms),
        "p99_ms": float(p99_ms),
        "billed_gpu_s": sum(billed_gpu_s(each) for each in seen),
        "provisioned_gpu_s": sum(len(np.unique(each.replicas.device)) * each.interval_s for each in seen),
        "peak_devices": max((len(np.unique(each.replicas.device)) for each in seen), default=0),
        "replicas_mean": float(np.mean([len(each.replicas) for each in seen])) if seen else 0.0,
        "refused_actions": run.refused,
        "failures": sorted({f"{name}: {text}"[:200] for _, _, name, text in run.offered.failures})[:5],
        **run.host,
    }


def billed_gpu_s(observation: Observation) -> float:
    """GPU-seconds of all replicas since the observation before: reserved, or used where that is more."""
    replicas = observation.replicas
    reserved_s = replicas.sm_percent * replicas.quota_percent / 1e4 * observation.interval_s
    used_s = replicas.sm_percent / 100.0 * replicas.used_s
    return float(np.maximum(reserved_s, used_s).sum())


# -- the simulator ----------------------------------------------------------------------------------------------------------


def forecast(
    run: Run,
    all_tenants: Sequence[Tenant],
    surfaces: Sequence[Surface],
    seconds: float,
    warmup_s: float,
    seed: int,
) -> Scenario:
    """The same arrivals in virtual time, with what was measured on the cluster: profiles, starts, and what a call takes
    beside its lane. Ticks are in the same phase to the arrivals."""
    named = [each.functions.names.index(tenant.name) for each in run.seen[-1:] for tenant in all_tenants]
    # Of the simulator's ticks, at 0, 1, 2 s, the first comes as long before the arrivals as the last before them did.
    first_s = next(each.now_s for each in run.seen) - run.offered.began_s
    shift_s = TICK_S - first_s % TICK_S
    functions = [
        SimFunction(
            tenant.name,
            tenant.slo_ms,
            surface,
            memory_bytes=MEMORY_BYTES,
            cold_start_s=float(run.seen[-1].functions.cold_start_s[row]),
            batch_max=BATCH,
            overhead_ms=float(np.median([each.functions.overhead_ms[row] for each in run.seen])),
        )
        for tenant, surface, row in zip(all_tenants, surfaces, named, strict=True)
    ]
    places = [name for row, name in enumerate(NODES) for _ in range(row, DEVICES, len(NODES))]
    return Scenario(
        functions=functions,
        devices=[SimDevice(f"{node}/{n}", UNITS, 16 * 2**30, type=MODEL, node=node) for n, node in enumerate(places)],
        arrivals=[each + shift_s for each in run.offered.due_s],
        duration_s=seconds + shift_s,
        warmup_s=warmup_s + shift_s,
        act_delay_s=ACT_DELAY_S,
        drop_after_s=30.0,
        lend=True,
        seed=seed,
    )


def simulated(result: Result) -> dict[str, Any]:
    """The figures of a simulation."""
    return {
        "violations_percent": 100.0 * result.violations(),
        "worst_function_percent": 100.0 * float(result.violations_by_function().max()),
        "p50_ms": result.percentile_ms(50),
        "p99_ms": result.percentile_ms(99),
        "billed_gpu_s": result.billed_gpu_s,
        "provisioned_gpu_s": result.provisioned_gpu_s,
        "peak_devices": result.peak_devices,
        "refused_actions": result.refused,
    }


def agree(measured: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """How far the forecast was off: cost in percent of what was measured, late calls in percent points of all calls."""
    return {
        "cost_percent": 100.0 * abs(expected["billed_gpu_s"] / measured["billed_gpu_s"] - 1.0),
        "provisioned_percent": 100.0 * abs(expected["provisioned_gpu_s"] / measured["provisioned_gpu_s"] - 1.0),
        "violations_points": abs(expected["violations_percent"] - measured["violations_percent"]),
    }
