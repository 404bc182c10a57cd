"""Wire messages to and from values: the one place that knows both."""

from __future__ import annotations

from hasfaas.core.allocation import Usage
from hasfaas.core.spec import Batch, FunctionSpec
from hasfaas.wire import payload as payloads
from hasfaas.wire.v1 import functions_pb2, payload_pb2


def spec_to_proto(spec: FunctionSpec) -> functions_pb2.FunctionSpec:
    """A function's options as a message."""
    message = functions_pb2.FunctionSpec(
        slo_ms=spec.slo_ms,
        slo_percentile=spec.slo_percentile,
        memory_bytes=spec.memory_bytes,
        device=spec.device,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        idempotent=spec.idempotent,
        share_init=spec.share_init,
        timeout_s=spec.timeout_s,
        env=spec.env,
        secrets=spec.secrets,
    )
    if spec.batch is not None:
        message.batch.max_size = spec.batch.max_size
        message.batch.max_wait_ms = spec.batch.max_wait_ms
    return message


def spec_from_proto(message: functions_pb2.FunctionSpec) -> FunctionSpec:
    """The options in a message. Raises InvalidRequestError as FunctionSpec itself does."""
    return FunctionSpec(
        slo_ms=message.slo_ms,
        slo_percentile=message.slo_percentile,
        batch=Batch(message.batch.max_size, message.batch.max_wait_ms) if message.HasField("batch") else None,
        memory_bytes=message.memory_bytes,
        device=message.device,
        min_replicas=message.min_replicas,
        max_replicas=message.max_replicas,
        idempotent=message.idempotent,
        share_init=message.share_init,
        timeout_s=message.timeout_s,
        env=message.env,
        secrets=tuple(message.secrets),
    )


def usage_to_proto(usage: Usage) -> functions_pb2.Usage:
    """A replica's usage as a message."""
    return functions_pb2.Usage(
        quota_ppm=usage.quota_ppm,
        granted_ns=max(0, usage.granted_ns),
        used_ns=max(0, usage.used_ns),
        throttled_ns=max(0, usage.throttled_ns),
        wait_ns=max(0, usage.wait_ns),
        overrun_ns=max(0, usage.overrun_ns),
        lent_ns=max(0, usage.lent_ns),
        grants=max(0, usage.grants),
    )


def usage_from_proto(message: functions_pb2.Usage) -> Usage:
    """The usage in a message."""
    return Usage(
        quota_ppm=message.quota_ppm,
        granted_ns=message.granted_ns,
        used_ns=message.used_ns,
        throttled_ns=message.throttled_ns,
        wait_ns=message.wait_ns,
        overrun_ns=message.overrun_ns,
        lent_ns=message.lent_ns,
        grants=message.grants,
    )


def payload_to_proto(payload: payloads.Payload) -> payload_pb2.Payload:
    """A whole payload in one message; the copy that protobuf needs is made here."""
    return payload_pb2.Payload(
        codec=int(payload.codec),  # type: ignore[arg-type]
        head=payload.head,
        sizes=payload.lengths,
        data=b"".join(payloads.segments(payload)),
    )


def payload_from_proto(message: payload_pb2.Payload) -> payloads.Payload:
    """The payload of a message, as views of its bytes. Raises SerializationError when sizes and bytes disagree."""
    return payloads.from_bytes(message.codec, message.head, tuple(message.sizes), memoryview(message.data))
