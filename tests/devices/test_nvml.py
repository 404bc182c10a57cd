"""The driver's inventory, asked of a stand-in library through the real nvidia-ml-py, each time in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.nvml_library import (
    DRIVER_MISMATCH,
    NO_PERMISSION,
    FakeGpu,
    FakeProcess,
    FakeSlice,
    install,
    needs_compiler,
)

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(find_spec("pynvml") is None, reason="the package nvidia-ml-py is not installed"),
]
MIB = 2**20
ASK = """
import attrs, json, sys
from pathlib import Path
from hasfaas.core.errors import BackendError
from hasfaas.devices import nvml
def plain(value):
    return attrs.asdict(value) if attrs.has(type(value)) else value
def ask(name, *arguments):
    try:
        found = getattr(nvml, name)(*arguments)
    except BackendError as exc:
        return {"reason": exc.reason, "message": exc.message}
    return [plain(each) for each in found] if isinstance(found, tuple) else plain(found)
answers = []
for question in json.loads(sys.argv[1]):
    if question[0] == "touch":
        Path(question[1]).touch()
    else:
        answers.append(ask(*question))
print(json.dumps(answers))
"""


def ask(environment: Mapping[str, str], *questions: list[str]) -> list[Any]:
    """The answers of one process, in order; ["touch", path] makes a file in between."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(questions)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_driver_and_gpus_are_read(tmp_path: Path) -> None:
    gpus = (
        FakeGpu("GPU-a", "NVIDIA Fake A", mib=81920, capability=(9, 0), mig=False),
        FakeGpu("GPU-b", "NVIDIA Fake B", mib=24576, capability=(8, 9), compute_mode="exclusive_process"),
    )
    driver, found = ask(install(tmp_path, gpus, driver="580.159.04", cuda=(13, 0)), ["driver"], ["gpus"])
    assert driver == {"version": "580.159.04", "cuda": [13, 0]}
    assert found[0] == {
        "index": 0,
        "uuid": "GPU-a",
        "name": "NVIDIA Fake A",
        "memory_bytes": 81920 * MIB,
        "capability": [9, 0],
        "mig": False,
        "compute_mode": "default",
        "parent_uuid": None,
    }
    assert [(g["index"], g["uuid"], g["compute_mode"]) for g in found[1:]] == [(1, "GPU-b", "exclusive_process")]


def test_a_gpu_in_mig_mode_is_its_slices(tmp_path: Path) -> None:
    slices = (FakeSlice("MIG-1", 9856), FakeSlice("MIG-2", 40448, "NVIDIA Fake MIG 3g.40gb"))
    gpus = (FakeGpu("GPU-a", mig=True, slices=slices), FakeGpu("GPU-b", mig=False))
    [found] = ask(install(tmp_path, gpus), ["gpus"])
    assert [(g["uuid"], g["parent_uuid"], g["mig"], g["index"]) for g in found] == [
        ("MIG-1", "GPU-a", True, 0),
        ("MIG-2", "GPU-a", True, 0),
        ("GPU-b", None, False, 1),
    ]
    assert [g["memory_bytes"] for g in found[:2]] == [9856 * MIB, 40448 * MIB]
    assert found[1]["name"] == "NVIDIA Fake MIG 3g.40gb"
    assert found[1]["capability"] == [9, 0]


def test_a_gpu_in_mig_mode_without_slices_offers_nothing(tmp_path: Path) -> None:
    assert ask(install(tmp_path, [FakeGpu(mig=True)]), ["gpus"], ["lost"]) == [[], []]


def test_what_a_gpu_does_not_support_is_an_ordinary_value(tmp_path: Path) -> None:
    [[found]] = ask(install(tmp_path, [FakeGpu(mib=None, mig=None)]), ["gpus"])
    assert found["memory_bytes"] == 0
    assert found["mig"] is False


