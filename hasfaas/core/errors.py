"""Every error that hasfaas raises on purpose, one tree.

    HasFaasError
    ├── FunctionError             the user's code raised; the remote traceback is kept
    ├── InvalidRequestError       a bad argument, option or configuration key (also a ValueError)
    │   └── SerializationError    something cannot be pickled, or cannot be rebuilt (also a TypeError)
    ├── NotFoundError             no such function, version, call or replica (also a LookupError)
    ├── IncompatibleError         another interpreter or another package version than the bundle needs
    ├── SLOInfeasibleError        no allocation can hold this SLO
    ├── OverloadedError           a queue is full: retry after `retry_after_s`
    ├── PlacementError            no device has room for the replica
    ├── MemoryLimitError          the replica reached its memory wall (also a MemoryError)
    ├── DeadlineError             the caller's time ran out (also a TimeoutError)
    │   └── DeadlineInfeasibleError   the request's own deadline is below the service time
    ├── CancelledError            the caller took the call back
    ├── UnavailableError          no gateway, no replica, or it died (also a ConnectionError)
    ├── ConflictError             another version was deployed in between
    ├── AuthError                 a token or a bundle's signature is missing or wrong (also a PermissionError)
    └── BackendError              hasfaas itself failed

Each message names the field, the value and the cure. `reason` is the UPPER_SNAKE word that travels on the wire.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs


class HasFaasError(Exception):
    """Root of the tree. `reason` is stable and machine readable; the message is for people."""

    default_reason: ClassVar[str] = "UNSPECIFIED"

    def __init__(self, message: str = "", *, reason: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Attributes and notes travel as the state, and no __init__ runs: a user's subclass may want other arguments.
        return (_rebuild, (type(self), self.args), vars(self))


def _rebuild(cls: type[HasFaasError], args: tuple[Any, ...]) -> HasFaasError:
    # Made as the nearest class of this file, whose __init__ is known; MemoryError has no __new__ that could be called.
    made: HasFaasError = next(base for base in cls.__mro__ if base.__module__ == __name__)()
    made.__class__ = cls
    made.args = args
    return made


@attrs.frozen
class RemoteFrame:
    """One line of a remote traceback, as text: nothing of it is ever evaluated."""

    file: str
    line: int
    function: str
    source: str = ""

    def __str__(self) -> str:
        text = f'  File "{self.file}", line {self.line}, in {self.function}'
        return f"{text}\n    {self.source}" if self.source else text


class FunctionError(HasFaasError):
    """The user's function raised.

    When the original class can be imported and rebuilt by the caller, what is raised is an instance of both that
    class and FunctionError. `qualname` names the original class, `frames` is the remote traceback.
    """

    default_reason = "USER_EXCEPTION"

    def __init__(
        self,
        message: str = "",
        *,
        reason: str | None = None,
        retry_after_s: float | None = None,
        qualname: str = "Exception",
        frames: tuple[RemoteFrame, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        HasFaasError.__init__(self, message, reason=reason, retry_after_s=retry_after_s)
        self.qualname = qualname
        self.frames = frames
        for note in notes:
            self.add_note(note)

    def __str__(self) -> str:
        head = f"{self.qualname}: {self.message}" if self.message else self.qualname
        if not self.frames:
            return head
        lines = "\n".join(str(frame) for frame in self.frames)
        return f"{head}\n\nRemote traceback (most recent call last):\n{lines}\n{head}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The plain class: one that was mixed with the user's own exists in the process that raised it only.
        known = ("message", "reason", "retry_after_s", "qualname", "frames", "__notes__")
        return (_rebuild, (FunctionError, (self.message,)), {k: v for k, v in vars(self).items() if k in known})


class InvalidRequestError(HasFaasError, ValueError):
    """A bad argument, option, payload or configuration key."""

    default_reason = "BAD_PAYLOAD"


class SerializationError(InvalidRequestError, TypeError):
    """A value cannot be serialised, or cannot be rebuilt on the other side."""

    default_reason = "NOT_SERIALIZABLE"


class NotFoundError(HasFaasError, LookupError):
    """No such function, version, call or replica."""

    default_reason = "FUNCTION_NOT_FOUND"


class IncompatibleError(HasFaasError):
    """The interpreter or a package differs from what the bundle was made with."""

    default_reason = "PYTHON_MISMATCH"


class SLOInfeasibleError(HasFaasError):
    """No allocation of this backend can hold the SLO."""

    default_reason = "SLO_INFEASIBLE"


class OverloadedError(HasFaasError):
    """A bounded queue is full; nothing was accepted. `retry_after_s` says when to try again."""

    default_reason = "QUEUE_FULL"


class PlacementError(HasFaasError):
    """No device has room for what was asked."""

    default_reason = "NO_ROOM"


class MemoryLimitError(HasFaasError, MemoryError):
    """The replica reached the memory that its function was granted."""

    default_reason = "DEVICE_MEMORY"


class DeadlineError(HasFaasError, TimeoutError):
    """The caller's time ran out, in the queue or during execution."""

    default_reason = "DEADLINE_IN_QUEUE"


class DeadlineInfeasibleError(DeadlineError):
    """The request's own deadline is shorter than the service itself."""

    default_reason = "DEADLINE_INFEASIBLE"


class CancelledError(HasFaasError):
    """The caller cancelled the call."""

    default_reason = "CANCELLED"


class UnavailableError(HasFaasError, ConnectionError):
    """No gateway or replica can answer now; `reason` says whether one died with the call in it."""

    default_reason = "NO_REPLICA"


class ConflictError(HasFaasError):
    """Another version of the function has taken the name."""

    default_reason = "SUPERSEDED_VERSION"


class AuthError(HasFaasError, PermissionError):
    """The caller or the bundle is not trusted. A token's reasons: NO_TOKEN, BAD_TOKEN, EXPIRED_TOKEN, and SCOPE for a right
    that it does not give."""

    default_reason = "SIGNATURE_INVALID"


class BackendError(HasFaasError):
    """hasfaas itself failed; the message says where."""

    default_reason = "BACKEND_FAILURE"
