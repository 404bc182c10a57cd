from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.allocation import Usage
from hasfaas.core.errors import InvalidRequestError, SerializationError
from hasfaas.core.spec import Batch, FunctionSpec
from hasfaas.wire import convert, payload
from hasfaas.wire.v1 import functions_pb2, payload_pb2


def _can_be_set(value: str) -> bool:
    return "\0" not in value and value.isprintable()


SPECS = st.builds(
    FunctionSpec,
    slo_ms=st.floats(0.001, 1e6),
    slo_percentile=st.floats(1, 99.99),
    batch=st.none() | st.builds(Batch, st.integers(1, 4096), st.floats(0, 60_000)),
    memory_bytes=st.integers(16 * 2**20, 2**63 - 1),
    device=st.text(st.characters(codec="utf-8"), min_size=1, max_size=10),
    min_replicas=st.integers(0, 5),
    max_replicas=st.integers(5, 10_000),
    idempotent=st.booleans(),
    timeout_s=st.floats(0.001, 86_400),
    env=st.dictionaries(st.from_regex(r"[A-C][A-Z0-9_]{0,9}", fullmatch=True), st.text(max_size=9).filter(_can_be_set)),
    secrets=st.lists(st.from_regex(r"S_[A-Z0-9_]{0,9}", fullmatch=True), unique=True, max_size=3).map(tuple),
)
USAGES = st.builds(Usage, st.integers(0, 10**6), *[st.integers(0, 2**63)] * 7)


@given(SPECS)
def test_options_come_back_as_they_went(spec: FunctionSpec) -> None:
    wire = convert.spec_to_proto(spec).SerializeToString()
    assert convert.spec_from_proto(functions_pb2.FunctionSpec.FromString(wire)) == spec


@given(SPECS)
def test_equal_options_are_signed_alike(spec: FunctionSpec) -> None:
    """In whatever order their variables were given: a gateway signs over what has arrived."""
    turned = attrs.evolve(spec, env=dict(reversed(list(spec.env.items()))))
    sent = convert.spec_to_proto(turned)
    arrived = functions_pb2.FunctionSpec.FromString(sent.SerializeToString())
    signed = {one.SerializeToString(deterministic=True) for one in (convert.spec_to_proto(spec), sent, arrived)}
    assert len(signed) == 1


def test_every_option_has_its_field() -> None:
    """A new option that nobody put on the wire would be dropped in silence."""
    fields = {field.name for field in functions_pb2.FunctionSpec.DESCRIPTOR.fields}
    assert {field.name for field in attrs.fields(FunctionSpec)} == fields
    assert {field.name for field in attrs.fields(Batch)} == {
        field.name for field in functions_pb2.Batch.DESCRIPTOR.fields
    }
    assert {field.name for field in attrs.fields(Usage)} == {
        field.name for field in functions_pb2.Usage.DESCRIPTOR.fields
    }


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (functions_pb2.FunctionSpec(), "slo_ms"),
        (functions_pb2.FunctionSpec(slo_ms=50), "slo_percentile"),
        (functions_pb2.FunctionSpec(slo_ms=float("nan")), "slo_ms"),
        (functions_pb2.FunctionSpec(slo_ms=50, batch=functions_pb2.Batch()), r"batch\.max_size"),
    ],
)
def test_options_of_somebody_elses_client_are_checked_too(message: functions_pb2.FunctionSpec, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        convert.spec_from_proto(message)


@given(USAGES)
def test_usage_comes_back_as_it_went(usage: Usage) -> None:
    wire = convert.usage_to_proto(usage).SerializeToString()
    assert convert.usage_from_proto(functions_pb2.Usage.FromString(wire)) == usage


def test_a_counter_below_zero_is_shown_as_zero() -> None:
    """A table that is read while a debit is under way may be a few nanoseconds short; the field is unsigned."""
    shown = convert.usage_to_proto(Usage(used_ns=-5, wait_ns=7))
    assert (shown.used_ns, shown.wait_ns) == (0, 7)


VALUES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.lists(st.integers(0, 300), max_size=3))
def test_a_payload_in_one_message(value: object, lengths: list[int]) -> None:
    arrays = [np.arange(length, dtype=np.uint8) for length in lengths]
    made = payload.encode([value, *arrays])
    wire = convert.payload_to_proto(made).SerializeToString()
    back = convert.payload_from_proto(payload_pb2.Payload.FromString(wire))
    assert back.codec is made.codec
    decoded = payload.decode(back, allow_pickle=False)
    assert isinstance(decoded, list)
    assert decoded[0] == value
    assert all(np.array_equal(got, sent) for got, sent in zip(decoded[1:], arrays, strict=True))


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (payload_pb2.Payload(head=b"\xc0"), "codec 0 is unknown"),
        (payload_pb2.Payload(codec=payload_pb2.CODEC_PLAIN, sizes=[4], data=b"abc"), "need a blob of 4 bytes, not 3"),
        (payload_pb2.Payload(codec=payload_pb2.CODEC_PLAIN, data=b"abc"), "need a blob of 0 bytes, not 3"),
        (payload_pb2.Payload(codec=payload_pb2.CODEC_PLAIN, sizes=[2**63], data=b""), "need a blob of"),
    ],
)
def test_a_payload_whose_parts_disagree_is_refused(message: payload_pb2.Payload, why: str) -> None:
    with pytest.raises(SerializationError, match=why):
        convert.payload_from_proto(message)
