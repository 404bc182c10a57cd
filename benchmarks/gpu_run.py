"""Runs checks one after the other, each in a process of its own with a limit; at its end its whole group is killed.

Law: no check starves another. The limits of all sum to at most the total, and only time that earlier ones left over can
lengthen a limit, to the double at most.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import attrs

from benchmarks.gpu_sheet import Figure, Written

TOTAL_S = 460.0
"""Eight minutes less what starting, ending and writing take."""
LEAST_S = 5.0
"""A check with less time left than this is not begun."""
GRACE_S = 5.0
"""A check that is told to end has so long to take back what it made on the GPU."""
_LOG_LINES = 30
_ROOT = Path(__file__).parents[1]


@attrs.frozen
class Check:
    """One claim, the function that proves or refutes it (`module:name`), and its time limit in seconds."""

    name: str
    claim: str
    target: str
    limit_s: float


class Status(enum.Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"  # a figure is out of its bounds
    ERROR = "error"
    OVER_TIME = "over time"
    NOT_RUN = "not run"


@attrs.frozen
class Outcome:
    """What one check came to."""

    check: Check
    status: Status
    seconds: float = 0.0
    why: str = ""
    figures: tuple[Figure, ...] = ()
    remarks: tuple[str, ...] = ()


def allowed_s(check: Check, left_s: float, later: Sequence[Check]) -> float:
    """How long a check may take: what is left of the total less the limits of those that follow; at most twice its own limit,
    and at most what is left."""
    spare_s = left_s - sum(other.limit_s for other in later)
    return max(0.0, min(left_s, 2.0 * check.limit_s, max(spare_s, check.limit_s)))


def run_all(
    checks: Sequence[Check], gpu: str, *, total_s: float = TOTAL_S, clock_s: Callable[[], float] = time.monotonic
) -> Iterator[Outcome]:
    """The outcome of each in turn, as it is known."""
    end_s = clock_s() + total_s
    for index, check in enumerate(checks):
        limit_s = allowed_s(check, end_s - clock_s(), checks[index + 1 :])
        if limit_s < LEAST_S:
            yield Outcome(check, Status.NOT_RUN, why=f"the {total_s:g} s of all checks were used up")
        else:
            yield run_one(check, gpu, limit_s)


def run_one(check: Check, gpu: str, limit_s: float) -> Outcome:
    """Runs one check in a group of processes, nothing of which outlives it."""
    with tempfile.TemporaryDirectory(prefix="hasfaas-gpu-check-") as folder, tempfile.TemporaryFile() as log:
        lines = Path(folder) / "lines"
        lines.touch()
        began_s = time.monotonic()
        code = _end_of(check, [str(lines), gpu], limit_s, log)
        seconds = time.monotonic() - began_s
        written = Written.of(lines.read_text().splitlines())
        outcome = judged(check, written, code, limit_s)
        if outcome.status in (Status.ERROR, Status.OVER_TIME):
            sys.stderr.write(_tail(log))
        return attrs.evolve(outcome, seconds=seconds, figures=written.figures, remarks=written.remarks)


def judged(check: Check, written: Written, code: int | None, limit_s: float) -> Outcome:
    """The outcome by what was written and how the process ended (None: it was killed at its limit)."""
    if code is None:
        return Outcome(check, Status.OVER_TIME, why=f"it was ended after its {limit_s:.0f} s")
    if written.end == "not run":
        return Outcome(check, Status.NOT_RUN, why=written.why)
    if written.end != "done":
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Outcome(check, Status.ERROR, why=written.why or f"its process ended with {how}")
    if not written.figures:
        return Outcome(check, Status.ERROR, why="it wrote no figure")
    missed = [figure.name for figure in written.figures if figure.met is False]
    return Outcome(check, Status.FAILED if missed else Status.PASSED, why="; ".join(missed))


def _end_of(check: Check, arguments: Sequence[str], limit_s: float, log: IO[bytes]) -> int | None:
    command = [sys.executable, "-m", "benchmarks.gpu_process", check.target, *arguments]
    process = subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # also what the check itself left behind
        except ProcessLookupError:
            pass
        process.wait()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
    return "".join(f"    | {line}\n" for line in lines)
