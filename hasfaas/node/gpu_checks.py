"""Checks of the NVIDIA driver, of what reaches it, and of each GPU: values in, findings out.

A GPU that cannot be used is a failure where the settings ask for one (`kind = "cuda"`), and a warning where hasfaas serves
from the CPU instead. What is broken is a failure always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from hasfaas.core.errors import BackendError
from hasfaas.core.settings import Settings
from hasfaas.devices import mps_policy
from hasfaas.devices.nvml import Driver, Gpu
from hasfaas.node.finding import Finding, State, fail, note, ok, warn
from hasfaas.node.machine_facts import Machine, Process
from hasfaas.node.nvidia_facts import Cupy, DeviceNode, Nvidia, Torch

LEAST_CAPABILITY = mps_policy.PERCENTAGE_CAPABILITY
"""Before Volta, MPS can bound neither the SMs nor the memory of a client."""
NO_DRIVER_LINE = "no NVIDIA driver: hasfaas serves from the CPU"
_XID = "look for Xid in the kernel's log (`dmesg`), then `nvidia-smi --gpu-reset`, or reboot"
_CONTAINER = "in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility"
_BROKEN = {
    "DRIVER_MISMATCH": "its kernel module and its libraries are of different versions",
    "GPU_PERMISSION": "this user may not use the GPU",
}


@attrs.frozen
class GpuFacts:
    """What was learned of the GPUs. `module`: the driver's kernel part is there. `pids` are the processes on the GPUs as
    this machine shows them, `records` the findings about each GPU's stored probe record; by UUID."""

    nvidia: Nvidia
    module: bool = False
    cupy: Cupy = attrs.field(factory=Cupy)
    torch: Torch = attrs.field(factory=Torch)
    nodes: tuple[DeviceNode, ...] = ()
    pids: Mapping[int, Process] = attrs.field(factory=dict, hash=False)
    records: Mapping[str, Finding] = attrs.field(factory=dict, hash=False)


def gpu_findings(facts: GpuFacts, machine: Machine, settings: Settings) -> Iterator[Finding]:
    """The driver; with one that answers, what reaches it, and each GPU."""
    wanted = any(device.kind == "cuda" for device in settings.devices)
    nvidia = facts.nvidia
    if nvidia.driver is None:
        yield no_driver(nvidia, facts.module, wanted=wanted)
        return
    modes = {str(device.given.get("partitions", "auto")) for device in settings.devices if device.kind == "cuda"}
    yield driver(nvidia, wanted=wanted)
    yield from (_lost(index) for index in nvidia.lost)
    yield cupy(facts.cupy, nvidia.driver, wanted=wanted)
    yield torch(facts.torch, nvidia.driver)
    yield device_files(facts.nodes)
    yield mps(machine.mps_control, machine.mps_server, modes)
    yield from foreign_mps(machine.mps, nvidia.gpus)
    for gpu in nvidia.gpus:
        yield from each(gpu, facts, machine, modes)


def no_driver(nvidia: Nvidia, module: bool, *, wanted: bool) -> Finding:
    """Why NVML could not be asked. `module`: the driver's kernel part is there."""
    if nvidia.reason in ("NO_DRIVER", "NVML_NOT_INSTALLED") and not module:
        if wanted:
            cure = f'{nvidia.message}; or set kind = "auto" in [[devices]]'
            return fail("driver", "no NVIDIA driver, and [[devices]] asks for a cuda device", cure)
        return note("driver", NO_DRIVER_LINE)
    if nvidia.reason == "NVML_NOT_INSTALLED":
        detail = "there is one, and hasfaas cannot ask it: it serves from the CPU"
        return _serious(wanted, "driver", detail, nvidia.message)
    if nvidia.reason == "NO_DRIVER":
        detail = f"its kernel module is there, its library cannot be used: {nvidia.message}"
        return _serious(wanted, "driver", detail, f"install the driver's libraries; {_CONTAINER}")
    if nvidia.reason in _BROKEN:
        return fail("driver", f"{_BROKEN[nvidia.reason]} ({nvidia.reason})", nvidia.message)
    return fail("driver", f"it does not answer ({nvidia.reason}): {nvidia.message}", _XID)


def driver(nvidia: Nvidia, *, wanted: bool) -> Finding:
    """The driver, and how many GPUs it shows."""
    assert nvidia.driver is not None
    detail = f"{nvidia.driver.version}, for CUDA up to {_dotted(nvidia.driver.cuda)}, {len(nvidia.gpus)} GPUs or slices"
    if nvidia.gpus or nvidia.lost:
        return ok("driver", detail)
    cure = "give the container its GPUs (--gpus all); a GPU in MIG mode needs slices (`nvidia-smi mig -cgi ... -C`)"
    return _serious(wanted, "driver", f"{detail}: hasfaas serves from the CPU", cure)


