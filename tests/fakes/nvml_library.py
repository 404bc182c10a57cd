"""A stand-in for the driver's libnvidia-ml.so.1, compiled from nvml.c, that the real nvidia-ml-py loads.

It proves how we ask and what we make of the answers; nothing about NVIDIA's library.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import attrs
import pytest

SOURCE = Path(__file__).with_name("nvml.c")
DRIVER_MISMATCH, NO_PERMISSION = 18, 4
MODES = {"default": 0, "exclusive_thread": 1, "prohibited": 2, "exclusive_process": 3}

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler (cc): the stand-in for libnvidia-ml.so.1 cannot be built"
)


@attrs.frozen
class FakeProcess:
    """A process on a GPU; `mib` is None where the driver does not tell."""

    pid: int
    mib: int | None = 300
    mps: bool = False


@attrs.frozen
class FakeSlice:
    """A MIG slice."""

    uuid: str
    mib: int = 9856
    name: str = "NVIDIA Fake MIG 1g.10gb"
    processes: tuple[FakeProcess, ...] = ()


@attrs.frozen
class FakeGpu:
    """A GPU: `mib` None is one whose driver does not tell its memory, `mig` None one that knows no MIG mode, `closed` one
    that this user may not use. It is lost once the file `lost_with` exists."""

    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"
    name: str = "NVIDIA Fake 80GB"
    mib: int | None = 81920
    capability: tuple[int, int] = (9, 0)
    compute_mode: str = "default"
    mig: bool | None = None
    slices: tuple[FakeSlice, ...] = ()
    processes: tuple[FakeProcess, ...] = ()
    closed: bool = False
    lost_with: Path | None = None


def build(folder: Path) -> Path:
    """Compiles the library into `folder`, once, and returns the folder for LD_LIBRARY_PATH."""
    target = folder / "libnvidia-ml.so.1"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            "cc",
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-o",
            str(target),
            str(SOURCE),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
    return folder


def install(
    folder: Path,
    gpus: Iterable[FakeGpu] = (FakeGpu(),),
    *,
    driver: str = "590.44.01",
    cuda: tuple[int, int] = (13, 1),
    init: int = 0,
) -> dict[str, str]:
    """The environment of a process that sees these GPUs; `init` is the return code of nvmlInit."""
    lines = [f"driver {driver} {cuda[0] * 1000 + cuda[1] * 10}", f"init {init}"]
    lines += [line for gpu in gpus for line in _lines(gpu)]
    return {"LD_LIBRARY_PATH": str(build(folder)), "FAKE_NVML": "\n".join(lines)}


def _lines(gpu: FakeGpu) -> Iterable[str]:
    mig = -1 if gpu.mig is None else int(gpu.mig)
    major, minor = gpu.capability
    mode = MODES[gpu.compute_mode]
    yield f"gpu {gpu.uuid} {_mib(gpu.mib)} {major} {minor} {mode} {mig} {gpu.closed:d} {gpu.lost_with or '-'} {gpu.name}"
    yield from map(_line, gpu.processes)
    for part in gpu.slices:
        yield f"slice {part.uuid} {part.mib} {part.name}"
        yield from map(_line, part.processes)


def _line(process: FakeProcess) -> str:
    return f"{'mps' if process.mps else 'process'} {process.pid} {_mib(process.mib)}"


def _mib(value: int | None) -> int:
    return -1 if value is None else value
