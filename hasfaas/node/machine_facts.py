"""What this machine offers hasfaas besides GPUs, as values for `hasfaas doctor`: memory, processors, folders, MPS."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import attrs

from hasfaas.core.version import VERSION
from hasfaas.devices.mps_folders import daemon_root
from hasfaas.devices.mps_processes import COMMAND
from hasfaas.node.cgroup import Limits, limits
from hasfaas.node.shm_files import SHM

CONTROL, SERVER = COMMAND, "nvidia-cuda-mps-server"
PIPE_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
DEFAULT_PIPE = "/tmp/nvidia-mps"  # noqa: S108 - where a daemon of MPS listens that was told nothing else
PACKAGES = ("numpy", "grpcio", "cloudpickle", "msgpack")
OPTIONAL = ("torch", "nvidia-ml-py", "cupy-cuda12x", "cupy-cuda13x")
MISSING = "missing"


@attrs.frozen
class Process:
    """A process by its pid: its command, and whether hasfaas started it. `command` is "" where it cannot be seen from
    here, as of another container. `pipe` is the directory in which an MPS process listens."""

    pid: int
    command: str = ""
    ours: bool = False
    pipe: str = ""


@attrs.frozen
class Folder:
    """A folder of the settings: its mode (None: it is not there yet), its owner, and whether this user can write in it, or
    make it."""

    path: str
    mode: int | None
    owner: int | None
    writable: bool


@attrs.frozen
class Machine:
    """Sizes are in bytes; None is no limit, or not known. `packages` are names and versions, of those that hasfaas needs
    ("missing" where it is not there) and of those that it can use."""

    uid: int
    python: str
    packages: tuple[tuple[str, str], ...]
    memory_bytes: int | None
    limits: Limits
    memlock_bytes: int | None
    cores: int
    shm_bytes: int | None
    shm_free_bytes: int | None
    mps_control: str | None
    mps_server: str | None
    mps: tuple[Process, ...]


def machine() -> Machine:
    """This machine, now."""
    shm_bytes, shm_free_bytes = _space(SHM)
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return Machine(
        uid=os.getuid(),
        python=f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        packages=_packages(),
        memory_bytes=_memory_bytes(),
        limits=limits(),
        memlock_bytes=None if soft == resource.RLIM_INFINITY else soft,
        cores=len(os.sched_getaffinity(0)),
        shm_bytes=shm_bytes,
        shm_free_bytes=shm_free_bytes,
        mps_control=shutil.which(CONTROL),
        mps_server=shutil.which(SERVER),
        mps=mps_processes(),
    )


def folder(path: Path) -> Folder:
    """A folder, or what is to be known before it is made."""
    try:
        status = path.stat()
    except OSError:
        above = next((parent for parent in path.parents if parent.exists()), Path("/"))
        return Folder(str(path), None, None, os.access(above, os.W_OK | os.X_OK))
    return Folder(str(path), status.st_mode & 0o7777, status.st_uid, os.access(path, os.W_OK | os.X_OK))


def process(pid: int, proc: Path = Path("/proc")) -> Process:
    """A process by its pid, as far as it can be seen from here."""
    words = _words(proc / str(pid) / "cmdline")
    pipe = next((w.partition("=")[2] for w in _words(proc / str(pid) / "environ") if w.startswith(PIPE_VARIABLE)), "")
    # A replica is a fork of its zygote, `python -m hasfaas.executor.zygote`; MPS of ours listens below our folder.
    ours = any(word.startswith("hasfaas.") for word in words) or pipe.startswith(f"{daemon_root()}/")
    return Process(pid, _command(words), ours, pipe)


def mps_processes(proc: Path = Path("/proc")) -> tuple[Process, ...]:
    """Every daemon and server of MPS that runs here, of whatever user; `pipe` is the default where it cannot be read."""
    pids = sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit())
    found = (process(pid, proc) for pid in pids if _is_mps(_words(proc / str(pid) / "cmdline")))
    return tuple(each if each.pipe else attrs.evolve(each, pipe=DEFAULT_PIPE) for each in found)


def _is_mps(words: Iterable[str]) -> bool:
    """Whether a command line is MPS: by its program, or by the script that its program runs."""
    return any(Path(word).name in (CONTROL, SERVER) for word in list(words)[:2])


def _command(words: list[str]) -> str:
    """A command line in a few words: the program, and what it runs."""
    return " ".join([Path(word).name for word in words[:1]] + [word for word in words[1:4] if len(word) <= 60])


def _words(path: Path) -> list[str]:
    """The words of a file in /proc that ends each with a zero; none where it may not be read, or is gone."""
    try:
        return [word for word in path.read_bytes().decode(errors="replace").split("\0") if word]
    except OSError:
        return []


def _packages() -> tuple[tuple[str, str], ...]:
    needed = [(name, _version(name)) for name in PACKAGES]
    optional = [(name, version) for name in OPTIONAL if (version := _version(name)) != MISSING]
    return ("hasfaas", VERSION), *needed, *optional


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return MISSING


def _space(path: Path) -> tuple[int | None, int | None]:
    """(size, free) of the file system of a folder that this user can write in; (None, None) where it cannot."""
    if not os.access(path, os.W_OK | os.X_OK):
        return None, None
    usage = shutil.disk_usage(path)
    return usage.total, usage.free


def _memory_bytes() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemTotal:")), None)
