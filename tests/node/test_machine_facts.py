"""What the doctor sees of processes, folders and packages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hasfaas.node.machine_facts import DEFAULT_PIPE, MISSING, Process, folder, machine, mps_processes, process

OURS = f"/tmp/hasfaas-{os.getuid()}/mps-12-GPU-abcd/pipe"


def process_table(root: Path, **processes: tuple[str, dict[str, str]]) -> Path:
    """A tree as /proc shows processes: pid -> command line and environment."""
    for pid, (line, environment) in processes.items():
        entry = root / pid.removeprefix("p")
        entry.mkdir()
        (entry / "cmdline").write_bytes("".join(f"{word}\0" for word in line.split()).encode())
        (entry / "environ").write_bytes("".join(f"{k}={v}\0" for k, v in environment.items()).encode())
    (root / "self").mkdir()
    return root


def test_mps_is_found_whoever_started_it(tmp_path: Path) -> None:
    proc = process_table(
        tmp_path,
        p10=("/usr/bin/nvidia-cuda-mps-control -d", {}),
        p11=("/usr/bin/nvidia-cuda-mps-server", {"CUDA_MPS_PIPE_DIRECTORY": "/run/mps"}),
        p12=("python3 /opt/bin/nvidia-cuda-mps-control -d", {"CUDA_MPS_PIPE_DIRECTORY": OURS}),
        p13=("grep nvidia -r nvidia-cuda-mps-control", {}),
        p14=("python train.py", {"CUDA_MPS_PIPE_DIRECTORY": OURS}),
    )
    assert mps_processes(proc) == (
        Process(10, "nvidia-cuda-mps-control -d", pipe=DEFAULT_PIPE),
        Process(11, "nvidia-cuda-mps-server", pipe="/run/mps"),
        Process(12, "python3 /opt/bin/nvidia-cuda-mps-control -d", ours=True, pipe=OURS),
    )


@pytest.mark.parametrize(
    ("line", "environment", "ours"),
    [
        ("python -P -m hasfaas.executor.zygote 5 torch", {}, True),
        ("/usr/bin/nvidia-cuda-mps-server", {"CUDA_MPS_PIPE_DIRECTORY": OURS}, True),
        ("/usr/bin/nvidia-cuda-mps-server", {"CUDA_MPS_PIPE_DIRECTORY": "/tmp/nvidia-mps"}, False),
        ("python hasfaas_like.py", {}, False),
    ],
)
def test_what_hasfaas_started_is_known(tmp_path: Path, line: str, environment: dict[str, str], ours: bool) -> None:
    assert process(10, process_table(tmp_path, p10=(line, environment))).ours is ours


def test_a_process_that_cannot_be_seen_has_no_command(tmp_path: Path) -> None:
    assert process(99, process_table(tmp_path)) == Process(99)


def test_folders_are_described_and_not_made(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir(mode=0o700)
    found = folder(made)
    assert (found.mode, found.owner, found.writable) == (0o700, os.getuid(), True)
    later = folder(tmp_path / "a/b")
    assert (later.mode, later.owner, later.writable) == (None, None, True)
    assert not (tmp_path / "a").exists()


def test_this_machine_can_be_described() -> None:
    found = machine()
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory_bytes is None or found.memory_bytes > 2**28
    assert dict(found.packages)["hasfaas"]
    assert MISSING not in dict(found.packages).values()
