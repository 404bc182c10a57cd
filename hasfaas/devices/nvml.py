"""The NVIDIA driver's inventory: versions, GPUs and their MIG slices by UUID, and the processes on them.

Thin over the package nvidia-ml-py (module `pynvml`), which is imported on the first question. Each question opens the
library anew, so that an answer is of now: a GPU that was unplugged since is seen as gone. What a GPU does not support, as
consumer GPUs do not support MIG, is an ordinary value here and no error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs

from hasfaas.core.errors import BackendError

log = logging.getLogger("hasfaas.devices")

# Return codes of NVML, by the header nvml.h (nvmlReturn_t); they never change.
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, DRIVER_NOT_LOADED = 3, 4, 6, 9
LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED = 12, 13, 15, 16
LIB_RM_VERSION_MISMATCH, GPU_NOT_FOUND = 18, 28

_NO_DRIVER = ("NO_DRIVER", "no NVIDIA driver: install one, or give the container its GPUs (--gpus all)")
_LOST = ("GPU_LOST", "a GPU does not answer any more: look for Xid in the kernel's log, then reset it or reboot")
_MEANINGS = {
    LIBRARY_NOT_FOUND: _NO_DRIVER,
    DRIVER_NOT_LOADED: ("NO_DRIVER", "the NVIDIA kernel module is not loaded: run `modprobe nvidia`, or reboot"),
    LIB_RM_VERSION_MISMATCH: (
        "DRIVER_MISMATCH",
        "the NVIDIA kernel module and its libraries are of different versions, as after an upgrade: reboot (a container: "
        "restart it), or reload the modules nvidia_uvm and nvidia",
    ),
    NO_PERMISSION: (
        "GPU_PERMISSION",
        "this user may not use the GPU: give it read and write access to /dev/nvidia*, often by a group of the system",
    ),
    GPU_IS_LOST: _LOST,
    RESET_REQUIRED: _LOST,
}
_UNSUPPORTED = (NOT_SUPPORTED, FUNCTION_NOT_FOUND)
_GONE = (NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND)
# nvmlComputeMode_t.
_COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}


@attrs.frozen
class Driver:
    """The installed driver, and the newest CUDA that it runs, as (major, minor)."""

    version: str
    cuda: tuple[int, int]


@attrs.frozen
class Gpu:
    """One GPU, or one MIG slice, which is a device of its own with the slice's memory.

    `index` is NVML's number of the GPU, as nvidia-smi shows it; slices have that of their GPU, `parent_uuid`. The memory
    is 0 where the driver does not tell it, as for GPUs that use the host's. `compute_mode` is "default",
    "exclusive_process", "prohibited" or the old "exclusive_thread".
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int
    capability: tuple[int, int]
    mig: bool = False
    compute_mode: str = "default"
    parent_uuid: str | None = None


@attrs.frozen
class GpuProcess:
    """A process that computes on a GPU: by its pid of this machine, with its device memory (None where the driver does not
    tell it), and whether it is a client of MPS."""

    pid: int
    memory_bytes: int | None = None
    mps: bool = False


