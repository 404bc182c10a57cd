"""The failure part of the cluster benchmark: under load an agent is killed, another stops answering, the gateway is killed.

What Ray's actors do is done here: a gateway that died is started again at once. Times count from the signal. A node is
detected once the gateway shows its devices no more. It is recovered once each function that had a replica there has a ready
one elsewhere, and has answered a call that came after the signal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import psutil

from benchmarks import cluster_live
from benchmarks.cluster_live import DEVICES, GATEWAY_ON, HostMeter, Offered, report, typed
from benchmarks.cluster_tenants import Array, Tenant, load, tenants
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.clustered import Cluster, alive

# Two tenants whose calls may not be run twice: busy ones, so that some are under way when something dies.
CAREFUL = (1, 3)
# When what happens, in seconds from the first call.
KILL_S, RETURN_S, FREEZE_S, GATEWAY_S, END_S = 30.0, 45.0, 60.0, 80.0, 100.0
GIVE_UP_S = 15.0
LOOK_EVERY_S = 0.02
TARGET_DETECTION_S, TARGET_RECOVERY_S = 5.0, 10.0


@attrs.define
class Event:
    """Something that was done to the cluster, in seconds from the first call; and what came of it, from then on."""

    what: str
    at_s: float = 0.0
    node: str = ""
    affected: tuple[str, ...] = ()
    replicas: int = 0
    detection_s: float | None = None
    replaced_s: float | None = None
    orphans: int = 0


def measure(data: Path, share: float, seed: int) -> dict[str, Any]:
    """All three failures in one run."""
    all_tenants = tenants(careful=CAREFUL)
    arrived_s = load(data, share, DEVICES, END_S, seed)
    report("failure: profiling")
    with cluster_live.running(all_tenants) as cluster:
        script = Script(cluster)
        meter = HostMeter(cluster)
        offered = asyncio.run(cluster_live.offered(all_tenants, arrived_s, script.run))
        host = meter.read()
        deployed = {one.name for one in cluster.status().functions}
    return figures(all_tenants, offered, script.events, script.gateway_s, len(script.deployed - deployed)) | dict(host)


class Script:
    """Does it, beside the calls."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.events: list[Event] = []
        self.deployed: set[str] = set()
        self.gateway_s = 0.0
        self._began_s = 0.0

    async def run(self, began_s: float) -> None:
        """From the first call to the last failure."""
        self._began_s = began_s
        await self._until(KILL_S)
        killed = await self._lose("agent killed", self._kill)
        await self._until(RETURN_S)
        await asyncio.to_thread(self.cluster.start_node, killed.node)
        await self._until(FREEZE_S)
        await self._lose("agent stopped", self._freeze)
        await self._until(GATEWAY_S)
        self.deployed = {one.name for one in (await self._status()).functions}
        report("failure: the gateway is killed")
        self.gateway_s = time.monotonic() - began_s
        assert self.cluster.gateway is not None
        await asyncio.to_thread(self.cluster.gateway.kill)
        await asyncio.to_thread(self.cluster.start_gateway)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, self._began_s + at_s - time.monotonic()))

    async def _status(self) -> pb.GetStatusResponse:
        return await asyncio.to_thread(self.cluster.status)

    async def _lose(self, what: str, strike: Callable[[str], Awaitable[list[psutil.Process]]]) -> Event:
        """Strikes the node with the most replicas, and looks on."""
        before = await self._status()
        there = {d.device_id.partition("/")[0] for d in before.devices} - {GATEWAY_ON}
        node = max(sorted(there), key=lambda name: len(_ready(before, on=name)))
        lost = _ready(before, on=node)
        event = Event(what, node=node, affected=tuple(sorted(set(lost))), replicas=len(lost))
        self.events.append(event)
        report(f"failure: {what} on {node}, {len(lost)} replicas")
        struck_s = time.monotonic()
        event.at_s = struck_s - self._began_s
        family = await strike(node)
        while time.monotonic() < struck_s + GIVE_UP_S and event.replaced_s is None:
            seen = await self._status()
            after_s = time.monotonic() - struck_s
            gone = node not in {d.device_id.partition("/")[0] for d in seen.devices}
            if gone and event.detection_s is None:
                event.detection_s = after_s
            if gone and set(event.affected) <= set(_ready(seen)):
                event.replaced_s = after_s
            await asyncio.sleep(LOOK_EVERY_S)
        process = self.cluster.nodes[node].process
        if process is not None and alive(process.pid):
            process.kill()
        self.cluster.nodes[node].process = None
        await asyncio.to_thread(psutil.wait_procs, family, GIVE_UP_S)
        event.orphans = sum(alive(each.pid) for each in family)
        return event

    async def _kill(self, node: str) -> list[psutil.Process]:
        return await asyncio.to_thread(self.cluster.kill_node, node)

    async def _freeze(self, node: str) -> list[psutil.Process]:
        process = self.cluster.nodes[node].process
        assert process is not None
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGSTOP)
        return family


