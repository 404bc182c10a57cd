from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core import settings as module
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.settings import DeviceSettings, LocalSettings, Settings

HERE = {"state_dir": Path("/var/state"), "runtime_dir": Path("/run/hasfaas")}


def settings(**options: Any) -> Settings:
    return Settings(**HERE | options)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_ms", 19.9),
        ("window_ms", 1001),
        ("quantum_ms", 0.5),
        ("quantum_ms", 101),
        ("max_queue", 0),
        ("linger_s", -1),
    ],
)
def test_local_settings_have_bounds(field: str, value: float) -> None:
    with pytest.raises(InvalidRequestError, match=f"{field}={value}"):
        LocalSettings(**{field: value})  # type: ignore[arg-type]


def test_a_quantum_fits_in_its_window() -> None:
    assert LocalSettings(window_ms=20, quantum_ms=20).quantum_ms == 20
    with pytest.raises(InvalidRequestError, match=r"local.quantum_ms=30: give milliseconds from 1 to local.window_ms"):
        LocalSettings(window_ms=25, quantum_ms=30)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "GPU 1"},
        {"count": 2},
        {"kind": "mine", "cores": 2},
        {"kind": "cpu", "options": {}},
        {"kind": "sim", "lanes": [50, "a"]},
        {"kind": "cuda", "partitions": "soft"},
        {"kind": "cuda", "gpu": True},
        {"kind": "cuda", "protocol": 5},
        {"kind": "sim", "lanes": [50, 50, 25]},
        {"kind": "sim", "lanes": [10] * 9},
        {"lanes": [50, 50]},
        {"id": "a b"},
        {"id": "../x"},
        {"id": "auto"},
        {"id": "sim"},
        {"count": 0},
        {"memory": "lots"},
        {"cores": 0},
        {"kind": "sim", "cores": 2},
        {"kind": "cpu", "sms": 40},
        {"kind": "cpu", "cold_start_s": 1.0},
        {"kind": "cpu", "profile": {"a": 1}},
        {"kind": "sim", "cold_start_s": -1.0},
        {"kind": "sim", "profile": 3},
        {"kind": "sim", "profile": {"when": HERE}},
    ],
)
def test_a_device_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        DeviceSettings(**options)


def test_memory_of_a_device_in_bytes() -> None:
    assert DeviceSettings(kind="sim", memory="16GiB").memory_bytes == 16 * 2**30
    assert DeviceSettings().memory_bytes is None


@pytest.mark.parametrize(
    "options", [{"backend": "a b"}, {"start_timeout_s": 0}, {"log_level": "loud"}, {"devices": ()}]
)
def test_settings_have_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        settings(**options)


def test_an_id_stands_for_one_device() -> None:
    with pytest.raises(InvalidRequestError, match=r"'a'.*two devices have this id"):
        settings(devices=(DeviceSettings(id="a"), DeviceSettings(kind="sim", id="a")))


def test_a_socket_path_that_the_kernel_would_cut_is_refused() -> None:
    longest = Path("/" + "x" * (module.SOCKET_PATH_BYTES - 1 - len("//gateway.sock")))
    kept = settings(runtime_dir=longest)
    assert len(str(kept.socket_path("gateway.sock"))) == module.SOCKET_PATH_BYTES - 1
    with pytest.raises(InvalidRequestError, match=r"socket replica-000001.sock .*\(HASFAAS_RUNTIME_DIR\)"):
        kept.socket_path("replica-000001.sock")
    with pytest.raises(InvalidRequestError, match="runtime_dir="):
        settings(runtime_dir=longest / "y")


def test_the_length_of_a_socket_path_is_counted_in_bytes() -> None:
    with pytest.raises(InvalidRequestError, match="bytes"):
        settings(runtime_dir=Path("/" + "é" * 50))


