"""What NVIDIA's libraries and files say on this machine, as values for `hasfaas doctor`.

The libraries are asked in a process of their own with a time limit: a broken driver can hang or crash whoever asks it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from hasfaas.core.errors import BackendError
from hasfaas.devices import nvml
from hasfaas.devices.nvml import Driver, Gpu, GpuProcess

ASK_TIMEOUT_S = 30.0
"""Enough for a driver that wakes several GPUs, and for CuPy's import from a cold disk."""
TIMED_OUT, CRASHED = "TIMED_OUT", "CRASHED"


@attrs.frozen
class Nvidia:
    """NVML's answers. `reason` and `message` are those of the BackendError where it could not be asked. `lost` are numbers
    of GPUs that do not answer; `untold` are, by UUID, reasons why a GPU's processes cannot be told."""

    reason: str = ""
    message: str = ""
    driver: Driver | None = None
    gpus: tuple[Gpu, ...] = ()
    lost: tuple[int, ...] = ()
    processes: Mapping[str, tuple[GpuProcess, ...]] = attrs.field(factory=dict, hash=False)
    untold: Mapping[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen
class Cupy:
    """CuPy as a replica would find it: the CUDA it was built for, and how many GPUs it reaches. `error` is why it cannot be
    imported, `unusable` why it reaches no GPU or no compiler of kernels."""

    version: str = ""
    cuda: tuple[int, int] | None = None
    gpus: int = 0
    error: str = ""
    unusable: str = ""


@attrs.frozen
class Torch:
    """torch as installed; `cuda` is the CUDA it was built for, "" in a CPU build. `version` is "" where it is missing."""

    version: str = ""
    cuda: str = ""


@attrs.frozen
class DeviceNode:
    """A device file of the driver, and whether this user may read and write it."""

    path: str
    usable: bool


def ask_nvml(timeout_s: float = ASK_TIMEOUT_S) -> Nvidia:
    """NVML's answers, from a process of their own."""
    answer, reason, message = _asked(["-m", __name__], timeout_s)
    return _nvidia(answer) if reason == "" else Nvidia(reason, f"NVML {message}")


def ask_cupy(timeout_s: float = ASK_TIMEOUT_S) -> Cupy:
    """What CuPy says of itself, from a process of its own, which creates no context."""
    answer, reason, message = _asked(["-c", _ASK_CUPY], timeout_s)
    if reason:
        return Cupy(error=message)
    cuda = answer.pop("cuda", None)
    return Cupy(**answer, cuda=(cuda // 1000, cuda % 1000 // 10) if cuda else None)


def torch_build() -> Torch:
    """The installed torch, by its files: importing it takes seconds."""
    found = importlib.util.find_spec("torch")
    folders = found.submodule_search_locations if found is not None else None
    if not folders:
        return Torch()
    try:
        text = (Path(folders[0]) / "version.py").read_text()
    except OSError:
        return Torch(version="of an unknown version")
    return Torch(_assigned(text, "__version__"), _assigned(text, "cuda"))


def device_nodes(dev: Path = Path("/dev")) -> tuple[DeviceNode, ...]:
    """The driver's device files: control, unified memory, and one a GPU."""
    paths = [*sorted(dev.glob("nvidia[0-9]*")), *(dev / name for name in ("nvidiactl", "nvidia-uvm"))]
    return tuple(DeviceNode(str(path), os.access(path, os.R_OK | os.W_OK)) for path in paths if path.exists())


def kernel_module(proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> bool:
    """Whether the driver's kernel part is there (on WSL: its stand-in)."""
    return any(path.exists() for path in (proc / "driver/nvidia/version", dev / "nvidiactl", dev / "dxg"))


def read_nvml() -> Nvidia:
    """NVML's answers, asked in this process."""
    try:
        found = Nvidia(driver=nvml.driver(), gpus=nvml.gpus(), lost=nvml.lost())
    except BackendError as exc:
        return Nvidia(exc.reason, exc.message)
    processes: dict[str, tuple[GpuProcess, ...]] = {}
    untold: dict[str, str] = {}
    for gpu in found.gpus:
        try:
            processes[gpu.uuid] = nvml.processes(gpu.uuid)
        except BackendError as exc:
            untold[gpu.uuid] = exc.message
    return attrs.evolve(found, processes=processes, untold=untold)


# The environment of MPS is left out, so that a daemon of somebody else cannot answer, or not answer, for the driver.
_ASK_CUPY = """
import json, os
for name in [name for name in os.environ if name.startswith("CUDA_MPS_")]:
    del os.environ[name]
try:
    import cupy
except Exception as exc:
    print(json.dumps({"error": f"fails: {exc}".strip().splitlines()[0]}))
    raise SystemExit
found = {"version": cupy.__version__}
try:
    cupy.cuda.nvrtc.getVersion()
    found["cuda"] = cupy.cuda.runtime.runtimeGetVersion()
    found["gpus"] = cupy.cuda.runtime.getDeviceCount()
except Exception as exc:
    found["unusable"] = (str(exc) or type(exc).__name__).strip().splitlines()[0]
print(json.dumps(found))
"""


def _asked(arguments: list[str], timeout_s: float) -> tuple[Any, str, str]:
    """(the JSON that an interpreter printed last, "", ""), or (None, reason, what happened)."""
    try:
        command = [sys.executable, "-P", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
        return json.loads(done.stdout.splitlines()[-1]), "", ""
    except subprocess.TimeoutExpired:
        return None, TIMED_OUT, f"did not answer within {timeout_s:g} s"
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return None, CRASHED, f"ended with exit code {done.returncode}: {last}"


def _nvidia(answer: Mapping[str, Any]) -> Nvidia:
    driver = answer["driver"]
    return Nvidia(
        reason=answer["reason"],
        message=answer["message"],
        driver=None if driver is None else Driver(driver["version"], _pair(driver["cuda"])),
        gpus=tuple(Gpu(**{**gpu, "capability": _pair(gpu["capability"])}) for gpu in answer["gpus"]),
        lost=tuple(answer["lost"]),
        processes={
            uuid: tuple(GpuProcess(**process) for process in listed) for uuid, listed in answer["processes"].items()
        },
        untold=answer["untold"],
    )


def _pair(values: list[int]) -> tuple[int, int]:
    major, minor = values
    return major, minor


def _assigned(source: str, name: str) -> str:
    """The text that a line of Python assigns to a name; "" for anything else."""
    found = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]*)['\"]", source, re.MULTILINE)
    return found[1] if found else ""


if __name__ == "__main__":
    print(json.dumps(attrs.asdict(read_nvml())))
