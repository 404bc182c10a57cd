"""Errors to and from canonical gRPC codes with google.rpc details: one table, read both ways.

A test walks the error tree and finds each class in it. User exceptions travel as text plus an encoded state; nothing here
unpickles.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from hasfaas.core import errors, tokens
from hasfaas.wire import payload as payloads
from hasfaas.wire.convert import payload_from_proto, payload_to_proto
from hasfaas.wire.v1 import errors_pb2

T = TypeVar("T")
DOMAIN = "hasfaas.dev"
ADDRESSES_KEY = "hasfaas-addresses"
"""The initial metadata of a session that name other addresses of the gateway, with commas between them."""
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
# Who the caller is was not shown, rather than that the caller may not.
_UNAUTHENTICATED = frozenset({tokens.NO_TOKEN, tokens.BAD_TOKEN, tokens.EXPIRED_TOKEN})
_BY_NAME = {cls.__name__: cls for cls in CODES}
_BY_CODE: dict[int, type[errors.HasFaasError]] = {}
for _cls, _code in CODES.items():
    _BY_CODE.setdefault(_code, _cls)
_BY_CODE[code_pb2.UNAUTHENTICATED] = errors.AuthError
_BY_CODE[code_pb2.UNIMPLEMENTED] = errors.BackendError
# Only details can tell that the user's code raised; without them it was a server that failed in an unforeseen way.
_BY_CODE[code_pb2.UNKNOWN] = errors.BackendError


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

    def __init__(self, failure: UserFailure, *, reason: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(
            failure.message,
            reason=reason,
            retry_after_s=retry_after_s,
            qualname=failure.qualname,
            frames=failure.frames,
            notes=failure.notes,
        )
        self.failure = failure


def to_status(exc: errors.HasFaasError) -> status_pb2.Status:
    """The google.rpc.Status of one of our own errors."""
    cls = next(c for c in type(exc).__mro__ if c in CODES)
    details = [error_details_pb2.ErrorInfo(reason=exc.reason, domain=DOMAIN, metadata={"class": cls.__name__})]
    unknown_caller = cls is errors.AuthError and exc.reason in _UNAUTHENTICATED
    code = code_pb2.UNAUTHENTICATED if unknown_caller else CODES[cls]
    status = status_pb2.Status(code=code, message=_text(exc.message))
    _pack(status, *details)
    if exc.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(max(0, round(exc.retry_after_s * 1e9)))
        _pack(status, retry)
    if isinstance(exc, errors.FunctionError):
        _pack(status, _failure_to_proto(_failure_of(exc)))
    return status


def _failure_of(exc: errors.FunctionError) -> UserFailure:
    if isinstance(exc, RemoteFunctionError):
        return exc.failure  # passed on whole, so that the next one can still rebuild it
    return UserFailure("", exc.qualname, exc.message, exc.frames, tuple(getattr(exc, "__notes__", ())), None)


def user_exception_to_status(exc: BaseException, *, skip_file: Callable[[str], bool]) -> status_pb2.Status:
    """The status of an exception that the user's code raised. Never raises, whatever the exception does.

    `skip_file` drops leading frames that are ours, so that the traceback begins in the user's code. The exception's args
    and attributes go along when they can be encoded, else the status has text alone.
    """
    no_frames: tuple[traceback.FrameSummary, ...] = ()
    found = _safely(lambda: tuple(traceback.extract_tb(exc.__traceback__)), no_frames)
    frames = [
        errors.RemoteFrame(f.filename, f.lineno or 0, f.name, f.line or "") for f in found if not skip_file(f.filename)
    ]
    no_notes: tuple[object, ...] = ()
    notes = _safely(lambda: tuple(getattr(exc, "__notes__", ())), no_notes)
    failure = UserFailure(
        module=str(type(exc).__module__),
        qualname=type(exc).__qualname__,
        message=_safely(lambda: str(exc), "<the exception's text could not be made>")[:65536],
        frames=tuple(frames[-200:]),
        notes=tuple(note for note in notes if isinstance(note, str))[:20],
        state=_encode_state(exc),
    )
    user = _failure_to_proto(failure)
    status = status_pb2.Status(code=code_pb2.UNKNOWN, message=f"{user.qualname}: {user.message}"[:2048])
    info = error_details_pb2.ErrorInfo(reason="USER_EXCEPTION", domain=DOMAIN, metadata={"class": "FunctionError"})
    _pack(status, info, user)
    return status


def read_status(serialised: bytes) -> errors.HasFaasError:
    """The typed error of a serialised google.rpc.Status. Raises ValueError for what is none."""
    try:
        return from_status(status_pb2.Status.FromString(serialised))
    except DecodeError as exc:
        raise ValueError(f"not a google.rpc.Status: {exc}") from exc


def from_status(status: status_pb2.Status) -> errors.HasFaasError:
    """The typed error of a status, by its ErrorInfo, or by its code alone when it comes from somebody else."""
    info, retry, user = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), errors_pb2.UserError()
    found: set[str] = set()
    for detail in status.details:
        for message in (info, retry, user):
            if detail.Is(message.DESCRIPTOR) and _unpacked(detail, message):
                found.add(message.DESCRIPTOR.name)
    cls = _BY_NAME.get(info.metadata.get("class", ""), _BY_CODE.get(status.code, errors.BackendError))
    delay_s = retry.retry_delay.ToNanoseconds() / 1e9 if "RetryInfo" in found else None
    if cls is errors.FunctionError and "UserError" in found:
        return RemoteFunctionError(_failure_from_proto(user), reason=info.reason or None, retry_after_s=delay_s)
    return cls(status.message, reason=info.reason or None, retry_after_s=delay_s)


def trimmed(status: status_pb2.Status, most_bytes: int) -> status_pb2.Status:
    """The status in at most so many bytes, for where it travels as a header. What goes first is what a person misses
    least: the exception's state, the end of a long text, the last notes, and the traceback's outer frames."""
    if status.ByteSize() <= most_bytes:
        return status
    part = most_bytes // 8
    kept = status_pb2.Status(code=status.code, message=_shortened(status.message, part))
    user = errors_pb2.UserError()
    for detail in status.details:
        if not detail.Is(user.DESCRIPTOR):
            kept.details.append(detail)
        elif _unpacked(detail, user):
            user.ClearField("state")
            user.message = _shortened(user.message, part)
            while user.notes and sum(len(note.encode()) for note in user.notes) > part:
                del user.notes[-1]
            while user.frames and user.ByteSize() > 5 * part:
                del user.frames[0]
            _pack(kept, user)
    return kept


def _shortened(text: str, most_bytes: int) -> str:
    encoded = text.encode()
    return text if len(encoded) <= most_bytes else encoded[: most_bytes - 3].decode(errors="ignore") + "..."


def _unpacked(detail: any_pb2.Any, message: Message) -> bool:
    """A detail that does not parse counts as absent: the code and the text of its status are still worth having."""
    try:
        return bool(detail.Unpack(message))
    except DecodeError:
        message.Clear()
        return False


def _failure_from_proto(user: errors_pb2.UserError) -> UserFailure:
    return UserFailure(
        module=user.module,
        qualname=user.qualname,
        message=user.message,
        frames=tuple(errors.RemoteFrame(f.file, f.line, f.function, f.source) for f in user.frames),
        notes=tuple(user.notes),
        state=_safely(lambda: payload_from_proto(user.state), None) if user.HasField("state") else None,
    )


def _failure_to_proto(failure: UserFailure) -> errors_pb2.UserError:
    user = errors_pb2.UserError(
        module=_text(failure.module),
        qualname=_text(failure.qualname),
        message=_text(failure.message),
        frames=[
            errors_pb2.UserError.Frame(
                file=_text(f.file), line=f.line, function=_text(f.function), source=_text(f.source)
            )
            for f in failure.frames
        ],
        notes=[_text(note) for note in failure.notes],
    )
    if failure.state is not None:
        user.state.CopyFrom(payload_to_proto(failure.state))
    return user


def _text(text: str) -> str:
    """What a message can hold: a lone surrogate (of a file name that is no UTF-8) is written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _encode_state(exc: BaseException) -> payloads.Payload | None:
    attributes = {k: v for k, v in vars(exc).items() if k != "__notes__"}
    no_args: tuple[object, ...] = ()
    args = _safely(lambda: tuple(exc.args), no_args)
    for candidate in ((args, attributes), (args, {})):
        encoded = _safely(partial(payloads.encode, candidate), None)
        if encoded is not None and encoded.nbytes <= 1 << 20:
            return encoded
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
    file = Path(path)
    return path.startswith("<frozen") or (file.is_relative_to(_PACKAGE) and not file.is_relative_to(_SUITES))


_PACKAGE = Path(__file__).resolve().parent.parent
_SUITES = _PACKAGE / "testing"
"""What our suites deploy is users' code."""
