"""Where MPS daemons have their folders, named by agent and GPU, so that what a dead agent left can be told and ended."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from hasfaas.core.errors import BackendError
from hasfaas.devices.mps import MpsControl

log = logging.getLogger("hasfaas.devices")


def daemon_root() -> Path:
    """This user's folder of daemons: short and on this machine, since sockets lie in it."""
    return Path(f"/tmp/hasfaas-{os.getuid()}")  # noqa: S108 - made private, and its owner is checked


def daemon_folder(root: Path, gpu_uuid: str) -> Path:
    """The folder of this process's daemon for a GPU."""
    return root / f"mps-{os.getpid()}-{gpu_uuid.partition('-')[2][:8]}"


def make_private(folder: Path) -> None:
    """Makes the folder for this user alone. Raises BackendError, MPS_FAILED, where it is another's, or open to others: they
    could put a socket of their own in an agent's way."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise BackendError(
            f"{folder} belongs to user {status.st_uid} with mode {status.st_mode & 0o777:o}; it must be this user's alone: "
            f"remove it, or `chmod 700 {folder}`",
            reason="MPS_FAILED",
        )


def sweep(root: Path, ours: Path) -> None:
    """Ends the daemons that dead agents left. One in `ours` is of an agent before us that had our number, as in a
    container."""
    for folder in root.glob("mps-*-*"):
        pid = folder.name.split("-")[1]
        if folder == ours or not _lives(pid):
            log.info("ending the MPS daemon that process %s left in %s", pid, folder)
            MpsControl(folder, "").quit()
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: str) -> bool:
    """A zombie has died: nobody may ever collect it, where process 1 of a container does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False
