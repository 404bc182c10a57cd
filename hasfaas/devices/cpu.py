"""The CPU as a device: its cores are the SMs, and a lane is a set of cores.

Law: affinity and thread counts are set before any compute library of this process starts threads. More
threads than cores is not slower by a factor, it is slower by a hundred (OpenMP's barriers spin), so both
always agree.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from hasfaas.core.errors import BackendError, InvalidRequestError
from hasfaas.devices.base import DeviceInfo, DeviceRequest, DeviceSlice, Stream, Unkept

# glibc's mallopt: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD and the values kept for a replica's life.
_MALLOC_OPTIONS = ((-3, 32 * 2**20), (-1, 256 * 2**20), (-2, 16 * 2**20))
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class SynchronousStream(Stream):
    """Work is done when its call returns, so there is never an event to wait for."""

    def record(self) -> object | None:
        """None: already done."""
        return None

    def query(self, event: object | None) -> bool:
        """Always done."""
        return True

    def wait(self, event: object | None) -> None:
        """Returns at once."""

    def drain(self) -> None:
        """Returns at once."""

    def __init__(self, core_percent: float | None = None) -> None:
        self._core_percent = core_percent

    @property
    def granted_percent(self) -> float | None:
        """The cores that the kernel lets this process run on."""
        return self._core_percent and self._core_percent * len(os.sched_getaffinity(0))


keeper = Unkept


def inventory(request: DeviceRequest) -> Sequence[DeviceInfo]:
    """This machine's CPU, of which there is one: the option `cores` takes the first so many.

    Raises InvalidRequestError for more cores than this process may use, and for a second device of the same cores.
    """
    request.only("cpu", "cores")
    if request.count not in (None, 1):
        raise InvalidRequestError(
            f"devices: count={request.count}: two cpu devices would own the same cores; keep one and use lanes",
            reason="BAD_OPTION",
        )
    cores: Any = request.options.get("cores")
    found = device("", cores=cores)
    return (attrs.evolve(found, memory_bytes=request.memory_bytes or found.memory_bytes),)


def device(device_id: str = "cpu", *, cores: int | None = None) -> DeviceInfo:
    """This machine's CPU: the cores that this process may use, the first `cores` of them if given.

    A function that nobody has sized gets all cores but one, which the gateway and host work need; on a single
    core it gets that one. Raises InvalidRequestError if fewer than `cores` are to be had.
    """
    available = sorted(os.sched_getaffinity(0))
    count = len(available) if cores is None else cores
    if not 1 <= count <= len(available):
        raise InvalidRequestError(
            f"cores={cores} must lie in [1, {len(available)}], the cores that this process may use",
            reason="BAD_DEVICE",
        )
    return DeviceInfo(
        device_id=device_id,
        kind="cpu",
        units=tuple(available[:count]),
        memory_bytes=_memory_bytes(),
        auto_sm_percent=100.0 * max(count - 1, 1) / count,
        model=_model(count),
    )


def _model(cores: int) -> str:
    """The processor by its name, and so many cores of it; empty where Linux does not tell the name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name" and name.strip():
                return f"{' '.join(name.split())}, {cores} cores"
    return ""


def wall(memory_bytes: int) -> None:
    """RLIMIT_DATA = what this process has mapped so far (the interpreter, torch) + what the function was granted."""
    with Path("/proc/self/status").open() as status:
        baseline_kib = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
    limit = baseline_kib * 1024 + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def enter(part: DeviceSlice) -> Stream:
    """Confines this process to the cores of `part`, with one compute thread each.

    A process that forked from one with torch imported must not have run an operator yet. Raises
    InvalidRequestError for cores that this process cannot have.
    """
    try:
        os.sched_setaffinity(0, part.units)
    except OSError as exc:
        raise InvalidRequestError(
            f"units={part.units} of device {part.device_id!r} are not ours to use: {exc.strerror}",
            reason="BAD_DEVICE",
        ) from exc
    threads = len(part.units)
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    _keep_freed_memory()
    _limit_torch(threads)
    return SynchronousStream(part.sm_percent / threads)


def _keep_freed_memory() -> None:
    """Freed activations stay with the process: given back to the system after each layer, their pages fault anew.

    That took up to 43 % of a small convolution network's time here, by batch size and without any order in it. A C library
    that has no mallopt, or refuses a value, keeps its own ways.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for option, value in _MALLOC_OPTIONS:
            library.mallopt(option, value)


def _limit_torch(threads: int) -> None:
    """Only if torch is there already: a later import reads the environment."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    torch.set_num_threads(threads)
    try:
        torch.set_num_interop_threads(1)
    except RuntimeError as exc:
        # It may be set once only, and not after parallel work; what counts is what it is.
        if torch.get_num_interop_threads() != 1:
            raise BackendError(
                f"torch keeps {torch.get_num_interop_threads()} inter-op threads, as it has run in parallel "
                "already: the zygote must set one before it forks"
            ) from exc


def _memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise BackendError("/proc/meminfo names no MemTotal")
