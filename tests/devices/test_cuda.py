"""The GPU as a device: which ones there are, and how a process enters one, without a GPU.

Entering is tried in processes of their own, on the stand-in for CuPy and the fake MPS.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hasfaas.core.errors import BackendError, InvalidRequestError
from hasfaas.devices import cuda, nvml
from hasfaas.devices.base import DeviceRequest, DeviceSlice, enter, module_of
from hasfaas.devices.nvml import Gpu
from tests.fakes import mps_daemon, standin_cupy

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
WHOLE = Gpu(0, "GPU-a", "NVIDIA H100", 80 * GIB, (9, 0))
SMALL = Gpu(1, "GPU-b", "NVIDIA A10", 24 * GIB, (8, 6))
SLICES = tuple(Gpu(2, f"MIG-{n}", "NVIDIA MIG 1g", 10 * GIB, (9, 0), mig=True, parent_uuid="GPU-c") for n in "xy")


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpus", lambda: (WHOLE, SMALL, *SLICES))


def _request(count: int = 1, memory_bytes: int | None = None, **options: object) -> DeviceRequest:
    return DeviceRequest(count, memory_bytes, options)


# -- inventory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "uuids"),
    [
        (_request(), ["GPU-a"]),
        (_request(3), ["GPU-a", "GPU-b", "MIG-x"]),
        (_request(gpu="1"), ["GPU-b"]),
        (_request(gpu=1), ["GPU-b"]),
        (_request(gpu="GPU-a"), ["GPU-a"]),
        (_request(gpu="MIG-y"), ["MIG-y"]),
    ],
)
def test_gpus_are_taken_by_count_number_or_uuid(request_: DeviceRequest, uuids: list[str]) -> None:
    found = cuda.inventory(request_)
    assert [info.options["uuid"] for info in found] == uuids
    assert all(info.kind == "cuda" and info.units == (0,) for info in found)


def test_what_a_gpu_has_is_all_of_it_unless_less_is_asked_for() -> None:
    (whole,) = cuda.inventory(_request())
    assert whole.memory_bytes == whole.options["memory_bytes"] == 80 * GIB
    (less,) = cuda.inventory(_request(1, 8 * GIB, partitions="static", lanes=[50, 25.0], protocol=3))
    assert less.memory_bytes == less.options["memory_bytes"] == 8 * GIB
    assert (less.options["partitions"], less.options["lanes"]) == ("static", [50, 25.0])
    assert (whole.options["protocol"], less.options["protocol"]) == (None, 3)
    assert whole.facts == {"uuid": "GPU-a", "name": "NVIDIA H100", "capability": "9.0", "mig": False}
    assert (whole.model, less.model) == ("NVIDIA H100", "NVIDIA H100, static, lanes 50,25")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (_request(sms=3), "no option sms=3"),
        (_request(gpu="7"), "gpu='7' with count=1 must name one GPU"),
        (_request(gpu="2"), "a MIG slice by its UUID"),
        (_request(2, gpu="0"), "count=2 must name one"),
        (_request(partitions="mig"), "partitions='mig' is none of auto, static"),
        (_request(protocol=4), "protocol=4 is none of 2, 3"),
        (_request(lanes="50"), "must be a list of SM percents"),
        (_request(lanes=[True]), "must be a list of SM percents"),
        (_request(1, 100 * GIB), "memory=100GiB of GPU 0 .NVIDIA H100., which has 80GiB"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(request_: DeviceRequest, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        cuda.inventory(request_)


def test_more_gpus_than_there_are_is_no_device() -> None:
    with pytest.raises(BackendError, match=r"count=5 .* 0 \(NVIDIA H100, GPU-a\), 1 .*--gpus all") as caught:
        cuda.inventory(_request(5))
    assert caught.value.reason == "NO_DEVICE"


def test_a_gpu_that_tells_no_memory_needs_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpus", lambda: (Gpu(0, "GPU-s", "NVIDIA Spark", 0, (12, 1)),))
    with pytest.raises(InvalidRequestError, match="give an amount of memory"):
        cuda.inventory(_request())
    assert cuda.inventory(_request(1, GIB))[0].memory_bytes == GIB


def test_a_prohibited_gpu_says_how_it_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpus", lambda: (Gpu(0, "G", "N", GIB, (9, 0), compute_mode="prohibited"),))
    with pytest.raises(BackendError, match="nvidia-smi -i 0 -c DEFAULT"):
        cuda.inventory(_request())


def test_without_cupy_there_is_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install 'hasfaas\[cuda\]'") as caught:
        cuda.inventory(_request())
    assert caught.value.reason == "CUPY_NOT_INSTALLED"


def test_looking_for_gpus_imports_no_cupy() -> None:
    code = (
        "import sys\nfrom hasfaas.devices import cuda\nprint({'cupy', 'torch', 'pynvml', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_the_walls_memory_is_not_the_hosts() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    module_of("cuda").wall(GIB)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


# -- entering ----------------------------------------------------------------------------------------------------------


def _part(memory_bytes: int = GIB, environment: Mapping[str, str | None] = {}, **options: object) -> DeviceSlice:
    return DeviceSlice("gpu0", "cuda", 0, (0,), 50.0, {"sms": 132, **options}, memory_bytes, environment)


def test_a_slice_that_does_not_say_the_sms_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="need sms"):
        enter(_part(sms=None))


def test_a_slice_whose_memory_the_context_takes_is_refused_before_cuda_starts() -> None:
    with standin_cupy.imported() as cupy:
        with pytest.raises(InvalidRequestError, match="leaves nothing on a GPU"):
            enter(_part(memory_bytes=100 << 20))
        assert not cupy.standin.started()


def test_a_process_where_cuda_was_started_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "3").symlink_to("/dev/nvidiactl")  # NVML has that too
    assert cuda.cuda_started(tmp_path) is None
    (tmp_path / "4").symlink_to("/dev/nvidia-uvm")
    why = cuda.cuda_started(tmp_path)
    assert why == "/dev/nvidia-uvm is open"
    monkeypatch.setattr(cuda, "cuda_started", lambda: why)
    with pytest.raises(BackendError, match=r"'gpu0'.*before this replica was confined.*nvidia-uvm.*__init__") as caught:
        enter(_part())
    assert caught.value.reason == "CUDA_STARTED"


def test_torch_that_was_forked_after_it_had_started_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert cuda.cuda_started() == "torch has initialised it"


def test_without_a_driver_the_error_says_what_is_wrong() -> None:
    """The real CuPy, on a machine without a GPU."""
    cupy = pytest.importorskip("cupy")
    if cupy.is_available():
        pytest.skip("there is a GPU")
    code = (
        "import json\nfrom hasfaas.core.errors import BackendError\nfrom hasfaas.devices import base\n"
        "try:\n    base.enter(base.DeviceSlice('gpu0', 'cuda', 0, (0,), 50.0, {'sms': 132}, 1 << 30))\n"
        "except BackendError as exc:\n    print(json.dumps([exc.reason, exc.message]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    reason, message = json.loads(done.stdout)
    assert reason == "DRIVER_TOO_OLD"
    assert "'gpu0'" in message and "cudaErrorInsufficientDriver" in message and "install a driver" in message


REPLICA = """
import json, os, sys
from hasfaas.core.errors import HasFaasError
from hasfaas.devices import base
part = json.loads(sys.argv[1])
part["units"] = tuple(part["units"])
try:
    stream = base.enter(base.DeviceSlice(**part))
