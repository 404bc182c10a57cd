"""A short-lived process that is a client of a GPU while somebody looks at what that allows: it says what it found in one
line of JSON, and stays until it is let go."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs

from hasfaas.core.errors import BackendError

COMMAND = (sys.executable, "-m", "hasfaas.devices.probes", "census", "--hold")
START_S = 60.0
"""Importing CuPy, making a context and compiling a kernel take seconds on a slow disk."""
_LEAVE_S = 5.0


@attrs.frozen
class Census:
    """What the probe found: the SMs that its kernels ran on, those that CUDA names, their clock, and how long CUDA took to
    start."""

    sms: int
    device_sms: int
    clock_mhz: float
    context_ms: float


@contextmanager
def held_probe(
    environment: Mapping[str, str | None],
    *,
    command: Sequence[str] = COMMAND,
    before_kill: Callable[[int], None] = lambda pid: None,
) -> Iterator[Census]:
    """Runs the probe with this environment over our own (None: removed), and holds it inside the block.

    Raises BackendError, PROBE_FAILED, with its last words, where it says nothing or ends.
    """
    ours = {name: value for name, value in (os.environ | environment).items() if value is not None}
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, env=ours, start_new_session=True
        )
        try:
            census = _census(_first_line(process))
            if census is None:
                words.seek(0)
                raise _failed(words.read().decode(errors="replace"))
            yield census
        finally:
            _let_go(process, before_kill)


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    """What it says first; nothing where it ends, or says nothing for too long."""
    assert process.stdout is not None
    late = threading.Timer(START_S, process.kill)
    late.start()
    try:
        return process.stdout.readline()
    finally:
        late.cancel()


def _census(line: bytes) -> Census | None:
    try:
        found = json.loads(line)
        return Census(
            int(found["sms"]), int(found["device_sms"]), float(found["clock_mhz"]), float(found["context_ms"])
        )
    except (ValueError, KeyError, TypeError):
        return None


def _failed(words: str) -> BackendError:
    last = words.strip().rpartition("\n")[2] or "it said nothing"
    return BackendError(
        f"the probe of the GPU failed: {last}. Run `python -m hasfaas.devices.probes census` to see more",
        reason="PROBE_FAILED",
    )


def _let_go(process: subprocess.Popen[bytes], before_kill: Callable[[int], None]) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_LEAVE_S)
    except subprocess.TimeoutExpired:
        before_kill(process.pid)
        process.kill()
        process.wait()
    process.stdout.close()
