"""A payload in a reference cycle is collected without harm: CPython 3.11 crashes on some cycles of memoryviews."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

from hasfaas.wire import payload

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


@pytest.mark.parametrize("codec", ["plain", "pickle"])
def test_what_is_decoded_lets_go_of_its_buffers_at_once(codec: str) -> None:
    """A segment of shared memory is not reused while a view of it lives, so none may wait for the garbage collector."""
    array = np.ones(1000)
    value: object = {"x": (array, b"y" * 100_000)} if codec == "plain" else [array, {1, 2}]
    gc.collect()
    gc.disable()
    try:
        made = payload.encode(value)
        blob = (ctypes.c_char * payload.blob_bytes(made.lengths))()
        gone = weakref.ref(blob)
        received = payload.from_bytes(made.codec, made.head, made.lengths, memoryview(blob).cast("B"))
        decoded = payload.decode(received, allow_pickle=True)
        del received, blob
        assert gone() is not None
        del decoded
        assert gone() is None
        source = weakref.ref(array)
        del made, value, array
        assert source() is None
    finally:
        gc.enable()
