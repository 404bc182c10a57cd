"""Measuring a GPU at several shares: what runs, in which environment, against the fake MPS. The probes themselves are stood
in for by a program that writes down its environment; they are tested in tests/devices."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasfaas.core.errors import BackendError
from hasfaas.devices.mps_folders import daemon_folder, daemon_root
from hasfaas.devices.nvml import Driver, Gpu
from hasfaas.node.gpu_probing import SHARES, probe
from tests.fakes import mps_daemon

GPU = Gpu(0, "GPU-12345678-aaaa", "NVIDIA Fake", 2**30, (9, 0))
DRIVER = Driver("590.44.01", (13, 1))
PROBES = """#!{python} -S
import json, os, sys
names = ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_LOG_DIRECTORY")
with open({log!r}, "a") as log:
    print(json.dumps([sys.argv[1:], {{n: os.environ[n] for n in names if n in os.environ}}]), file=log)
{body}
"""
ANSWER = """
percent = float(os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", 100))
print("a warning of some library")
print(json.dumps({"sms": int(1.32 * percent), "device_sms": 132, "clock_mhz": 1700.0, "context_ms": 200.0, "launch_us": 2.5,
    "triad_bytes_per_s": 2e10 * percent, "fma_flops_per_s": 5e11 * percent, "l2_bytes": 52428800, "memory_bytes": 2**30}))
"""


@pytest.fixture
def mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a fake MPS on PATH; the shell that calls has settings of somebody else's."""
    folder = tmp_path / "mps"
    for name, value in mps_daemon.install(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/somewhere/else")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    yield folder
    mps_daemon.stop_all(folder)


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """Puts a program in place of the interpreter that would run the probes; the file where it writes what it was given."""
    log, program = tmp_path / "log.jsonl", tmp_path / "probes"
    program.write_text(PROBES.format(python=sys.executable, log=str(log), body=body))
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    return log


def runs(log: Path) -> list[tuple[list[str], dict[str, str]]]:
    return [(argv, environment) for argv, environment in map(json.loads, log.read_text().splitlines())]


def test_each_share_is_measured_under_a_daemon_of_ours(
    mps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log = stand_in(tmp_path, monkeypatch, ANSWER)
    record = probe(GPU, DRIVER, "2026-01-31", said.append)
    assert [point.sm_percent for point in record.points] == list(SHARES)
    assert [point.sms for point in record.points] == [int(1.32 * percent) for percent in SHARES]
    assert (record.uuid, record.driver, record.date, record.launch_us) == (GPU.uuid, DRIVER.version, "2026-01-31", 2.5)
    pipe = str(daemon_folder(daemon_root(), GPU.uuid) / "pipe")
    for (argv, environment), percent in zip(runs(log), SHARES, strict=True):
        assert argv == ["-P", "-m", "hasfaas.devices.probes", "all"]
        assert environment["CUDA_MPS_PIPE_DIRECTORY"] == pipe
        assert environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == str(percent)
        assert "CUDA_VISIBLE_DEVICES" not in environment
    assert len(said) == len(SHARES)
    assert mps_daemon.transcript(mps, queries=False)[0] == "-d"
    assert mps_daemon.daemons(mps) == []
    assert not Path(pipe).parent.exists()


def test_without_mps_the_whole_gpu_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "10")
    log = stand_in(tmp_path, monkeypatch, ANSWER)
    record = probe(GPU, DRIVER, "2026-01-31", lambda text: None)
    assert [point.sm_percent for point in record.points] == [100.0]
    assert [environment for _, environment in runs(log)] == [{"CUDA_VISIBLE_DEVICES": GPU.uuid}]


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        ("print('PROBE_FAILED: census: no timer', file=sys.stderr); sys.exit(1)", "PROBE_FAILED", "census: no timer"),
        ("print('NO_CUPY: pip install it', file=sys.stderr); sys.exit(1)", "NO_CUPY", "pip install it"),
        ("os.abort()", "PROBE_FAILED", "exit code -6"),
        ("import time; time.sleep(60)", "PROBE_TIMEOUT", "within 2 s"),
    ],
)
def test_a_probe_that_fails_is_typed_and_leaves_no_daemon(
    mps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str, words: str
) -> None:
    stand_in(tmp_path, monkeypatch, body)
    with pytest.raises(BackendError, match=words) as caught:
        probe(GPU, DRIVER, "2026-01-31", lambda text: None, timeout_s=2 if reason == "PROBE_TIMEOUT" else 60)
    assert caught.value.reason == reason
    assert mps_daemon.daemons(mps) == []


def test_the_real_probes_say_what_is_missing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through the real command line: without a GPU that is told by the probes, with their reason."""
    (tmp_path / "cupy.py").write_text("raise ImportError('hidden by a test')")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BackendError, match="hidden by a test") as caught:
        probe(GPU, DRIVER, "2026-01-31", lambda text: None)
    assert caught.value.reason == "NO_CUPY"
