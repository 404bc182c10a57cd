"""Who may call what over a network: every RPC shows a token, health and reflection too, or is refused before it is read.

The table below is the rule; a method of ours that is not in it is closed to all. A token that is revoked or expires is
refused from the next RPC on, and ends the streams that it opened within a second.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc

from hasfaas.core import token_file, tokens
from hasfaas.core.errors import AuthError
from hasfaas.core.tokens import Grant
from hasfaas.serving.failure import Context, abort
from hasfaas.wire.v1 import functions_pb2

SERVICE = functions_pb2.DESCRIPTOR.services_by_name["FunctionService"].full_name
SCOPE_OF: Mapping[str, str] = {
    "Deploy": "deploy",
    "BeginDeploy": "deploy",
    "DeleteFunction": "deploy",
    "ScaleFunction": "deploy",
    "Profile": "deploy",
    "Invoke": "invoke",
    "InvokeStream": "invoke",
    "Session": "invoke",
    "ListFunctions": "read",
    "StreamLogs": "read",
    "GetStatus": "read",
    "GetProfile": "read",
    "ExplainFunction": "read",
}
HEADER = "authorization"
SCHEME = "Bearer "
RECHECK_S = 1.0
log = logging.getLogger("hasfaas.access")

Metadata = Iterable[tuple[str, str | bytes]]


class Access:
    """The tokens of one file, as they stand now: it is read again whenever it has changed."""

    def __init__(self, path: Path, *, now_s: Callable[[], float] = time.time) -> None:
        """Raises AuthError or OSError when the file cannot be used at all."""
        self._path = path
        self._now_s = now_s
        self._seen = self._stamp()
        self._grants = token_file.read(path)

    def grant(self, metadata: Metadata) -> Grant:
        """The grant of the token in an RPC's metadata. Raises AuthError."""
        shown = [value for key, value in metadata if key == HEADER]
        if not shown:
            raise AuthError(
                "this gateway wants a token with every call: set cluster.token_file to a file with one, made with "
                "`hasfaas token create` where the gateway runs",
                reason=tokens.NO_TOKEN,
            )
        text = shown[0]
        if len(shown) > 1 or not isinstance(text, str) or not text.startswith(SCHEME):
            raise AuthError(f"send one token, as `{HEADER}: {SCHEME}TOKEN`", reason=tokens.BAD_TOKEN)
        return tokens.check(self._current(), text.removeprefix(SCHEME), now_s=self._now_s())

    def admit(self, method: str, metadata: Metadata) -> Grant:
        """The same, checked to give the right to call `method` ("/service/Method")."""
        grant = self.grant(metadata)
        service, _, name = method.removeprefix("/").rpartition("/")
        if service != SERVICE:
            return grant  # health, reflection, or a service that is not there
        if name not in SCOPE_OF:
            raise AuthError(f"{name} cannot be called over a network", reason=tokens.SCOPE)
        grant.require(SCOPE_OF[name])
        return grant

    def stands(self, grant: Grant) -> bool:
        """Whether a grant is still in the file as it was, and its time not over."""
        return self._current().get(grant.name) == grant and not grant.expired(self._now_s())

    def _current(self) -> Mapping[str, Grant]:
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._grants = {}  # whatever goes wrong now, what was revoked meanwhile is not let in
                self._grants = token_file.read(self._path)
                self._seen = stamp
        except (AuthError, OSError) as exc:
            if self._seen is not None:
                log.error("no token is accepted until this is cured: %s", exc)
            self._grants, self._seen = {}, None
        return self._grants

    def _stamp(self) -> tuple[int, int, int, int] | None:
        status = os.stat(self._path)  # noqa: PTH116 - a microsecond, with every RPC
        return status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns


class TokenGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs alone
    """Stands before every RPC of a server."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        details: Any = handler_call_details
        try:
            grant = self._access.admit(details.method, details.invocation_metadata or ())
        except AuthError as exc:
            return _refusal(exc)
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler.response_streaming:
            return handler  # type: ignore[no-any-return]
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        kept: Any = self._while_it_stands(grant, behaviour)
        return make(kept, handler.request_deserializer, handler.response_serializer)

    def _while_it_stands(
        self, grant: Grant, behaviour: Callable[[Any, Context], Any]
    ) -> Callable[..., Awaitable[None]]:
        """The same stream, ended when its token is no longer good."""

        async def stream(request: Any, context: Context) -> None:
            work = asyncio.ensure_future(_answer(behaviour, request, context))
            watch = asyncio.ensure_future(self._until_gone(grant))
            try:
                await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    await work
                    return
                await _ended(work)
                why = f"token {grant.name!r} was revoked or has expired while the stream was open"
                await abort(context, AuthError(why, reason=tokens.BAD_TOKEN))
            finally:
                await _ended(work, watch)

        return stream

    async def _until_gone(self, grant: Grant) -> None:
        while self._access.stands(grant):  # noqa: ASYNC110 - what is waited for happens in a file
            await asyncio.sleep(RECHECK_S)


def _refusal(exc: AuthError) -> grpc.RpcMethodHandler[Any, Any]:
    """Answers in place of a method. As a stream, whatever the method is: so not a byte of the request is read."""

    async def refuse(_requests: object, context: Context) -> None:
        await abort(context, exc)

    return grpc.stream_stream_rpc_method_handler(refuse)


async def _answer(behaviour: Callable[[Any, Context], Any], request: Any, context: Context) -> None:
    """Runs a stream's method, in either of the two styles of grpc.aio."""
    answers = behaviour(request, context)
    if not inspect.isasyncgen(answers):
        await answers
        return
    try:
        async for answer in answers:
            await context.write(answer)
    finally:
        await answers.aclose()


async def _ended(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