def test_processes_are_merged_by_pid(tmp_path: Path) -> None:
    held = (FakeProcess(70, 500), FakeProcess(41, 300), FakeProcess(41, 300, mps=True), FakeProcess(52, None, mps=True))
    part = FakeSlice("MIG-1", processes=(FakeProcess(9, 10),))
    gpus = (FakeGpu("GPU-a", processes=held), FakeGpu("GPU-b"), FakeGpu("GPU-c", mig=True, slices=(part,)))
    whole, empty, sliced = ask(
        install(tmp_path, gpus), ["processes", "GPU-a"], ["processes", "GPU-b"], ["processes", "MIG-1"]
    )
    assert [(p["pid"], p["memory_bytes"], p["mps"]) for p in whole] == [
        (41, 300 * MIB, True),
        (52, None, True),
        (70, 500 * MIB, False),
    ]
    assert empty == []
    assert [p["pid"] for p in sliced] == [9]


def test_a_gpu_is_unplugged_while_the_process_runs(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gpus = (FakeGpu("GPU-a"), FakeGpu("GPU-b", lost_with=gone))
    questions = (["present", "GPU-b"], ["gpus"], ["lost"], ["processes", "GPU-b"])
    before, listed, lost, processes, after, left, missing, refused = ask(
        install(tmp_path, gpus), *questions, ["touch", str(gone)], *questions
    )
    assert (before, lost, processes) == (True, [], [])
    assert [g["uuid"] for g in listed] == ["GPU-a", "GPU-b"]
    assert after is False
    assert [g["uuid"] for g in left] == ["GPU-a"]
    assert missing == [1]
    assert refused["reason"] == "GPU_LOST"


def test_a_gpu_that_is_closed_to_this_user_is_left_out_unless_it_is_the_only_one(tmp_path: Path) -> None:
    """As in a container that was given one of two."""
    closed = FakeGpu("GPU-a", closed=True)
    found, lost = ask(install(tmp_path, (closed, FakeGpu("GPU-b"))), ["gpus"], ["lost"])
    assert [(g["index"], g["uuid"]) for g in found] == [(1, "GPU-b")]
    assert lost == []
    [refused] = ask(install(tmp_path, (closed,)), ["gpus"])
    assert refused["reason"] == "GPU_PERMISSION"


def test_an_unknown_uuid_is_not_present(tmp_path: Path) -> None:
    present, processes = ask(install(tmp_path), ["present", "GPU-x"], ["processes", "GPU-x"])
    assert present is False
    assert processes["reason"] == "GPU_LOST"
    assert "GPU-x" in processes["message"]


@pytest.mark.parametrize(
    ("init", "reason", "cure"),
    [
        (DRIVER_MISMATCH, "DRIVER_MISMATCH", "reboot"),
        (NO_PERMISSION, "GPU_PERMISSION", "/dev/nvidia*"),
        (9, "NO_DRIVER", "modprobe nvidia"),
        (15, "GPU_LOST", "Xid"),
        (999, "NVML_FAILED", "nvidia-smi"),
    ],
)
def test_each_refusal_is_typed_and_has_its_cure(tmp_path: Path, init: int, reason: str, cure: str) -> None:
    questions = (["driver"], ["gpus"], ["lost"], ["present", "GPU-x"], ["processes", "GPU-x"])
    for answer in ask(install(tmp_path, init=init), *questions):
        assert answer["reason"] == reason
        assert cure in answer["message"]
        assert "(NVML: " in answer["message"]


def test_without_a_library_there_is_no_driver(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library at all")
    [answer] = ask({"LD_LIBRARY_PATH": str(tmp_path)}, ["gpus"])
    assert answer["reason"] == "NO_DRIVER"
    assert "no NVIDIA driver" in answer["message"]


def test_a_library_older_than_a_question_says_so(tmp_path: Path) -> None:
    """A symbol that the library lacks is "not supported" where a value can be missing, and a typed error elsewhere."""
    source = tmp_path / "old.c"
    source.write_text("int nvmlInitWithFlags(unsigned f) { return f ? 2 : 0; } int nvmlShutdown(void) { return 0; }")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    [answer] = ask({"LD_LIBRARY_PATH": str(tmp_path)}, ["driver"])
    assert answer["reason"] == "NVML_FAILED"


def test_without_the_package_its_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError('hidden by a test')")
    [answer] = ask({"PYTHONPATH": str(tmp_path)}, ["driver"])
    assert answer["reason"] == "NVML_NOT_INSTALLED"
    assert "nvidia-ml-py" in answer["message"]
