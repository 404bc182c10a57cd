"""hasfaas: decorate a function with a latency promise, and serve it from a slice of a device."""

from hasfaas.core.errors import (
    AuthError,
    BackendError,
    CancelledError,
    ConflictError,
    DeadlineError,
    DeadlineInfeasibleError,
    FunctionError,
    HasFaasError,
    IncompatibleError,
    InvalidRequestError,
    MemoryLimitError,
    NotFoundError,
    OverloadedError,
    PlacementError,
    SerializationError,
    SLOInfeasibleError,
    UnavailableError,
)
from hasfaas.core.lease import gate, host
from hasfaas.core.spec import Batch
from hasfaas.core.version import VERSION as __version__
from hasfaas.sdk.function import Call, ClassFunction, CoroutineFunction, Function, StreamFunction, function

__all__ = [
    "AuthError",
    "BackendError",
    "Batch",
    "Call",
    "CancelledError",
    "ClassFunction",
    "ConflictError",
    "CoroutineFunction",
    "DeadlineError",
    "DeadlineInfeasibleError",
    "Function",
    "FunctionError",
    "HasFaasError",
    "IncompatibleError",
    "InvalidRequestError",
    "MemoryLimitError",
    "NotFoundError",
    "OverloadedError",
    "PlacementError",
    "SLOInfeasibleError",
    "SerializationError",
    "StreamFunction",
    "UnavailableError",
    "__version__",
    "function",
    "gate",
    "host",
]
