"""One run: arrivals are served in virtual time, a policy is asked at its ticks, and what it decides is carried out."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
import numpy as np

from hasfaas.core.allocation import PPM_PER_PERCENT
from hasfaas.scaling.decision import Action, AddReplica, Decision
from hasfaas.scaling.device_choice import DeviceChoice
from hasfaas.scaling.device_offers import Offer, Offers
from hasfaas.scaling.observation import Devices, FixedLanes, Functions, Observation, Replicas
from hasfaas.scaling.policy import Policy
from hasfaas.scaling.scaler import HybridScaler
from hasfaas.simulator import kernel as kernels
from hasfaas.simulator.fleet import Fleet
from hasfaas.simulator.kernel import Kernel
from hasfaas.simulator.result import Refusal, Result, result_of
from hasfaas.simulator.scenario import Scenario, SimDevice
from hasfaas.simulator.series import Series

Array = np.ndarray[Any, Any]

NS_PER_S = 1_000_000_000
LEAST_TICK_NS, GREATEST_TICK_NS = 1_000_000, 60 * NS_PER_S
# How long calls that have arrived are still served after the end.
LONGEST_END_NS = 600 * NS_PER_S
Kind = Literal["start", "tick", "act", "ready"]


def run(
    scenario: Scenario,
    policy: Policy,
    *,
    progress: Callable[[float], None] | None = None,
    clock_s: Callable[[], float] | None = None,
    kernel: Kernel | None = None,
    choice: DeviceChoice | None = None,
) -> Result:
    """Runs a scenario under a policy. The same scenario and the same decisions give the same result.

    `progress` is told the share that is done at each tick. `clock_s` measures how long the policy thinks, in seconds; nothing
    else depends on it. `kernel` is the compiled one where numba is installed. `choice` says which type of device each
    function is on, where there are several.
    """
    choice = choice or DeviceChoice(policy.settings if isinstance(policy, HybridScaler) else None)
    return _Run(scenario, policy, kernel or kernels.load(), clock_s, choice).run(progress)


class _Run:
    """The state of one run beside that of its fleet: what is still to happen, and what was last observed."""

    def __init__(
        self,
        scenario: Scenario,
        policy: Policy,
        kernel: Kernel,
        clock_s: Callable[[], float] | None,
        choice: DeviceChoice,
    ) -> None:
        self.scenario, self.policy, self.kernel, self.clock_s = scenario, policy, kernel, clock_s
        self._choice = choice
        self.end_ns = round(scenario.duration_s * NS_PER_S)
        self.fleet = Fleet(scenario, kernel)
        self.series = Series(scenario)
        self.actions: list[tuple[float, Action]] = []
        self.refusals: list[Refusal] = []
        self.decide_s: list[float] = []
        self._events: list[tuple[int, int, Kind, Any]] = []
        self._order = itertools.count()
        self._seen = {name: self.fleet.world.functions[name].copy() for name in ("arrived", "completed", "late")}
        self._members = _members(self.fleet)
        self._observed_ns = 0
        self._constant = _constant(scenario)

    def run(self, progress: Callable[[float], None] | None) -> Result:
        self._at(0, "tick", None)
        self._at(round(self.scenario.warmup_s * NS_PER_S), "start", None)
        while self._events and self._events[0][0] < self.end_ns:
            now_ns, _, kind, what = heapq.heappop(self._events)
            self.kernel.serve(self.fleet.world, now_ns)
            if kind == "tick":
                if self._client_is_done():
                    self.end_ns = now_ns
                    self.fleet.world.clock["to_ns"] = now_ns
                    break
                self._tick()
                if progress is not None:
                    progress(now_ns / self.end_ns)
            elif kind == "act":
                self._act(what)
            elif kind == "ready":
                self.fleet.ready(*what)
            else:
                self._account()
        self.kernel.serve(self.fleet.world, self.end_ns)
        self._account()
        self._finish()
        return result_of(self)

    def _finish(self) -> None:
        """What has arrived is still answered, or dropped; nobody decides any more, and nothing costs."""
        self.fleet.world.client[0].stage = len(self.fleet.world.stages)
        last_ns = self.end_ns + min(round(self.scenario.drop_after_s * NS_PER_S), LONGEST_END_NS)
        while self._events and self._events[0][0] <= last_ns:
            now_ns, _, kind, what = heapq.heappop(self._events)
            if kind == "ready":
                self.kernel.serve(self.fleet.world, now_ns)
                self.fleet.ready(*what)
        self.kernel.serve(self.fleet.world, last_ns)
        self.kernel.look(self.fleet.world, self.fleet.rows)

    def _at(self, when_ns: int, kind: Kind, what: Any) -> None:
        heapq.heappush(self._events, (when_ns, next(self._order), kind, what))

    def _client_is_done(self) -> bool:
        world = self.fleet.world
        return len(world.stages) > 0 and bool(world.client[0].stage >= len(world.stages))

    # -- a tick -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._account()
        self.series.sample(self.fleet)
        observation = self._observe()
        before_s = self.clock_s() if self.clock_s is not None else 0.0
        observation = self._choice.shown(observation, self._constant.offers)
        decision = self.policy.decide(observation)
        self._choice.heed(observation.functions.names, decision)
        if self.clock_s is not None:
            self.decide_s.append(self.clock_s() - before_s)
        now_ns = self.fleet.now_ns
        if decision.actions:
            self._at(now_ns + round(self.scenario.act_delay_s * NS_PER_S), "act", decision.actions)
        self._at(self._next_tick_ns(decision), "tick", None)

    def _next_tick_ns(self, decision: Decision) -> int:
        now_ns = self.fleet.now_ns
        asked_s = decision.next_tick_s
        wait_ns = round(
            (asked_s - now_ns / NS_PER_S if asked_s > now_ns / NS_PER_S else self.scenario.tick_s) * NS_PER_S
        )
        return now_ns + min(max(wait_ns, LEAST_TICK_NS), GREATEST_TICK_NS)

    def _account(self) -> None:
        """Accounts and costs are brought up to now, the rows of the gone are freed, and what changed is checked."""
        fleet = self.fleet
        self.kernel.look(fleet.world, fleet.rows)
        fleet.collect()
        if fleet.changed:
            self._check()
            if self._members.rows is not fleet.rows:
                self._members = _members(fleet)
            fleet.changed = False

    def _check(self) -> None:
        """What only a bug breaks: lanes, memory and occupancy within bounds, the sums equal to what replicas hold."""
        fleet = self.fleet
        wrong = self.kernel.audit(fleet.world, fleet.lane_ppm, fleet.lane_units, fleet.device_units)
        assert not wrong, f"lanes are over-committed, or not what their replicas hold (events.audit: {wrong})"
        assert fleet.memory_fits(), "the memory of a device is over-committed"

    def _observe(self) -> Observation:
        fleet = self.fleet
        functions, seen, slots = fleet.world.functions, self._seen, fleet.world.slots
        counts = {name: functions[name].copy() for name in ("arrived", "completed", "late")}
        self._seen = counts
        rows, members = fleet.rows, self._members
        live = slots[rows]
        slots["seen_ns"][rows] = live["used_ns"]
        replicas = Replicas(
            ids=members.ids,
            function=members.function,
            device=members.device,
            lane=members.lane,
            sm_percent=members.sm_percent,
            quota_percent=live["quota_ppm"] / PPM_PER_PERCENT,
            batch=live["batch"],
            life=live["life"],
            since_s=members.since_s,
            in_flight=live["in_flight"],
            used_s=(live["used_ns"] - live["seen_ns"]) / NS_PER_S,
        )
        now_ns, before_ns = fleet.now_ns, self._observed_ns
        self._observed_ns = now_ns
        table = Functions(
            **self._constant.functions,
            arrivals=counts["arrived"] - seen["arrived"],
            completed=counts["completed"] - seen["completed"],
            late=counts["late"] - seen["late"],
            waiting=counts["arrived"] - functions["head"],
            in_flight=functions["in_flight"].copy(),
        )
        interval_s = (now_ns - before_ns) / NS_PER_S
        devices, timing, fixed = self._constant.devices, self.scenario.timing, self._constant.fixed_lanes
        return Observation(now_ns / NS_PER_S, interval_s, table, replicas, devices, timing, fixed)

    # -- a decision ---------------------------------------------------------------------------------------------------

    def _act(self, actions: tuple[Action, ...]) -> None:
        fleet = self.fleet
        now_s = fleet.now_ns / NS_PER_S
        fleet.collect()
        for action in actions:
            outcome = fleet.apply(action)
            if isinstance(outcome, str):
                self.refusals.append(Refusal(now_s, action, outcome))
                continue
            self.actions.append((now_s, action))
            if isinstance(action, AddReplica):
                assert outcome is not None
                cold_ns = round(self.scenario.functions[fleet.life(outcome).function].cold_start_s * NS_PER_S)
                self._at(fleet.now_ns + cold_ns, "ready", (outcome, fleet.life(outcome).replica_id))


@attrs.frozen(eq=False)
class _Members:
    """The columns of `Replicas` that stay while nobody comes or goes, and the rows that they are for."""

    rows: Array
    ids: tuple[str, ...]
    function: Array
    device: Array
    lane: Array
    sm_percent: Array
    since_s: Array


def _members(fleet: Fleet) -> _Members:
    lives = [fleet.life(row) for row in fleet.rows.tolist()]
    return _Members(
        rows=fleet.rows,
        ids=tuple(life.replica_id for life in lives),
        function=np.array([life.function for life in lives], np.int64),
        device=np.array([life.device for life in lives], np.int64),
        lane=np.array([life.lane for life in lives], np.int64),
        sm_percent=np.array([life.sm_percent for life in lives], float),
        since_s=np.array([life.asked_ns for life in lives], np.int64) / NS_PER_S,
    )


@attrs.frozen(eq=False)
class _Constant:
    """The parts of an observation that never change; the others are filled in at each tick."""

    functions: dict[str, Any]
    devices: Devices
    fixed_lanes: FixedLanes
    offers: Offers


def _constant(scenario: Scenario) -> _Constant:
    functions, devices = scenario.functions, scenario.devices

    def column(name: str) -> Array:
        return np.array([getattr(function, name) for function in functions])

    return _Constant(
        dict(  # noqa: C408 - reads as the class does
            names=scenario.names,
            slo_ms=column("slo_ms"),
            late_share=column("late_share"),
            min_replicas=column("min_replicas"),
            max_replicas=column("max_replicas"),
            memory_bytes=column("memory_bytes"),
            batch_max=column("batch_max"),
            cold_start_s=column("cold_start_s"),
            overhead_ms=column("overhead_ms"),
            by_hand=np.zeros(len(functions), bool),
            devices=np.ones((len(functions), len(devices)), bool),
            surfaces=tuple(function.told_on(devices[0].type) for function in functions),
        ),
        Devices(
            ids=tuple(device.name for device in devices),
            units=np.array([device.units for device in devices]),
            memory_bytes=np.array([device.memory_bytes for device in devices]),
            node=_numbered([device.node for device in devices]),
            type=_numbered([device.type for device in devices]),
        ),
        _fixed_lanes(devices),
        _offers(scenario),
    )


def _numbered(names: Sequence[str]) -> Array:
    """Each one's number, in the order in which they come."""
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], np.int64)


def _offers(scenario: Scenario) -> Offers:
    """Every function on every type of device, where there are several."""
    prices: dict[str, float] = {}
    for device in scenario.devices:
        prices[device.type] = min(device.price, prices.get(device.type, device.price))
    if len(prices) == 1:
        return Offers()
    types = _numbered([device.type for device in scenario.devices])
    masks = [types == number for number in range(len(prices))]
    of = {
        function.name: tuple(Offer(n, function.told_on(name), masks[n]) for n, name in enumerate(prices))
        for function in scenario.functions
    }
    return Offers(tuple(prices), tuple(prices.values()), of)


def _fixed_lanes(devices: Sequence[SimDevice]) -> FixedLanes:
    rows = [(row, lane, units) for row, each in enumerate(devices) for lane, units in enumerate(each.lane_units)]
    return FixedLanes(*np.array(rows, np.int64).reshape(-1, 3).T)
