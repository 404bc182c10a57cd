"""The CPU as a device. What confines a process is tried in one of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.devices import base, cpu

ROOT = Path(__file__).parents[2]


def _in_child(code: str) -> str:
    """Runs `code` after a prelude in a fresh interpreter; what it prints."""
    prelude = (
        "import os, sys\n"
        "from hasfaas.devices import base, cpu\n"
        "info = cpu.device(cores=1)\n"
        "part = base.DeviceSlice('cpu', 'cpu', 0, info.units, 100.0)\n"
    )
    done = subprocess.run([sys.executable, "-c", prelude + code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_inventory_lists_the_cores_of_this_process() -> None:
    info = cpu.device()
    assert info.units == tuple(sorted(os.sched_getaffinity(0)))
    assert info.kind == "cpu"
    assert info.memory_bytes > 64 << 20


@pytest.mark.parametrize(("cores", "auto"), [(1, 100.0), (2, 50.0), (4, 75.0)])
def test_an_unsized_function_leaves_a_core_to_the_host(
    cores: int, auto: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1, 0, 2})
    info = cpu.device(cores=cores)
    assert info.units == (0, 1, 2, 3)[:cores]
    assert info.auto_sm_percent == auto


@pytest.mark.parametrize("cores", [0, 10_000])
def test_cores_that_do_not_exist_are_refused(cores: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"cores={cores}"):
        cpu.device(cores=cores)


def test_units_that_do_not_exist_are_refused() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(InvalidRequestError, match="not ours to use"):
        base.enter(base.DeviceSlice("cpu", "cpu", 0, (1023,), 50.0))
    assert os.sched_getaffinity(0) == before


def test_entering_sets_affinity_and_threads_before_libraries_start() -> None:
    out = _in_child(
        "base.enter(part)\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "print(len(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])\n"
    )
    assert out == "1 1 1"


def test_torch_that_is_there_already_gets_as_many_threads_as_cores() -> None:
    pytest.importorskip("torch")
    out = _in_child(
        "import torch\n"
        "torch.set_num_threads(2)\n"
        "base.enter(part)\n"
        "base.enter(part)\n"  # the inter-op threads may be set only once
        "print(torch.get_num_threads(), torch.get_num_interop_threads())\n"
    )
    assert out == "1 1"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_freed_memory_is_used_again_without_faulting_its_pages_anew() -> None:
    """Forty arrays of 8 MiB one after the other: 2,048 pages each, faulted once and not forty times."""
    out = _in_child(
        "base.enter(part)\n"
        "import resource\n"
        "import numpy as np\n"
        "np.ones(2**20).sum()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(40):\n"
        "    np.ones(2**20).sum()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    assert int(out) < 2 * 2048


def test_its_stream_is_synchronous() -> None:
    stream: base.Stream = cpu.SynchronousStream()
    event = stream.record()
    assert event is None
    assert stream.query(event)
    stream.wait(event)
    stream.drain()
    gates: list[None] = []
    stream.serve("f", 4, lambda: gates.append(None))
    assert gates == []


def test_unknown_kinds_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match="'tpu' is unknown; known kinds: auto, cpu, cuda, sim"):
        base.enter(base.DeviceSlice("x", "tpu", 0, (0,), 100.0))
