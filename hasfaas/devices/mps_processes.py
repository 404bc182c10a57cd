"""Processes of MPS, as /proc shows them."""

from __future__ import annotations

import os
from pathlib import Path

COMMAND = "nvidia-cuda-mps-control"
"""The control program, whose daemon has the same name."""


def is_mps(pid: int) -> bool:
    """Whether the process lives and is of MPS: a number in a file may have gone to somebody else. A zombie has no command
    line."""
    try:
        return b"nvidia-cuda-mps" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def daemon_of(pipe: Path) -> int | None:
    """The control process whose environment names this pipe directory. Our own commands have ended when this is asked."""
    wanted = b"CUDA_MPS_PIPE_DIRECTORY=" + os.fsencode(pipe)
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0") and COMMAND.encode() in (path.parent / "cmdline").read_bytes():
                return int(path.parent.name)
        except OSError:
            continue  # it has ended, or is another user's
    return None


def children(parent: int) -> tuple[int, ...]:
    """The servers that a daemon started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            of = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if of == parent:
            found.append(int(path.parent.name))
    return tuple(found)