def driver() -> Driver:
    """The driver. Raises BackendError: NO_DRIVER, DRIVER_MISMATCH, GPU_PERMISSION, NVML_NOT_INSTALLED."""
    with _session() as nvml:
        cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
        return Driver(nvml.nvmlSystemGetDriverVersion(), (cuda // 1000, cuda % 1000 // 10))


def gpus() -> tuple[Gpu, ...]:
    """Every GPU that answers, by number; of a GPU in MIG mode its slices and not itself. One that is lost (see `lost`), or
    that this user may not use while others are open to it, is left out and logged. Raises BackendError as `driver` does."""
    with _session() as nvml:
        found: list[Gpu] = []
        closed: Exception | None = None
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                found += _gpu(nvml, index)
            except nvml.NVMLError as exc:
                if exc.value not in (*_GONE, NO_PERMISSION):
                    raise
                closed = exc if exc.value == NO_PERMISSION else closed
                log.warning("GPU %d is left out: %s", index, error_of(exc.value, str(exc)))
        if closed is not None and not found:
            raise closed
        return tuple(found)


def lost() -> tuple[int, ...]:
    """The numbers of the GPUs that the driver counts and that do not answer. Raises BackendError as `driver` does."""
    with _session() as nvml:
        return tuple(index for index in range(nvml.nvmlDeviceGetCount()) if not _counted(nvml, index))


def present(uuid: str) -> bool:
    """Whether this GPU or slice is there and answers. Raises BackendError as `driver` does."""
    with _session() as nvml:
        return _answers(nvml, lambda: nvml.nvmlDeviceGetHandleByUUID(uuid))


def processes(uuid: str) -> tuple[GpuProcess, ...]:
    """The processes that compute on a GPU or slice, by pid. Raises BackendError: GPU_LOST where it is not there, and as
    `driver` does. A container without the machine's pids may see none, or pids that are not its own."""
    with _session() as nvml:
        handle = _handle(nvml, uuid)
        computing = _listed(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        clients = _listed(nvml, nvml.nvmlDeviceGetMPSComputeRunningProcesses, handle)
    found = computing | clients
    return tuple(GpuProcess(pid, found[pid], pid in clients) for pid in sorted(found))


def error_of(code: int, text: str) -> BackendError:
    """The typed error of a return code of NVML, `text` being the library's own words."""
    reason, cure = _MEANINGS.get(code, ("NVML_FAILED", "the NVIDIA driver refused a question: see `nvidia-smi -q`"))
    return BackendError(f"{cure} (NVML: {text})", reason=reason)


@contextmanager
def _session() -> Iterator[Any]:
    """The library, opened for one question."""
    try:
        import pynvml
    except ImportError:
        raise BackendError(
            "the package nvidia-ml-py is not installed: pip install 'hasfaas[cuda]'", reason="NVML_NOT_INSTALLED"
        ) from None
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            # A driver that lost a GPU may refuse even this; what matters was said before.
            _or(pynvml, None, None, pynvml.nvmlShutdown)
    except pynvml.NVMLError as exc:
        raise error_of(exc.value, str(exc)) from exc


def _or(nvml: Any, default: Any, codes: tuple[int, ...] | None, call: Callable[[], Any]) -> Any:
    """What the call answers, or the default where it fails with one of these codes (None: any)."""
    try:
        return call()
    except nvml.NVMLError as exc:
        if codes is None or exc.value in codes:
            return default
        raise


def _handle(nvml: Any, uuid: str) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as exc:
        if exc.value != NOT_FOUND:
            raise
        raise error_of(GPU_IS_LOST, f"no GPU has the UUID {uuid}") from exc


def _counted(nvml: Any, index: int) -> bool:
    """Whether a GPU answers, be it that this user may not use it."""
    return bool(
        _or(nvml, True, (NO_PERMISSION,), lambda: _answers(nvml, lambda: nvml.nvmlDeviceGetHandleByIndex(index)))
    )


def _answers(nvml: Any, find: Callable[[], Any]) -> bool:
    """Whether a GPU can be found, and asked for its memory: a lost one may still have a handle and a UUID."""
    return bool(_or(nvml, False, _GONE, lambda: _asked(nvml, find())))


def _asked(nvml: Any, handle: Any) -> bool:
    _or(nvml, None, _UNSUPPORTED, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return True


def _gpu(nvml: Any, index: int) -> tuple[Gpu, ...]:
    """The GPU of this number, or its slices."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    whole = _read(nvml, index, handle)
    current, _pending = _or(nvml, (0, 0), _UNSUPPORTED, lambda: nvml.nvmlDeviceGetMigMode(handle))
    return tuple(_slices(nvml, handle, whole)) if current else (whole,)


def _read(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = _or(nvml, None, _UNSUPPORTED, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    mode = _or(nvml, 0, _UNSUPPORTED, lambda: nvml.nvmlDeviceGetComputeMode(handle))
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        memory_bytes=0 if memory is None else memory.total,
        capability=(major, minor),
        compute_mode=_COMPUTE_MODES.get(mode, f"unknown mode {mode}"),
    )


def _slices(nvml: Any, handle: Any, whole: Gpu) -> Iterator[Gpu]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        part = _or(nvml, None, (NOT_FOUND,), partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index))
        if part is None:
            continue  # a place where no slice was made
        yield attrs.evolve(
            whole,
            uuid=nvml.nvmlDeviceGetUUID(part),
            name=nvml.nvmlDeviceGetName(part),
            memory_bytes=nvml.nvmlDeviceGetMemoryInfo(part).total,
            mig=True,
            parent_uuid=whole.uuid,
        )


def _listed(nvml: Any, question: Callable[[Any], Any], handle: Any) -> dict[int, int | None]:
    """pid -> device memory in bytes, of a list of processes."""
    return {each.pid: each.usedGpuMemory for each in _or(nvml, (), _UNSUPPORTED, lambda: question(handle))}
