"""The loop over a fleet of memory: whom it governs, what a tick does, and that nothing in a policy can stop calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from hasfaas.backends import decision_log
from hasfaas.backends.decision_log import DecisionLog
from hasfaas.backends.scaling import LEAST_INTERVAL_S, ScalingLoop, hybrid
from hasfaas.core.settings import ScalingSettings
from hasfaas.core.spec import Kind
from hasfaas.scaling import journal
from hasfaas.scaling.decision import Action, Decision, DrainReplica, Resize
from hasfaas.scaling.observation import Observation
from hasfaas.scaling.policy import Policy
from hasfaas.scaling.scaler import HybridScaler
from hasfaas.serving.ports import Sizing
from hasfaas.serving.router import Answered, Counts
from tests.fakes.fleet_of_memory import MemoryFleet, MemoryProfiles, log_lines, record, surface


@attrs.define(eq=False)
class Scripted:
    """Decides what a test wrote down, then nothing; remembers what it saw. It adds up arrivals, so that its decisions depend
    on all that it has seen."""

    script: list[tuple[Action, ...]] = attrs.field(factory=list)
    fails: bool = False
    tick_s: float = 60.0
    seen: list[Observation] = attrs.field(factory=list)
    arrivals: int = 0

    def decide(self, observation: Observation) -> Decision:
        self.seen.append(observation)
        self.arrivals += int(observation.functions.arrivals.sum())
        if self.fails:
            raise RuntimeError("a bug")
        actions = self.script.pop(0) if self.script else ()
        diagnostics = {"arrivals": np.array([float(self.arrivals)]), "odd": np.array([np.inf])}
        return Decision(actions, "scripted", observation.now_s + self.tick_s, diagnostics)


def loop_of(
    fleet: MemoryFleet, folder: Path, policy: Policy, settings: ScalingSettings | None = None, **profiles: Any
) -> ScalingLoop:
    return ScalingLoop(
        fleet,  # type: ignore[arg-type]
        MemoryProfiles(profiles or {"app.f": surface()}),  # type: ignore[arg-type]
        settings or ScalingSettings(),
        window_ms=100.0,
        quantum_ms=10.0,
        state_dir=folder,
        make_policy=lambda: (policy, {"known": 1.0}),
    )


def a_fleet() -> MemoryFleet:
    fleet = MemoryFleet(record())
    fleet.seat("a")
    return fleet


async def running_for(loop: ScalingLoop, met: Callable[[], bool], act: Callable[[], None] = lambda: None) -> None:
    """Runs the loop until `met`, five seconds at most."""
    task = asyncio.ensure_future(loop.run())
    try:
        for _ in range(500):
            await asyncio.sleep(0.01)
            act()
            if met():
                return
        raise AssertionError("not so after five seconds")
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_it_governs_what_has_a_profile_and_nobody_sized(tmp_path: Path) -> None:
    fleet = a_fleet()
    loop = loop_of(fleet, tmp_path, Scripted())
    assert loop.why_not(record()) == ""
    assert "no profile" in loop.why_not(record("app.g"))
    assert "by hand" in loop.why_not(record(sizing=Sizing(replicas=2)))
    assert loop.governs(record(sizing=Sizing(lend=True)))
    assert "streams" in loop.why_not(record(kind=Kind.GENERATOR))
    off = loop_of(fleet, tmp_path, Scripted(), ScalingSettings(enabled=False))
    assert "scaling is off" in off.why_not(record())
    asyncio.run(asyncio.wait_for(off.run(), 5.0))


def test_a_tick_observes_decides_acts_and_writes_down(tmp_path: Path) -> None:
    fleet = a_fleet()
    policy = Scripted([(Resize("a", 44.0, "more comes"), DrainReplica("gone", "no call"))])
    loop = loop_of(fleet, tmp_path, policy)
    next_s = asyncio.run(loop.tick())
    loop.close()
    assert fleet.told == [("resize", "a", 44.0, True), ("settle", "app.f")]
    [observation] = policy.seen
    assert observation.replicas.ids == ("a",)
    assert next_s == pytest.approx(observation.now_s + 60.0)
    lines = log_lines(tmp_path / "scaling")
    assert [json.loads(line)["kind"] for line in lines] == ["begin", "surface", "tick"]
    [(_, _), (_, tick)] = journal.read(lines)
    assert isinstance(tick, journal.Tick)
    assert list(tick.refused) == [1] and "has gone" in tick.refused[1]


def test_who_asks_is_looked_at_now_and_not_only_at_the_next_tick(tmp_path: Path) -> None:
    fleet, policy = a_fleet(), Scripted()
    loop = loop_of(fleet, tmp_path, policy)

    def ask_after_the_first() -> None:
        if len(policy.seen) == 1:
            fleet.ask("app.f")

    asyncio.run(running_for(loop, lambda: len(policy.seen) == 2, ask_after_the_first))
    first, second = policy.seen
    assert LEAST_INTERVAL_S - 0.01 <= second.now_s - first.now_s < 30.0
    assert ("rescue", "app.f") not in fleet.told


def test_a_call_that_the_scaler_leaves_waiting_gets_a_replica_as_without_it(tmp_path: Path) -> None:
    fleet, policy = a_fleet(), Scripted()
    fleet.router.waiting["app.f"] = 2
    loop = loop_of(fleet, tmp_path, policy)
    asyncio.run(running_for(loop, lambda: ("rescue", "app.f") in fleet.told))
    assert len(policy.seen) == 1


def test_a_policy_that_fails_stops_neither_the_loop_nor_calls(tmp_path: Path) -> None:
    fleet, policy = a_fleet(), Scripted(fails=True)
    fleet.router.waiting["app.f"] = 1
    loop = loop_of(fleet, tmp_path, policy, ScalingSettings(tick_s=0.1))
    asyncio.run(running_for(loop, lambda: len(policy.seen) >= 3))
    assert fleet.told.count(("rescue", "app.f")) == 1


def test_without_a_profile_nothing_is_imported_observed_or_written(tmp_path: Path) -> None:
    fleet, policy = MemoryFleet(record("app.unknown")), Scripted()
    loop = loop_of(fleet, tmp_path, policy, ScalingSettings(tick_s=0.1))

    async def a_while() -> None:
        task = asyncio.ensure_future(loop.run())
        await asyncio.sleep(0.35)
        task.cancel()

    asyncio.run(a_while())
    assert (policy.seen, fleet.told, list(tmp_path.iterdir())) == ([], [], [])
    found = json.loads(loop.explain(record("app.unknown")))
    assert not found["governed"] and "no profile" in found["why_not"]


def test_what_is_explained_is_what_was_seen_expected_and_done(tmp_path: Path) -> None:
    fleet = a_fleet()
    fleet.nodes.replicas["a"].sm_percent = 100.0
    policy = Scripted([(), (Resize("a", 44.0, "more comes"), Resize("a", 400.0, "far more comes"))])
    loop = loop_of(fleet, tmp_path, policy)
    asyncio.run(loop.tick())
    fleet.router.all["app.f"] = Counts(accepted=20, completed=20, slo_met=15)
    fleet.router.latencies["app.f"] = [Answered(40.0, False)] * 20
    asyncio.run(loop.tick())
    found = json.loads(loop.explain(record()))
    assert (found["governed"], found["reason"], found["why_not"]) == (True, "scripted", "")
    assert found["diagnostics"] == {"arrivals": 20.0, "odd": None}
    observed = found["observed"]
    assert (observed["completed"], observed["late"], observed["late_share"]) == (20, 5, 0.25)
    assert (observed["p95_ms"], observed["slo_ms"]) == (40.0, 100.0)
    # A hold of 10 ms: 10 after an idle time, and about 10 / 0.3 in the long run.
    assert found["predicted"]["idle_ms"] == pytest.approx(10.0)
    assert found["predicted"]["worst_ms"] > 30.0
    assert found["occupancy"] == pytest.approx(0.3)
    latest, before = found["actions"]
    assert (before["do"], before["quota_percent"], before["refused"]) == ("resize", 44.0, "")
    assert "not that much" in latest["refused"]
    assert Path(found["log"]).parent == tmp_path / "scaling"
    loop.close()


def test_of_a_function_without_a_profile_nothing_is_predicted_and_its_quota_is_the_real_one(tmp_path: Path) -> None:
    fleet = MemoryFleet(record(), record("app.plain"))
    fleet.seat("a")
    fleet.seat("b", "app.plain", quota=100.0, pinned=False, lane=1)
    loop = loop_of(fleet, tmp_path, Scripted())
    assert json.loads(loop.explain(record()))["log"] == str(tmp_path / "scaling")
    asyncio.run(loop.tick())
    found = json.loads(loop.explain(record("app.plain")))
    assert (found["unpredicted"], found["predicted"]) == ("no profile yet", None)
    assert [each["quota_percent"] for each in found["replicas"]] == [100.0]
    assert found["occupancy"] == pytest.approx(0.5)
    assert (found["observed"]["completed"], found["observed"]["p50_ms"]) == (0, None)
    # What is told is the quota of now, not that of the tick.
    fleet.seat("a", quota=60.0)
    told = json.loads(loop.explain(record()))
    assert [each["quota_percent"] for each in told["replicas"]] == [60.0]
    assert told["unpredicted"] == ""
    loop.close()


@pytest.mark.parametrize(("level_rps", "carried"), [(0.0, True), (2.0, True), (500.0, False)])
def test_a_latency_is_predicted_for_the_rate_of_now_where_it_is_carried(
    tmp_path: Path, level_rps: float, carried: bool
) -> None:
    fleet = a_fleet()
    loop = loop_of(fleet, tmp_path, Leveled(level_rps))
    fleet.seat("a", quota=80.0, sm_percent=100.0)
    asyncio.run(loop.tick())
    predicted = json.loads(loop.explain(record()))["predicted"]
    assert (predicted["rps"], predicted["carried"]) == (level_rps, carried)
    assert (predicted["p95_ms"] is not None) == (carried and level_rps > 0.0)
    loop.close()


@attrs.define(eq=False)
class Leveled:
    """Knows a rate and does nothing."""

    level_rps: float

    def decide(self, observation: Observation) -> Decision:
        return Decision((), "known", observation.now_s + 60.0, {"level_rps": np.array([self.level_rps])})


def make(policies: list[Scripted]) -> Callable[[], tuple[Policy, Mapping[str, Any]]]:
    def fresh() -> tuple[Policy, Mapping[str, Any]]:
        policies.append(Scripted())
        return policies[-1], {}

    return fresh


def test_a_full_log_goes_on_in_another_that_replays_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "PRIMES", 3)
    policies: list[Scripted] = []
    log = DecisionLog(tmp_path / "logs", make(policies), name="scripted", most_bytes=8_000, segments=2)
    fleet = a_fleet()
    loop = loop_of(fleet, tmp_path, Scripted())
    asyncio.run(loop.tick())
    assert loop._observer is not None
    for number in range(40):
        fleet.router.all["app.f"] = Counts(accepted=number * 3)
        observation = loop._observer.observe(1000.0 + number)
        log.write(observation, log.decide(observation), {})
    log.close()
    assert len(policies) >= 3
    paths = sorted((tmp_path / "logs").glob("*.jsonl"))
    assert len(paths) == 2
    for path in paths:
        lines = path.read_text().splitlines()
        assert sum(len(line) for line in lines) < 16_000
        assert [json.loads(line)["kind"] for line in lines].count("prime") == 3
        found = journal.replay(lines, lambda _begin: Scripted())
        assert found.difference is None and found.agree > 0


def test_the_settings_reach_the_scaler() -> None:
    settings = ScalingSettings(tick_s=2.0, keep_alive_s=9.0, quota_calm_s=3.0, replica_calm_s=4.0, vertical=False)
    policy, plain = hybrid(settings)
    assert isinstance(policy, HybridScaler)
    tuned = policy.settings
    assert (tuned.tick_s, tuned.keep_alive_s, tuned.quota_calm_s, tuned.replica_calm_s) == (2.0, 9.0, 3.0, 4.0)
    assert not tuned.vertical
    assert plain["keep_alive_s"] == 9.0
