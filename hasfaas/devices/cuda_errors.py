"""What CUDA's errors mean, in whichever library's words they come.

The same number stands for the same error in CUDA's runtime API, its driver API and torch's AcceleratorError; where a library
hands on a text only, that text is the runtime's own. Names, numbers and whether a process can go on: CUDA Runtime API,
"Data types used by CUDA Runtime", enum cudaError.
"""

from __future__ import annotations

from collections.abc import Iterable

from hasfaas.core.errors import BackendError
from hasfaas.devices.base import Failure, is_host_memory_error

OUT_OF_MEMORY = 2

FATAL = {
    # Those of which the enum says that the process must be terminated and launched again to go on.
    220: ("cudaErrorNvlinkUncorrectable", "uncorrectable NVLink error"),
    226: ("cudaErrorContained", "Invalid access of peer GPU memory over nvlink or a hardware error"),
    700: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    702: ("cudaErrorLaunchTimeout", "the launch timed out and was terminated"),
    710: ("cudaErrorAssert", "device-side assert triggered"),
    714: ("cudaErrorHardwareStackError", "hardware stack error"),
    715: ("cudaErrorIllegalInstruction", "an illegal instruction was encountered"),
    716: ("cudaErrorMisalignedAddress", "misaligned address"),
    717: ("cudaErrorInvalidAddressSpace", "operation not supported on global/shared address space"),
    718: ("cudaErrorInvalidPc", "invalid program counter"),
    719: ("cudaErrorLaunchFailure", "unspecified launch failure"),
    721: ("cudaErrorTensorMemoryLeak", "tensor memory not completely freed"),
    810: ("cudaErrorMpsClientTerminated", "the MPS client has been terminated by the server"),
    # The memory, the device, the context or the MPS server is not there any more.
    46: ("cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable"),
    100: ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    214: ("cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"),
    709: ("cudaErrorContextIsDestroyed", "context is destroyed"),
    805: ("cudaErrorMpsConnectionFailed", "MPS client failed to connect to the MPS control daemon or the MPS server"),
    806: ("cudaErrorMpsRpcFailure", "the remote procedural call between the MPS server and the MPS client failed"),
    807: ("cudaErrorMpsServerNotReady", "MPS server is not ready to accept new MPS client requests"),
    911: ("cudaErrorExternalDevice", "an async error has occured in external entity outside of CUDA"),  # its spelling
}
# Refused memory, as CUDA, torch's allocator, and the libraries for blas, dnn, solver, sparse, fft and random numbers say it.
MEMORY_TEXTS = (
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "CURAND_STATUS_ALLOCATION_FAILED",
)

_MISMATCH = (
    "DRIVER_MISMATCH",
    "the driver and its CUDA libraries do not fit: reboot after an upgrade, or restart the container",
)
_CLIENTS = ("MPS_FULL", "the MPS server takes no more clients: run fewer replicas on this GPU")
_STARTS = {
    OUT_OF_MEMORY: (
        "NO_DEVICE_MEMORY",
        "there is no memory for a CUDA context: give the function more, or free the GPU",
    ),
    3: (
        "CUDA_STARTED",
        "CUDA was started before the process forked: touch the GPU in __init__ or in a call, not at import",
    ),
    35: ("DRIVER_TOO_OLD", "install a driver that this CuPy's CUDA supports, or a CuPy for an older CUDA"),
    46: (
        "GPU_BUSY",
        "another process has the GPU for itself: end it, or look at the compute mode with `hasfaas doctor`",
    ),
    100: ("NO_DEVICE", "the process sees no GPU: is it plugged in, and in the container?"),
    101: ("NO_DEVICE", "the process does not see the GPU that was asked for: look at CUDA_VISIBLE_DEVICES"),
    802: ("GPU_NOT_READY", "the system's GPU services are still starting (nvidia-fabricmanager): try again"),
    803: _MISMATCH,
    804: _MISMATCH,
    805: ("MPS_NOT_REACHED", "the MPS daemon of this GPU does not answer: the node agent starts it again"),
    806: ("MPS_NOT_REACHED", "the MPS server of this GPU failed: the node agent waits for the next one"),
    807: ("MPS_NOT_READY", "the MPS server recovers from a fault: try again in a few seconds"),
    808: _CLIENTS,
    809: _CLIENTS,
    914: ("NO_PARTITION", "the SM partition is not there any more: the node agent cuts it again"),
}
_ELSE = ("CUDA_FAILED", "see `hasfaas doctor`")


def failure(exc: BaseException) -> Failure | None:
    """What an exception says about the device: FATAL where this process can use CUDA no more, MEMORY where an allocation was
    refused, on the device or the host; None for any other."""
    if _is_fatal(exc):
        return Failure.FATAL
    if code_of(exc) == OUT_OF_MEMORY or _is_torch_memory(exc) or _says(exc, MEMORY_TEXTS) or is_host_memory_error(exc):
        return Failure.MEMORY
    return None


def start_error(device_id: str, exc: BaseException) -> BackendError:
    """Why a process could not start on a device: the driver's text, and the cure."""
    reason, cure = _STARTS.get(code_of(exc) or 0, _ELSE)
    return BackendError(f"device {device_id!r} could not be used: {cure} ({type(exc).__name__}: {exc})", reason=reason)


def code_of(exc: BaseException) -> int | None:
    """CUDA's number of an error, where its exception has it: `status` in CuPy, `error_code` in torch."""
    attribute = {"CUDARuntimeError": "status", "CUDADriverError": "status", "AcceleratorError": "error_code"}
    code = getattr(exc, attribute.get(type(exc).__name__, ""), None)
    return code if isinstance(code, int) else None


def _is_fatal(exc: BaseException) -> bool:
    code = code_of(exc)
    if code is not None:
        return code in FATAL
    return _says(exc, (name for name, _ in FATAL.values())) or _says(exc, (text for _, text in FATAL.values()), "CUDA")


def _is_torch_memory(exc: BaseException) -> bool:
    # By name: torch need not be there. Before 2.5 it was torch.cuda.OutOfMemoryError, of the same class name.
    return any(cls.__name__ == "OutOfMemoryError" and cls.__module__.startswith("torch") for cls in type(exc).__mro__)


def _says(exc: BaseException, texts: Iterable[str], also: str = "") -> bool:
    if not isinstance(exc, RuntimeError):
        return False
    said = str(exc)
    return also in said and any(text in said for text in texts)
