"""Many calls of one event loop to one gateway: who waits for which answer, and what is shared with it.

How frames travel is left to two shells: `grpc_session.py`, to any gateway, and `frame_session.py`, to one of this host.
"""

from __future__ import annotations

import abc
import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import attrs
import grpc
from google.rpc import status_pb2

from hasfaas.core.errors import DeadlineError, HasFaasError, InvalidRequestError, UnavailableError
from hasfaas.sdk.backends import Endpoint
from hasfaas.sdk.token_channel import TokenChannel, read_token
from hasfaas.wire import payload as payloads
from hasfaas.wire.payload import Payload
from hasfaas.wire.segments import THRESHOLD_BYTES, Segment, SegmentPool, SegmentReader
from hasfaas.wire.status import STATUS_METADATA_KEY, from_status
from hasfaas.wire.tensors import Buffer
from hasfaas.wire.v1 import functions_pb2_grpc

GATEWAY_LOST = "GATEWAY_LOST"
# A reader hands credit back in lots, so that a fast stream is not slowed by one frame an item.
CREDIT_LOT = 8
# How long beyond its own time a call waits for the gateway to say that the time is over.
GRACE_S = 5.0
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]
NETWORK_OPTIONS = [
    *CHANNEL_OPTIONS,
    # A gateway whose machine is gone says nothing: it is asked, and given up within 20 s. (gRPC asks by another ping too, to
    # measure the line, which it would wait for a minute.)
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # An address is the gateway's own, and no proxy's business.
    ("grpc.enable_http_proxy", 0),
]


def _channel(endpoint: Endpoint) -> grpc.aio.Channel:
    if endpoint.same_host:
        return grpc.aio.insecure_channel(endpoint.address, options=CHANNEL_OPTIONS)
    if endpoint.roots is None:
        return grpc.aio.insecure_channel(endpoint.address, options=NETWORK_OPTIONS)
    tls = grpc.ssl_channel_credentials(root_certificates=endpoint.roots)
    name = [] if endpoint.server_name is None else [("grpc.ssl_target_name_override", endpoint.server_name)]
    return grpc.aio.secure_channel(endpoint.address, tls, options=[*NETWORK_OPTIONS, *name])


def error_of(exc: grpc.aio.AioRpcError) -> HasFaasError:
    """The typed error of a failed RPC, by its details where it has some, else by its code."""
    metadata: Any = exc.trailing_metadata() or ()
    for key, value in metadata:
        if key == STATUS_METADATA_KEY and isinstance(value, bytes):
            return from_status(status_pb2.Status.FromString(value))
    if exc.code() is grpc.StatusCode.UNAVAILABLE:  # gRPC's own word, not an answer
        return UnavailableError(f"the gateway cannot be reached: {exc.details()}", reason=GATEWAY_LOST)
    code = exc.code().value[0]
    return from_status(status_pb2.Status(code=code, message=exc.details() or exc.code().name))


@attrs.frozen
class Request:
    """One call, encoded."""

    function: str
    version: str
    arguments: Payload
    timeout_s: float


Answer = Payload | HasFaasError | None


@attrs.define(eq=False)
class One:
    """A call that answers once. `segment` holds its arguments when they are large."""

    segment: str = ""
    answer: asyncio.Future[Answer] = attrs.field(factory=lambda: asyncio.get_running_loop().create_future())

    def put(self, answer: Answer) -> None:
        """Its answer; what comes later is dropped."""
        if not self.answer.done():
            self.answer.set_result(answer)


@attrs.define(eq=False)
class Many:
    """A stream: payloads, then None at its end, or an error."""

    segment: str = ""
    answers: asyncio.Queue[Answer] = attrs.field(factory=asyncio.Queue)

    def put(self, answer: Answer) -> None:
        """Its next item, or its end."""
        self.answers.put_nowait(answer)


