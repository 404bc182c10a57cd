from google.rpc import status_pb2 as _status_pb2
from hasfaas.wire.v1 import payload_pb2 as _payload_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Batch(_message.Message):
    __slots__ = ("max_size", "max_wait_ms")
    MAX_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    max_size: int
    max_wait_ms: float
    def __init__(self, max_size: _Optional[int] = ..., max_wait_ms: _Optional[float] = ...) -> None: ...

class FunctionSpec(_message.Message):
    __slots__ = ("slo_ms", "slo_percentile", "batch", "memory_bytes", "device", "min_replicas", "max_replicas", "idempotent", "share_init", "timeout_s", "env", "secrets")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SLO_MS_FIELD_NUMBER: _ClassVar[int]
    SLO_PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MIN_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENT_FIELD_NUMBER: _ClassVar[int]
    SHARE_INIT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    slo_ms: float
    slo_percentile: float
    batch: Batch
    memory_bytes: int
    device: str
    min_replicas: int
    max_replicas: int
    idempotent: bool
    share_init: bool
    timeout_s: float
    env: _containers.ScalarMap[str, str]
    secrets: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, slo_ms: _Optional[float] = ..., slo_percentile: _Optional[float] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., memory_bytes: _Optional[int] = ..., device: _Optional[str] = ..., min_replicas: _Optional[int] = ..., max_replicas: _Optional[int] = ..., idempotent: _Optional[bool] = ..., share_init: _Optional[bool] = ..., timeout_s: _Optional[float] = ..., env: _Optional[_Mapping[str, str]] = ..., secrets: _Optional[_Iterable[str]] = ...) -> None: ...

class DeployRequest(_message.Message):
    __slots__ = ("name", "version", "spec", "bundle", "signature", "warm", "challenge")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    spec: FunctionSpec
    bundle: bytes
    signature: bytes
    warm: bool
    challenge: bytes
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., spec: _Optional[_Union[FunctionSpec, _Mapping]] = ..., bundle: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., warm: _Optional[bool] = ..., challenge: _Optional[bytes] = ...) -> None: ...

class BeginDeployRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BeginDeployResponse(_message.Message):
    __slots__ = ("challenge",)
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    challenge: bytes
    def __init__(self, challenge: _Optional[bytes] = ...) -> None: ...

