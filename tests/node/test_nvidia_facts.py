"""What NVIDIA's libraries say, asked for with a time limit: of a stand-in library, of libraries that hang or crash, of the
CuPy and torch that are installed here."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hasfaas.devices.nvml import Driver
from hasfaas.node import nvidia_facts
from hasfaas.node.nvidia_facts import Torch, ask_cupy, ask_nvml, device_nodes, kernel_module, torch_build
from tests.fakes.nvml_library import FakeGpu, FakeProcess, FakeSlice, install, needs_compiler

needs_nvml = pytest.mark.skipif(find_spec("pynvml") is None, reason="the package nvidia-ml-py is not installed")


def use(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@needs_compiler
@needs_nvml
def test_all_of_nvml_arrives_as_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.touch()
    part = FakeSlice("MIG-1", processes=(FakeProcess(9, 10, mps=True),))
    gpus = (
        FakeGpu("GPU-a", processes=(FakeProcess(7),)),
        FakeGpu("GPU-b", lost_with=gone),
        FakeGpu("GPU-c", mig=True, slices=(part,)),
    )
    use(monkeypatch, install(tmp_path, gpus, driver="580.1", cuda=(13, 0)))
    found = ask_nvml()
    assert found.driver == Driver("580.1", (13, 0))
    assert [gpu.uuid for gpu in found.gpus] == ["GPU-a", "MIG-1"]
    assert found.gpus[1].parent_uuid == "GPU-c"
    assert found.gpus[0].capability == (9, 0)
    assert found.lost == (1,)
    assert {uuid: [p.pid for p in listed] for uuid, listed in found.processes.items()} == {"GPU-a": [7], "MIG-1": [9]}
    assert found.processes["MIG-1"][0].mps
    assert found == nvidia_facts.Nvidia(driver=found.driver, gpus=found.gpus, lost=(1,), processes=found.processes)


@needs_compiler
@needs_nvml
def test_a_refusal_arrives_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, install(tmp_path, init=18))
    found = ask_nvml()
    assert (found.reason, found.driver) == ("DRIVER_MISMATCH", None)
    assert "reboot" in found.message


@needs_compiler
@needs_nvml
@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [("for (;;) pause();", "TIMED_OUT", "within 3 s"), ("abort();", "CRASHED", "exit code -6")],
)
def test_a_driver_that_hangs_or_crashes_does_so_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, reason: str, words: str
) -> None:
    source = tmp_path / "bad.c"
    source.write_text(
        f"#include <stdlib.h>\n#include <unistd.h>\nint nvmlInitWithFlags(unsigned f) {{ (void)f; {body} }}\n"
    )
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libnvidia-ml.so.1"), str(source)], check=True, timeout=60
    )
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = ask_nvml(timeout_s=3 if reason == "TIMED_OUT" else 60)
    assert found.reason == reason
    assert words in found.message


@pytest.mark.skipif(find_spec("cupy") is None, reason="cupy is not installed")
def test_the_cupy_here_tells_its_version_and_the_cuda_it_was_built_for() -> None:
    found = ask_cupy()
    assert found.error == ""
    assert found.version
    assert found.cuda is None or found.cuda >= (11, 0)
    assert found.gpus or found.unusable


def test_a_cupy_that_does_not_import_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise ImportError('libnothing.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "libnothing.so" in ask_cupy().error


def test_a_cupy_that_kills_its_process_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "exit code -6" in ask_cupy().error


def test_cupy_is_asked_without_the_mps_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text(
        "import os; raise ImportError(str([n for n in os.environ if n.startswith('CUDA')]))"
    )
    use(monkeypatch, {"PYTHONPATH": str(tmp_path), "CUDA_MPS_PIPE_DIRECTORY": "/x", "CUDA_VISIBLE_DEVICES": "0"})
    assert ask_cupy().error == "fails: ['CUDA_VISIBLE_DEVICES']"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.9.0+cu128'\ncuda: Optional[str] = '12.8'\n", Torch("2.9.0+cu128", "12.8")),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", Torch("2.13.0+cpu", "")),
        ("__version__ = '2.6.0'\ncuda = '12.4'\n", Torch("2.6.0", "12.4")),
        (None, Torch("of an unknown version", "")),
    ],
)
def test_torch_is_read_and_not_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, expected: Torch
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise AssertionError('imported')")
    if text is not None:
        (tmp_path / "torch/version.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert torch_build() == expected


def test_device_files_are_found_with_their_permissions(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-modeset"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia1").chmod(0)
    found = {Path(node.path).name: node.usable for node in device_nodes(tmp_path)}
    assert found == {"nvidia0": True, "nvidia1": os.getuid() == 0, "nvidiactl": True}


def test_the_kernel_module_is_told_by_its_files(tmp_path: Path) -> None:
    assert not kernel_module(tmp_path, tmp_path)
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    (tmp_path / "driver/nvidia/version").touch()
    assert kernel_module(tmp_path, tmp_path / "dev")