def cupy(found: Cupy, of: Driver, *, wanted: bool) -> Finding:
    """CuPy: importable, built for a CUDA that the driver runs, and able to reach a GPU and to compile kernels."""
    wheel = f"cupy-cuda{min(of.cuda[0], 13)}x"
    if found.error:
        detail = f"not to be imported, hasfaas cannot use a GPU: {found.error}"
        return _serious(wanted, "cupy", detail, f"pip install 'hasfaas[cuda]', or {wheel} if you have another CUDA")
    detail = f"{found.version}, built for CUDA {_dotted(found.cuda)}" if found.cuda else found.version
    if found.cuda and found.cuda[0] > of.cuda[0]:
        cure = f"put {wheel} in its place, or update the driver"
        return fail("cupy", f"{detail}; the driver runs up to {_dotted(of.cuda)}", cure)
    if found.unusable:
        cure = f"a missing compiler or library: pip install 'hasfaas[cuda]'; a missing libcuda: {_CONTAINER}"
        return fail("cupy", f"{detail}; reaches no GPU, or no compiler: {found.unusable}", cure)
    if not found.gpus:
        return fail("cupy", f"{detail}; CUDA shows it no GPU", "unset CUDA_VISIBLE_DEVICES, or list the GPUs in it")
    return ok("cupy", f"{detail}, {found.gpus} GPUs")


def torch(found: Torch, of: Driver) -> Finding:
    """torch, which functions may use and hasfaas does not need."""
    if not found.version:
        return note("torch", "not installed; functions on CuPy work")
    if not found.cuda:
        detail = f"{found.version} is a CPU build: functions that use it do not reach the GPU"
        return warn("torch", detail, f"install a build for CUDA {of.cuda[0]} or older, as pytorch.org says")
    if int(found.cuda.partition(".")[0]) > of.cuda[0]:
        detail = f"{found.version} is built for CUDA {found.cuda}; the driver runs up to {_dotted(of.cuda)}"
        return fail("torch", detail, f"install a build for CUDA {of.cuda[0]}, or update the driver")
    return ok("torch", f"{found.version}, built for CUDA {found.cuda}")


def device_files(nodes: Sequence[DeviceNode]) -> Finding:
    """The driver's device files, which CUDA opens for reading and writing."""
    if not nodes:
        return note("/dev/nvidia*", "none here, as on WSL")
    closed = [node.path for node in nodes if not node.usable]
    if closed:
        cure = "add this user to their group (`ls -l /dev/nvidia*`); for a container: --gpus all, or --device for each"
        return fail("/dev/nvidia*", f"not readable and writable by this user: {', '.join(closed)}", cure)
    if not any(node.path.endswith("nvidia-uvm") for node in nodes):
        cure = "`nvidia-modprobe -u -c=0` as root; for a container: --device /dev/nvidia-uvm"
        return fail("/dev/nvidia*", "no /dev/nvidia-uvm: CUDA cannot start", cure)
    return ok("/dev/nvidia*", f"{len(nodes)} files, readable and writable")


def mps(control: str | None, server: str | None, modes: set[str]) -> Finding:
    """MPS, by which one GPU serves several processes at once, each within its share of the SMs."""
    cure = f"install the driver's compute utilities (Debian: nvidia-compute-utils); {_CONTAINER}"
    if control and server:
        return ok("mps", control)
    if control:
        return warn("mps", f"{control} is there, nvidia-cuda-mps-server is not on PATH: it may not find it", cure)
    detail = "no nvidia-cuda-mps-control on PATH: each GPU is one lane, and nothing bounds a replica's SMs or memory"
    return _serious(bool(modes & {mps_policy.STATIC, mps_policy.PERCENTAGE}), "mps", detail, cure)


