"""`hasfaas doctor`: this machine as it is, and machines with GPUs through the stand-in for NVIDIA's library."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hasfaas.core.settings import Settings
from hasfaas.node.gpu_checks import NO_DRIVER_LINE
from hasfaas.node.nvidia_facts import kernel_module
from hasfaas.sdk.cli import cli
from tests.fakes import mps_daemon
from tests.fakes.nvml_library import (
    DRIVER_MISMATCH,
    NO_PERMISSION,
    FakeGpu,
    FakeProcess,
    FakeSlice,
    install,
    needs_compiler,
)
from tests.fakes.shell_gateway import FakeClient, FakeGateway

needs_nvml = pytest.mark.skipif(find_spec("pynvml") is None, reason="the package nvidia-ml-py is not installed")
no_gpu = pytest.mark.skipif(kernel_module(), reason="this machine has an NVIDIA driver")
# Stands in for an installed CuPy that reaches two GPUs: what the doctor asks of it, and nothing else.
CUPY = """
from types import SimpleNamespace
__version__ = "14.2.0"
cuda = SimpleNamespace(
    nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)),
    runtime=SimpleNamespace(runtimeGetVersion=lambda: 12090, getDeviceCount=lambda: 2),
)
"""


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings of this test's own, and no library of NVIDIA's but those that a test gives."""
    for name in [name for name in os.environ if name.startswith(("HASFAAS_", "CUDA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HASFAAS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HASFAAS_RUNTIME_DIR", "/tmp/hasfaas-doctor-test")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, gateway: FakeGateway | None = None) -> Result:
    """Runs the shell; with `gateway` one is running."""
    client = None if gateway is None else lambda settings: FakeClient(gateway)
    return CliRunner().invoke(cli, [*arguments], obj=client, catch_exceptions=False)


def report(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the findings by check; of several on one check the last."""
    result = run(*arguments, "doctor", "--json")
    document = json.loads(result.stdout)
    assert document["healthy"] is (result.exit_code == 0)
    return result.exit_code, {finding["check"]: finding for finding in document["findings"]}


def give(monkeypatch: pytest.MonkeyPatch, folder: Path, *gpus: FakeGpu, **options: Any) -> None:
    """A driver with these GPUs, CuPy, and MPS."""
    (folder / "lib").mkdir()
    (folder / "lib/cupy.py").write_text(CUPY)
    given = {**install(folder / "nvml", gpus, **options), "PYTHONPATH": str(folder / "lib")}
    for name, value in (given | {"PATH": mps_daemon.install(folder / "mps")["PATH"]}).items():
        monkeypatch.setenv(name, value)


# -- this machine -----------------------------------------------------------------------------------------------------


@no_gpu
def test_without_a_driver_one_line_says_so_and_nothing_fails() -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stdout.splitlines() if "NVIDIA" in line]
    assert line.split() == ["note", "driver", *NO_DRIVER_LINE.split()]
    assert result.stdout.endswith("\nnothing fails\n")


@no_gpu
def test_json_holds_every_finding_with_its_state() -> None:
    code, found = report()
    assert code == 0
    assert found["driver"] == {"check": "driver", "state": "note", "detail": NO_DRIVER_LINE, "cure": ""}
    assert {"python", "packages", "processors", "memory", "/dev/shm", "runtime_dir", "state_dir"} <= set(found)
    assert {finding["state"] for finding in found.values()} <= {"ok", "note", "warn"}


@no_gpu
def test_a_cuda_device_in_the_settings_fails_without_a_driver(tmp_path: Path) -> None:
    (tmp_path / "hasfaas.toml").write_text('[[devices]]\nkind = "cuda"\n')
    result = run("doctor")
    assert result.exit_code == 5
    assert "FAIL  driver" in result.stdout
    assert 'kind = "auto"' in result.stdout
    assert "1 of" in result.stdout.splitlines()[-1]


@no_gpu
def test_probing_without_a_gpu_says_so() -> None:
    result = run("doctor", "--probe")
    assert result.exit_code == 5
    assert "there is no GPU to measure" in result.stdout
    assert NO_DRIVER_LINE in result.stdout


def test_settings_that_are_wrong_are_a_finding() -> None:
    result = run("--set", "local.window_ms=0", "doctor", "--json")
    assert result.exit_code == 5
    [finding] = json.loads(result.stdout)["findings"]
    assert finding["check"] == "settings"
    assert "local.window_ms" in finding["detail"]


def test_a_folder_of_sockets_that_is_open_to_others_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    monkeypatch.setenv("HASFAAS_RUNTIME_DIR", str(tmp_path / "run"))
    code, found = report()
    assert code == 5
    assert found["runtime_dir"]["state"] == "fail"
    assert "mode 755" in found["runtime_dir"]["detail"]


# -- machines with GPUs -----------------------------------------------------------------------------------------------


@needs_compiler
@needs_nvml
def test_two_gpus_are_examined_with_all_that_is_on_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    busy = FakeProcess(os.getpid(), 700)
    parts = (FakeSlice("MIG-1111-222222222222"),)
    gpus = (FakeGpu("GPU-a", processes=(busy,)), FakeGpu("GPU-b", mig=True, slices=parts))
    give(monkeypatch, tmp_path, *gpus, driver="590.44.01", cuda=(13, 1))
    code, found = report()
    states = {check: finding["state"] for check, finding in found.items()}
    assert code == 0, states
    assert found["driver"]["detail"] == "590.44.01, for CUDA up to 13.1, 2 GPUs or slices"
    assert found["cupy"]["detail"] == "14.2.0, built for CUDA 12.9, 2 GPUs"
    assert states["gpu 0"] == states["gpu 0 lanes"] == "ok"
    assert states["gpu 0 compute mode"] == states["gpu 0 probes"] == "note"
    assert states["gpu 0 processes"] == "warn"
    assert f"pid {os.getpid()} (" in found["gpu 0 processes"]["detail"]
    assert "700 MiB" in found["gpu 0 processes"]["detail"]
    assert "slice of GPU-b" in found["gpu 1 slice 222222222222"]["detail"]


@needs_compiler
@needs_nvml
def test_a_gpu_that_was_unplugged_fails_and_the_other_is_examined(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    give(monkeypatch, tmp_path, FakeGpu("GPU-a", lost_with=gone), FakeGpu("GPU-b"))
    assert report()[0] == 0
    gone.touch()
    code, found = report()
    assert code == 5
    assert "lost" in found["gpu 0"]["detail"]
    assert found["gpu 1"]["state"] == "ok"


@needs_compiler
@needs_nvml
@pytest.mark.parametrize(("init", "reason"), [(DRIVER_MISMATCH, "DRIVER_MISMATCH"), (NO_PERMISSION, "GPU_PERMISSION")])
def test_a_driver_that_refuses_fails_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, init: int, reason: str
) -> None:
    give(monkeypatch, tmp_path, FakeGpu(), init=init)
    monkeypatch.setattr("hasfaas.node.nvidia_facts.kernel_module", lambda: True)
    result = run("doctor")
    assert result.exit_code == 5
    assert reason in result.stdout
    assert "FAIL driver: " in result.stdout
    assert "Traceback" not in result.output


@needs_compiler
@needs_nvml
def test_a_prohibited_gpu_fails_and_says_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give(monkeypatch, tmp_path, FakeGpu(compute_mode="prohibited"))
    result = run("doctor")
    assert result.exit_code == 5
    assert "FAIL gpu 0 compute mode: `nvidia-smi -i 0 -c EXCLUSIVE_PROCESS` as root" in result.stdout


# -- measuring --------------------------------------------------------------------------------------------------------

PROBES = """#!{python}
import json, os, sys
if sys.argv[1:5] != ["-P", "-m", "hasfaas.devices.probes", "all"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
if os.path.exists({broken!r}):
    sys.exit("PROBE_FAILED: no timer")
print(json.dumps({{"sms": int(1.32 * float(os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"])), "device_sms": 132,
    "clock_mhz": 1700.0, "context_ms": 1.0, "launch_us": 2.5, "triad_bytes_per_s": 2e12, "fma_flops_per_s": 5e13,
    "l2_bytes": 52428800, "memory_bytes": 2**30}}))
"""


@pytest.fixture
def probing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A GPU, the fake MPS, and in place of the probes a program that prints figures; the state folder."""
    give(monkeypatch, tmp_path, FakeGpu("GPU-12345678", "NVIDIA Fake"))
    program = tmp_path / "python"
    program.write_text(PROBES.format(python=sys.executable, broken=str(tmp_path / "broken")))
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    yield tmp_path / "state"
    mps_daemon.stop_all(tmp_path / "mps")


@needs_compiler
@needs_nvml
def test_probing_stores_a_record_that_the_doctor_shows(probing: Path, tmp_path: Path) -> None:
    result = run("doctor", "--probe")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0] == "gpu 0: measuring 10 % of its SMs"
    assert len(result.stderr.splitlines()) == 5
    record = json.loads((probing / "devices/GPU-12345678.json").read_text())
    assert [point["sms"] for point in record["points"]] == [13, 33, 66, 99, 132]
    _, found = report()
    assert found["gpu 0 probes"]["state"] == "ok"
    assert "132 SMs at 1700 MHz" in found["gpu 0 probes"]["detail"]
    assert mps_daemon.daemons(tmp_path / "mps") == []


@needs_compiler
@needs_nvml
def test_a_gpu_that_cannot_be_measured_fails_and_keeps_its_old_record(probing: Path, tmp_path: Path) -> None:
    assert run("doctor", "--probe").exit_code == 0
    before = (probing / "devices/GPU-12345678.json").read_text()
    (tmp_path / "broken").touch()
    result = run("doctor", "--probe")
    assert result.exit_code == 5
    assert "PROBE_FAILED: no timer" in result.stdout
    assert (probing / "devices/GPU-12345678.json").read_text() == before
    assert mps_daemon.daemons(tmp_path / "mps") == []


def test_nothing_is_measured_while_a_gateway_runs(tmp_path: Path) -> None:
    gateway = FakeGateway(Settings(state_dir=tmp_path / "s", runtime_dir=tmp_path / "r"))
    result = run("doctor", "--probe", gateway=gateway)
    assert result.exit_code == 5
    assert "hasfaas down" in result.stderr
    assert result.stdout == ""
