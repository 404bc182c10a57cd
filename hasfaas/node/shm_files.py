"""Our files in shared memory: named by user and process, so that what a dead process left can be told and removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

SHM = Path("/dev/shm")  # noqa: S108 - token tables must be shared memory; the files are made with mode 0600


def shm_path(pid: int, name: str) -> Path:
    """Where process `pid` keeps what it calls `name`."""
    return SHM / f"hasfaas-{os.getuid()}-{pid}-{name}"


def sweep_shm(*, own: bool = False, older_than_s: float = 0.0) -> None:
    """Removes this user's files whose process has died; with `own`, those of this process too. `older_than_s` spares what
    was written since."""
    newest_s = time.time() - older_than_s
    for path in SHM.glob(f"hasfaas-{os.getuid()}-*"):
        pid = path.name.split("-")[2]
        if not pid.isdigit():
            continue
        if own if int(pid) == os.getpid() else not _lives(pid):
            _remove(path, newest_s)


def _lives(pid: str) -> bool:
    """A zombie has died: nobody may ever collect it, where process 1 of a container does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def _remove(path: Path, newest_s: float) -> None:
    try:
        if path.stat().st_mtime <= newest_s:
            path.unlink()
    except FileNotFoundError:
        return  # somebody else has swept it
