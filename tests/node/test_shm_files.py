from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hasfaas.node import shm_files
from hasfaas.node.shm_files import shm_path, sweep_shm


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of our own: the real one holds the files of gateways that are running."""
    monkeypatch.setattr(shm_files, "SHM", tmp_path)
    return tmp_path


@pytest.fixture
def dead_pid() -> int:
    """Of a process that has ended and was waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make(path: Path) -> Path:
    path.touch()
    return path


def test_a_file_is_named_by_user_and_process_in_real_shared_memory() -> None:
    path = shm_path(77, "cpu0.tokens")
    assert path == Path(f"/dev/shm/hasfaas-{os.getuid()}-77-cpu0.tokens")


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_has_stays(shm: Path, dead_pid: int) -> None:
    left = make(shm_path(dead_pid, "cpu0.tokens"))
    with_dashes = make(shm_path(dead_pid, "my-gpu-0.lanes"))
    own, parents = make(shm_path(os.getpid(), "cpu0.tokens")), make(shm_path(os.getppid(), "cpu0.tokens"))
    sweep_shm()
    assert not left.exists()
    assert not with_dashes.exists()
    assert own.exists()
    assert parents.exists()


def test_our_own_files_go_when_we_say_so_and_nobody_elses(shm: Path, dead_pid: int) -> None:
    left, parents = make(shm_path(dead_pid, "cpu0.tokens")), make(shm_path(os.getppid(), "cpu0.tokens"))
    own = [make(shm_path(os.getpid(), name)) for name in ("cpu0.tokens", "sim0.lanes")]
    sweep_shm(own=True)
    assert not any(path.exists() for path in own)
    assert parents.exists()
    assert left.parent == shm


def test_files_of_others_are_not_ours_to_remove(shm: Path, dead_pid: int) -> None:
    others = [
        make(shm / f"hasfaas-{os.getuid() + 1}-{dead_pid}-cpu0.tokens"),
        make(shm / f"hasfaas-{os.getuid()}7-{dead_pid}-cpu0.tokens"),
        make(shm / f"something-{os.getuid()}-{dead_pid}-x"),
        make(shm / f"hasfaas-{os.getuid()}-notapid-x"),
        make(shm / f"hasfaas-{os.getuid()}-"),
    ]
    sweep_shm()
    sweep_shm(own=True)
    assert all(path.exists() for path in others)
