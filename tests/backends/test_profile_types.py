"""A profile holds for all devices of its type; of a device that nobody knows the type of, for that kind."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from hasfaas.backends.profiles import Profiles
from hasfaas.core.errors import NotFoundError
from hasfaas.devices.base import DeviceInfo
from hasfaas.rapp.probe import Point, Probe
from hasfaas.rapp.profile import Profile, ProfiledDevice
from tests.fakes.fleet_of_memory import MemoryFleet, MemoryProcess, MemoryRequest, record


def device(name: str, model: str = "", kind: str = "sim") -> DeviceInfo:
    return DeviceInfo(name, kind, tuple(range(80)), 2**34, model=model)


def text(name: str, hold_ms: float, device_id: str) -> str:
    probes = [Probe(Point(1, sm, 100.0), hold_ms * 100.0 / sm, hold_ms * 100.0 / sm, 9, 0.01) for sm in (50.0, 100.0)]
    made = Profile.fitted(name, "v1", ProfiledDevice("sim", device_id), probes, (1,), (50.0, 100.0))
    return json.dumps(made.to_dict())


class MemoryStore:
    """Profiles of one version, by what they are kept by."""

    def __init__(self, **kept: str) -> None:
        self.kept = {place.replace("__", ":"): text for place, text in kept.items()}

    def profiles(self, name: str, version: str) -> dict[str, str]:
        return dict(self.kept)

    def put_profile(self, name: str, version: str, place: str, profile: str) -> None:
        self.kept[place] = profile

    def get(self, name: str) -> Any:
        return record(name)


def made(store: MemoryStore, *devices: DeviceInfo) -> Profiles:
    profiles, fleet = Profiles(store), MemoryFleet(record())  # type: ignore[arg-type]
    fleet.nodes.devices = {info.device_id: info for info in devices}
    profiles.attach(fleet)  # type: ignore[arg-type]
    return profiles


def test_one_measured_device_tells_for_all_of_its_type_and_for_no_other() -> None:
    store = MemoryStore(sim__v100=text("app.f", 10.0, "a/sim0"))
    profiles = made(store, device("b/sim0", "v100"), device("c/sim0", "v100"), device("c/sim1", "h100"))
    surfaces = profiles.surfaces(record())
    assert list(surfaces) == ["sim:v100"]
    assert surfaces["sim:v100"].hold(1, 100.0) == pytest.approx(10.0, rel=0.1)
    assert profiles.surfaces(record())["sim:v100"] is surfaces["sim:v100"]
    assert profiles.state(record()).state == "few-shot"
    for name in ("", "sim", "v100", "sim:v100", "b/sim0", "c/sim0"):
        assert json.loads(profiles.get(record(), name))["device"]["device_id"] == "a/sim0"
    with pytest.raises(NotFoundError) as caught:
        profiles.get(record(), "h100")
    assert caught.value.reason == "UNPROFILED"
    with pytest.raises(NotFoundError) as caught:
        profiles.get(record(), "p100")
    assert caught.value.reason == "DEVICE_NOT_FOUND"


def test_several_types_each_have_their_own() -> None:
    store = MemoryStore(sim__v100=text("app.f", 10.0, "a"), sim__h100=text("app.f", 2.0, "b"))
    surfaces = made(store, device("a", "v100"), device("b", "h100")).surfaces(record())
    assert [round(surfaces[name].hold(1, 100.0)) for name in ("sim:v100", "sim:h100")] == [10, 2]
    assert made(store, device("b", "h100")).surfaces(record()).keys() == {"sim:h100"}


def test_what_was_kept_by_device_alone_is_still_found_and_then_kept_by_type() -> None:
    store = MemoryStore(sim0=text("app.f", 10.0, "sim0"))
    assert made(store, device("sim0"), device("sim1")).surfaces(record()).keys() == {"sim"}
    profiles = made(store, device("sim0", "v100"))
    assert profiles.surfaces(record()).keys() == {"sim:v100"}
    profiles._keep(record(), device("sim0", "v100"), Profile.from_dict(json.loads(text("app.f", 5.0, "sim0"))))
    assert set(store.kept) == {"sim0", "sim:v100"}
    assert made(store, device("sim0", "v100")).surfaces(record())["sim:v100"].hold(1, 100.0) == pytest.approx(
        5, rel=0.1
    )


async def test_batches_served_on_any_device_of_a_type_correct_its_profile() -> None:
    store = MemoryStore(sim__v100=text("app.f", 10.0, "a"))
    profiles = made(store, device("a", "v100"), device("b", "v100"))
    for name, hold_ns in (("a", 12_000_000), ("b", 14_000_000)):
        before_ms = profiles.surfaces(record())["sim:v100"].hold(1, 100.0)
        process = MemoryProcess("r", MemoryRequest("app.f"), device_id=name, sm_percent=100.0)
        profiles.observe(record(), process, [(1, hold_ns)] * 100)  # type: ignore[arg-type]
        await profiles.fold()
        assert profiles.surfaces(record())["sim:v100"].hold(1, 100.0) > 1.02 * before_ms


def test_a_function_is_measured_where_it_has_memory() -> None:
    small = attrs.evolve(device("small"), memory_bytes=2**20)
    for devices in ((small, device("large")), (device("large"), small)):
        profiles = made(MemoryStore(), *devices)
        assert profiles._device(record(), "").device_id == "large"
        assert profiles._device(record(), "small").device_id == "small", "whoever names one means it"
