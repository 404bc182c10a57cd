"""A payload in a reference cycle is collected without harm: CPython 3.11 crashes on some cycles of memoryviews."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc, torch, numpy as np
from hasfaas.wire import payload
for value in ({1, 2}, torch.ones(3000), [torch.ones(3000), {1}], np.ones(3000), [np.ones(3000), {1}], b"x" * 100_000):
    made = payload.encode(value)
    decoded = payload.decode(made, allow_pickle=True)
    cycle = [made, decoded, value]
    cycle.append(cycle)
    del made, decoded, value, cycle
    gc.collect()
print("alive")
"""


def test_cycles_of_payloads_are_collected() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr
    assert "BufferError" not in done.stderr
