"""The arrays of a simulation: made from a scenario, made larger, filled with a new replica."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hasfaas.core.allocation import MAX_LANES
from hasfaas.executor.quota import SlotState
from hasfaas.scaling.observation import Life
from hasfaas.serving import batching
from hasfaas.simulator import records
from hasfaas.simulator.records import PENDING, SLOTS_OF_DEVICE, World
from hasfaas.simulator.scenario import Scenario

Array = np.ndarray[Any, Any]

NS_PER_S = 1e9
NS_PER_MS = 1e6
# Batches that differ in their noise; the more calls, the more often each is used.
_DRAWS = 1 << 16


def of(scenario: Scenario) -> World:
    """The world at 0 s, without a replica."""
    arrival_ns, order, firsts = _calls(scenario)
    functions = np.zeros(len(scenario.functions), records.FUNCTION)
    for column in ("first", "arrived", "head"):
        functions[column] = firsts[:-1]
    functions["end"] = firsts[1:]
    functions["drop_ns"] = round(scenario.drop_after_s * NS_PER_S)
    functions["slo_ns"] = [round(f.slo_ms * NS_PER_MS) for f in scenario.functions]
    functions["overhead_ns"] = [round(f.overhead_ms * NS_PER_MS) for f in scenario.functions]
    functions["depth"] = [1 if f.streams else batching.PIPELINE_DEPTH for f in scenario.functions]
    clock = np.zeros(1, records.CLOCK)
    clock["interference"] = scenario.interference
    clock["from_ns"], clock["to_ns"] = round(scenario.warmup_s * NS_PER_S), round(scenario.duration_s * NS_PER_S)
    lanes = len(scenario.devices) * MAX_LANES
    return World(
        timing=records.timing_of(scenario.timing),
        lanes_law=scenario.law == "lane",
        clock=clock,
        slots=np.zeros(0, records.SLOT),
        lanes=np.zeros(lanes, records.LANE),
        seats=np.full((lanes, SLOTS_OF_DEVICE), -1, np.int64),
        functions=functions,
        ready=np.full((len(functions), 8), -1, np.int64),
        arrival_ns=arrival_ns,
        done_ns=np.full(len(arrival_ns), PENDING, np.int64),
        order=order,
        hold_ns=np.zeros((0, max(f.batch_max for f in scenario.functions) + 1)),
        factors=_factors(scenario),
        heap=np.zeros(0, np.int64),
        client=np.zeros(1, records.CLIENT),
        stages=_stages(scenario),
    )


def with_slots(world: World, slots: int) -> World:
    """The same with room for so many replicas."""
    had = len(world.slots)
    grown = world._replace(
        slots=np.zeros(slots, records.SLOT),
        hold_ns=np.zeros((slots, world.hold_ns.shape[1])),
        heap=np.zeros(slots, np.int64),
    )
    grown.slots[:had], grown.hold_ns[:had], grown.heap[:had] = world.slots, world.hold_ns, world.heap
    return grown


def with_places(world: World, places: int) -> World:
    """The same with room for so many ready replicas of each function."""
    ready = np.full((len(world.functions), places), -1, np.int64)
    ready[:, : world.ready.shape[1]] = world.ready
    return world._replace(ready=ready)


def seat(world: World, row: int, function: int, lane: int, share: float, quota_ppm: int, *, lend: bool) -> None:
    """A new replica with an empty account, which starts to fill now, as TokenTable.admit makes it. `share` is that of the
    device's units."""
    slot, home = world.slots[row], world.lanes[lane]
    world.slots[row : row + 1] = np.zeros(1, records.SLOT)
    slot.state = SlotState.IDLE
    slot.life = Life.STARTING
    slot.quota_ppm, slot.lend = quota_ppm, int(lend)
    slot.stamp_ns = slot.charged_ns = world.clock[0].now_ns
    slot.share = share
    slot.v_ns = home.v_ns
    slot.function, slot.lane = function, lane
    slot.heap_at = -1
    world.seats[lane, home.seats] = row
    home.seats += 1


def _calls(scenario: Scenario) -> tuple[Array, Array, Array]:
    """Arrivals in ns, function by function; the functions in order of time; where each function's calls begin."""
    if scenario.client is not None:
        calls = sum(scenario.client.calls)
        return np.zeros(calls, np.int64), np.zeros(calls, np.int32), np.array([0, calls])
    arrival_ns = np.rint(np.concatenate(scenario.arrivals) * NS_PER_S).astype(np.int64)
    counts = [len(times) for times in scenario.arrivals]
    function = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    order = function[np.argsort(arrival_ns, kind="stable")] if len(counts) > 1 else function
    return arrival_ns, order, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _factors(scenario: Scenario) -> Array:
    if scenario.factors is not None:
        return np.ascontiguousarray(scenario.factors, dtype=float)
    if scenario.noise == 0.0:
        return np.ones(1)
    return np.exp(scenario.noise * np.random.default_rng(scenario.seed).standard_normal(_DRAWS))


def _stages(scenario: Scenario) -> Array:
    client = scenario.client
    stages = np.zeros(len(client.stage_s) if client is not None else 0, records.STAGE)
    if client is not None:
        stages["calls"] = client.calls
        stages["length_ns"] = np.rint(np.asarray(client.stage_s) * NS_PER_S)
        stages["most"] = [max(1, math.ceil(client.in_flight_factor * rps)) for rps in client.stage_rps]
        stages["period_ns"] = NS_PER_S / np.maximum(client.stage_rps, 1e-9)
    return stages
