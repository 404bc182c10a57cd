"""What a scaler sees of a fleet."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from hasfaas.backends.observer import GUESSED_COLD_START_S, RISE, YIELDING_QUOTA_PERCENT, Observer, Recent
from hasfaas.core.spec import Kind
from hasfaas.core.state import ReplicaState
from hasfaas.devices.base import Condition, DeviceInfo, Health
from hasfaas.executor.quota import Timing
from hasfaas.scaling.observation import Life
from hasfaas.serving.ports import Sizing
from hasfaas.serving.router import Answered, Counts
from tests.fakes.fleet_of_memory import MemoryFleet, MemoryProfiles, record, surface


def observer(fleet: MemoryFleet, profiles: MemoryProfiles | None = None) -> Observer:
    return Observer(fleet, profiles or MemoryProfiles({"app.f": surface()}), Timing(), 1.0)  # type: ignore[arg-type]


def test_counts_are_those_since_the_last_look() -> None:
    fleet = MemoryFleet(record())
    fleet.router.all["app.f"] = Counts(accepted=50, completed=50, slo_met=50)
    seen = observer(fleet)
    first = seen.observe(100.0)
    assert (first.interval_s, first.functions.arrivals.tolist()) == (1.0, [0])
    fleet.router.all["app.f"] = Counts(accepted=60, completed=55, slo_met=53, failed=1, expired=2, refused=3)
    fleet.router.waiting["app.f"] = 4
    second = seen.observe(100.5)
    functions = second.functions
    assert second.interval_s == pytest.approx(0.5)
    # 10 accepted and 3 refused came; of 5 answers 2 were late, and 6 calls came to nothing.
    assert [int(x[0]) for x in (functions.arrivals, functions.completed, functions.late)] == [13, 5, 8]
    assert functions.waiting.tolist() == [4]
    third = seen.observe(101.5)
    assert (third.functions.arrivals.tolist(), third.functions.late.tolist()) == ([0], [0])


def test_a_function_that_was_deployed_anew_counts_from_nothing() -> None:
    fleet = MemoryFleet(record())
    seen = observer(fleet)
    fleet.router.all["app.f"] = Counts(accepted=90, completed=90, slo_met=90)
    seen.observe(1.0)
    fleet.router.all["app.f"] = Counts(accepted=2, completed=1, slo_met=1)
    again = seen.observe(2.0).functions
    assert (again.arrivals.tolist(), again.completed.tolist(), again.late.tolist()) == ([2], [1], [0])


def test_the_promise_and_the_bounds_are_those_of_the_options() -> None:
    spec: dict[str, Any] = {"slo_ms": 80.0, "slo_percentile": 95.0, "batch": None, "min_replicas": 1, "max_replicas": 5}
    fleet = MemoryFleet(record(**spec, memory_bytes=2**29), record("app.g", sizing=Sizing(quota_percent=30.0)))
    functions = observer(fleet).observe(1.0).functions
    assert functions.late_share[0] == pytest.approx(0.05)
    columns = ("slo_ms", "batch_max", "min_replicas", "max_replicas", "memory_bytes")
    assert [float(getattr(functions, name)[0]) for name in columns] == [80.0, 1, 1, 5, 2**29]
    assert functions.by_hand.tolist() == [False, True]
    assert functions.surfaces[0] is not None and functions.surfaces[1] is None


def test_a_function_may_use_the_devices_that_its_profile_and_its_options_name() -> None:
    fleet = MemoryFleet(record(), record("app.cpu", device="cpu"), record("app.any"), record("app.one", device="sim0"))
    devices = observer(fleet).observe(1.0).functions.devices
    assert devices.tolist() == [[True, False], [False, True], [True, True], [True, False]]


def test_streams_are_nobodys_to_plan() -> None:
    fleet = MemoryFleet(record(kind=Kind.GENERATOR))
    assert observer(fleet).observe(1.0).functions.surfaces == (None,)


def test_replicas_are_rows_whatever_becomes_of_them() -> None:
    fleet = MemoryFleet(record())
    fleet.seat("a", quota=40.0, lane=2, batch_cap=2)
    fleet.seat("b", state=ReplicaState.DRAINING)
    fleet.seat("c", state=ReplicaState.STARTING, asked_s=99.5)
    fleet.seat("d", member=False, batch_cap=3)
    fleet.seat("e", bench=object())
    fleet.seat("f", "app.deleted")
    fleet.router.held.update(a=3, b=2)
    seen = observer(fleet).observe(100.0)
    replicas, functions = seen.replicas, seen.functions
    assert replicas.ids == tuple("abcdef")
    lives = [Life.READY, Life.DRAINING, Life.STARTING, Life.STARTING, Life.DRAINING, Life.STARTING]
    assert [Life(int(life)) for life in replicas.life] == lives
    assert replicas.batch.tolist() == [2, 4, 4, 3, 4, 4]
    assert (replicas.lane[0], replicas.quota_percent[0], replicas.since_s[2]) == (2, 40.0, 99.5)
    assert functions.names == ("app.f", "app.deleted")
    assert functions.in_flight.tolist() == [5, 0]
    # What holds the room of a deleted function is there, and nobody is to do anything about it.
    assert (bool(functions.by_hand[1]), functions.devices[1].tolist()) == (True, [False, False])


def test_device_time_is_that_since_the_last_look() -> None:
    fleet = MemoryFleet(record())
    fleet.seat("a")
    seen = observer(fleet)
    fleet.nodes.used_ns["a"] = 250_000_000
    assert seen.observe(1.0).replicas.used_s.tolist() == [0.25]
    fleet.nodes.used_ns["a"] = 400_000_000
    assert seen.observe(2.0).replicas.used_s.tolist() == [pytest.approx(0.15)]


def test_who_gives_way_is_seen_as_small_and_who_is_governed_as_he_is() -> None:
    fleet = MemoryFleet(record(), record("app.plain"))
    fleet.seat("a", quota=60.0, pinned=False)
    fleet.seat("b", "app.plain", quota=40.0, pinned=False)
    fleet.seat("c", "app.plain", quota=40.0, pinned=True, lane=1)
    assert observer(fleet).observe(1.0).replicas.quota_percent.tolist() == [60.0, YIELDING_QUOTA_PERCENT, 40.0]


def test_a_cold_start_is_guessed_until_there_was_one() -> None:
    fleet = MemoryFleet(record())
    assert observer(fleet).observe(1.0).functions.cold_start_s.tolist() == [2.0]
    fleet.known["app.f"].cold_start_s = 0.7
    assert observer(fleet).observe(1.0).functions.cold_start_s.tolist() == [0.7]
    fleet.nodes.devices = {"cpu0": fleet.nodes.devices["cpu0"]}
    fleet.known["app.f"].cold_start_s = 0.0
    assert observer(fleet).observe(1.0).functions.cold_start_s.tolist() == [GUESSED_COLD_START_S]


def test_the_overhead_is_what_the_lane_does_not_explain_of_calls_that_met_an_idle_replica() -> None:
    fleet = MemoryFleet(record())
    fleet.seat("a", quota=100.0, sm_percent=100.0)
    seen = observer(fleet)

    def overhead(*latencies: float, alone: bool = True) -> float:
        fleet.router.latencies["app.f"] = [Answered(ms, alone) for ms in latencies]
        return float(seen.observe(1.0).functions.overhead_ms[0])

    assert overhead(50.0, alone=False) == 0.0
    # A call holds the lane for 10 ms.
    assert overhead(13.0) == pytest.approx(3.0 * RISE)
    slow = overhead(13.0, 14.0, 90.0, 13.0, 15.0)
    assert 3.0 * RISE < slow < 3.0
    assert overhead(10.1) == pytest.approx(0.1)
    assert overhead(9.0) == 0.0


def test_counts_and_latencies_of_the_last_minute_are_of_the_same_calls() -> None:
    fleet = MemoryFleet(record())
    seen = observer(fleet)
    # What came before the first look counts nowhere.
    fleet.router.all["app.f"] = Counts(accepted=5, completed=5)
    fleet.router.latencies["app.f"] = [Answered(9999.0, False)] * 5
    seen.observe(9.0)
    assert seen.recent("app.f", 9.0) == Recent()
    fleet.router.all["app.f"] = Counts(accepted=107, completed=106, slo_met=99)
    fleet.router.latencies["app.f"] = [Answered(float(ms), False) for ms in range(101)]
    seen.observe(11.0)
    assert seen.recent("app.f", 20.0) == Recent(2.0, 102, 101, 2, 50.0, 95.0)
    seen.observe(72.0)
    assert seen.recent("app.f", 72.0) == Recent(61.0)
    assert seen.recent("nobody", 72.0) == Recent()


def test_people_are_told_the_quota_of_who_gives_way() -> None:
    fleet = MemoryFleet(record("app.plain"))
    fleet.seat("b", "app.plain", quota=40.0, pinned=False)
    seen = observer(fleet)
    assert seen.observe(1.0).replicas.quota_percent.tolist() == [YIELDING_QUOTA_PERCENT]
    assert seen.quota_percents() == {"b": 40.0}


def test_a_gateway_without_functions_can_be_seen() -> None:
    seen = observer(MemoryFleet()).observe(1.0)
    assert (len(seen.functions), len(seen.replicas), seen.functions.devices.shape) == (0, 0, (0, 2))


def test_a_device_that_is_not_ready_is_nobodys() -> None:
    fleet = MemoryFleet(record("app.any"))
    watch = observer(fleet)
    assert watch.observe(1.0).functions.devices.tolist() == [[True, True]]
    fleet.nodes.conditions["sim0"] = Condition(Health.RECOVERING, "a fault")
    assert watch.observe(2.0).functions.devices.tolist() == [[False, True]]


def test_lanes_that_were_cut_in_advance_are_rows_of_their_device() -> None:
    fleet = MemoryFleet(record())
    free = observer(fleet).observe(1.0)
    assert len(free.fixed_lanes) == 0
    _, second = fleet.nodes.devices
    info = fleet.nodes.devices[second]
    cut = (info.units[:1], info.units[1:3])
    fleet.nodes.devices[second] = attrs.evolve(info, fixed_lanes=cut)
    fixed = observer(fleet).observe(1.0).fixed_lanes
    assert (fixed.device.tolist(), fixed.lane.tolist(), fixed.units.tolist()) == ([1, 1], [0, 1], [1, len(cut[1])])


def test_types_and_nodes_of_devices_are_numbers_and_several_profiles_are_a_choice() -> None:
    fleet = MemoryFleet(record(), record("app.g"), record("app.h"))
    models = {"a/sim0": "v100", "a/sim1": "h100", "b/sim0": "v100"}
    fleet.nodes.devices = {
        name: DeviceInfo(
            name, "sim", tuple(range(80)), 2**34, model=model, node=name[0], price=2.0 if name[0] == "a" else 1.5
        )
        for name, model in models.items()
    }
    fleet.nodes.conditions = dict.fromkeys(models, Condition())
    fleet.nodes.conditions["b/sim0"] = Condition(Health.LOST, "gone")
    both = {"sim:h100": surface(1.0), "sim:v100": surface(2.0)}
    seen = observer(fleet, MemoryProfiles({"app.f": both, "app.g": {"sim:v100": surface()}}))
    found = seen.observe(1.0)
    assert (found.devices.node.tolist(), found.devices.type.tolist()) == ([0, 0, 1], [0, 1, 0])
    assert found.functions.device_type.tolist() == [1, 0, -1]
    assert found.functions.devices.tolist() == [[False, True, False], [True, False, False], [True, True, False]]
    assert found.functions.surfaces == (both["sim:h100"], seen._profiles.surfaces(record("app.g"))["sim:v100"], None)
    assert (seen.offers.names, seen.offers.prices, set(seen.offers.of)) == (
        ("sim:v100", "sim:h100"),
        (1.5, 2.0),
        {"app.f"},
    )
    offers = {offer.type: (offer.surface, offer.devices.tolist()) for offer in seen.offers.of["app.f"]}
    assert offers == {1: (both["sim:h100"], [False, True, False]), 0: (both["sim:v100"], [True, False, False])}


def test_the_overhead_is_told_by_the_type_that_a_replica_is_on() -> None:
    fleet = MemoryFleet(record())
    fleet.nodes.devices = {name: DeviceInfo(name, "sim", (0,), 2**34, model=name) for name in ("old", "new")}
    fleet.nodes.conditions = dict.fromkeys(fleet.nodes.devices, Condition())
    fleet.seat("a", quota=100.0, sm_percent=100.0, device_id="new")
    seen = observer(fleet, MemoryProfiles({"app.f": {"sim:old": surface(40.0), "sim:new": surface(10.0)}}))
    fleet.router.latencies["app.f"] = [Answered(13.0, True)]
    assert float(seen.observe(1.0).functions.overhead_ms[0]) == pytest.approx(3.0 * RISE)
