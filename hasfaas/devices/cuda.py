"""An NVIDIA GPU as a device. Not yet run on a GPU.

The node agent's side is cuda_keeper.py, a replica's is cuda_stream.py. MPS confines a process by environment variables, which
are set before CUDA starts: so nothing here starts it but `enter`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasfaas.core.errors import BackendError, HasFaasError, InvalidRequestError
from hasfaas.core.memory import format_memory
from hasfaas.devices import cuda_errors, cuda_memory, nvml
from hasfaas.devices.base import DeviceInfo, DeviceRequest, DeviceSlice, model_of
from hasfaas.devices.cuda_keeper import CudaKeeper
from hasfaas.devices.cuda_stream import CudaStream
from hasfaas.devices.mps import PROTOCOLS

PARTITIONS = ("auto", "static", "percentage", "none")

keeper = CudaKeeper


def inventory(request: DeviceRequest) -> Sequence[DeviceInfo]:
    """The first `count` GPUs of this machine (None: all), or the one that `gpu` names by number or UUID.

    Other options: `partitions` ("auto", "static", "percentage", "none"), `lanes` (SM percents of lanes cut in advance). Units
    are known once the keeper has started.

    Raises InvalidRequestError for an option, BackendError with the cure where there is no driver, GPU or CuPy.
    """
    request.only("cuda", "gpu", "partitions", "lanes", "protocol")
    _check(request)
    chosen = _chosen(nvml.gpus(), request)
    if importlib.util.find_spec("cupy") is None:
        raise BackendError(
            "the package CuPy is not installed: pip install 'hasfaas[cuda]'", reason="CUPY_NOT_INSTALLED"
        )
    return tuple(_info(gpu, request) for gpu in chosen)


def _check(request: DeviceRequest) -> None:
    partitions, lanes = request.options.get("partitions", "auto"), request.options.get("lanes")
    if partitions not in PARTITIONS:
        raise InvalidRequestError(
            f"devices: partitions={partitions!r} is none of {', '.join(PARTITIONS)}", reason="BAD_OPTION"
        )
    protocol = request.options.get("protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        raise InvalidRequestError(
            f"devices: protocol={protocol!r} is none of {', '.join(map(str, PROTOCOLS))}", reason="BAD_OPTION"
        )
    if lanes is not None and not (isinstance(lanes, list | tuple) and all(type(p) in (int, float) for p in lanes)):
        raise InvalidRequestError(
            f"devices: lanes={lanes!r} must be a list of SM percents, as in [50, 25, 25]", reason="BAD_OPTION"
        )


def _chosen(gpus: Sequence[nvml.Gpu], request: DeviceRequest) -> Sequence[nvml.Gpu]:
    wanted = request.options.get("gpu")
    found = list(gpus) if wanted is None else [gpu for gpu in gpus if str(wanted) in (str(gpu.index), gpu.uuid)]
    known = ", ".join(f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in gpus) or "none"
    if wanted is not None and (len(found) != 1 or request.count not in (None, 1)):
        raise InvalidRequestError(
            f"devices: gpu={wanted!r} with count={request.count} must name one GPU (a MIG slice by its UUID) of: {known}",
            reason="BAD_OPTION",
        )
    count = len(found) if request.count is None else request.count
    if not 1 <= count <= len(found):
        raise BackendError(
            f"devices: count={max(count, 1)} GPUs are asked for; there are: {known}. Give the container its GPUs "
            "(--gpus all), or ask for fewer",
            reason="NO_DEVICE",
        )
    for gpu in found[:count]:
        if gpu.compute_mode == "prohibited":
            raise BackendError(
                f"GPU {gpu.index} is in compute mode 'prohibited': nvidia-smi -i {gpu.index} -c DEFAULT",
                reason="GPU_PROHIBITED",
            )
    return found[:count]


def _info(gpu: nvml.Gpu, request: DeviceRequest) -> DeviceInfo:
    memory_bytes = request.memory_bytes or gpu.memory_bytes
    if not memory_bytes or memory_bytes > (gpu.memory_bytes or memory_bytes):
        raise InvalidRequestError(
            f"devices: memory={_shown(memory_bytes)} of GPU {gpu.index} ({gpu.name}), which has {_shown(gpu.memory_bytes)}: "
            "give an amount of memory within what there is",
            reason="BAD_OPTION",
        )
    options = {
        "uuid": gpu.uuid,
        "partitions": request.options.get("partitions", "auto"),
        "lanes": request.options.get("lanes"),
        "protocol": request.options.get("protocol"),
        "memory_bytes": memory_bytes,
    }
    facts = {"uuid": gpu.uuid, "name": gpu.name, "capability": ".".join(map(str, gpu.capability)), "mig": gpu.mig}
    return DeviceInfo("", "cuda", (0,), memory_bytes, options=options, facts=facts, model=_model(gpu, request))


def _model(gpu: nvml.Gpu, request: DeviceRequest) -> str:
    """NVIDIA's name of the product, of a MIG slice with its size; and how its lanes are kept apart, where that was said."""
    partitions = request.options.get("partitions", "auto")
    name = gpu.name if partitions == "auto" else f"{gpu.name}, {partitions}"
    return model_of(name, request.options.get("lanes"))


def _shown(memory_bytes: int) -> str:
    return format_memory(memory_bytes) if memory_bytes else "none that its driver tells of"


def wall(memory_bytes: int) -> None:
    """The device's memory is not the host's: nothing."""


def enter(part: DeviceSlice) -> CudaStream:
    """Starts CUDA in this process, within what the environment grants it, and opens its stream.

    Raises InvalidRequestError for a slice without memory or options, and BackendError naming the device, the driver's text
    and the cure: CUDA_STARTED where CUDA runs in this process already, or did in its parent.
    """
    sms = part.options.get("sms")
    if not isinstance(sms, int) or sms < 1:
        raise InvalidRequestError(
            f"options of a cuda device need sms, the SMs of the whole device, not {sms!r}: its keeper's start says it",
            reason="BAD_DEVICE",
        )
    limit_bytes = cuda_memory.usable_bytes(part.memory_bytes)
    why = cuda_started()
    if why is not None:
        raise BackendError(
            f"device {part.device_id!r} could not be used: CUDA was started before this replica was confined ({why}); touch "
            "the GPU in __init__ or in a call, not at import, and leave share_init out",
            reason="CUDA_STARTED",
        )
    try:
        return CudaStream.opened(limit_bytes, sms)
    except HasFaasError:
        raise
    except Exception as exc:  # CuPy's errors have no class in common
        raise cuda_errors.start_error(part.device_id, exc) from exc


def cuda_started(descriptors: Path = Path("/proc/self/fd")) -> str | None:
    """How it shows that CUDA runs in this process, or did in the one it was forked from; None where it does not.

    CUDA keeps /dev/nvidia-uvm open, which NVML never opens.
    """
    torch: Any = sys.modules.get("torch")
    if torch is not None and (torch.cuda.is_initialized() or getattr(torch.cuda, "_is_in_bad_fork", bool)()):
        return "torch has initialised it"
    for entry in descriptors.iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue  # the descriptor of this very listing
        if target.startswith("/dev/nvidia-uvm"):
            return f"{target} is open"
    return None
