"""Errors to and from canonical gRPC codes with google.rpc details: one table, read both ways.

A test walks the error tree and finds each class in it. User exceptions travel as text plus an encoded state; nothing here
unpickles.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import attrs
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from hasfaas.core import errors
from hasfaas.wire import payload as payloads
from hasfaas.wire.convert import payload_from_proto, payload_to_proto
from hasfaas.wire.v1 import errors_pb2, payload_pb2

T = TypeVar("T")
DOMAIN = "hasfaas.dev"
STATUS_METADATA_KEY = "grpc-status-details-bin"

# Class -> canonical code. Coming back, the class is found by the ErrorInfo's metadata; a server that gives none (another
# version, a proxy) is read by code alone, by the first class that has it.
CODES: dict[type[errors.HasFaasError], int] = {
    errors.InvalidRequestError: code_pb2.INVALID_ARGUMENT,
    errors.SerializationError: code_pb2.INVALID_ARGUMENT,
    errors.NotFoundError: code_pb2.NOT_FOUND,
    errors.IncompatibleError: code_pb2.FAILED_PRECONDITION,
    errors.SLOInfeasibleError: code_pb2.FAILED_PRECONDITION,
    errors.OverloadedError: code_pb2.RESOURCE_EXHAUSTED,
    errors.PlacementError: code_pb2.RESOURCE_EXHAUSTED,
    errors.MemoryLimitError: code_pb2.RESOURCE_EXHAUSTED,
    errors.DeadlineError: code_pb2.DEADLINE_EXCEEDED,
    errors.DeadlineInfeasibleError: code_pb2.DEADLINE_EXCEEDED,
    errors.CancelledError: code_pb2.CANCELLED,
    errors.UnavailableError: code_pb2.UNAVAILABLE,
    errors.ConflictError: code_pb2.ABORTED,
    errors.AuthError: code_pb2.PERMISSION_DENIED,
    errors.FunctionError: code_pb2.UNKNOWN,
    errors.BackendError: code_pb2.INTERNAL,
    errors.HasFaasError: code_pb2.INTERNAL,
}
_BY_NAME = {cls.__name__: cls for cls in CODES}
_BY_CODE: dict[int, type[errors.HasFaasError]] = {}
for _cls, _code in CODES.items():
    _BY_CODE.setdefault(_code, _cls)
_BY_CODE[code_pb2.UNAUTHENTICATED] = errors.AuthError
_BY_CODE[code_pb2.UNIMPLEMENTED] = errors.BackendError


@attrs.frozen
class UserFailure:
    """What a user's exception was, as text, and its still encoded state (args, attributes) when it had one."""

    module: str
    qualname: str
    message: str
    frames: tuple[errors.RemoteFrame, ...]
    notes: tuple[str, ...]
    state: payloads.Payload | None


class RemoteFunctionError(errors.FunctionError):
    """A FunctionError fresh off the wire; `failure` lets a client rebuild the original class."""

    def __init__(self, failure: UserFailure) -> None:
        super().__init__(failure.message, qualname=failure.qualname, frames=failure.frames, notes=failure.notes)
        self.failure = failure


def to_status(exc: errors.HasFaasError) -> status_pb2.Status:
    """The google.rpc.Status of one of our own errors."""
    cls = next(c for c in type(exc).__mro__ if c in CODES)
    details = [error_details_pb2.ErrorInfo(reason=exc.reason, domain=DOMAIN, metadata={"class": cls.__name__})]
    status = status_pb2.Status(code=CODES[cls], message=exc.message)
    _pack(status, *details)
    if exc.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(max(0, round(exc.retry_after_s * 1e9)))
        _pack(status, retry)
    if isinstance(exc, errors.FunctionError):
        user = errors_pb2.UserError(qualname=exc.qualname, message=exc.message)
        user.frames.extend(_frame_to_proto(frame) for frame in exc.frames)
        _pack(status, user)
    return status