def foreign_mps(running: Sequence[Process], gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Daemons and servers of MPS that are not ours."""
    exclusive = any(gpu.compute_mode == "exclusive_process" for gpu in gpus)
    for process in running:
        if process.ours:
            yield note("mps", f"pid {process.pid}: {process.command}, of hasfaas")
            continue
        detail = f"pid {process.pid}: {process.command or 'MPS'} in {process.pipe} is not of hasfaas"
        cure = f"`echo quit | CUDA_MPS_PIPE_DIRECTORY={process.pipe} nvidia-cuda-mps-control` as its user"
        if exclusive and "server" in process.command:
            yield fail("mps", f"{detail}, and holds the GPUs in exclusive mode", cure)
        else:
            yield warn("mps", f"{detail}: its clients take the GPU beside ours, unmetered", cure)


def each(gpu: Gpu, facts: GpuFacts, machine: Machine, modes: set[str]) -> Iterator[Finding]:
    """One GPU or slice: what it is, its compute mode, how lanes are kept apart, who uses it, what was measured on it."""
    assert facts.nvidia.driver is not None
    name = f"gpu {gpu.index}" if gpu.parent_uuid is None else f"gpu {gpu.index} slice {gpu.uuid[-12:]}"
    has_mps = machine.mps_control is not None
    yield identity(name, gpu)
    yield compute_mode(name, gpu, has_mps=has_mps)
    for wanted in sorted(modes) or [mps_policy.AUTO]:
        yield lanes(name, gpu, facts.nvidia.driver, wanted, has_mps=has_mps)
    yield from foreign_processes(name, gpu, facts)
    if gpu.uuid in facts.records:
        record = facts.records[gpu.uuid]
        yield attrs.evolve(record, check=f"{name} {record.check}")


def identity(name: str, gpu: Gpu) -> Finding:
    """What it is."""
    size = f"{gpu.memory_bytes / 2**30:.1f} GiB" if gpu.memory_bytes else "memory of the host"
    part = f", a MIG slice of {gpu.parent_uuid}" if gpu.parent_uuid else ""
    detail = f"{gpu.name}, {size}, capability {_dotted(gpu.capability)}, {gpu.uuid}{part}"
    if gpu.capability < LEAST_CAPABILITY:
        return fail(
            name, f"{detail}: too old", f"hasfaas needs capability {_dotted(LEAST_CAPABILITY)} (Volta) or newer"
        )
    return ok(name, detail)


def compute_mode(name: str, gpu: Gpu, *, has_mps: bool) -> Finding:
    """Who may open contexts on it."""
    check, mode = f"{name} compute mode", gpu.compute_mode
    set_to = f"`nvidia-smi -i {gpu.index} -c"
    if mode == "prohibited":
        return fail(
            check, f"{mode}: no process may use it", f"{set_to} EXCLUSIVE_PROCESS` as root (DEFAULT without MPS)"
        )
    if mode == "default":
        if not has_mps or gpu.mig:
            return ok(check, mode)
        detail = f"{mode}: works; in EXCLUSIVE_PROCESS nothing could reach it past MPS"
        return note(check, detail, f"{set_to} EXCLUSIVE_PROCESS` as root")
    if mode == "exclusive_process" and has_mps:
        return ok(check, mode)
    return fail(check, f"{mode}: only one process may use it, and a lane has several", f"{set_to} DEFAULT` as root")


def lanes(name: str, gpu: Gpu, of: Driver, wanted: str, *, has_mps: bool) -> Finding:
    """How lanes will be kept apart on this GPU, by the rule that its keeper goes by, under `partitions = wanted`."""
    check = f"{name} lanes"
    try:
        tried, barred = mps_policy.modes(wanted, of.cuda, gpu.capability, gpu.compute_mode, mps=has_mps)
    except BackendError as exc:
        return fail(check, exc.message, 'cure that, or set partitions = "auto" in [[devices]]')
    words = {
        mps_policy.STATIC: "static partitions: the SMs of a lane are its own (tried when the gateway starts)",
        mps_policy.PERCENTAGE: "MPS percentages: caps that reserve nothing",
        mps_policy.NONE: "one lane, the whole GPU",
    }
    return note(check, f"{words[tried[0]]}; {barred}") if barred else ok(check, words[tried[0]])


def foreign_processes(name: str, gpu: Gpu, facts: GpuFacts) -> Iterator[Finding]:
    """Who computes on it besides hasfaas, each with its pid and memory."""
    check, found = f"{name} processes", facts.nvidia.processes.get(gpu.uuid, ())
    if gpu.uuid in facts.nvidia.untold:
        yield note(check, f"not to be told: {facts.nvidia.untold[gpu.uuid]}")
        return
    ours = 0
    for process in found:
        seen = facts.pids.get(process.pid, Process(process.pid))
        if seen.ours:
            ours += 1
            continue
        size = "memory not told" if process.memory_bytes is None else f"{process.memory_bytes / 2**20:.0f} MiB"
        what = seen.command or "not to be seen from here, as of another container"
        detail = f"pid {process.pid} ({what}) uses it: {size}{', by MPS' if process.mps else ''}"
        yield warn(check, detail, f"end it (`kill {process.pid}`): what it takes, no quota of ours accounts for")
    if ours == len(found):
        yield ok(check, f"{ours} of hasfaas, no others")


def _lost(index: int) -> Finding:
    return fail(f"gpu {index}", "lost: the driver counts it, and it does not answer", _XID)


def _serious(wanted: bool, check: str, detail: str, cure: str) -> Finding:
    return Finding(check, State.FAIL if wanted else State.WARN, detail, cure)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
