from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from hasfaas.core.errors import BackendError, InvalidRequestError
from hasfaas.core.settings import DeviceSettings
from hasfaas.devices import base
from hasfaas.devices.base import DeviceInfo, DeviceModule, module_of
from hasfaas.devices.sim import MEMORY_BYTES
from hasfaas.node import inventory
from hasfaas.node.inventory import devices_of

CORES = sorted(os.sched_getaffinity(0))
TABLE = {"batches": [1, 2], "sm_percents": [50, 100], "latency_ms": [[4, 2], [6, 3]]}


def sim(**options: Any) -> DeviceSettings:
    return DeviceSettings(kind="sim", **options)


def names(*settings: DeviceSettings) -> list[str]:
    return [device.device_id for device in devices_of(settings)]


def one(setting: DeviceSettings) -> DeviceInfo:
    (device,) = devices_of([setting])
    return device


# -- names -------------------------------------------------------------------------------------------------------------


def test_devices_are_numbered_by_kind() -> None:
    assert names(sim(), DeviceSettings(kind="cpu"), sim(count=2)) == ["sim0", "cpu0", "sim1", "sim2"]


def test_an_id_is_the_name_and_the_base_of_several() -> None:
    assert names(sim(id="big"), sim(id="small", count=2)) == ["big", "small0", "small1"]


@pytest.mark.parametrize(
    "settings",
    [
        (sim(id="a"), sim(id="a")),
        (sim(id="a0"), sim(id="a", count=2)),
        (sim(id="sim1"), sim()),
    ],
)
def test_two_of_one_name_are_refused_by_name(settings: tuple[DeviceSettings, ...]) -> None:
    with pytest.raises(InvalidRequestError, match=r"two are named '(a|a0|sim1)'; give each its own id") as caught:
        devices_of(settings)
    assert caught.value.reason == "BAD_OPTION"


CPU = DeviceSettings(kind="cpu")


@pytest.mark.parametrize("settings", [(attrs.evolve(CPU, count=2),), (CPU, attrs.evolve(CPU, id="other"))])
def test_the_cores_belong_to_one_device(settings: tuple[DeviceSettings, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="same cores"):
        devices_of(settings)


def test_no_settings_no_devices() -> None:
    assert devices_of([]) == ()


# -- what they are -----------------------------------------------------------------------------------------------------


def test_a_cpu_device_has_this_processs_cores_and_the_machines_memory() -> None:
    made = one(DeviceSettings(kind="cpu"))
    assert (made.kind, made.units) == ("cpu", tuple(CORES))
    assert made.memory_bytes > 2**28


def test_a_cpu_device_can_be_smaller() -> None:
    made = one(DeviceSettings(kind="cpu", cores=1, memory="1GiB", id="little"))
    assert (made.device_id, made.units, made.memory_bytes) == ("little", (CORES[0],), 2**30)


def test_more_cores_than_there_are_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=f"cores={len(CORES) + 1}"):
        devices_of([DeviceSettings(kind="cpu", cores=len(CORES) + 1)])


def test_a_sim_device_is_what_was_written() -> None:
    made = one(sim(sms=12, memory="8GiB", cold_start_s=0.5))
    assert (made.kind, len(made.units), made.memory_bytes, made.cold_start_s) == ("sim", 12, 8 * 2**30, 0.5)
    assert one(sim()).memory_bytes == MEMORY_BYTES


def test_each_sim_device_has_a_lanes_file_of_its_own() -> None:
    files = {json.dumps(device.options, default=str, sort_keys=True) for device in devices_of([sim(count=3)])}
    assert len(files) == 3
    assert all(str(os.getpid()) in text for text in files)


# -- profiles ----------------------------------------------------------------------------------------------------------


def options(**settings: Any) -> str:
    return json.dumps(one(sim(**settings)).options["profiles"])


def test_a_profile_is_a_table_or_a_file_of_one(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(TABLE))
    assert options(profile=TABLE) == options(profile=path)
    assert options(profile=TABLE) != options()


