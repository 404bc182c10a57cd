"""A stand-in for the probe process: a client of the fake MPS that says what it was granted, and stays until its input
closes. `lingers` stays longer than that; `silent` says nothing; `broken` ends with a line of error; a number is that of the
SMs which CUDA names."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main(kind: str = "") -> int:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.fakes import mps_daemon

    if kind == "broken":
        print("NO_CUPY: CuPy is not installed", file=sys.stderr)
        return 1
    try:
        granted = mps_daemon.connect(os.environ, os.getpid())
    except mps_daemon.Refused as exc:
        print(exc, file=sys.stderr)
        return 1
    found = {
        "sms": granted.sms,
        "device_sms": int(kind) if kind.isdigit() else 132,
        "clock_mhz": 1980.0,
        "context_ms": 250.0,
    }
    print("" if kind == "silent" else json.dumps(found), flush=True)
    sys.stdin.read()
    if kind == "lingers":
        time.sleep(60)
    mps_daemon.leave(os.environ, os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
