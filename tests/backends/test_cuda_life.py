"""A whole replica's life on a cuda device, without a GPU.

Real: gateway, agent, zygote, replica processes, nvidia-ml-py, and every line of hasfaas. Stood in for: the driver's
library, the control program of MPS, and CuPy (tests/standins). What MPS was told is compared word for word.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hasfaas import BackendError, MemoryLimitError, PlacementError, UnavailableError
from hasfaas.core.settings import DeviceSettings
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.fakes import mps_daemon, nvml_library, standin_cupy
from tests.live import Gateway, Load, app, eventually, gateway, used_share

on_gpu = app("on_gpu")
UUID = nvml_library.FakeGpu().uuid
CUDA = DeviceSettings(kind="cuda")

pytestmark = nvml_library.needs_compiler


class Box:
    """A machine with one GPU, as far as processes started from here can tell."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.unplugged = folder / "unplugged"
        self._monkeypatch = monkeypatch

    def equip(self, *, cuda: tuple[int, int] = (13, 1), **mps: object) -> None:
        """Puts the GPU in: a driver of this CUDA version, and MPS like this."""
        gpu = nvml_library.FakeGpu(lost_with=self.unplugged)
        for name, value in {
            **nvml_library.install(self.folder, [gpu], cuda=cuda),
            **mps_daemon.install(self.folder, **mps),  # type: ignore[arg-type]
            **standin_cupy.environment(),
        }.items():
            self._monkeypatch.setenv(name, value)
        # What a user's shell may hold, and no replica may see.
        self._monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
        self._monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "5")

    def told(self) -> list[str]:
        """What MPS was told, but for questions and the numbers of processes."""
        return mps_daemon.transcript(self.folder, queries=False)

    @property
    def daemons(self) -> list[int]:
        """Control daemons that live."""
        return mps_daemon.daemons(self.folder)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    made = Box(tmp_path, monkeypatch)
    yield made
    mps_daemon.stop_all(tmp_path)


def partition(number: int) -> str:
    """The fake names its partitions in order."""
    return f"D{number}/{'A' * 30}"


def device(made: Gateway) -> pb.DeviceStatus:
    [found] = made.status().devices
    return found