except HasFaasError as exc:
    print(json.dumps({"reason": exc.reason, "message": exc.message}))
    sys.exit()
told = {"granted": stream.granted_percent}
import cupy
def attempt(name, call):
    try:
        call()
    except Exception as exc:
        failure = stream.failure(exc)
        told[name] = [failure and failure.value, type(exc).__name__]
attempt("pool", lambda: cupy.empty(800 << 20, "u1"))
attempt("wall", lambda: cupy.standin.allocate(1100 << 20))
attempt("fine", lambda: cupy.empty(700 << 20, "u1"))
attempt("gone", lambda: (cupy.standin.fault(), stream.drain()))
print(json.dumps(told))
"""


def _run(folder: Path, part: DeviceSlice) -> dict[str, Any]:
    fields = {name: getattr(part, name) for name in DeviceSlice.__match_args__}
    done = subprocess.run(
        [sys.executable, "-c", REPLICA, json.dumps(fields)],
        cwd=ROOT,
        env={**os.environ, "FAKE_MPS": str(folder), **standin_cupy.environment()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _under_mps(pipe: Path, percent: int) -> dict[str, str | None]:
    return {
        "CUDA_MPS_PIPE_DIRECTORY": str(pipe),
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent),
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=1024M",
        "CUDA_VISIBLE_DEVICES": None,
    }


def _start_daemon(folder: Path, pipe: Path) -> None:
    pipe.mkdir()
    environment = {**os.environ, **mps_daemon.install(folder), "CUDA_MPS_PIPE_DIRECTORY": str(pipe)}
    command = folder / "bin" / mps_daemon.COMMAND
    subprocess.run([command, "-d"], env=environment | {"CUDA_VISIBLE_DEVICES": "GPU-a"}, check=True, timeout=30)


def test_a_replica_has_the_share_and_the_memory_of_its_environment(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    _start_daemon(tmp_path / "mps", pipe)
    try:
        told = _run(tmp_path / "mps", _part(environment=_under_mps(pipe, 25)))
    finally:
        mps_daemon.stop_all(tmp_path / "mps")
    assert told.pop("granted") == 25.0
    assert told == {
        "pool": ["memory", "OutOfMemoryError"],  # 1 GiB less what a context takes
        "wall": ["memory", "CUDARuntimeError"],  # what no library counts, MPS refuses
        "gone": ["fatal", "CUDARuntimeError"],
    }


def test_a_replica_that_mps_refuses_says_why(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    _start_daemon(tmp_path / "mps", pipe)
    try:
        mps_daemon.fail(tmp_path / "mps", not_ready=1)
        told = _run(tmp_path / "mps", _part(environment=_under_mps(pipe, 25)))
    finally:
        mps_daemon.stop_all(tmp_path / "mps")
    assert told["reason"] == "MPS_NOT_READY"
    assert "'gpu0'" in told["message"] and "cudaErrorMpsServerNotReady" in told["message"]


def test_a_replica_without_its_daemon_says_why(tmp_path: Path) -> None:
    mps_daemon.install(tmp_path / "mps")
    told = _run(tmp_path / "mps", _part(environment=_under_mps(tmp_path / "pipe", 25)))
    assert told["reason"] == "MPS_NOT_REACHED"
