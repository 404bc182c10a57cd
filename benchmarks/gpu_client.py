"""A process on the GPU under check: it enters its part of the device as a replica does, and runs one job there.

Nothing is imported here that could start CUDA: the environment of the part comes first.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs

from hasfaas.devices import base
from hasfaas.devices.base import DeviceSlice, Failure, Stream
from hasfaas.executor.config import EXIT_BROKEN, EXIT_DEVICE_FAILED
from hasfaas.executor.tokens import SlotLease, TokenTable

COUNTERS = 2
BUSY_NS, UNITS = range(COUNTERS)
"""What a client counts for its check to read at any time: nanoseconds of its kernels by device events, and kernels."""


@attrs.define(eq=False)
class Seat:
    """What a job has: its stream, its lease, counters, a line to its check, and when the process entered `main` (ns)."""

    stream: Stream
    lease: SlotLease
    counters: Any
    line: Connection
    began_ns: int

    def say(self, value: object) -> None:
        """Tells the check something."""
        self.line.send(("said", value))

    def hear(self) -> Any:
        """Waits for what the check says."""
        return self.line.recv()


Job = Callable[..., None]


def main(
    path: Path, slot: int, part: DeviceSlice, counters: Any, line: Connection, job: Job, arguments: Sequence[object]
) -> None:
    """Runs the job and exits: 0, or as a replica would: 4 where the device failed, else 1. What it raised is told first."""
    began_ns, stream, code = time.monotonic_ns(), None, 0
    try:
        stream = base.enter(part)
        table = TokenTable.open(path)
        table.attach(slot)
        job(Seat(stream, SlotLease(table, slot, stream), counters, line, began_ns), *arguments)
    except BaseException as exc:
        traceback.print_exc()
        failure = None if stream is None else stream.failure(exc)
        code = EXIT_DEVICE_FAILED if failure is Failure.FATAL else EXIT_BROKEN
        line.send(("raised", f"{type(exc).__name__}: {exc}"))
    line.close()
    sys.stderr.flush()
    # After a fault, and with a context of which others know, an orderly exit may hang in the driver.
    os._exit(code)