def test_a_profile_can_hold_a_table_a_function(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"app.f": TABLE, "app.g": TABLE}))
    assert "app.f" in options(profile=path)
    assert "app.g" in options(profile=path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("no json", "cannot be read"),
        ("[1, 2]", "holds a list, not a table"),
        ('{"batches": [1]}', "keys"),
        ('{"app.f": {"batches": [1]}}', "keys"),
        ('{"app.f": 3}', "app.f"),
    ],
)
def test_a_profile_that_is_none_is_a_typed_error_that_names_it(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidRequestError, match=words) as caught:
        devices_of([sim(profile=path)])
    assert caught.value.reason == "BAD_PROFILE"


# -- which kinds there are ---------------------------------------------------------------------------------------------


def test_a_kind_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(InvalidRequestError, match=r"device kind 'gpu' is unknown; known kinds: auto, cpu, .*sim"):
        devices_of([DeviceSettings(kind="gpu")])


def test_a_file_of_the_folder_that_is_no_device_is_no_kind() -> None:
    with pytest.raises(InvalidRequestError, match="'base' is unknown"):
        devices_of([DeviceSettings(kind="base")])


def test_a_machine_without_a_gpu_serves_from_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_cuda(kind: str) -> DeviceModule:
        if kind == "cuda":
            raise BackendError("no NVIDIA driver", reason="NO_DRIVER")
        return module_of(kind)

    monkeypatch.setattr(inventory, "module_of", without_cuda)
    (device,) = devices_of([DeviceSettings()])
    assert (device.device_id, device.kind) == ("cpu0", "cpu")


class Installed:
    """An installed package that offers a kind of device."""

    name, value = "theirs", "their_package.device"

    def __init__(self, load: Callable[[], object]) -> None:
        self.load = load


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (lambda: SimpleNamespace(inventory=None, wall=None, enter=None), "their_package.device has no keeper"),
        (lambda: import_module("no_such_module_of_theirs"), "does not load: ModuleNotFoundError"),
    ],
)
def test_a_package_whose_device_cannot_be_used_is_named(
    load: Callable[[], object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "entry_points", lambda **_: [Installed(load)])
    with pytest.raises(InvalidRequestError, match=words):
        devices_of([DeviceSettings(kind="theirs")])


def test_a_package_that_offers_no_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module_of.cache_clear()
    nothing = SimpleNamespace(inventory=lambda _: (), keeper=None, wall=None, enter=None)
    monkeypatch.setattr(base, "entry_points", lambda **_: [Installed(lambda: nothing)])
    with pytest.raises(InvalidRequestError, match="'theirs' offers no device"):
        devices_of([DeviceSettings(kind="theirs")])
    module_of.cache_clear()


# -- types, prices and nodes -------------------------------------------------------------------------------------------


def test_a_model_and_a_price_are_those_of_the_table() -> None:
    found = devices_of([sim(model="v100", price=2.5, count=2), sim(model="v100", lanes=(50.0, 25.0)), sim()])
    assert [device.price for device in found] == [2.5, 2.5, 1.0, 1.0]
    types = ["sim:v100", "sim:v100", "sim:v100, lanes 50,25", "sim"]
    assert [base.device_type(device) for device in found] == types


def test_the_processor_and_its_cores_are_a_cpus_model() -> None:
    model = one(DeviceSettings(kind="cpu", cores=1)).model
    assert model == "" or model.endswith(", 1 cores")


def test_a_node_gets_the_tables_for_it_and_for_all_and_where_there_are_no_nodes_such_a_table_is_refused() -> None:
    tables = [sim(id="any"), sim(id="mine", node="gpu1"), sim(id="other", node="gpu2")]
    assert [device.device_id for device in devices_of(tables, node="gpu1")] == ["any", "mine"]
    assert [device.device_id for device in devices_of(tables, node="gpu3")] == ["any"]
    with pytest.raises(InvalidRequestError, match=r"node='gpu1'.*take it out, or say backend") as caught:
        devices_of(tables)
    assert caught.value.reason == "BAD_OPTION"
