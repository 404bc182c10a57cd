"""Checks of no GPU, for the tests of what runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_sheet import NotRunError, Sheet

RECORD = "STUB_RECORD"
"""The variable that names the record which `reads_the_record` looks at."""
_SLEEP = [sys.executable, "-c", "import time; time.sleep(120)"]


def passes(sheet: Sheet) -> None:
    sheet.figure("three", [1.0, 3.0, 2.0], "ms", least=1.5, most=2.5, note="a | note")
    sheet.remark("a remark")


def fails(sheet: Sheet) -> None:
    sheet.figure("kept", 1.0, "ms", most=2.0)
    sheet.figure("missed", 3.0, "ms", most=2.0)


def raises(sheet: Sheet) -> None:
    sheet.figure("before", 1.0, "ms")
    raise RuntimeError("it broke")


def dies(sheet: Sheet) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_silent(sheet: Sheet) -> None:
    pass


def cannot_run(sheet: Sheet) -> None:
    raise NotRunError("no such partitions here")


def hangs(sheet: Sheet) -> None:
    """With a child; both take no notice of being told to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(_SLEEP, preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    sheet.figure("before the end", 1.0, "ms", most=2.0)
    sheet.remark(str(child.pid))
    time.sleep(120)


def leaves_a_child(sheet: Sheet) -> None:
    sheet.remark(str(subprocess.Popen(_SLEEP).pid))
    sheet.figure("done", 1.0, "ms")


def tidies_up(sheet: Sheet) -> None:
    """Takes back what it made when it is told to end."""
    try:
        time.sleep(120)
    finally:
        sheet.remark("taken back")


def reads_the_record(sheet: Sheet) -> None:
    checks = json.loads(Path(os.environ[RECORD]).read_text())["checks"]
    sheet.remark(json.dumps([[check["status"], check["why"]] for check in checks]))
    sheet.figure("read", 1.0, "")
