"""The calls of one connected client: which are under way, and which shared segments it has been lent.

Two shells drive it, a gRPC session and a framed unix socket. What is wrong with one call is an answer to that call, never the
end of the connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import attrs

from hasfaas.core.errors import ConflictError, HasFaasError, InvalidRequestError
from hasfaas.serving.ports import FunctionRecord
from hasfaas.serving.router import Call, Router
from hasfaas.wire.frames import RawPayload, SegmentOwner
from hasfaas.wire.status import to_status


class Replies(Protocol):
    """How answers reach the client. `status` is a serialised google.rpc.Status."""

    def send_result(self, call_id: int, payload: RawPayload) -> None: ...

    def send_item(self, call_id: int, payload: RawPayload) -> None: ...

    def send_end(self, call_id: int) -> None: ...

    def send_error(self, call_id: int, status: bytes) -> None: ...


class Intake:
    """Takes calls for the router, and counts who is connected."""

    def __init__(self, router: Router, record: Callable[[str], FunctionRecord]) -> None:
        """`record` finds a function by its name, or by the unambiguous end of one."""
        self.router = router
        self._record = record
        self.clients = 0
        self.last_used_s = time.monotonic()

    def submit(self, function: str, version: str, raw: RawPayload, sink: object, timeout_s: float | None) -> Call:
        """Hands one call to the router, after checking that the version it names, if any, is the one that serves."""
        self.used()
        if timeout_s is not None and not timeout_s >= 0.0:  # NaN too, which no timer survives
            raise InvalidRequestError(f"timeout_s={timeout_s!r}: give seconds, or 0 for the function's own")
        record = self._record(function)
        if version and record.version != version:
            raise ConflictError(
                f"{function}: version {version} was superseded by {record.version}; "
                "deploy again from this script, or call it by name with `hasfaas invoke`"
            )
        return self.router.submit(record.name, raw, timeout_s=timeout_s or None, sink=sink)  # type: ignore[arg-type]

    def used(self) -> None:
        """Somebody has just used the gateway: an embedded one stays."""
        self.last_used_s = time.monotonic()


class ClientCalls:
    """The bookkeeping of one connection."""

    def __init__(self, intake: Intake, replies: Replies) -> None:
        self._intake = intake
        self._replies = replies
        self._calls: dict[int, Call] = {}
        self._lent: dict[str, SegmentOwner] = {}
        intake.clients += 1

    def __contains__(self, call_id: int) -> bool:
        return call_id in self._calls

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self, call_id: int, function: str, version: str, raw: RawPayload, timeout_s: float | None) -> None:
        """A new call. What keeps it from being accepted is its answer."""
        if call_id in self._calls:
            self.fail(call_id, InvalidRequestError(f"call_id={call_id} is in use; give each call of a session its own"))
            return
        sink = _Sink(self, self._replies, call_id)
        try:
            call = self._intake.submit(function, version, raw, sink, timeout_s)
        except HasFaasError as exc:
            self.fail(call_id, exc)
            return
        if not call.done:
            self._calls[call_id] = call

    def cancel(self, call_id: int) -> None:
        """The client takes a call back."""
        call = self._calls.pop(call_id, None)
        if call is not None:
            self._intake.router.cancel(call)

    def credit(self, call_id: int, items: int) -> None:
        """The client has taken so many more items of a stream."""
        call = self._calls.get(call_id)
        if call is not None:
            self._intake.router.credit(call, items)

    def release(self, segment: str) -> None:
        """The client has mapped a result's segment, or never will."""
        owner = self._lent.pop(segment, None)
        if owner is not None:
            owner.release(segment)

    def fail(self, call_id: int, exc: HasFaasError) -> None:
        """Answers a call with an error of ours."""
        self._replies.send_error(call_id, to_status(exc).SerializeToString())

    def close(self) -> None:
        """The client has left: what has not been answered is taken back. What it has mapped stays locked by it for as long
        as it looks."""
        for call in list(self._calls.values()):
            self._intake.router.cancel(call)
        self._calls.clear()
        for segment, owner in self._lent.items():
            owner.release(segment)
        self._lent.clear()
        self._intake.clients -= 1
        self._intake.used()

    def lend(self, payload: RawPayload) -> None:
        """An answer goes out; its segment is the client's until it releases it."""
        if payload.owner is not None:
            self._lent[payload.segment] = payload.owner

    def ended(self, call_id: int) -> None:
        """The call has answered."""
        self._calls.pop(call_id, None)


@attrs.define(eq=False)
class _Sink:
    calls: ClientCalls
    replies: Replies
    call_id: int

    def result(self, payload: RawPayload) -> None:
        self.calls.ended(self.call_id)
        self.calls.lend(payload)
        self.replies.send_result(self.call_id, payload)

    def item(self, payload: RawPayload) -> None:
        self.calls.lend(payload)
        self.replies.send_item(self.call_id, payload)

    def end(self) -> None:
        self.calls.ended(self.call_id)
        self.replies.send_end(self.call_id)

    def error(self, status: bytes) -> None:
        self.calls.ended(self.call_id)
        self.replies.send_error(self.call_id, status)
