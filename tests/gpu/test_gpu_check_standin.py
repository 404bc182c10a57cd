"""The checks of a GPU, run whole on the stand-ins: fake NVML, fake MPS, and a stand-in for CuPy. No GPU, and no word on one.

What it shows: that each check comes to its end, says what the stand-in grants, and would notice what is wrong.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_sheet import Written
from tests.fakes import mps_daemon, nvml_library, standin_cupy

ROOT = Path(__file__).parents[2]
pytestmark = nvml_library.needs_compiler
# The kernels of gpu_kernels.py, for every process: the stand-in knows kernels by their names.
KERNELS = """
import os
from cupy import _core, _machine, standin

def illegal(address):
    if "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
        _machine._mps().fault(os.environ, os.getpid())
    _machine.machine.fail(700)

_core.kernels["spin"] = lambda grid, block, args: (int(args[0]), None)
standin.define("illegal", 0.0, illegal)
"""
Environment = dict[str, str]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., Environment]]:
    """The environment of a machine with a fake GPU, by the settings of its MPS and the CUDA version of its driver."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(KERNELS)

    def made(cuda: tuple[int, int] = (13, 1), **settings: Any) -> Environment:
        path = os.pathsep.join([str(site), str(standin_cupy.FOLDER), os.environ.get("PYTHONPATH", "")])
        nvml = nvml_library.install(tmp_path / "nvml", cuda=cuda)
        return {**os.environ, **mps_daemon.install(tmp_path / "mps", **settings), **nvml, "PYTHONPATH": path}

    yield made
    mps_daemon.stop_all(tmp_path / "mps")


def checked(environment: Environment, folder: Path, *names: str) -> dict[str, Any]:
    """The checks of the record, by name. No daemon may be left."""
    only = [word for name in names for word in ("--only", name)]
    command = [sys.executable, "-m", "benchmarks.gpu_check", *only, "--out", str(folder / "records")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert mps_daemon.daemons(folder / "mps") == []
    (record,) = (folder / "records").glob("RECORD-*.json")
    checks: list[dict[str, Any]] = json.loads(record.read_text())["checks"]
    return {check["name"]: check for check in checks}


def figures(check: dict[str, Any]) -> dict[str, float]:
    return {figure["name"]: figure["median"] for figure in check["figures"]}


def test_static_partitions_have_what_they_were_asked_for(machine: Callable[..., Environment], tmp_path: Path) -> None:
    check = checked(machine(), tmp_path, "census_static")["census_static"]
    assert check["status"] == "passed", check
    assert [figure["note"] for figure in check["figures"]] == ["64 of 132 SMs", "32 of 132 SMs", "16 of 132 SMs"]
    assert "lanes are kept apart by: static" in check["remarks"]


def test_percentages_have_what_they_were_asked_for_where_static_partitions_are_not(
    machine: Callable[..., Environment], tmp_path: Path
) -> None:
    found = checked(machine(cuda=(12, 8)), tmp_path, "census_static", "census_percentage")
    assert found["census_static"]["status"] == "not run"
    assert "CUDA 13.1" in found["census_static"]["why"]
    assert found["census_percentage"]["status"] == "passed"
    assert [figure["note"] for figure in found["census_percentage"]["figures"]] == [
        "64 of 132 SMs",
        "33 of 132 SMs",
        "14 of 132 SMs",
    ]


@pytest.mark.parametrize(("isolates", "idle_lives"), [(False, 0.0), (True, 1.0)])
def test_the_reach_of_a_fault_is_seen(
    machine: Callable[..., Environment], tmp_path: Path, isolates: bool, idle_lives: float
) -> None:
    check = checked(machine(isolates=isolates), tmp_path, "fault")["fault"]
    assert check["status"] == "passed", check
    seen = figures(check)
    assert seen["a busy replica in its lane went on"] == 0.0
    assert seen["an idle replica in another lane went on"] == idle_lives


def test_time_is_counted_and_quotas_are_re_sized(machine: Callable[..., Environment], tmp_path: Path) -> None:
    """Kernels sleep here, so only what no load can change is asserted."""
    lines = tmp_path / "lines"
    code = (
        "from pathlib import Path\nfrom benchmarks import gpu_share\nfrom benchmarks.gpu_sheet import Sheet\n"
        f"sheet = Sheet(Path({str(lines)!r}))\n"
        "gpu_share.overrun(sheet, 0.5, 1)\ngpu_share.resize(sheet, 2)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=machine(), timeout=110, check=True)
    seen = {figure.name: figure.median for figure in Written.of(lines.read_text().splitlines()).figures}
    assert seen["gates in the code: grants"] > 0.0
    assert seen["CuPy kernels gated by hasfaas: grants"] > 0.0
    assert seen["in force after"] > 0.0
    assert seen["share from two windows on, error"] < 20.0  # of flips by 40


def test_without_mps_what_needs_two_lanes_is_not_run(machine: Callable[..., Environment], tmp_path: Path) -> None:
    environment = machine()
    (tmp_path / "mps" / "bin" / mps_daemon.COMMAND).unlink()
    check = checked(environment, tmp_path, "parallel")["parallel"]
    assert check["status"] == "not run", check
    assert "2 lanes are needed" in check["why"]
    assert "lanes are kept apart by: none" in " ".join(check["remarks"])


def test_what_needs_torch_on_a_gpu_is_not_run_without_it(machine: Callable[..., Environment], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is not None:
        pytest.skip("this torch is built with CUDA")
    check = checked(machine(), tmp_path, "wall")["wall"]
    assert check["status"] == "not run", check
    assert "built without CUDA" in check["why"]


def test_a_run_that_is_broken_off_leaves_no_daemon_and_a_record(
    machine: Callable[..., Environment], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--only", "resize", "--out", str(tmp_path / "records")]
    process = subprocess.Popen(command, cwd=ROOT, env=machine())
    try:
        end_s = time.monotonic() + 60.0
        while not mps_daemon.daemons(tmp_path / "mps"):
            assert time.monotonic() < end_s, "no daemon was started"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60.0) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert mps_daemon.daemons(tmp_path / "mps") == []
    assert len(list((tmp_path / "records").glob("RECORD-*"))) == 2