class DeployResponse(_message.Message):
    __slots__ = ("name", "version", "changed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    changed: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., changed: _Optional[bool] = ...) -> None: ...

class InvokeRequest(_message.Message):
    __slots__ = ("function", "version", "arguments", "timeout_s", "segments")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    function: str
    version: str
    arguments: _payload_pb2.Payload
    timeout_s: float
    segments: bool
    def __init__(self, function: _Optional[str] = ..., version: _Optional[str] = ..., arguments: _Optional[_Union[_payload_pb2.Payload, _Mapping]] = ..., timeout_s: _Optional[float] = ..., segments: _Optional[bool] = ...) -> None: ...

class InvokeResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: _payload_pb2.Payload
    def __init__(self, result: _Optional[_Union[_payload_pb2.Payload, _Mapping]] = ...) -> None: ...

class InvokeStreamRequest(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: InvokeRequest
    def __init__(self, call: _Optional[_Union[InvokeRequest, _Mapping]] = ...) -> None: ...

class InvokeStreamResponse(_message.Message):
    __slots__ = ("item",)
    ITEM_FIELD_NUMBER: _ClassVar[int]
    item: _payload_pb2.Payload
    def __init__(self, item: _Optional[_Union[_payload_pb2.Payload, _Mapping]] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[SessionCall]
    def __init__(self, frames: _Optional[_Iterable[_Union[SessionCall, _Mapping]]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[SessionAnswer]
    def __init__(self, frames: _Optional[_Iterable[_Union[SessionAnswer, _Mapping]]] = ...) -> None: ...

class SessionCall(_message.Message):
    __slots__ = ("call_id", "start", "chunk", "cancel", "credit", "release")
    class Cancel(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Credit(_message.Message):
        __slots__ = ("items",)
        ITEMS_FIELD_NUMBER: _ClassVar[int]
        items: int
        def __init__(self, items: _Optional[int] = ...) -> None: ...
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    start: InvokeRequest
    chunk: bytes
    cancel: SessionCall.Cancel
    credit: SessionCall.Credit
    release: str
    def __init__(self, call_id: _Optional[int] = ..., start: _Optional[_Union[InvokeRequest, _Mapping]] = ..., chunk: _Optional[bytes] = ..., cancel: _Optional[_Union[SessionCall.Cancel, _Mapping]] = ..., credit: _Optional[_Union[SessionCall.Credit, _Mapping]] = ..., release: _Optional[str] = ...) -> None: ...

class SessionAnswer(_message.Message):
    __slots__ = ("call_id", "result", "item", "chunk", "end", "error")
    class End(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    result: _payload_pb2.Payload
    item: _payload_pb2.Payload
    chunk: bytes
    end: SessionAnswer.End
    error: _status_pb2.Status
    def __init__(self, call_id: _Optional[int] = ..., result: _Optional[_Union[_payload_pb2.Payload, _Mapping]] = ..., item: _Optional[_Union[_payload_pb2.Payload, _Mapping]] = ..., chunk: _Optional[bytes] = ..., end: _Optional[_Union[SessionAnswer.End, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class ListFunctionsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListFunctionsResponse(_message.Message):
    __slots__ = ("functions", "at_ns")
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    functions: _containers.RepeatedCompositeFieldContainer[FunctionStatus]
    at_ns: int
    def __init__(self, functions: _Optional[_Iterable[_Union[FunctionStatus, _Mapping]]] = ..., at_ns: _Optional[int] = ...) -> None: ...

class FunctionStatus(_message.Message):
    __slots__ = ("name", "version", "kind", "spec", "queue_depth", "unprofiled", "replicas", "calls", "profile_state", "drifted", "drift_reason", "sized", "why_none")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    UNPROFILED_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_STATE_FIELD_NUMBER: _ClassVar[int]
    DRIFTED_FIELD_NUMBER: _ClassVar[int]
    DRIFT_REASON_FIELD_NUMBER: _ClassVar[int]
    SIZED_FIELD_NUMBER: _ClassVar[int]
    WHY_NONE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    kind: str
    spec: FunctionSpec
    queue_depth: int
    unprofiled: bool
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    calls: CallCounts
    profile_state: str
    drifted: bool
    drift_reason: str
    sized: bool
    why_none: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., kind: _Optional[str] = ..., spec: _Optional[_Union[FunctionSpec, _Mapping]] = ..., queue_depth: _Optional[int] = ..., unprofiled: _Optional[bool] = ..., replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., calls: _Optional[_Union[CallCounts, _Mapping]] = ..., profile_state: _Optional[str] = ..., drifted: _Optional[bool] = ..., drift_reason: _Optional[str] = ..., sized: _Optional[bool] = ..., why_none: _Optional[str] = ...) -> None: ...

class CallCounts(_message.Message):
    __slots__ = ("accepted", "completed", "failed", "refused", "expired", "cancelled", "redispatched", "slo_met")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    REDISPATCHED_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    completed: int
    failed: int
    refused: int
    expired: int
    cancelled: int
    redispatched: int
    slo_met: int
    def __init__(self, accepted: _Optional[int] = ..., completed: _Optional[int] = ..., failed: _Optional[int] = ..., refused: _Optional[int] = ..., expired: _Optional[int] = ..., cancelled: _Optional[int] = ..., redispatched: _Optional[int] = ..., slo_met: _Optional[int] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("replica_id", "state", "device", "lane", "sm_asked_percent", "sm_granted_percent", "quota_percent", "memory_bytes", "pid", "in_flight", "usage", "version", "error", "lends", "sm_counted_percent", "cold_start")
    class ColdStart(_message.Message):
        __slots__ = ("enter_ms", "load_ms", "first_run_ms")
        ENTER_MS_FIELD_NUMBER: _ClassVar[int]
        LOAD_MS_FIELD_NUMBER: _ClassVar[int]
        FIRST_RUN_MS_FIELD_NUMBER: _ClassVar[int]
        enter_ms: float
        load_ms: float
        first_run_ms: float
        def __init__(self, enter_ms: _Optional[float] = ..., load_ms: _Optional[float] = ..., first_run_ms: _Optional[float] = ...) -> None: ...
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    SM_ASKED_PERCENT_FIELD_NUMBER: _ClassVar[int]
    SM_GRANTED_PERCENT_FIELD_NUMBER: _ClassVar[int]
    QUOTA_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LENDS_FIELD_NUMBER: _ClassVar[int]
    SM_COUNTED_PERCENT_FIELD_NUMBER: _ClassVar[int]
    COLD_START_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    state: str
    device: str
    lane: int
    sm_asked_percent: float
    sm_granted_percent: float
    quota_percent: float
    memory_bytes: int
    pid: int
    in_flight: int
    usage: Usage
    version: str
    error: str
    lends: bool
    sm_counted_percent: float
    cold_start: ReplicaStatus.ColdStart
    def __init__(self, replica_id: _Optional[str] = ..., state: _Optional[str] = ..., device: _Optional[str] = ..., lane: _Optional[int] = ..., sm_asked_percent: _Optional[float] = ..., sm_granted_percent: _Optional[float] = ..., quota_percent: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., pid: _Optional[int] = ..., in_flight: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., version: _Optional[str] = ..., error: _Optional[str] = ..., lends: _Optional[bool] = ..., sm_counted_percent: _Optional[float] = ..., cold_start: _Optional[_Union[ReplicaStatus.ColdStart, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("quota_ppm", "granted_ns", "used_ns", "throttled_ns", "wait_ns", "overrun_ns", "lent_ns", "grants")
    QUOTA_PPM_FIELD_NUMBER: _ClassVar[int]
    GRANTED_NS_FIELD_NUMBER: _ClassVar[int]
    USED_NS_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_NS_FIELD_NUMBER: _ClassVar[int]
    WAIT_NS_FIELD_NUMBER: _ClassVar[int]
    OVERRUN_NS_FIELD_NUMBER: _ClassVar[int]
    LENT_NS_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    quota_ppm: int
    granted_ns: int
    used_ns: int
    throttled_ns: int
    wait_ns: int
    overrun_ns: int
    lent_ns: int
    grants: int
    def __init__(self, quota_ppm: _Optional[int] = ..., granted_ns: _Optional[int] = ..., used_ns: _Optional[int] = ..., throttled_ns: _Optional[int] = ..., wait_ns: _Optional[int] = ..., overrun_ns: _Optional[int] = ..., lent_ns: _Optional[int] = ..., grants: _Optional[int] = ...) -> None: ...

class DeleteFunctionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteFunctionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScaleFunctionRequest(_message.Message):
    __slots__ = ("name", "quota_percent", "sm_percent", "replicas", "lend", "auto")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUOTA_PERCENT_FIELD_NUMBER: _ClassVar[int]
    SM_PERCENT_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    LEND_FIELD_NUMBER: _ClassVar[int]
    AUTO_FIELD_NUMBER: _ClassVar[int]
    name: str
    quota_percent: float
    sm_percent: float
    replicas: int
    lend: bool
    auto: bool
    def __init__(self, name: _Optional[str] = ..., quota_percent: _Optional[float] = ..., sm_percent: _Optional[float] = ..., replicas: _Optional[int] = ..., lend: _Optional[bool] = ..., auto: _Optional[bool] = ...) -> None: ...

class ExplainFunctionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ExplainFunctionResponse(_message.Message):
    __slots__ = ("explanation_json",)
    EXPLANATION_JSON_FIELD_NUMBER: _ClassVar[int]
    explanation_json: str
    def __init__(self, explanation_json: _Optional[str] = ...) -> None: ...

class ScaleFunctionResponse(_message.Message):
    __slots__ = ("function", "applied_ms")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_MS_FIELD_NUMBER: _ClassVar[int]
    function: FunctionStatus
    applied_ms: float
    def __init__(self, function: _Optional[_Union[FunctionStatus, _Mapping]] = ..., applied_ms: _Optional[float] = ...) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("name", "follow", "tail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    follow: bool
    tail: int
    def __init__(self, name: _Optional[str] = ..., follow: _Optional[bool] = ..., tail: _Optional[int] = ...) -> None: ...

class StreamLogsResponse(_message.Message):
    __slots__ = ("replica_id", "line")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    line: str
    def __init__(self, replica_id: _Optional[str] = ..., line: _Optional[str] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("hasfaas_version", "pid", "uptime_s", "embedded", "devices", "functions", "window_ms", "quantum_ms", "at_ns")
    HASFAAS_VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    EMBEDDED_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_MS_FIELD_NUMBER: _ClassVar[int]
    QUANTUM_MS_FIELD_NUMBER: _ClassVar[int]
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    hasfaas_version: str
    pid: int
    uptime_s: float
    embedded: bool
    devices: _containers.RepeatedCompositeFieldContainer[DeviceStatus]
    functions: _containers.RepeatedCompositeFieldContainer[FunctionStatus]
    window_ms: float
    quantum_ms: float
    at_ns: int
    def __init__(self, hasfaas_version: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_s: _Optional[float] = ..., embedded: _Optional[bool] = ..., devices: _Optional[_Iterable[_Union[DeviceStatus, _Mapping]]] = ..., functions: _Optional[_Iterable[_Union[FunctionStatus, _Mapping]]] = ..., window_ms: _Optional[float] = ..., quantum_ms: _Optional[float] = ..., at_ns: _Optional[int] = ...) -> None: ...

class DeviceStatus(_message.Message):
    __slots__ = ("device_id", "kind", "units", "memory_bytes", "memory_used_bytes", "lanes", "occupancy", "health", "why", "cure", "fixed_lanes", "facts")
    class Lane(_message.Message):
        __slots__ = ("lane", "units", "sm_percent", "quota_percent")
        LANE_FIELD_NUMBER: _ClassVar[int]
        UNITS_FIELD_NUMBER: _ClassVar[int]
        SM_PERCENT_FIELD_NUMBER: _ClassVar[int]
        QUOTA_PERCENT_FIELD_NUMBER: _ClassVar[int]
        lane: int
        units: _containers.RepeatedScalarFieldContainer[int]
        sm_percent: float
        quota_percent: float
        def __init__(self, lane: _Optional[int] = ..., units: _Optional[_Iterable[int]] = ..., sm_percent: _Optional[float] = ..., quota_percent: _Optional[float] = ...) -> None: ...
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    OCCUPANCY_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    CURE_FIELD_NUMBER: _ClassVar[int]
    FIXED_LANES_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    kind: str
    units: int
    memory_bytes: int
    memory_used_bytes: int
    lanes: _containers.RepeatedCompositeFieldContainer[DeviceStatus.Lane]
    occupancy: float
    health: str
    why: str
    cure: str
    fixed_lanes: bool
    facts: _containers.ScalarMap[str, str]
    def __init__(self, device_id: _Optional[str] = ..., kind: _Optional[str] = ..., units: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., lanes: _Optional[_Iterable[_Union[DeviceStatus.Lane, _Mapping]]] = ..., occupancy: _Optional[float] = ..., health: _Optional[str] = ..., why: _Optional[str] = ..., cure: _Optional[str] = ..., fixed_lanes: _Optional[bool] = ..., facts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ProfilePoint(_message.Message):
    __slots__ = ("batch", "sm_percent", "quota_percent")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SM_PERCENT_FIELD_NUMBER: _ClassVar[int]
    QUOTA_PERCENT_FIELD_NUMBER: _ClassVar[int]
    batch: int
    sm_percent: float
    quota_percent: float
    def __init__(self, batch: _Optional[int] = ..., sm_percent: _Optional[float] = ..., quota_percent: _Optional[float] = ...) -> None: ...

class ProfileRequest(_message.Message):
    __slots__ = ("name", "device", "points", "arguments", "at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    device: str
    points: int
    arguments: _payload_pb2.Payload
    at: _containers.RepeatedCompositeFieldContainer[ProfilePoint]
    def __init__(self, name: _Optional[str] = ..., device: _Optional[str] = ..., points: _Optional[int] = ..., arguments: _Optional[_Union[_payload_pb2.Payload, _Mapping]] = ..., at: _Optional[_Iterable[_Union[ProfilePoint, _Mapping]]] = ...) -> None: ...

class ProfileResponse(_message.Message):
    __slots__ = ("plan", "measured", "note", "profile_json")
    class Plan(_message.Message):
        __slots__ = ("points",)
        POINTS_FIELD_NUMBER: _ClassVar[int]
        points: _containers.RepeatedCompositeFieldContainer[ProfilePoint]
        def __init__(self, points: _Optional[_Iterable[_Union[ProfilePoint, _Mapping]]] = ...) -> None: ...
    class Measured(_message.Message):
        __slots__ = ("point", "hold_ms", "response_ms", "runs", "log_spread", "mean_hold_ms")
        POINT_FIELD_NUMBER: _ClassVar[int]
        HOLD_MS_FIELD_NUMBER: _ClassVar[int]
        RESPONSE_MS_FIELD_NUMBER: _ClassVar[int]
        RUNS_FIELD_NUMBER: _ClassVar[int]
        LOG_SPREAD_FIELD_NUMBER: _ClassVar[int]
        MEAN_HOLD_MS_FIELD_NUMBER: _ClassVar[int]
        point: ProfilePoint
        hold_ms: float
        response_ms: float
        runs: int
        log_spread: float
        mean_hold_ms: float
        def __init__(self, point: _Optional[_Union[ProfilePoint, _Mapping]] = ..., hold_ms: _Optional[float] = ..., response_ms: _Optional[float] = ..., runs: _Optional[int] = ..., log_spread: _Optional[float] = ..., mean_hold_ms: _Optional[float] = ...) -> None: ...
    PLAN_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_JSON_FIELD_NUMBER: _ClassVar[int]
    plan: ProfileResponse.Plan
    measured: ProfileResponse.Measured
    note: str
    profile_json: str
    def __init__(self, plan: _Optional[_Union[ProfileResponse.Plan, _Mapping]] = ..., measured: _Optional[_Union[ProfileResponse.Measured, _Mapping]] = ..., note: _Optional[str] = ..., profile_json: _Optional[str] = ...) -> None: ...

class GetProfileRequest(_message.Message):
    __slots__ = ("name", "device")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    name: str
    device: str
    def __init__(self, name: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class GetProfileResponse(_message.Message):
    __slots__ = ("name", "version", "profile_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROFILE_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    profile_json: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., profile_json: _Optional[str] = ...) -> None: ...
