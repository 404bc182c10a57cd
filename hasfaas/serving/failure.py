"""How an RPC fails: a canonical code with details, small enough for the trailing metadata."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, NoReturn, TypeVar

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from hasfaas.core.errors import HasFaasError
from hasfaas.wire.status import to_status, trimmed

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
# A status travels in the trailing metadata, of which gRPC takes 8 KiB, base64 included.
MAX_TRAILER_BYTES = 4096


class StatusError(Exception):
    """A serialised google.rpc.Status on its way out."""

    def __init__(self, status: bytes) -> None:
        super().__init__()
        self.status = status


async def guard(context: Context, work: Awaitable[T]) -> T:
    """What `work` gives; an error of ours ends the RPC with its status."""
    try:
        return await work
    except (HasFaasError, StatusError) as exc:
        await abort(context, exc)


async def abort(context: Context, exc: HasFaasError | StatusError) -> NoReturn:
    """Ends the RPC with the status of an error. Does not return."""
    status = status_pb2.Status.FromString(exc.status) if isinstance(exc, StatusError) else to_status(exc)
    small = rpc_status.to_status(trimmed(status, MAX_TRAILER_BYTES))
    await context.abort_with_status(small)  # type: ignore[attr-defined]  # its stubs lack it
    raise AssertionError("abort does not return") from exc
