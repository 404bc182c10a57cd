"""Large calls while clients, replicas and gateways are killed leave shared memory as it was, and the gateway small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import ROOT

# What all processes of the machine have in shared memory is counted.
pytestmark = pytest.mark.alone


def test_kills_leave_nothing_in_shared_memory(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.segments", "--calls", "2400", "--seed", "3", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["left_in_shared_memory"] == 0
    # Calls of an idempotent function survive whatever is killed but their own client.
    assert figures["failed"] == 0
    assert figures["right"] > 0
    assert figures["clients_killed"] + figures["replicas_killed"] + figures["gateways_killed"] > 0
    assert figures["gateway_peak_mb"] < 200
