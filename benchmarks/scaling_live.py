"""The scaler on a running gateway with emulated devices: how soon quotas move, what that saves, and whether the simulator
tells the truth about it.

`python -m benchmarks.scaling_live --json out.json`, about four minutes. Three parts:

    step     load x3 in one second while a further replica takes 10 s to start: when, after that second, a greater quota is
             in force, and the calls that were late in the 12 s from its beginning. The same again with the quota fixed
             at what it was when the step begins and a second replica asked for one second later, as soon as anybody could
    agree    the same arrivals on the gateway and in the simulator, by the same scaler: late calls and device time
    replay   the logs of all these runs, shown to a fresh scaler: every decision must be the same

Devices are emulated, so a busy machine does not slow batches; it delays what is around them, so the load is told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import hasfaas
from benchmarks.gateway import running_gateway
from hasfaas import function
from hasfaas.rapp.profile import Profile
from hasfaas.rapp.surface import Surface
from hasfaas.scaling import journal
from hasfaas.scaling.observation import Observation
from hasfaas.sdk.cli_replay import fresh
from hasfaas.sdk.client import Client
from hasfaas.sdk.function import Function
from hasfaas.simulator.engine import run as simulate
from hasfaas.simulator.result import Result
from hasfaas.simulator.scenario import Scenario, SimDevice, SimFunction

Array = np.ndarray[Any, Any]

NAMES = ("live.one", "live.two", "live.three")
SLO_MS, BATCH = 200.0, 8
BATCHES, SHARES = (1, 2, 4, 8), (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
# (4 + 2 b) ms on a whole device, of which 40 % shrink with more SMs.
TABLE = {
    "batches": list(BATCHES),
    "sm_percents": list(SHARES),
    "latency_ms": [[(4 + 2 * b) * (0.6 + 40 / s) for s in SHARES] for b in BATCHES],
}
DEVICES, UNITS, MEMORY_BYTES, REPLICA_BYTES = 2, 80, 4 * 2**30, 128 * 2**20
# Slow on few SMs: the cheapest slice is a large lane at a small quota, with room for a step.
STEP_TABLE = {
    "batches": list(BATCHES),
    "sm_percents": list(SHARES),
    "latency_ms": [[(2 + b) * (0.3 + 70 / s * (1 + 400 / s**2)) for s in SHARES] for b in BATCHES],
}
STEP_COLD_START_S, STEP_RPS, STEP_FACTOR = 10.0, 16.0, 3.0
# Few calls while the first replica starts, and no jump until the one that is looked at.
WARMING = ((0.5, 14.0), (2.0, 4.0), (4.0, 4.0), (8.0, 5.0))
STEADY_S, RAMP_S, AFTER_S = 20.0, 1.0, 11.0
FIRST_S = sum(seconds for _, seconds in WARMING)
BEFORE_S = FIRST_S + STEADY_S
STEP_SETTINGS = {"keep_alive_s": 60.0, "quota_calm_s": 3.0, "pooling": False}
AGREE_COLD_START_S = 2.0
# Mean rps of three series that rise and fall by half; decisions at the edge of a threshold go either way, and three functions
# have more of them than one. No jumps: what those cost hangs on the instant of the next tick, and is the step's business.
AGREE_RPS, AGREE_SWING, AGREE_PERIOD_S, AGREE_S = (12.0, 25.0, 40.0), 0.5, 80.0, 120.0
WARM_UP_S = 20.0
TICK_S, WINDOW_S = 1.0, 0.1
# What observing, deciding and acting take on the gateway.
ACT_DELAY_S = 0.02
VIOLATION_POINTS, COST_PERCENT = 1.0, 10.0


def _ones(batch: int) -> Array:
    return np.ones((batch, 4))


def same(x: Array) -> Array:
    """Costs nothing itself: the device emulates the time."""
    return x


FUNCTIONS = tuple(
    function(slo_ms=SLO_MS, batch=hasfaas.Batch(BATCH), memory="128MiB", replicas=(0, 64), example=_ones, name=name)(
        same
    )
    for name in NAMES
)
# One by one, so that a fuller batch is no way out.
STEPPED = function(slo_ms=SLO_MS, memory="128MiB", replicas=(0, 64), example=_ones, name="live.step")(same)
Meanwhile = Callable[[float], Awaitable[None]]


@attrs.frozen(eq=False)
class Served:
    """What a gateway did: arrivals and latencies in ms of each function (inf: failed), its log, what it said of each at the
    end, and the surfaces that were measured before. `began_s` is the instant 0 of the arrivals."""

    began_s: float
    arrived_s: tuple[Array, ...]
    latency_ms: tuple[Array, ...]
    log: tuple[str, ...]
    explanations: tuple[Mapping[str, Any], ...]
    surfaces: tuple[Surface, ...]

    def latencies_ms(self, from_s: float = 0.0) -> Array:
        """Of all calls that arrived from then on."""
        found = zip(self.arrived_s, self.latency_ms, strict=True)
        return np.concatenate([latency_ms[arrived_s >= from_s] for arrived_s, latency_ms in found])

    def late(self, from_s: float = 0.0) -> int:
        """Calls that arrived from then on and were late or failed."""
        return int(np.sum(self.latencies_ms(from_s) > SLO_MS))

    def ticks(self) -> list[journal.Tick]:
        """Every decision."""
        return [entry for _, entry in journal.read(self.log) if isinstance(entry, journal.Tick)]

    def device_s(self, from_s: float, to_s: float) -> float:
        """Device seconds reserved between two instants: what a tick sees was so since the one before."""
        seen = [tick.observation for tick in self.ticks()]
        mine = [each for each in seen if self.began_s + from_s < each.now_s <= self.began_s + to_s]
        return sum(occupancy(each) * each.interval_s for each in mine)


def occupancy(observation: Observation) -> float:
    """Whole devices that all replicas hold."""
    return float((observation.replicas.sm_percent * observation.replicas.quota_percent).sum() / 1e4)


def poisson(load: Sequence[tuple[float, float]], rng: np.random.Generator) -> Array:
    """Arrivals in seconds at these rates, one after the other."""
    begun, found = 0.0, []
    for rps, seconds in load:
        found.append(begun + np.sort(rng.uniform(0.0, seconds, rng.poisson(rps * seconds))))
        begun += seconds
    return np.concatenate(found)


async def offered(
    functions: Sequence[Function[..., Array]], arrivals: Sequence[Array], meanwhile: Meanwhile
) -> tuple[float, list[Array]]:
    """Sends a call at each instant, whatever becomes of the others; instant 0, and latencies from the due ones."""
    latency_ms = [np.full(len(each), np.inf) for each in arrivals]
    item = np.ones(4)
    began_s = time.monotonic()

    async def one(row: int, number: int, due_s: float) -> None:
        try:
            await functions[row].aio(item)
            latency_ms[row][number] = (time.monotonic() - began_s - due_s) * 1000.0
        except hasfaas.HasFaasError as exc:
            report(f"  a call failed: {exc}")

    due = sorted((at_s, row, number) for row, each in enumerate(arrivals) for number, at_s in enumerate(each.tolist()))
    calls = [asyncio.ensure_future(meanwhile(began_s))]
    for at_s, row, number in due:
        await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
        calls.append(asyncio.ensure_future(one(row, number, at_s)))
    await asyncio.gather(*calls)
    return began_s, latency_ms


async def nothing(began_s: float) -> None:
    """Nobody does anything meanwhile."""


def served(
    functions: Sequence[Function[..., Array]],
    arrivals: Sequence[Array],
    cold_start_s: float,
    table: Mapping[str, object],
    scaling: Mapping[str, object],
    meanwhile: Meanwhile = nothing,
) -> Served:
    """Serves series on a gateway of its own, where each function has a profile and no replica. `meanwhile` is told when the
    first series begins, and runs beside."""
    device = {"kind": "sim", "count": DEVICES, "sms": UNITS, "memory": "4GiB", "cold_start_s": cold_start_s}
    tables = {"profile": {each.name: table for each in functions}}
    with running_gateway({"devices": [device | tables], "scaling": scaling}) as client:
        for each in functions:
            each.deploy(warm=False)
        surfaces = tuple(profiled(client, each.name) for each in functions)
        began_s, latency_ms = asyncio.run(offered(functions, arrivals, meanwhile))
        told = tuple(client.run(client.explain(each.name)) for each in functions)
        # The last line may still be being written.
        text = Path(told[0]["log"]).read_text()
        log = tuple(text[: text.rfind("\n") + 1].splitlines())
        return Served(began_s, tuple(arrivals), tuple(latency_ms), log, told, surfaces)


def profiled(client: Client, name: str) -> Surface:
    """Measures a function; its surface."""

    async def whole() -> None:
        async for _ in client.profile(name, points=8):
            pass

    client.run(whole())
    return Profile.from_dict(client.run(client.profile_of(name))).current()


# -- step -------------------------------------------------------------------------------------------------------------------


def step(seed: int) -> dict[str, Any]:
    """Both runs of the step, and what vertical scaling saved."""
    ramp = ((1.0 + (STEP_FACTOR - 1.0) * (k + 0.5) / 10.0) * STEP_RPS for k in range(10))
    load = (
        *WARMING,
        (STEP_RPS, STEADY_S),
        *((rps, RAMP_S / 10.0) for rps in ramp),
        (STEP_FACTOR * STEP_RPS, AFTER_S),
    )
    arrivals = [poisson(load, np.random.default_rng(seed))]
    found: dict[str, Any] = {"calls_after": int(np.sum(arrivals[0] >= BEFORE_S)), "replays": []}
    for name, meanwhile in (("vertical", nothing), ("fixed", fixed)):
        run = served([STEPPED], arrivals, STEP_COLD_START_S, STEP_TABLE, STEP_SETTINGS, meanwhile)
        found[name] = _step_of(run)
        report(f"step, {name}: {found[name]}")
        found["replays"].append(replayed(run))
    in_force_s = found["vertical"]["in_force_s"]
    found["late_ratio"] = found["vertical"]["late"] / max(found["fixed"]["late"], 1)
    return found | {
        "late_met": found["fixed"]["late"] > 0 and found["late_ratio"] <= 1.0 / 3.0,
        "quota_met": found["vertical"]["quota_before_percent"] <= 100.0 / 3.0,
        "in_force_met": in_force_s is not None and in_force_s <= TICK_S + WINDOW_S,
    }


async def fixed(began_s: float) -> None:
    """From the step on the quota stays as it is; one more replica is asked for a second later, and serves ten later still."""
    await asyncio.sleep(began_s + BEFORE_S - time.monotonic())
    ready = [each for each in (await asyncio.to_thread(STEPPED.status)).replicas if each.state == "ready"]
    quota = max(each.quota_percent for each in ready)
    await asyncio.to_thread(STEPPED.scale, quota=quota, replicas=len(ready))
    await asyncio.sleep(began_s + BEFORE_S + TICK_S - time.monotonic())
    await asyncio.to_thread(STEPPED.scale, replicas=len(ready) + 1)


def _step_of(run: Served) -> dict[str, Any]:
    """The quota before the step; when a greater one was in force, in seconds from when the load had tripled; who was late."""
    at_s = run.began_s + BEFORE_S
    before = [tick.observation for tick in run.ticks() if tick.observation.now_s <= at_s][-1]
    quota = float(before.replicas.quota_percent.max(initial=0.0))
    end = run.ticks()[-1].observation.now_s
    told = run.explanations[0]
    raised = [
        end + told["decided_ago_s"] - action["ago_s"] + action["in_force_ms"] / 1000.0 - at_s - RAMP_S
        for action in told["actions"]
        if action["do"] == "resize" and action["in_force_ms"] is not None and action["quota_percent"] > quota
    ]
    return {
        "quota_before_percent": quota,
        "replicas_before": len(before.replicas),
        "in_force_s": min((seconds for seconds in raised if seconds > -RAMP_S), default=None),
        "late": run.late(BEFORE_S),
        "late_before": run.late(FIRST_S) - run.late(BEFORE_S),
        "device_s": run.device_s(BEFORE_S, BEFORE_S + RAMP_S + AFTER_S),
    }


# -- agree ------------------------------------------------------------------------------------------------------------------


def agree(seed: int) -> dict[str, Any]:
    """The series on a gateway and in the simulator."""
    rng = np.random.default_rng(seed)
    arrivals = [poisson(waves(rps, phase), rng) for phase, rps in enumerate(AGREE_RPS)]
    run = served(FUNCTIONS, arrivals, AGREE_COLD_START_S, TABLE, {"keep_alive_s": 60.0, "pooling": False})
    result = simulated(run, AGREE_S, seed)
    latency_ms = run.latencies_ms(WARM_UP_S)
    live, virtual = 100.0 * run.late(WARM_UP_S) / len(latency_ms), 100.0 * result.violations()
    live_s, virtual_s = run.device_s(WARM_UP_S, AGREE_S), float(result.reserved.sum())
    return {
        "calls": len(latency_ms),
        "lost": int(np.sum(~np.isfinite(latency_ms))),
        "live_violations_percent": live,
        "simulated_violations_percent": virtual,
        "live_device_s": live_s,
        "simulated_device_s": virtual_s,
        "live_p50_ms": float(np.percentile(latency_ms, 50)),
        "simulated_p50_ms": result.percentile_ms(50),
        "live_p95_ms": float(np.percentile(latency_ms, 95)),
        "simulated_p95_ms": result.percentile_ms(95),
        "violations_met": abs(live - virtual) <= VIOLATION_POINTS,
        "cost_met": abs(live_s / virtual_s - 1.0) * 100.0 <= COST_PERCENT,
        "replays": [replayed(run)],
    }


def waves(mean_rps: float, phase: int) -> list[tuple[float, float]]:
    """A rate that swings about its mean, second by second; each phase is a third of a period later."""

    def rps(second: int) -> float:
        return mean_rps * (1.0 + AGREE_SWING * math.sin(2.0 * math.pi * (second / AGREE_PERIOD_S - phase / 3.0)))

    return [(rps(second), 1.0) for second in range(int(AGREE_S))]


def simulated(run: Served, end_s: float, seed: int) -> Result:
    """The same arrivals in virtual time, with what was measured of the gateway: profiles, starts, overheads, and the phase of
    its ticks to the arrivals."""
    seen = [tick.observation.functions for tick in run.ticks()]
    first = min(float(each[0]) for each in run.arrived_s)
    # Of the simulator's ticks, at 0, 1, 2 s, the second is the one that first sees a call.
    saw_s = next(t.observation.now_s for t in run.ticks() if t.observation.now_s > run.began_s + first) - run.began_s
    shift_s = TICK_S - saw_s
    functions = [
        SimFunction(
            name,
            SLO_MS,
            surface,
            memory_bytes=REPLICA_BYTES,
            cold_start_s=float(seen[-1].cold_start_s[row]),
            batch_max=BATCH,
            overhead_ms=float(np.median([each.overhead_ms[row] for each in seen])),
        )
        for row, (name, surface) in enumerate(zip(NAMES, run.surfaces, strict=False))
    ]
    scenario = Scenario(
        functions=functions,
        devices=[SimDevice(f"sim{n}", UNITS, MEMORY_BYTES) for n in range(DEVICES)],
        arrivals=[arrived_s + shift_s for arrived_s in run.arrived_s],
        duration_s=end_s + shift_s,
        warmup_s=WARM_UP_S + shift_s,
        act_delay_s=ACT_DELAY_S,
        drop_after_s=60.0,
        seed=seed,
    )
    (_, begin), *_ = journal.read(run.log[:1])
    assert isinstance(begin, journal.Begin)
    return simulate(scenario, fresh(begin))


# -- replay -----------------------------------------------------------------------------------------------------------------


def replayed(run: Served) -> dict[str, Any]:
    """How many decisions of a log a fresh scaler comes to as well, and whether all."""
    found = journal.replay(run.log, fresh)
    return {"agree": found.agree, "same": found.difference is None, "log": run.log}


def report(text: str) -> None:
    """News, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measures, prints the figures, writes the document. The exit status is 0 whatever they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--only", choices=("step", "agree"), action="append", help="this part; repeatable")
    parser.add_argument("--logs", type=Path, help="keep the decision logs in this folder")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    parts = given.only or ["step", "agree"]
    document: dict[str, Any] = {"seed": given.seed, "load_at_start": os.getloadavg()}
    began_s = time.monotonic()
    if "step" in parts:
        document["step"] = found = step(given.seed)
        print(
            f"step: quota {found['vertical']['quota_before_percent']:g} % before; raised and in force after "
            f"{found['vertical']['in_force_s']} s (target 1.1); late {found['vertical']['late']} with vertical scaling, "
            f"{found['fixed']['late']} without, of {found['calls_after']} (target: a third at most)"
        )
    if "agree" in parts:
        document["agree"] = found = agree(given.seed)
        print(
            f"agree: late {found['live_violations_percent']:.2f} % live, {found['simulated_violations_percent']:.2f} % "
            f"simulated; device seconds {found['live_device_s']:.2f} live, {found['simulated_device_s']:.2f} simulated; "
            f"p95 {found['live_p95_ms']:.1f} and {found['simulated_p95_ms']:.1f} ms; n {found['calls']}, lost {found['lost']}"
        )
    replays = [one for part in parts for one in document[part]["replays"]]
    document["replay_identical"] = all(one["same"] for one in replays)
    print(
        f"replay: {sum(one['agree'] for one in replays)} decisions of {len(replays)} logs, "
        f"{'all the same' if document['replay_identical'] else 'NOT all the same'}"
    )
    document |= {"load_at_end": os.getloadavg(), "seconds": time.monotonic() - began_s}
    if given.logs:
        given.logs.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(replays):
            (given.logs / f"{number}.jsonl").write_text("\n".join(one["log"]) + "\n")
    for one in replays:
        del one["log"]
    print(f"load {document['load_at_start'][0]:.1f} .. {document['load_at_end'][0]:.1f}, {document['seconds']:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
