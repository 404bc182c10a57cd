"""What CUDA's errors mean, in the words of the real CuPy and torch as far as these are installed."""

from __future__ import annotations

from typing import Any

import pytest

from hasfaas.core.errors import BackendError
from hasfaas.devices import cuda_errors
from hasfaas.devices.base import Failure
from hasfaas.devices.cuda_errors import FATAL, MEMORY_TEXTS, failure, start_error


def _cupy_error(status: int) -> RuntimeError:
    """As CuPy raises it, by the runtime library that CuPy brings along: no driver is asked for names and texts."""
    runtime = pytest.importorskip("cupy").cuda.runtime
    error: RuntimeError = runtime.CUDARuntimeError(status)
    return error


def _torch_error(text: str, code: int | None = None) -> RuntimeError:
    error: RuntimeError = pytest.importorskip("torch").AcceleratorError(text)
    if code is not None:
        error.error_code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("code", sorted(FATAL))
def test_names_and_texts_are_those_of_the_runtime(code: int) -> None:
    name, text = FATAL[code]
    error = _cupy_error(code)
    assert str(error).startswith(f"{name}: ")
    assert text in str(error)
    assert failure(error) is Failure.FATAL


@pytest.mark.parametrize("code", sorted(FATAL))
def test_torch_says_the_same_in_its_own_ways(code: int) -> None:
    name, text = FATAL[code]
    for said in (
        f"CUDA error: {text}\nCUDA kernel errors might be",
        f"Triton Error [CUDA]: {text}",
        f"{name}: somehow",
    ):
        assert failure(RuntimeError(said)) is Failure.FATAL
    assert failure(_torch_error("the GPU is unwell", code)) is Failure.FATAL


@pytest.mark.parametrize("code", [1, 98, 209, 400, 900, 901, 906])
def test_an_error_after_which_a_process_can_go_on_is_the_codes_own(code: int) -> None:
    assert failure(_cupy_error(code)) is None
    assert failure(_torch_error("CUDA error: invalid argument", code)) is None


@pytest.mark.parametrize("text", MEMORY_TEXTS)
def test_refused_memory_is_known_by_its_text(text: str) -> None:
    assert failure(RuntimeError(f"{text} when calling something")) is Failure.MEMORY
    assert failure(ValueError(f"{text} when calling something")) is None


def test_refused_memory_is_known_by_its_class() -> None:
    torch, cupy = pytest.importorskip("torch"), pytest.importorskip("cupy")
    assert failure(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")) is Failure.MEMORY
    assert failure(torch.OutOfMemoryError("no text that anybody knows")) is Failure.MEMORY
    assert failure(cupy.cuda.memory.OutOfMemoryError(1 << 30, 1 << 20)) is Failure.MEMORY
    assert failure(_cupy_error(2)) is Failure.MEMORY
    assert failure(_torch_error("CUDA error: something", 2)) is Failure.MEMORY


def test_a_user_who_writes_about_devices_is_not_taken_for_one() -> None:
    assert failure(RuntimeError("the boat's engine: unspecified launch failure")) is None
    assert failure(ValueError("CUDA error: an illegal memory access was encountered")) is None


def test_a_subclass_of_the_users_own_is_judged_by_its_words() -> None:
    class Mine(RuntimeError):
        status = 700

    assert failure(Mine("a status of my own")) is None


@pytest.mark.parametrize(
    ("code", "reason", "cure"),
    [
        (2, "NO_DEVICE_MEMORY", "free the GPU"),
        (3, "CUDA_STARTED", "not at import"),
        (35, "DRIVER_TOO_OLD", "install a driver"),
        (46, "GPU_BUSY", "compute mode"),
        (100, "NO_DEVICE", "in the container"),
        (803, "DRIVER_MISMATCH", "reboot"),
        (805, "MPS_NOT_REACHED", "node agent"),
        (807, "MPS_NOT_READY", "try again"),
        (808, "MPS_FULL", "fewer replicas"),
        (1, "CUDA_FAILED", "hasfaas doctor"),
    ],
)
def test_a_start_that_fails_names_device_cause_and_cure(code: int, reason: str, cure: str) -> None:
    cause: Any = _cupy_error(code)
    error = start_error("cuda0", cause)
    assert isinstance(error, BackendError)
    assert error.reason == reason
    assert "'cuda0'" in error.message and cure in error.message and str(cause) in error.message


def test_what_is_no_error_of_cuda_still_has_a_cure() -> None:
    error = start_error("cuda0", ImportError("libcudart.so.12"))
    assert "hasfaas doctor" in error.message and "libcudart.so.12" in error.message
    assert cuda_errors.code_of(ImportError()) is None