@pytest.mark.alone
def test_a_life_on_a_static_partition(box: Box) -> None:
    box.equip()
    with gateway(CUDA) as made:
        start = device(made)
        assert (start.device_id, start.health, start.units, start.facts["partitions"]) == (
            "cuda0",
            "ready",
            15,
            "static",
        )
        assert len(box.daemons) == 1
        # Start: confined before CUDA, by a partition of its own, and nothing of the user's shell.
        on_gpu.granted.deploy()
        on_gpu.granted.scale(sm=50, quota=40)
        seen, sms, pid = on_gpu.granted.remote()
        replica = made.replica("on_gpu.granted")
        assert pid == replica.pid
        assert sms == 64
        assert seen["CUDA_MPS_SM_PARTITION"].startswith(f"{UUID}/")
        assert seen["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=2048M"
        assert "CUDA_VISIBLE_DEVICES" not in seen and "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in seen
        # Census: what ps shows is what the replica counted, of all SMs; what was granted is a share of the chunks.
        assert replica.sm_granted_percent == pytest.approx(100 * 8 / 15)
        assert replica.sm_counted_percent == pytest.approx(100 * 64 / 132)
        assert replica.cold_start.enter_ms > 0
        # Re-size, in place, of a replica whose work is asynchronous.
        on_gpu.kernels.deploy()
        on_gpu.kernels.scale(sm=30, quota=80)
        with Load(on_gpu.kernels.remote, width=2) as load:
            eventually(lambda: load.done > 3)
            before = made.replica("on_gpu.kernels")
            shares = {}
            for quota in (60, 20):
                on_gpu.kernels.scale(quota=quota)
                shares[quota] = used_share(made, ["on_gpu.kernels"], 1.5)[0]
        assert not load.errors
        assert made.replica("on_gpu.kernels").pid == before.pid
        assert 0.4 < shares[60] < 0.66 and 0.1 < shares[20] < 0.26, shares
        # What lies on the device comes back as the host can hold it.
        assert on_gpu.array.remote()["x"].tolist() == [1.0, 2.0, 3.0]
        # Memory: one typed error, and the replica goes on.
        survivor = on_gpu.greedy.remote(0.1)
        with pytest.raises(MemoryLimitError, match="memory of 2GiB"):
            on_gpu.greedy.remote(3)
        assert on_gpu.greedy.remote(0.1) == survivor
    assert box.daemons == []
    assert box.told() == [
        "-d -S",
        # One chunk for the probe, which tells how many SMs that is; while it lives another is tried.
        f"sm_partition add {UUID} 1",
        f"sm_partition add {UUID} 1",
        f"sm_partition rm {UUID} {partition(2)}",
        f"sm_partition rm {UUID} {partition(1)}",
        # Nobody had sized the first function: the whole GPU, until it was given half.
        f"sm_partition add {UUID} 15",
        f"sm_partition rm {UUID} {partition(3)}",
        f"sm_partition add {UUID} 8",
        f"sm_partition add {UUID} 5",
        "quit -t 5",
    ]


def test_a_fault_takes_all_that_share_the_gpu_and_the_gpu_comes_back(box: Box) -> None:
    box.equip()
    with gateway(CUDA) as made:
        on_gpu.faulty.deploy()
        on_gpu.granted.deploy()
        *_, first = on_gpu.granted.remote()
        with Load(on_gpu.kernels.remote, width=2) as idempotent:
            eventually(lambda: idempotent.done > 3)
            with pytest.raises(UnavailableError, match="died"):
                on_gpu.faulty.remote()
            eventually(lambda: device(made).health == "recovering")
            eventually(lambda: device(made).health == "ready")
            done = idempotent.done
            eventually(lambda: idempotent.done > done)
        assert not idempotent.errors
        *_, second = on_gpu.granted.remote()
        assert second != first
        assert "illegal" in "\n".join(path.read_text() for path in made.settings.state_dir.glob("logs/on_gpu.faulty*"))
    assert box.daemons == []
    assert box.told()[0] == "-d -S" and box.told().count("-d -S") == 1


def test_a_killed_replica_is_ended_on_the_gpu_first(box: Box) -> None:
    box.equip()
    with gateway(CUDA, drain_timeout_s=0.2) as made:
        on_gpu.stuck.deploy()
        pid = made.replica("on_gpu.stuck").pid
        call = on_gpu.stuck.spawn()
        eventually(lambda: made.replica("on_gpu.stuck").in_flight == 1)
        on_gpu.stuck.scale(replicas=0)
        eventually(lambda: not made.function("on_gpu.stuck").replicas)
        with pytest.raises(UnavailableError):
            call.result(timeout_s=10)
        eventually(lambda: f"terminate_client {mps_daemon.FIRST_SERVER} {pid}" in box.told())
        assert not Path(f"/proc/{pid}").exists()


def test_a_daemon_that_dies_is_started_anew_with_the_lanes_that_there_are(box: Box) -> None:
    box.equip()
    with gateway(CUDA) as made:
        on_gpu.granted.deploy()
        on_gpu.granted.scale(sm=50)
        before = on_gpu.granted.remote()
        mps_daemon.fail(box.folder, dead_daemon=True)
        eventually(lambda: device(made).health == "recovering")
        eventually(lambda: device(made).health == "ready")
        after = on_gpu.granted.remote()
        assert (after[1], after[2] != before[2]) == (64, True)
        assert box.told().count("-d -S") == 2
    assert box.daemons == []


def test_a_gpu_that_is_unplugged_is_said_to_be_lost(box: Box) -> None:
    box.equip()
    with gateway(CUDA) as made:
        on_gpu.granted.remote()
        box.unplugged.touch()
        eventually(lambda: device(made).health == "lost")
        eventually(lambda: not made.function("on_gpu.granted").replicas)
        assert "plug it in" in device(made).cure
        with pytest.raises(PlacementError, match="cuda0 is lost"):
            on_gpu.granted.remote()


def test_an_older_driver_has_percentages_instead(box: Box) -> None:
    box.equip(cuda=(12, 4))
    with gateway(CUDA) as made:
        assert device(made).facts["partitions"] == "percentage"
        on_gpu.granted.deploy()
        on_gpu.granted.scale(sm=25)
        seen, sms, _ = on_gpu.granted.remote()
        assert (seen["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], sms) == ("25", 33)
        assert "CUDA_MPS_SM_PARTITION" not in seen
    assert box.told() == ["-d", "quit -t 5"]


def test_a_gpu_that_takes_no_new_partition_has_its_lanes_cut_in_advance(box: Box) -> None:
    box.equip(add_live=False)
    with gateway(CUDA) as made:
        assert device(made).fixed_lanes
        on_gpu.granted.deploy()
        on_gpu.kernels.deploy()
        for function, sm in ((on_gpu.granted, 20), (on_gpu.kernels, 40)):
            function.scale(sm=sm)
        assert on_gpu.granted.remote()[1] == 32
        assert made.replica("on_gpu.kernels").sm_granted_percent == pytest.approx(100 * 7 / 15)


def test_what_keeps_a_gpu_from_being_used_keeps_the_gateway_from_starting_and_leaves_no_daemon(box: Box) -> None:
    box.equip(cuda=(12, 4))
    with (
        pytest.raises(BackendError, match="static"),
        gateway(DeviceSettings(kind="cuda", partitions="static")),
    ):
        pass
    assert box.daemons == []