def user_exception_to_status(exc: BaseException, *, skip_file: Callable[[str], bool]) -> status_pb2.Status:
    """The status of an exception that the user's code raised. Never raises, whatever the exception does.

    `skip_file` drops leading frames that are ours, so that the traceback begins in the user's code. The exception's args
    and attributes go along when they can be encoded, else the status has text alone.
    """
    message = _safely(lambda: str(exc), "<the exception's text could not be made>")
    no_frames: tuple[traceback.FrameSummary, ...] = ()
    frames = [
        errors_pb2.UserError.Frame(file=f.filename, line=f.lineno or 0, function=f.name, source=f.line or "")
        for f in _safely(lambda: tuple(traceback.extract_tb(exc.__traceback__)), no_frames)
        if not skip_file(f.filename)
    ]
    notes = [note for note in getattr(exc, "__notes__", ()) if isinstance(note, str)]
    user = errors_pb2.UserError(
        module=type(exc).__module__,
        qualname=type(exc).__qualname__,
        message=message[:65536],
        frames=frames[-200:],
        notes=notes[:20],
    )
    state = _encode_state(exc)
    if state is not None:
        user.state.CopyFrom(state)
    status = status_pb2.Status(code=code_pb2.UNKNOWN, message=f"{user.qualname}: {user.message}"[:2048])
    info = error_details_pb2.ErrorInfo(reason="USER_EXCEPTION", domain=DOMAIN, metadata={"class": "FunctionError"})
    _pack(status, info, user)
    return status


def from_status(status: status_pb2.Status) -> errors.HasFaasError:
    """The typed error of a status, by its ErrorInfo, or by its code alone when it comes from somebody else."""
    info, retry, user = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), errors_pb2.UserError()
    found: set[str] = set()
    for detail in status.details:
        for message in (info, retry, user):
            if detail.Is(message.DESCRIPTOR) and detail.Unpack(message):
                found.add(message.DESCRIPTOR.name)
    cls = _BY_NAME.get(info.metadata.get("class", ""), _BY_CODE.get(status.code, errors.BackendError))
    if cls is errors.FunctionError and "UserError" in found:
        return RemoteFunctionError(_failure_from_proto(user))
    delay_s = retry.retry_delay.ToNanoseconds() / 1e9 if "RetryInfo" in found else None
    return cls(status.message, reason=info.reason or None, retry_after_s=delay_s)


def _failure_from_proto(user: errors_pb2.UserError) -> UserFailure:
    return UserFailure(
        module=user.module,
        qualname=user.qualname,
        message=user.message,
        frames=tuple(errors.RemoteFrame(f.file, f.line, f.function, f.source) for f in user.frames),
        notes=tuple(user.notes),
        state=payload_from_proto(user.state) if user.HasField("state") else None,
    )


def _frame_to_proto(frame: errors.RemoteFrame) -> errors_pb2.UserError.Frame:
    return errors_pb2.UserError.Frame(file=frame.file, line=frame.line, function=frame.function, source=frame.source)


def _encode_state(exc: BaseException) -> payload_pb2.Payload | None:
    attributes = {k: v for k, v in vars(exc).items() if k != "__notes__"}
    for candidate in ((exc.args, attributes), (exc.args, {})):
        encoded = _safely(lambda c=candidate: payloads.encode(c), None)  # type: ignore[misc]
        if encoded is not None and encoded.nbytes <= 1 << 20:
            return payload_to_proto(encoded)
    return None


def _safely(make: Callable[[], T], otherwise: T) -> T:
    try:
        return make()
    except Exception:
        return otherwise


def _pack(status: status_pb2.Status, *messages: object) -> None:
    for message in messages:
        detail = any_pb2.Any()
        detail.Pack(message)  # type: ignore[arg-type]
        status.details.append(detail)


def is_ours(path: str) -> bool:
    """Whether a traceback's file belongs to hasfaas itself."""
    return Path(path).is_relative_to(_PACKAGE) or path.startswith("<frozen")


_PACKAGE = Path(__file__).resolve().parent.parent
