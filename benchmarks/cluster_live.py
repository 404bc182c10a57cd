"""What the parts of the cluster benchmark have in common: a cluster of processes with sim devices, an open-loop client, and
how busy the host is meanwhile."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import attrs
import numpy as np
import psutil

from benchmarks.cluster_tenants import Array, Tenant
from hasfaas.core.errors import HasFaasError
from hasfaas.core.settings import DeviceSettings, ScalingSettings
from hasfaas.rapp.profile import Profile
from hasfaas.rapp.surface import Surface
from tests.clustered import Cluster, clustered

NODES = ("alpha", "beta", "gamma")
# The gateway's own node: its replicas are spoken to by their sockets, those of the others over TLS.
GATEWAY_ON = "alpha"
DEVICES, UNITS, MEMORY, MODEL = 10, 80, "16GiB", "v100"
COLD_START_S = 2.0
PROFILE_POINTS = 8
Meanwhile = Callable[[float], Awaitable[None]]


def devices(tenants: Sequence[Tenant], count: int) -> dict[str, tuple[DeviceSettings, ...]]:
    """So many devices over the nodes, the first nodes having one more where it does not come out even."""
    tables = {each.name: each.table for each in tenants}
    return {
        name: (
            DeviceSettings(
                kind="sim",
                id="gpu",
                count=len(range(row, count, len(NODES))),
                sms=UNITS,
                memory=MEMORY,
                cold_start_s=COLD_START_S,
                profile=tables,
                model=MODEL,
            ),
        )
        for row, name in enumerate(NODES)
    }


@contextmanager
def running(tenants: Sequence[Tenant], count: int = DEVICES) -> Iterator[Cluster]:
    """A cluster under our scaler, in which every tenant is deployed and profiled, and has no replica."""
    with clustered(
        devices(tenants, count),
        scaling=ScalingSettings(log_mb=1024),
        gateway_on=GATEWAY_ON,
        beat_s=0.5,
        lost_after_s=3.0,
    ) as cluster:
        for each in tenants:
            each.deployed.deploy(warm=False)
        cluster.client.run(_profile(cluster, tenants))
        yield cluster


async def _profile(cluster: Cluster, tenants: Sequence[Tenant]) -> None:
    """Measures all, as many at a time as there are devices: these are of one model, and share what is found."""
    there = [each.device_id for each in (await cluster.client.gateway_status()).devices]

    async def one(row: int, tenant: Tenant) -> None:
        device = there[row % len(there)]
        async for _ in cluster.client.profile(tenant.name, device=device, points=PROFILE_POINTS):
            pass

    await asyncio.gather(*(one(row, tenant) for row, tenant in enumerate(tenants)))


def surfaces(cluster: Cluster, tenants: Sequence[Tenant]) -> tuple[Surface, ...]:
    """What is known of each tenant now."""
    found = [cluster.client.run(cluster.client.profile_of(each.name)) for each in tenants]
    return tuple(Profile.from_dict(each).current() for each in found)


# -- the client -------------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Offered:
    """What became of calls: for each tenant, when they were due in seconds from `began_s`, and what they took from then on in
    ms (inf: failed). `failures` are (tenant, seconds, type of the error, its message)."""

    began_s: float
    due_s: tuple[Array, ...]
    latency_ms: tuple[Array, ...]
    failures: tuple[tuple[int, float, str, str], ...]

    def all(self, tenants: Sequence[Tenant], from_s: float = 0.0) -> tuple[Array, Array]:
        """(latency, promise) in ms of every call that was due from then on."""
        late_enough = [due_s >= from_s for due_s in self.due_s]
        took = [latency_ms[mine] for latency_ms, mine in zip(self.latency_ms, late_enough, strict=True)]
        promised = [np.full(len(each), tenant.slo_ms) for each, tenant in zip(took, tenants, strict=True)]
        return np.concatenate(took), np.concatenate(promised)

    def violations_percent(self, tenants: Sequence[Tenant], from_s: float = 0.0) -> float:
        """Calls that were late or failed."""
        took, promised = self.all(tenants, from_s)
        return 100.0 * float(np.mean(took > promised)) if len(took) else 0.0


async def nothing(began_s: float) -> None:
    """Nobody does anything meanwhile."""


async def offered(tenants: Sequence[Tenant], due_s: Sequence[Array], meanwhile: Meanwhile = nothing) -> Offered:
    """Sends each call when it is due, whatever becomes of the others. `meanwhile` runs beside, and is told when it began."""
    latency_ms = [np.full(len(each), np.inf) for each in due_s]
    failures: list[tuple[int, float, str, str]] = []
    item = np.ones(4)
    began_s = time.monotonic()

    async def one(row: int, number: int, at_s: float) -> None:
        try:
            await tenants[row].deployed.aio(item)
            latency_ms[row][number] = (time.monotonic() - began_s - at_s) * 1e3
        except Exception as exc:
            failures.append((row, at_s, type(exc).__name__, str(exc)))

    order = sorted((at_s, row, number) for row, each in enumerate(due_s) for number, at_s in enumerate(each.tolist()))
    beside = asyncio.ensure_future(meanwhile(began_s))
    calls = []
    for at_s, row, number in order:
        await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
        calls.append(asyncio.ensure_future(one(row, number, at_s)))
    await asyncio.gather(*calls, beside)
    return Offered(began_s, tuple(due_s), tuple(latency_ms), tuple(failures))


def typed(failures: Sequence[tuple[int, float, str, str]]) -> bool:
    """Whether each failure is one of ours."""
    known = {cls.__name__ for cls in _subclasses(HasFaasError)}
    return all(name in known for _, _, name, _ in failures)


def _subclasses(cls: type[Any]) -> set[type[Any]]:
    return {cls}.union(*(_subclasses(each) for each in cls.__subclasses__()))


# -- the host ---------------------------------------------------------------------------------------------------------------


class HostMeter:
    """How busy the host has been since this was made, and how much of that was ours."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._before = psutil.cpu_times()
        self._own_s = self._own_cpu_s()
        self._began_s = time.monotonic()

    def read(self) -> Mapping[str, float]:
        """Percent of all cores."""
        now = psutil.cpu_times()
        whole = sum(now) - sum(self._before)
        idle = now.idle + now.iowait - self._before.idle - self._before.iowait
        cores_s = (time.monotonic() - self._began_s) * (psutil.cpu_count() or 1)
        return {
            "host_cpu_percent": 100.0 * (1.0 - idle / whole),
            "own_cpu_percent": 100.0 * (self._own_cpu_s() - self._own_s) / cores_s,
        }

    def _own_cpu_s(self) -> float:
        """Of this process, the gateway, the agents and all that they have started, the ended ones among them."""
        started = [self._cluster.gateway, *(node.process for node in self._cluster.nodes.values())]
        heads = [psutil.Process(), *(psutil.Process(each.pid) for each in started if each is not None)]
        found = {process.pid: process for head in heads for process in (head, *head.children(recursive=True))}
        total = 0.0
        for process in found.values():
            with suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
        return total


def report(text: str) -> None:
    """News, for whoever waits."""
    print(text, file=sys.stderr, flush=True)