@pytest.mark.parametrize(
    "options",
    [
        {"slo": 1},
        {"slo_ms": 0},
        {"slo_ms": "50"},
        {"slo_percentile": 100},
        {"memory": "1MiB"},
        {"device": ""},
        {"replicas": 3},
        {"replicas": [3, 1]},
        {"replicas": [True, 1]},
        {"timeout_s": 0},
        {"idempotent": "yes"},
        {"batch": 8},
        {"batch": {"max_size": 0}},
        {"batch": {"max_wait_ms": -1}},
        {"batch": {"size": 1}},
        {"env": "A=1"},
        {"env": {"A": 1}},
        {"env": {"LD_PRELOAD": "x"}},
        {"secrets": "TOKEN"},
        {"secrets": ["a b"]},
    ],
)
def test_an_override_that_the_decorator_would_refuse_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=r'functions."app.fn"') as caught:
        settings(functions={"app.fn": options})
    assert caught.value.reason in ("BAD_OPTION", "UNKNOWN_OPTION")


FUNCTIONS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.fixed_dictionaries(
        {"slo_ms": st.floats(0.1, 1e6)},
        optional={
            "memory": st.sampled_from(["2GiB", "512MiB"]),
            "replicas": st.just((0, 3)),
            "idempotent": st.booleans(),
            "env": st.just({"MODE": "7", "B": ""}),
            "secrets": st.just(("A", "B")),
            "batch": st.fixed_dictionaries({}, optional={"max_size": st.integers(1, 64)}).filter(bool),
        },
    ),
    max_size=3,
)
DEVICES = st.one_of(
    st.builds(DeviceSettings),
    st.builds(DeviceSettings, kind=st.just("cpu"), count=st.integers(1, 8), cores=st.none() | st.integers(1, 8)),
    st.builds(
        DeviceSettings,
        kind=st.just("cuda"),
        gpu=st.none() | st.just("0") | st.just(0),
        partitions=st.none() | st.sampled_from(module.PARTITIONS),
        lanes=st.none() | st.just((50.0, 25.0)),
    ),
    st.builds(DeviceSettings, kind=st.just("mine"), options=st.none() | st.just({"a": [1, "b"]})),
    st.builds(
        DeviceSettings,
        kind=st.just("sim"),
        memory=st.none() | st.just("16GiB"),
        sms=st.integers(1, 132),
        cold_start_s=st.floats(0, 10),
        profile=st.none() | st.just(Path("/p.json")) | st.just({"points": [[1, 2.5]], "name": "x"}),
    ),
)


@given(FUNCTIONS, st.lists(DEVICES, min_size=1, max_size=3), st.floats(20, 1000))
def test_json_gives_an_equal_value_back(
    functions: dict[str, dict[str, object]], devices: list[DeviceSettings], window_ms: float
) -> None:
    before = settings(functions=functions, devices=tuple(devices), local=LocalSettings(window_ms=window_ms))
    assert Settings.from_json(before.to_json()) == before


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"state_dir": "/a"}', '{"state_dir": "/a", "runtime_dir": "/b", "x": 1}']
)
def test_json_that_is_no_settings_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        Settings.from_json(text)


def test_json_holds_no_key_that_the_schema_lacks() -> None:
    assert set(json.loads(settings().to_json())) == set(module.SCHEMA)


@pytest.mark.parametrize("option", [{"env": {"A": "hf_value\0"}}, {"secrets": "hf_value"}, {"secrets": ["hf_value!"]}])
def test_what_may_be_a_secret_is_not_repeated(option: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        settings(functions={"app.fn": option})
    assert "hf_value" not in str(caught.value)
    assert str(caught.value).startswith('functions."app.fn".')


def test_secrets_lie_in_the_state_dir_unless_told_otherwise() -> None:
    assert settings().secrets_dir == HERE["state_dir"] / "secrets"
    assert settings(secrets_dir=Path("/etc/own")).secrets_dir == Path("/etc/own")


def test_leaves_cover_every_field() -> None:
    found = module.leaves_of(settings(functions={"f": {"slo_ms": 1.0}}))
    assert {path[0] for path in found} == {field.name for field in attrs.fields(Settings)}
    assert module.build(found) == settings(functions={"f": {"slo_ms": 1.0}})
