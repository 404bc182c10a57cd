from __future__ import annotations

import re
from typing import Any

import pytest

from hasfaas.core.environment import MOST_ENV_BYTES, MOST_VARIABLES
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.spec import FunctionSpec


def refusal(**options: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        FunctionSpec(slo_ms=50, **options)
    assert caught.value.reason == "BAD_OPTION"
    return str(caught.value)


def test_they_are_kept_as_values_of_their_own() -> None:
    given = {"MODE": "fast", "_x9": ""}
    spec = FunctionSpec(slo_ms=50, env=given, secrets=["HF_TOKEN", "API_KEY"])
    given["MODE"] = "slow"
    assert spec.env == {"MODE": "fast", "_x9": ""}
    assert spec == FunctionSpec(slo_ms=50, env={"_x9": "", "MODE": "fast"}, secrets=("API_KEY", "HF_TOKEN"))
    assert hash(spec) == hash(FunctionSpec(slo_ms=50, env={}, secrets=("API_KEY", "HF_TOKEN")))
    assert (FunctionSpec(slo_ms=50).env, FunctionSpec(slo_ms=50).secrets) == ({}, ())


@pytest.mark.parametrize(
    "name",
    [
        "CUDA_VISIBLE_DEVICES",
        "CUDA_MPS_PIPE_DIRECTORY",
        "CUDA_MPS_SM_PARTITION",
        "HASFAAS_STATE_DIR",
        "PYTHONPATH",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "OMP_NUM_THREADS",
    ],
)
def test_what_hasfaas_or_a_device_sets_is_refused(name: str) -> None:
    assert f"env: {name} is set by hasfaas" in refusal(env={name: "1"})
    assert f"secrets: {name} is set by hasfaas" in refusal(secrets=(name,))


@pytest.mark.parametrize("name", ["", "9A", "A B", "A=B", "A-B", "A\0", "../A", "Ä", "A" * 129, 7])
def test_what_is_no_name_of_a_variable_is_refused(name: Any) -> None:
    assert refusal(env={name: "secret"}).startswith("env: ")
    assert "give" in refusal(env={name: "secret"})
    assert refusal(secrets=(name,)).startswith("secrets: ")


@pytest.mark.parametrize("value", [1, None, b"x", "a\0b", "\ud800"])
def test_a_value_must_be_text(value: Any) -> None:
    assert refusal(env={"MODE": value}).startswith("env['MODE']: give text")


@pytest.mark.parametrize(
    "options",
    [
        {"env": [("A", "hf_value")]},
        {"env": "A=hf_value"},
        {"env": {"A": "hf_value\0"}},
        {"env": {"A": "hf_value" * MOST_ENV_BYTES}},
        {"secrets": {"A": "hf_value"}},
        {"secrets": "hf_value"},
        {"secrets": ["hf_value!"]},
        {"secrets": [("A", "hf_value")]},
    ],
)
def test_a_value_in_the_wrong_place_is_not_repeated(options: dict[str, Any]) -> None:
    assert "hf_value" not in refusal(**options)


def test_there_are_bounds() -> None:
    many = {f"V{number}": "" for number in range(MOST_VARIABLES + 1)}
    assert f"{MOST_VARIABLES + 1} variables" in refusal(env=many)
    assert f"{MOST_VARIABLES + 1} variables" in refusal(secrets=tuple(many))
    FunctionSpec(slo_ms=50, env={"A": "é" * (MOST_ENV_BYTES // 2 - 1)})
    assert f"at most {MOST_ENV_BYTES}" in refusal(env={"A": "é" * (MOST_ENV_BYTES // 2)})


def test_a_name_stands_in_one_place_once() -> None:
    assert "A is in env too" in refusal(env={"A": "1"}, secrets=("A",))
    assert re.search("twice", refusal(secrets=("A", "A")))