class Session(abc.ABC):
    """Belongs to the event loop it was made on; `broken` once the gateway has gone, and `why_broken` says why."""

    def __init__(self, endpoint: Endpoint) -> None:
        """On the same host, large payloads go through shared memory. Raises AuthError for a token that cannot be read."""
        self.broken = False
        self.why_broken: HasFaasError | None = None
        self.token = read_token(endpoint.token_file) if endpoint.token_file is not None else None
        self._pool = SegmentPool() if endpoint.same_host else None
        self._reader = SegmentReader()
        self._ids = itertools.count(1)
        self._pending: dict[int, One | Many] = {}
        self._channel = _channel(endpoint)
        # For everything but calls.
        shown: Any = self._channel if self.token is None else TokenChannel(self._channel, self.token)
        self.stub = functions_pb2_grpc.FunctionServiceStub(shown)

    async def call(self, request: Request) -> Payload:
        """One answer. Raises the call's own error, UnavailableError when the gateway goes away with the call in it.

        Cancelling the coroutine takes the call back.
        """
        pending = One()
        call_id = self._begin(request, pending)
        timer = asyncio.get_running_loop().call_later(
            request.timeout_s + GRACE_S, self._give_up, call_id, pending, request
        )
        answer: Answer = None
        try:
            answer = await pending.answer
        except asyncio.CancelledError:
            self._take_back(call_id)
            raise
        finally:
            timer.cancel()
            self._end(call_id, pending, answered=isinstance(answer, Payload))
        if isinstance(answer, HasFaasError):
            try:
                raise answer
            finally:
                del answer, pending  # the traceback leads to this frame: the error must not keep itself alive
        assert answer is not None
        return answer

    async def stream(self, request: Request) -> AsyncGenerator[Payload, None]:
        """The items of a stream. Leaving the loop early takes the call back."""
        pending = Many()
        call_id = self._begin(request, pending)
        taken, over, answer = 0, False, None
        try:
            while True:
                answer = await pending.answers.get()
                over = not isinstance(answer, Payload)
                if isinstance(answer, HasFaasError):
                    raise answer
                if answer is None:
                    return
                yield answer
                taken += 1
                if taken % CREDIT_LOT == 0 and not self.broken:
                    self._send_credit(call_id, CREDIT_LOT)
        finally:
            self._end(call_id, pending, answered=over and answer is None)
            answer = None  # an error's traceback leads to this frame: it must not keep itself alive
            if not over:
                self._take_back(call_id)

    async def close(self) -> None:
        """Ends the session; what is under way is taken back by the gateway."""
        self._break(UnavailableError("the session was closed"))
        self._hang_up()
        await self._channel.close(None)
        if self._pool is not None:
            self._pool.close()
        self._reader.close()

    # -- what a shell does -------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _send_call(self, call_id: int, request: Request, pieces: Sequence[Buffer], segment: str) -> None:
        """The blob is in `pieces`, or in the segment."""

    @abc.abstractmethod
    def _send_cancel(self, call_id: int) -> None: ...

    @abc.abstractmethod
    def _send_credit(self, call_id: int, items: int) -> None: ...

    @abc.abstractmethod
    def _send_release(self, segment: str) -> None: ...

    @abc.abstractmethod
    def _hang_up(self) -> None: ...

    # -- what a shell tells ------------------------------------------------------------------------------------------

    def _take_payload(
        self, call_id: int, codec: int, head: bytes, sizes: tuple[int, ...], blob: Buffer, segment: str, *, last: bool
    ) -> None:
        """An item, or with `last` a result."""
        pending = self._pending.get(call_id)
        if pending is None:
            # Of a call that was taken back; its segment is not waited for.
            if segment:
                self._send_release(segment)
            return
        if not last and self._refused_stream(call_id, pending):
            return
        try:
            view = self._mapped(segment, payloads.blob_bytes(sizes)) if segment else blob
            payload = payloads.from_bytes(codec, head, sizes, view)
        except HasFaasError as exc:
            pending.put(exc)
            return
        pending.put(payload)
        if isinstance(pending, Many) and last:
            pending.put(None)

    def _take_end(self, call_id: int) -> None:
        pending = self._pending.get(call_id)
        if pending is not None and not self._refused_stream(call_id, pending):
            pending.put(None)

    def _take_error(self, call_id: int, error: HasFaasError) -> None:
        pending = self._pending.get(call_id)
        if pending is not None:
            pending.put(error)

    def _break(self, why: HasFaasError) -> None:
        """The gateway has gone, or takes nothing from this client."""
        self.broken, self.why_broken = True, why
        for pending in self._pending.values():
            pending.put(why)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _begin(self, request: Request, pending: One | Many) -> int:
        if self.broken:
            raise UnavailableError("the session's gateway has gone", reason=GATEWAY_LOST)
        pieces = payloads.segments(request.arguments)
        pending.segment = self._share(pieces, request.arguments)
        call_id = next(self._ids)
        self._pending[call_id] = pending
        self._send_call(call_id, request, () if pending.segment else pieces, pending.segment)
        return call_id

    def _share(self, pieces: list[Buffer], arguments: Payload) -> str:
        """The name of a segment that holds a large blob, "" where it goes in line."""
        if self._pool is None or not pieces:
            return ""
        nbytes = payloads.blob_bytes(arguments.lengths)
        segment = self._pool.write(pieces, nbytes) if nbytes >= THRESHOLD_BYTES else None
        return segment.name if segment is not None else ""

    def _mapped(self, name: str, nbytes: int) -> memoryview:
        """A result's segment. Once it is mapped here, and so locked while anybody looks, its writer may have it back."""
        try:
            return self._reader.view(Segment(name, nbytes))
        finally:
            self._send_release(name)

    def _give_up(self, call_id: int, pending: One, request: Request) -> None:
        self._take_back(call_id)
        pending.put(
            DeadlineError(
                f"{request.function}: no answer in {request.timeout_s:g} s, and none from the gateway about it"
            )
        )

    def _take_back(self, call_id: int) -> None:
        if not self.broken:
            self._send_cancel(call_id)

    def _end(self, call_id: int, pending: One | Many, *, answered: bool) -> None:
        """The call is over. Its arguments' segment is reused only when an answer shows that they have been read."""
        self._pending.pop(call_id, None)
        if pending.segment and self._pool is not None:
            (self._pool.give_back if answered else self._pool.drop)(pending.segment)

    def _refused_stream(self, call_id: int, pending: One | Many) -> bool:
        """Whether a stream answers a call that expects one answer; it is told so, and the stream is taken back."""
        if isinstance(pending, Many):
            return False
        self._pending.pop(call_id)
        self._take_back(call_id)
        pending.put(InvalidRequestError("this function streams: use .stream(...)"))
        return True
