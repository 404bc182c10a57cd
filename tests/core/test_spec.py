from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.spec import MOST_REPLICAS, Batch, FunctionSpec, Kind

MIB = 2**20


@pytest.mark.parametrize("kind", Kind)
def test_the_kinds_that_stream_are_the_generators(kind: Kind) -> None:
    assert kind.streams == ("generator" in kind.value)
    assert Kind(kind.value) is kind


def test_one_option_is_enough() -> None:
    spec = FunctionSpec(slo_ms=50)
    assert (spec.slo_percentile, spec.batch, spec.device, spec.idempotent) == (99.0, None, "auto", False)
    assert (spec.min_replicas, spec.max_replicas) == (0, 8)
    assert (spec.memory_bytes, spec.timeout_s) == (2 * 2**30, 60.0)


def test_a_spec_is_a_value() -> None:
    assert FunctionSpec(slo_ms=50, batch=Batch()) == FunctionSpec(slo_ms=50.0, batch=Batch(8, 0.0))
    assert hash(FunctionSpec(slo_ms=50)) == hash(FunctionSpec(slo_ms=50))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        FunctionSpec(slo_ms=50).slo_ms = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("slo_ms", 0, "slo_ms=0"),
        ("slo_ms", -1.0, "slo_ms=-1.0"),
        ("slo_ms", math.nan, "slo_ms=nan"),
        ("slo_ms", math.inf, "slo_ms=inf"),
        ("slo_ms", True, "slo_ms=True"),
        ("slo_ms", "50", "slo_ms='50'"),
        ("slo_ms", None, "slo_ms=None"),
        ("slo_percentile", 0, "slo_percentile=0"),
        ("slo_percentile", 100, "slo_percentile=100"),
        ("slo_percentile", "99", "slo_percentile='99'"),
        ("slo_percentile", math.nan, "slo_percentile=nan"),
        ("batch", 8, "batch=8"),
        ("memory_bytes", 16 * MIB - 1, "memory=16777215"),
        ("memory_bytes", 1e9, "memory=1000000000.0"),
        ("memory_bytes", 2**63, "memory="),
        ("min_replicas", 9, "replicas=(9, 8)"),
        ("min_replicas", -1, "replicas=(-1, 8)"),
        ("min_replicas", 0.5, "replicas=(0.5, 8)"),
        ("max_replicas", 0, "replicas=(0, 0)"),
        ("max_replicas", "8", "replicas=(0, '8')"),
        ("max_replicas", MOST_REPLICAS + 1, "replicas=(0, 10001)"),
        ("idempotent", "no", "idempotent='no'"),
        ("timeout_s", 0, "timeout_s=0"),
        ("timeout_s", 86_401, "timeout_s=86401"),
        ("timeout_s", None, "timeout_s=None"),
        ("timeout_s", math.nan, "timeout_s=nan"),
        ("device", "", "device=''"),
        ("device", 0, "device=0"),
    ],
)
def test_a_bad_option_is_named_with_its_value(option: str, value: object, named: str) -> None:
    options: dict[str, Any] = {"slo_ms": 50} | {option: value}
    with pytest.raises(InvalidRequestError) as caught:
        FunctionSpec(**options)
    assert named in str(caught.value)
    assert "give" in str(caught.value)
    assert caught.value.reason == "BAD_OPTION"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_size", 0),
        ("max_size", 4097),
        ("max_size", 2.0),
        ("max_size", True),
        ("max_wait_ms", -0.1),
        ("max_wait_ms", 60_001),
        ("max_wait_ms", "5"),
        ("max_wait_ms", math.nan),
    ],
)
def test_a_bad_batch_is_named(option: str, value: object) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(InvalidRequestError, match=rf"batch\.{option}=") as caught:
        Batch(**options)
    assert caught.value.reason == "BAD_OPTION"


@given(
    st.floats(min_value=1e-6, max_value=1e9),
    st.floats(0, 100, exclude_min=True, exclude_max=True),
    st.integers(0, MOST_REPLICAS),
    st.floats(0, 86_400, exclude_min=True),
)
def test_what_is_in_range_is_taken_as_it_is(slo_ms: float, percentile: float, replicas: int, timeout_s: float) -> None:
    spec = FunctionSpec(
        slo_ms=slo_ms,
        slo_percentile=percentile,
        min_replicas=replicas,
        max_replicas=max(1, replicas),
        timeout_s=timeout_s,
    )
    assert (spec.slo_ms, spec.slo_percentile, spec.timeout_s) == (slo_ms, percentile, timeout_s)
