"""The standard input and output of a cluster's process, as lines (child.py). Whoever holds the other ends is its parent."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

from hasfaas.backends.cluster import child
from hasfaas.backends.cluster.child import Line, Refused
from hasfaas.core.errors import BackendError, HasFaasError
from hasfaas.wire.status import to_status

MAX_LINE_BYTES = 16 * 2**20


async def lines() -> AsyncIterator[Line]:
    """The lines that the parent writes, until it closes them or dies."""
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while text := await reader.readline():
        yield child.read(text)


def say(line: Line) -> None:
    """Tells the parent. Nothing where that has gone: the end of our input says so."""
    try:
        sys.stdout.buffer.write(child.write(line))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        return


def refuse(why: Exception) -> None:
    """Tells the parent what keeps this process from starting."""
    told = why if isinstance(why, HasFaasError) else BackendError(f"{type(why).__name__}: {why}")
    say(Refused(to_status(told).SerializeToString().hex()))


def orphaned() -> None:
    """The parent has gone: this process ends now. Replicas see the end of their life line, and nodes that of theirs."""
    os._exit(1)
