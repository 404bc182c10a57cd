"""What came of a run: every call's latency, the costs, and what the policy did."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from hasfaas.scaling.decision import Action
from hasfaas.simulator.fleet import ReplicaLife
from hasfaas.simulator.records import DROPPED, PENDING
from hasfaas.simulator.scenario import Scenario
from hasfaas.simulator.series import Column

if TYPE_CHECKING:
    from hasfaas.simulator.engine import _Run

Array = np.ndarray[Any, Any]

NS_PER_S = 1e9


@attrs.frozen
class Refusal:
    """An action that could not be carried out, and why."""

    now_s: float
    action: Action
    why: str


@attrs.frozen
class Counts:
    """What became of all calls, those before the warm-up ended among them: arrived = answered + dropped + waiting."""

    arrived: int
    answered: int
    dropped: int
    waiting: int


@attrs.frozen(eq=False)
class Result:
    """One run. Lists and columns of functions are in the order of `scenario.functions`.

    `arrived_s` and `latency_ms` hold every call that arrived, in order of arrival; a latency is infinite if the call was
    dropped or never answered. Costs are in GPU-seconds between `scenario.warmup_s` and `duration_s`: `reserved` sm x quota
    from when a replica was asked for until it is gone; `used` sm x time on the lane; `billed` the greater of the two in each
    interval between ticks; `provisioned_gpu_s` counts devices with at least one replica. `decide_s` is what each decision
    took, empty if no clock was handed in. `interpreted` says that numba was not there, so that the run was slow.
    """

    scenario: Scenario
    duration_s: float
    arrived_s: tuple[Array, ...]
    latency_ms: tuple[Array, ...]
    counts: Counts
    reserved: Array
    used: Array
    billed: Array
    provisioned_gpu_s: float
    peak_devices: int
    replicas: tuple[ReplicaLife, ...]
    actions: tuple[tuple[float, Action], ...]
    refusals: tuple[Refusal, ...]
    executions: Array
    decide_s: Array
    series: Column
    interpreted: bool

    # -- calls --------------------------------------------------------------------------------------------------------

    def counted(self, function: int | None = None) -> tuple[Array, Array, Array]:
        """(arrival in s, latency in ms, SLO in ms) of calls after the warm-up, of one function or of all."""
        which = range(len(self.arrived_s)) if function is None else (function,)
        arrived = np.concatenate([self.arrived_s[i] for i in which])
        latency = np.concatenate([self.latency_ms[i] for i in which])
        slo = np.concatenate([np.full(len(self.arrived_s[i]), self.scenario.functions[i].slo_ms) for i in which])
        late = arrived >= self.scenario.warmup_s
        return arrived[late], latency[late], slo[late]

    def violations(self, function: int | None = None, *, slo_ms: float | None = None) -> float:
        """Share of calls that were late, dropped or never answered; 0 without any. `slo_ms` asks for another promise."""
        _, latency, slo = self.counted(function)
        return float(np.mean(latency > (slo if slo_ms is None else slo_ms))) if len(latency) else 0.0

    def violations_by_function(self) -> Array:
        """`violations` of each function."""
        return np.array([self.violations(i) for i in range(len(self.arrived_s))])

    def worst_minute(self, function: int | None = None) -> float:
        """The greatest share of late calls among those of one minute (by arrival, from the end of the warm-up)."""
        arrived, latency, slo = self.counted(function)
        minute = ((arrived - self.scenario.warmup_s) // 60.0).astype(np.int64)
        if not len(minute):
            return 0.0
        calls, late = np.bincount(minute), np.bincount(minute, latency > slo)
        return float(np.max(late[calls > 0] / calls[calls > 0]))

    def percentile_ms(self, percentile: float, function: int | None = None) -> float:
        """That percentile of the latency: the least value that so many calls do not exceed; NaN without any."""
        latency = np.sort(self.counted(function)[1])
        if not len(latency):
            return float("nan")
        return float(latency[max(0, int(np.ceil(percentile / 100.0 * len(latency))) - 1)])

    def per_interval(self, edges_s: Array) -> tuple[Array, Array]:
        """(arrivals, late calls) [interval, function] between rising edges, by the time of arrival."""
        shape = (len(edges_s) - 1, len(self.arrived_s))
        arrivals, late = np.zeros(shape), np.zeros(shape)
        for i, (arrived, latency) in enumerate(zip(self.arrived_s, self.latency_ms, strict=True)):
            arrivals[:, i] = np.histogram(arrived, edges_s)[0]
            late[:, i] = np.histogram(arrived[latency > self.scenario.functions[i].slo_ms], edges_s)[0]
        return arrivals, late

    # -- costs --------------------------------------------------------------------------------------------------------

    @property
    def reserved_gpu_s(self) -> float:
        """The reserved share, all functions together."""
        return float(self.reserved.sum())

    @property
    def used_gpu_s(self) -> float:
        """The used device time, all functions together."""
        return float(self.used.sum())

    @property
    def billed_gpu_s(self) -> float:
        """What is billed, all functions together."""
        return float(self.billed.sum())

    @property
    def cold_starts(self) -> int:
        """Replicas that were asked for, warm-up included."""
        return len(self.replicas)

    @property
    def refused(self) -> int:
        """Actions that could not be carried out."""
        return len(self.refusals)


def result_of(run: _Run) -> Result:
    """Reads a run that has ended."""
    scenario, world = run.scenario, run.fleet.world
    duration_s = run.end_ns / NS_PER_S
    arrived_s, latency_ms = [], []
    for function, row in zip(scenario.functions, world.functions, strict=True):
        calls = slice(int(row.first), int(row.arrived))
        arrived_s.append(world.arrival_ns[calls] / NS_PER_S)
        done = world.done_ns[calls]
        took_ms = (done - world.arrival_ns[calls]) / 1e6 + function.overhead_ms
        latency_ms.append(np.where(done >= 0, took_ms, np.inf))
    arrived = int((world.functions["arrived"] - world.functions["first"]).sum())
    done = np.concatenate([world.done_ns[f.first : f.arrived] for f in world.functions])
    dropped, waiting = int(np.sum(done == DROPPED)), int(np.sum(done == PENDING))
    provisioned, peak = provisioned_gpu_s(run.fleet.lives, scenario.warmup_s, duration_s)
    return Result(
        scenario=scenario,
        duration_s=duration_s,
        arrived_s=tuple(arrived_s),
        latency_ms=tuple(latency_ms),
        counts=Counts(arrived, int(world.functions["completed"].sum()), dropped, waiting),
        reserved=world.functions["reserved"].copy(),
        used=world.functions["used"].copy(),
        billed=world.functions["billed"].copy(),
        provisioned_gpu_s=provisioned,
        peak_devices=peak,
        replicas=tuple(run.fleet.lives),
        actions=tuple(run.actions),
        refusals=tuple(run.refusals),
        executions=world.functions["executions"].copy(),
        decide_s=np.array(run.decide_s),
        series=run.series.column(),
        interpreted=not run.kernel.compiled,
    )


def provisioned_gpu_s(lives: Sequence[ReplicaLife], from_s: float, to_s: float) -> tuple[float, int]:
    """Integral over [from_s, to_s] of the number of devices that have at least one replica, and its greatest value."""
    by_device: dict[int, list[tuple[float, float]]] = {}
    for life in lives:
        until_s = to_s if life.gone_ns is None else life.gone_ns / NS_PER_S
        span = max(life.asked_ns / NS_PER_S, from_s), min(until_s, to_s)
        if span[0] < span[1]:
            by_device.setdefault(life.device, []).append(span)
    joined = [span for spans in by_device.values() for span in _joined(sorted(spans))]
    # An end comes before a beginning at the same instant.
    edges = sorted((when_s, change) for span in joined for when_s, change in zip(span, (1, -1), strict=True))
    running = list(itertools.accumulate(change for _, change in edges))
    return sum(until_s - begin_s for begin_s, until_s in joined), max(running, default=0)


def _joined(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for begin_s, until_s in spans:
        if joined and begin_s <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], until_s)
        else:
            joined.append((begin_s, until_s))
    return joined