def _ready(status: pb.GetStatusResponse, on: str = "") -> list[str]:
    """The function of each ready replica, of one node or of all."""
    return [
        one.name
        for one in status.functions
        for replica in one.replicas
        if replica.state == "ready" and on in ("", replica.device.partition("/")[0])
    ]


# -- figures ----------------------------------------------------------------------------------------------------------------


def figures(
    all_tenants: Sequence[Tenant],
    offered: Offered,
    events: Sequence[Event],
    gateway_s: float,
    functions_lost: int,
) -> dict[str, Any]:
    """What was lost, and how soon it was as before."""
    careful = {row for row, tenant in enumerate(all_tenants) if not tenant.deployed.spec.idempotent}
    lost = [each for each in offered.failures if each[0] not in careful]
    rows = [_row(all_tenants, offered, event) for event in events]
    answered = [
        at
        for due_s, took in zip(offered.due_s, offered.latency_ms, strict=True)
        for at in _answers(due_s, took, gateway_s)
    ]
    reconnect_s = min(answered, default=float("inf")) - gateway_s
    detection_s, recovery_s = (_greatest(rows, name) for name in ("detection_s", "recovery_s"))
    orphans = sum(event.orphans for event in events)
    return {
        "calls": sum(len(each) for each in offered.due_s),
        "events": rows,
        "detection_s": detection_s,
        "recovery_s": recovery_s,
        "orphans": orphans,
        "lost_requests": len(lost),
        "failed_non_idempotent": len(offered.failures) - len(lost),
        "all_failures_typed": typed(offered.failures),
        "failures": sorted({f"{name}: {text}"[:200] for _, _, name, text in offered.failures})[:8],
        "gateway_reconnect_s": reconnect_s if np.isfinite(reconnect_s) else None,
        "functions_lost": functions_lost,
        "violations_percent": offered.violations_percent(all_tenants, KILL_S / 2.0),
        "detection_met": detection_s is not None and detection_s <= TARGET_DETECTION_S,
        "recovery_met": recovery_s is not None and recovery_s <= TARGET_RECOVERY_S,
        "nothing_lost_met": not lost and not functions_lost and not orphans and typed(offered.failures),
    }


def _row(all_tenants: Sequence[Tenant], offered: Offered, event: Event) -> dict[str, Any]:
    """An event with the client's view of it: when the last of the affected functions answered again. A function that nobody
    called meanwhile has no say."""
    served_s = 0.0
    for tenant, due_s, latency_ms in zip(all_tenants, offered.due_s, offered.latency_ms, strict=True):
        answers = _answers(due_s, latency_ms, event.at_s)
        if tenant.name in event.affected and len(answers):
            served_s = max(served_s, float(answers.min()) - event.at_s)
    recovered = event.replaced_s is not None and np.isfinite(served_s)
    return attrs.asdict(event) | {
        "served_s": served_s if np.isfinite(served_s) else None,
        "recovery_s": max(event.replaced_s or 0.0, served_s) if recovered else None,
    }


def _answers(due_s: Array, latency_ms: Array, from_s: float) -> Array:
    """When the calls that came from then on were answered."""
    after = due_s >= from_s
    return np.asarray(due_s[after] + latency_ms[after] / 1e3)


def _greatest(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Of all events; None if one has none."""
    found = [row[name] for row in rows]
    return None if None in found or not found else float(max(found))
