"""hasfaas: decorate a function with a latency promise, and serve it from a slice of a device.

What stands on gRPC is imported when it is first named: the shell's help, and the zygote from which replicas are forked,
import this package too and must stay free of it.
"""

from typing import TYPE_CHECKING

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
from hasfaas.core.version import VERSION as __version__  # noqa: N811 - the name that tools look for

if TYPE_CHECKING:
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

_OF_FUNCTION = frozenset({"Call", "ClassFunction", "CoroutineFunction", "Function", "StreamFunction", "function"})

if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _OF_FUNCTION:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from hasfaas.sdk import function as module

        globals()[name] = getattr(module, name)
        return globals()[name]

    def __dir__():
        return sorted(globals().keys() | _OF_FUNCTION)
