"""The checks of `hasfaas doctor`, by values: each state of a machine gives its finding, and each fault its cure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest

from hasfaas.core.settings import DeviceSettings, Settings
from hasfaas.devices import probe_record
from hasfaas.devices.nvml import Driver, Gpu, GpuProcess
from hasfaas.devices.probe_record import ProbePoint, ProbeRecord
from hasfaas.node import machine_checks
from hasfaas.node.cgroup import Limits
from hasfaas.node.doctor import Facts, examine, healthy, of_record, stored
from hasfaas.node.finding import Finding, State
from hasfaas.node.gpu_checks import NO_DRIVER_LINE, GpuFacts
from hasfaas.node.machine_facts import Folder, Machine, Process
from hasfaas.node.nvidia_facts import Cupy, DeviceNode, Nvidia, Torch

GIB = 2**30
DRIVER = Driver("590.44.01", (13, 1))
GPU = Gpu(0, "GPU-a", "NVIDIA Fake", 80 * GIB, (9, 0), compute_mode="exclusive_process")
NODES = tuple(DeviceNode(path, True) for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"))
MACHINE = Machine(
    uid=1000,
    python="CPython 3.11.7",
    packages=(("hasfaas", "0.1.0"), ("numpy", "2.0")),
    memory_bytes=64 * GIB,
    limits=Limits(),
    memlock_bytes=None,
    cores=16,
    shm_bytes=32 * GIB,
    shm_free_bytes=31 * GIB,
    mps_control="/usr/bin/nvidia-cuda-mps-control",
    mps_server="/usr/bin/nvidia-cuda-mps-server",
    mps=(),
)
GOOD = GpuFacts(
    Nvidia(driver=DRIVER, gpus=(GPU,)),
    module=True,
    cupy=Cupy("14.2.0", (13, 0), 1),
    torch=Torch("2.9.0+cu130", "13.0"),
    nodes=NODES,
)
RUNTIME = Folder("/run/user/1000/hasfaas", 0o700, 1000, True)
STATE = Folder("/home/u/.local/state/hasfaas", 0o700, 1000, True)
RECORD = ProbeRecord(
    uuid="GPU-a",
    name="NVIDIA Fake",
    driver=DRIVER.version,
    date="2026-01-31",
    points=(ProbePoint(50.0, 66, 1.5e12, 2.5e13), ProbePoint(100.0, 132, 3.0e12, 5.0e13)),
    launch_us=2.5,
    clock_mhz=1755.0,
)


def settings(*devices: DeviceSettings) -> Settings:
    return Settings(state_dir=Path("/s"), runtime_dir=Path("/r"), devices=devices or (DeviceSettings(),))


def findings(gpus: GpuFacts = GOOD, machine: Machine = MACHINE, *devices: DeviceSettings) -> tuple[Finding, ...]:
    return examine(Facts(machine, gpus, RUNTIME, STATE), settings(*devices))


def on(check: str, found: Iterable[Finding]) -> Finding:
    """The one finding of a check."""
    [finding] = [each for each in found if each.check == check]
    return finding


def with_gpu(**changes: Any) -> GpuFacts:
    return attrs.evolve(GOOD, nvidia=attrs.evolve(GOOD.nvidia, gpus=(attrs.evolve(GPU, **changes),)))


def test_a_good_machine_has_nothing_to_cure() -> None:
    found = findings()
    assert {finding.state for finding in found} == {State.OK}
    assert healthy(found)
    assert not any(finding.cure for finding in found)


def test_what_is_wrong_always_has_a_cure() -> None:
    poor = Machine(1, "P", (("numpy", "missing"),), 64 * GIB, Limits(GIB, 0.5), 2**16, 16, None, None, None, None, ())
    bad = attrs.evolve(
        with_gpu(compute_mode="prohibited", capability=(6, 1)),
        cupy=Cupy(error="no"),
        torch=Torch("2", ""),
        nodes=NODES[:1],
    )
    wrong = [f for f in findings(bad, poor) if f.state in (State.WARN, State.FAIL)]
    assert len(wrong) > 8
    assert [f.check for f in wrong if not f.cure] == []


# -- the driver -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["NO_DRIVER", "NVML_NOT_INSTALLED"])
def test_without_a_driver_one_line_says_so_and_the_rest_is_checked(reason: str) -> None:
    found = findings(GpuFacts(Nvidia(reason, "words")))
    assert found[0] == Finding("driver", State.NOTE, NO_DRIVER_LINE)
    assert not any("gpu" in f.check or f.check in ("cupy", "torch", "mps") for f in found)
    assert on("/dev/shm", found).state is State.OK
    assert healthy(found)


def test_without_a_driver_a_cuda_device_fails() -> None:
    found = findings(GpuFacts(Nvidia("NO_DRIVER", "install one")), MACHINE, DeviceSettings(kind="cuda"))
    assert found[0].state is State.FAIL
    assert "install one" in found[0].cure


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [
        ("DRIVER_MISMATCH", State.FAIL, "different versions"),
        ("GPU_PERMISSION", State.FAIL, "may not use the GPU"),
        ("TIMED_OUT", State.FAIL, "does not answer"),
        ("CRASHED", State.FAIL, "does not answer"),
        ("GPU_LOST", State.FAIL, "does not answer"),
        ("NVML_FAILED", State.FAIL, "does not answer"),
        ("NO_DRIVER", State.WARN, "its library cannot be used"),
        ("NVML_NOT_INSTALLED", State.WARN, "cannot ask it"),
    ],
)
def test_a_driver_that_cannot_be_asked_is_told_by_its_reason(reason: str, state: State, words: str) -> None:
    found = findings(GpuFacts(Nvidia(reason, "the message"), module=True))
    assert found[0].check == "driver"
    assert found[0].state is state
    assert words in found[0].detail
    assert "the message" in found[0].detail + found[0].cure
    assert len([f for f in found if f.check == "driver"]) == 1


def test_a_driver_that_shows_no_gpu_is_a_warning_unless_one_is_asked_for() -> None:
    none = attrs.evolve(GOOD, nvidia=Nvidia(driver=DRIVER))
    assert on("driver", findings(none)).state is State.WARN
    assert on("driver", findings(none, MACHINE, DeviceSettings(kind="cuda"))).state is State.FAIL


def test_a_lost_gpu_is_named_and_the_others_are_checked() -> None:
    found = findings(attrs.evolve(GOOD, nvidia=attrs.evolve(GOOD.nvidia, lost=(3,))))
    assert on("gpu 3", found).state is State.FAIL
    assert "lost" in on("gpu 3", found).detail
    assert on("gpu 0", found).state is State.OK


# -- what reaches it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cupy", "state", "words"),
    [
        (Cupy("14.2.0", (13, 0), 1), State.OK, "built for CUDA 13.0"),
        (Cupy("14.2.0", (12, 9), 1), State.OK, "built for CUDA 12.9"),
        (Cupy("14.2.0", (13, 2), 1), State.OK, "built for CUDA 13.2"),
        (Cupy("15.0.0", (14, 0), 1), State.FAIL, "the driver runs up to 13.1"),
        (Cupy(error="fails: No module named 'cupy'"), State.WARN, "No module named"),
        (Cupy("14.2.0", (13, 0), 0, unusable="cudaErrorNoDevice"), State.FAIL, "cudaErrorNoDevice"),
        (Cupy("14.2.0", (13, 0), 0), State.FAIL, "CUDA shows it no GPU"),
    ],
)
def test_cupy_is_judged_against_the_driver(cupy: Cupy, state: State, words: str) -> None:
    found = on("cupy", findings(attrs.evolve(GOOD, cupy=cupy)))
    assert found.state is state
    assert words in found.detail


def test_cupy_that_is_missing_fails_where_a_gpu_is_asked_for() -> None:
    found = on("cupy", findings(attrs.evolve(GOOD, cupy=Cupy(error="x")), MACHINE, DeviceSettings(kind="cuda")))
    assert found.state is State.FAIL
    assert "hasfaas[cuda]" in found.cure


@pytest.mark.parametrize(
    ("torch", "state", "words"),
    [
        (Torch(), State.NOTE, "not installed"),
        (Torch("2.13.0+cpu"), State.WARN, "a CPU build"),
        (Torch("2.9.0", "12.8"), State.OK, "12.8"),
        (Torch("3.0.0", "14.0"), State.FAIL, "the driver runs up to 13.1"),
    ],
)
def test_torch_is_judged_by_its_build(torch: Torch, state: State, words: str) -> None:
    found = on("torch", findings(attrs.evolve(GOOD, torch=torch)))
    assert found.state is state
    assert words in found.detail


@pytest.mark.parametrize(
    ("nodes", "state", "words"),
    [
        ((), State.NOTE, "WSL"),
        ((DeviceNode("/dev/nvidia0", False), *NODES[1:]), State.FAIL, "/dev/nvidia0"),
        (NODES[:2], State.FAIL, "no /dev/nvidia-uvm"),
    ],
)
def test_device_files_must_be_there_and_open_to_this_user(
    nodes: tuple[DeviceNode, ...], state: State, words: str
) -> None:
    found = on("/dev/nvidia*", findings(attrs.evolve(GOOD, nodes=nodes)))
    assert found.state is state
    assert words in found.detail


def test_without_mps_each_gpu_is_one_lane_and_its_mode_must_let_replicas_share_it() -> None:
    bare = attrs.evolve(MACHINE, mps_control=None, mps_server=None)
    found = findings(GOOD, bare)
    assert on("mps", found).state is State.WARN
    assert on("gpu 0 lanes", found).state is State.FAIL
    assert on("gpu 0 compute mode", found).state is State.FAIL
    shared = findings(with_gpu(compute_mode="default"), bare)
    assert on("gpu 0 compute mode", shared).state is State.OK
    assert on("gpu 0 lanes", shared).state is State.NOTE
    assert "one lane" in on("gpu 0 lanes", shared).detail


def test_partitions_that_are_asked_for_must_be_had() -> None:
    static = DeviceSettings(kind="cuda", partitions="static")
    bare = attrs.evolve(MACHINE, mps_control=None, mps_server=None)
    assert on("mps", findings(GOOD, bare, static)).state is State.FAIL
    assert on("gpu 0 lanes", findings(GOOD, MACHINE, static)).state is State.OK
    found = on("gpu 0 lanes", findings(with_gpu(capability=(7, 5)), MACHINE, static))
    assert found.state is State.FAIL
    assert "this GPU has 7.5" in found.detail


@pytest.mark.parametrize(
    ("cuda", "capability", "state", "words"),
    [
        ((13, 1), (8, 0), State.OK, "static partitions: the SMs of a lane are its own"),
        ((13, 0), (9, 0), State.NOTE, "caps that reserve nothing; static partitions need a driver of CUDA 13.1"),
        ((13, 1), (7, 5), State.NOTE, "caps that reserve nothing; static partitions need compute capability 8.0"),
    ],
)
def test_how_lanes_are_kept_apart_follows_from_driver_and_chip(
    cuda: tuple[int, int], capability: tuple[int, int], state: State, words: str
) -> None:
    facts = with_gpu(capability=capability)
    found = on(
        "gpu 0 lanes", findings(attrs.evolve(facts, nvidia=attrs.evolve(facts.nvidia, driver=Driver("1", cuda))))
    )
    assert found.state is state
    assert words in found.detail


def test_a_server_that_is_not_on_the_path_is_a_warning() -> None:
    assert on("mps", findings(GOOD, attrs.evolve(MACHINE, mps_server=None))).state is State.WARN


def test_mps_of_others_is_named_and_fails_where_it_holds_the_gpu() -> None:
    daemon = Process(7, "nvidia-cuda-mps-control -d", pipe="/tmp/nvidia-mps")
    server = Process(8, "nvidia-cuda-mps-server", pipe="/tmp/nvidia-mps")
    ours = Process(9, "nvidia-cuda-mps-control -d", ours=True, pipe="/tmp/hasfaas-1000/mps-1-GPU-a/pipe")
    machine = attrs.evolve(MACHINE, mps=(daemon, server, ours))
    exclusive = [f for f in findings(GOOD, machine) if f.check == "mps"]
    assert [f.state for f in exclusive] == [State.OK, State.WARN, State.FAIL, State.NOTE]
    assert "pid 7" in exclusive[1].detail
    assert "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps" in exclusive[1].cure
    shared = [f for f in findings(with_gpu(compute_mode="default"), machine) if f.check == "mps"]
    assert [f.state for f in shared] == [State.OK, State.WARN, State.WARN, State.NOTE]


# -- each GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "state"),
    [
        ("exclusive_process", State.OK),
        ("default", State.NOTE),
        ("prohibited", State.FAIL),
        ("exclusive_thread", State.FAIL),
    ],
)
def test_compute_modes_under_mps(mode: str, state: State) -> None:
    found = on("gpu 0 compute mode", findings(with_gpu(compute_mode=mode)))
    assert found.state is state
    assert mode in found.detail
    assert bool(found.cure) is (state is not State.OK)


def test_a_gpu_older_than_volta_fails() -> None:
    assert on("gpu 0", findings(with_gpu(capability=(6, 1)))).state is State.FAIL


def test_a_mig_slice_is_shown_with_its_gpu() -> None:
    found = findings(with_gpu(uuid="MIG-11112222-3333", mig=True, parent_uuid="GPU-a", compute_mode="default"))
    [finding] = [f for f in found if "MIG slice" in f.detail]
    assert "slice of GPU-a" in finding.detail
    assert finding.check.startswith("gpu 0 slice")


def test_foreign_processes_are_named_with_pid_and_memory() -> None:
    listed = (GpuProcess(5, 700 * 2**20), GpuProcess(6, None, mps=True), GpuProcess(7, 2**20))
    facts = attrs.evolve(
        GOOD,
        nvidia=attrs.evolve(GOOD.nvidia, processes={"GPU-a": listed}),
        pids={
            5: Process(5, "python train.py"),
            6: Process(6),
            7: Process(7, "python -m hasfaas.executor.zygote", ours=True),
        },
    )
    found = [f for f in findings(facts) if f.check == "gpu 0 processes"]
    assert [f.state for f in found] == [State.WARN, State.WARN]
    assert "pid 5 (python train.py) uses it: 700 MiB" in found[0].detail
    assert "another container" in found[1].detail
    assert "memory not told, by MPS" in found[1].detail


def test_processes_of_ours_are_no_fault_and_untold_ones_are_said() -> None:
    ours = attrs.evolve(
        GOOD,
        nvidia=attrs.evolve(GOOD.nvidia, processes={"GPU-a": (GpuProcess(7, 1),)}),
        pids={7: Process(7, "x", ours=True)},
    )
    assert on("gpu 0 processes", findings(ours)).state is State.OK
    untold = attrs.evolve(GOOD, nvidia=attrs.evolve(GOOD.nvidia, untold={"GPU-a": "not permitted"}))
    assert on("gpu 0 processes", findings(untold)) == Finding(
        "gpu 0 processes", State.NOTE, "not to be told: not permitted"
    )


def test_the_stored_probes_are_shown_for_their_gpu() -> None:
    kept = attrs.evolve(GOOD, records={"GPU-a": of_record(RECORD, DRIVER)})
    found = on("gpu 0 probes", findings(kept))
    assert found.state is State.OK
    for words in ("2026-01-31", "132 SMs at 1755 MHz", "3000 GB/s", "50.0 fp32 TFLOP/s", "2.5 us"):
        assert words in found.detail


def test_probes_of_another_driver_and_no_probes_are_notes() -> None:
    assert "here is 600.1" in of_record(RECORD, Driver("600.1", (14, 0))).detail
    for found in (of_record(None, DRIVER), of_record(RECORD, Driver("600.1", (14, 0)))):
        assert found.state is State.NOTE
        assert "--probe" in found.cure


def test_a_record_is_read_from_its_file_and_a_broken_one_fails(tmp_path: Path) -> None:
    assert stored(tmp_path, GPU, DRIVER).state is State.NOTE
    file = probe_record.store(tmp_path, RECORD)
    assert stored(tmp_path, GPU, DRIVER).state is State.OK
    file.write_text("{")
    found = stored(tmp_path, GPU, DRIVER)
    assert found.state is State.FAIL
    assert str(file) in found.detail


# -- the machine ------------------------------------------------------------------------------------------------------


def on_machine(check: str, *devices: DeviceSettings, **changes: Any) -> Finding:
    return on(check, findings(GpuFacts(Nvidia("NO_DRIVER")), attrs.evolve(MACHINE, **changes), *devices))


def test_a_missing_package_fails() -> None:
    found = on_machine("packages", packages=(("numpy", "missing"), ("grpcio", "1.85")))
    assert found.state is State.FAIL
    assert "numpy" in found.cure


def test_a_quota_below_the_cores_is_told_to_whoever_counts_on_them() -> None:
    limits = Limits(cores=2.5)
    found = on_machine("processors", limits=limits)
    assert found.state is State.WARN
    assert "cores = 2" in found.cure
    assert on_machine("processors", DeviceSettings(kind="cpu", cores=2), limits=limits).state is State.NOTE
    assert on_machine("processors", DeviceSettings(kind="cpu", cores=3), limits=limits).state is State.WARN
    assert on_machine("processors", DeviceSettings(kind="cuda"), limits=limits).state is State.NOTE
    assert on_machine("processors", limits=Limits(cores=16.0)).state is State.OK


def test_a_memory_limit_below_the_machines_is_told_to_whoever_counts_on_it() -> None:
    limits = Limits(memory_bytes=8 * GIB)
    found = on_machine("memory", limits=limits)
    assert found.state is State.WARN
    assert 'memory = "6144MiB"' in found.cure
    assert on_machine("memory", DeviceSettings(kind="cpu", memory="6GiB"), limits=limits).state is State.NOTE
    assert on_machine("memory", DeviceSettings(kind="cpu", memory="9GiB"), limits=limits).state is State.WARN
    assert on_machine("memory", limits=Limits(memory_bytes=64 * GIB)).state is State.OK
    assert on_machine("memory", memory_bytes=None).state is State.WARN


@pytest.mark.parametrize(
    ("size", "free", "state"),
    [
        (None, None, State.FAIL),
        (64 * 2**20, 20 * 2**20, State.FAIL),
        (64 * 2**20, 64 * 2**20, State.WARN),
        (2 * GIB, GIB, State.OK),
    ],
)
def test_shared_memory_needs_room(size: int | None, free: int | None, state: State) -> None:
    assert on_machine("/dev/shm", shm_bytes=size, shm_free_bytes=free).state is state


def test_a_low_limit_of_locked_memory_is_a_note() -> None:
    assert on_machine("locked memory", memlock_bytes=8 * 2**20).state is State.NOTE
    assert on_machine("locked memory", memlock_bytes=4 * GIB).state is State.OK


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, State.OK, "socket paths of 35 bytes"),
        ({"mode": None, "owner": None}, State.OK, "made at the first start"),
        ({"mode": None, "owner": None, "writable": False}, State.FAIL, "cannot be made"),
        ({"owner": 0}, State.FAIL, "belongs to user 0"),
        ({"mode": 0o750}, State.FAIL, "mode 750"),
        ({"writable": False}, State.FAIL, "must be yours"),
        ({"path": "/" + "x" * 86}, State.FAIL, "100 bytes"),
        ({"path": "/" + "x" * 85}, State.OK, "99 bytes"),
    ],
)
def test_the_folder_of_sockets_is_ours_closed_and_short(changes: dict[str, Any], state: State, words: str) -> None:
    found = machine_checks.runtime_folder(attrs.evolve(RUNTIME, **changes), 1000)
    assert found.state is state
    assert words in found.detail


def test_the_state_folder_must_be_writable() -> None:
    assert machine_checks.state_folder(STATE).state is State.OK
    assert machine_checks.state_folder(attrs.evolve(STATE, writable=False)).state is State.FAIL
