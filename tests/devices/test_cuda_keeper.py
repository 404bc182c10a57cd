"""A keeper against the fake MPS: what it starts and says, in which order, what replicas get, and what a fault does.

The GPU is an H100 on paper: 132 SMs, 15 chunks of 8. The probe process is a stand-in that is a client of the fake. What
differs by protocol runs in both: commands are compared by what they mean (`told`); their words are in test_mps_dialects.py.
The fake takes new partitions while it has clients in either, which the page of protocol 3 says it does not: then the same
tests hold, and the default of 3 has one of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from hasfaas.core.errors import BackendError, InvalidRequestError, PlacementError
from hasfaas.devices import held_probe, nvml
from hasfaas.devices.base import DeviceInfo, Health
from hasfaas.devices.cuda_keeper import CudaKeeper
from hasfaas.devices.held_probe import held_probe as probing
from hasfaas.devices.mps import MpsControl
from tests.fakes import mps_daemon, mps_probe

UUID = "GPU-74d43ed3-cdf7-e667-3644-bf5b4f46ed65"
GIB = 1 << 30
PROBE = (sys.executable, mps_probe.__file__)
STARTED_STATIC = ["start", "add 1", "add 1"]
MEANING = (
    (r"-d( -S| -p 3)?", "start"),
    (r"quit -t 5|-q", "quit"),
    (rf"sm_partition add {UUID} (\d+)|sm-partition create \w+ --server=\w+ --device={UUID} --chunks=(\d+)", "add {}"),
    (rf"sm_partition rm {UUID} D(\d+)/A+|sm-partition delete lane_(\d+) .*--device={UUID}", "remove {}"),
    (r"terminate_client 7001 (\d+)|client terminate (\d+)", "end {}"),
)
"""What changes something, in either protocol. Partitions are numbered as they are made."""
BOTH = pytest.mark.parametrize("fake", [(2,), (3,)], indirect=True, ids=["v2", "v3"])
V3_ALONE = pytest.mark.parametrize("fake", [(3,)], indirect=True, ids=["v3"])


class Machine:
    """What NVML would say, and a clock, both to be changed."""

    def __init__(self) -> None:
        self.driver = nvml.Driver("580.159.04", (13, 1))
        self.gpu = nvml.Gpu(0, UUID, "NVIDIA H100", 80 * GIB, (9, 0), False, "default", None)
        self.there = True
        self.now_s = 1000.0

    def present(self, uuid: str) -> bool:
        return self.there and uuid == self.gpu.uuid


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(nvml, "driver", lambda: machine.driver)
    monkeypatch.setattr(nvml, "gpus", lambda: (machine.gpu,))
    monkeypatch.setattr(nvml, "present", machine.present)
    return machine


@pytest.fixture(params=[(2,)], ids=["v2"])
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = tmp_path / "fake"
    for name, value in mps_daemon.install(folder, protocols=request.param, add_live=True).items():
        monkeypatch.setenv(name, value)
    yield folder
    mps_daemon.stop_all(folder)


Make = Callable[..., CudaKeeper]


@pytest.fixture
def root() -> Iterator[Path]:
    """Short, since sockets would lie in it."""
    with tempfile.TemporaryDirectory(prefix="hasfaas-") as folder:
        yield Path(folder)


@pytest.fixture
def make(fake: Path, root: Path, machine: Machine) -> Iterator[Make]:
    """Makes a keeper of the GPU with these options; all are stopped in the end."""
    made: list[CudaKeeper] = []

    def make(probe: tuple[str, ...] = PROBE, **options: object) -> CudaKeeper:
        info = DeviceInfo("gpu0", "cuda", (0,), 80 * GIB, options={"uuid": UUID, "memory_bytes": 80 * GIB} | options)
        made.append(CudaKeeper(info, root=root, probe=probe, clock_s=lambda: machine.now_s))
        return made[-1]

    yield make
    for keeper in made:
        keeper.stop()


@pytest.fixture
def replica() -> Iterator[Callable[[CudaKeeper, int], tuple[int, dict[str, str], mps_daemon.Client]]]:
    """Starts a process that lives and is a client by a lane's environment."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(keeper: CudaKeeper, lane: int) -> tuple[int, dict[str, str], mps_daemon.Client]:
        process = subprocess.Popen(["sleep", "60"])
        processes.append(process)
        environ = {k: v for k, v in (os.environ | dict(keeper.environment(lane, GIB))).items() if v is not None}
        return process.pid, environ, mps_daemon.connect(environ, process.pid)

    yield start
    for process in processes:
        process.kill()
        process.wait()


Replica = Callable[[CudaKeeper, int], tuple[int, dict[str, str], mps_daemon.Client]]


def spoken(fake: Path) -> int:
    (protocol,) = mps_daemon.settings_of(fake).protocols
    return protocol


def told(fake: Path) -> list[str]:
    """What changed something, by its meaning, but for starts that were refused and the server of protocol 3."""
    changes = [
        entry["command"]
        for entry in mps_daemon.records(fake)
        if "command" in entry and not (entry["command"].startswith("-d") and entry["reply"])
    ]
    known = [(re.fullmatch(pattern, each), meaning) for each in changes for pattern, meaning in MEANING]
    return [meaning.format(*filter(None, found.groups())) for found, meaning in known if found]


# -- starting ------------------------------------------------------------------------------------------------------------


@BOTH
def test_static_lanes_cut_while_others_run(fake: Path, make: Make) -> None:
    keeper = make()
    info = keeper.start()
    assert info.units == tuple(range(15)) and info.fixed_lanes is None
    assert info.options["sms"] == 132 and info.options["memory_bytes"] == 80 * GIB
    assert info.facts == {
        "uuid": UUID,
        "name": "NVIDIA H100",
        "driver": "580.159.04",
        "cuda": "13.1",
        "mps": "13010",
        "partitions": "static",
        "partitions_why": "",
        "protocol": spoken(fake),
        "sms": 132,
        "chunk": 8,
        "chunks": 15,
        "can_add_lane_live": True,
        "context_ms": 250.0,
        "clock_mhz": 1980.0,
    }
    assert told(fake) == [
        *STARTED_STATIC,
        "remove 2",
        "remove 1",
    ]
    keeper.stop()
    assert told(fake)[-1] == "quit" and mps_daemon.daemons(fake) == []


@BOTH
def test_static_lanes_cut_in_advance(fake: Path, make: Make) -> None:
    mps_daemon.change(fake, add_live=False, add_form="id")
    info = make().start()
    assert info.fixed_lanes == (tuple(range(7)), (7, 8, 9, 10), (11, 12, 13, 14))
    assert info.facts["can_add_lane_live"] is False
    assert told(fake) == [
        *STARTED_STATIC,
        "remove 1",
        "add 7",
        "add 4",
        "add 4",
    ]


@V3_ALONE
def test_protocol_3_cuts_lanes_in_advance(fake: Path, make: Make) -> None:
    mps_daemon.change(fake, add_live=None)
    info = make().start()
    assert info.facts["can_add_lane_live"] is False and info.facts["protocol"] == 3
    assert [len(units) for units in info.fixed_lanes or ()] == [7, 4, 4]


def test_a_protocol_can_be_asked_for(fake: Path, make: Make) -> None:
    mps_daemon.change(fake, protocols=(2, 3))
    assert make(protocol=3).start().facts["protocol"] == 3
    assert make().start().facts["protocol"] == 2
    mps_daemon.change(fake, protocols=(2,))
    with pytest.raises(BackendError, match="`-d -p 3`"):
        make(protocol=3, partitions="percentage").start()


def test_no_lane_counts_more_than_the_gpu_has(fake: Path, make: Make, replica: Replica) -> None:
    """NVIDIA's example: of 92 SMs 10 chunks of 8, and the last partition, of 2 chunks, has 28 SMs."""
    mps_daemon.change(fake, sms=92, chunks=10, remainder=True)
    keeper = make((*PROBE, "92"), lanes=[50, 30, 20])
    info = keeper.start()
    assert info.options["sms"] == 92 and info.facts["chunk"] == 8 and info.units == tuple(range(10))
    granted = []
    for lane, units in enumerate(info.fixed_lanes or ()):
        keeper.open_lane(lane, units)
        granted.append(replica(keeper, lane)[2].sms)
    assert granted == [40, 24, 28] and sum(granted) == info.options["sms"]


@pytest.mark.parametrize("told_sms", [8, 132])
def test_a_probe_may_be_told_its_own_share_alone(fake: Path, make: Make, told_sms: int) -> None:
    assert make((*PROBE, str(told_sms))).start().options["sms"] == 132


def test_lanes_of_ones_own_are_cut_in_advance(fake: Path, make: Make) -> None:
    info = make(lanes=[60, 40]).start()
    assert info.fixed_lanes is not None and [len(units) for units in info.fixed_lanes] == [9, 6]
    assert told(fake)[-2:] == ["add 9", "add 6"]


def test_lanes_more_than_the_gpu_leave_no_daemon(fake: Path, make: Make) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be cut from 15 units"):
        make(lanes=[60, 60]).start()
    assert mps_daemon.daemons(fake) == []


def test_percentages_where_the_driver_is_older(fake: Path, make: Make, machine: Machine) -> None:
    machine.driver = nvml.Driver("550.54.15", (12, 4))
    info = make().start()
    assert info.units == tuple(range(132)) and info.fixed_lanes is None and info.options["sms"] == 132
    assert info.facts["partitions"] == "percentage" and "CUDA 13.1" in str(info.facts["partitions_why"])
    assert told(fake) == ["start"] and info.facts["protocol"] == spoken(fake)


def test_percentages_where_static_mode_does_not_start(fake: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    mps_daemon.change(fake, static_ok=False)
    info = make().start()
    words = {
        2: "static: MPS refused `-d -S`: nvidia-cuda-mps-control: invalid option",
        3: "partitions are not supported",
    }
    assert info.facts["partitions"] == "percentage" and words[spoken(fake)] in str(info.facts["partitions_why"])
    assert "lanes are kept apart by percentage: static: " in caplog.text and words[spoken(fake)] in caplog.text
    assert len(mps_daemon.daemons(fake)) == 1


def test_one_lane_without_mps(
    fake: Path, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    keeper = make()
    info = keeper.start()
    assert info.units == (0,) and info.fixed_lanes == ((0,),) and info.options["sms"] == 132
    assert info.facts["partitions"] == "none" and "not on PATH" in caplog.text
    keeper.open_lane(0, (0,))
    found = {name: value for name, value in keeper.environment(0, GIB).items() if value is not None}
    assert found == {"CUDA_VISIBLE_DEVICES": UUID}
    assert keeper.check().health is Health.READY
    keeper.before_kill(os.getpid())
    assert told(fake) == []


def test_lanes_without_mps_are_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidRequestError, match="need MPS"):
        make(lanes=[50, 50]).start()


def test_an_explicit_choice_does_not_fall_back(fake: Path, make: Make) -> None:
    mps_daemon.change(fake, static_ok=False)
    with pytest.raises(BackendError, match=r"invalid option|not supported"):
        make(partitions="static").start()
    assert mps_daemon.daemons(fake) == [] and make(partitions="percentage").start().facts["partitions"] == "percentage"


def test_a_gpu_that_is_not_there(make: Make, machine: Machine) -> None:
    machine.gpu = attrs.evolve(machine.gpu, uuid="GPU-other")
    with pytest.raises(BackendError, match="is not there any more") as caught:
        make().start()
    assert caught.value.reason == "GPU_LOST"


def test_a_probe_that_fails_is_an_error_with_its_words(fake: Path, make: Make) -> None:
    with pytest.raises(BackendError, match="NO_CUPY: CuPy is not installed") as caught:
        make((*PROBE, "broken")).start()
    assert caught.value.reason == "PROBE_FAILED" and mps_daemon.daemons(fake) == []


@BOTH
def test_what_a_dead_agent_left_is_ended(fake: Path, make: Make, root: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    theirs, others = (MpsControl(root / f"mps-{pid}-74d43ed3", UUID) for pid in (gone.pid, os.getppid()))
    for control in (theirs, others):
        control.start(static=False)
    make().start()
    assert not theirs.alive and not theirs.folder.exists()
    assert others.alive


def test_a_folder_that_is_open_to_others_is_refused(make: Make, root: Path) -> None:
    root.chmod(0o755)
    with pytest.raises(BackendError, match="chmod 700"):
        make().start()


# -- lanes ---------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_live_lane_from_cut_to_given_back(fake: Path, make: Make, replica: Replica) -> None:
    keeper = make()
    keeper.start()
    before = len(told(fake))
    keeper.open_lane(3, (0, 1, 2, 3, 4))
    pid, environ, granted = replica(keeper, 3)
    assert granted == mps_daemon.Client(sms=40, memory_limit=GIB)
    assert "CUDA_VISIBLE_DEVICES" not in environ and "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in environ
    mps_daemon.leave(environ, pid)
    keeper.close_lane(3)
    assert told(fake)[before:] == [
        "add 5",
        "remove 3",
    ]


def test_a_lane_that_the_gpu_refuses(fake: Path, make: Make) -> None:
    keeper = make()
    keeper.start()
    mps_daemon.fail(fake, refuse_add=1)
    with pytest.raises(PlacementError, match="5 chunks"):
        keeper.open_lane(0, tuple(range(5)))
    keeper.open_lane(0, tuple(range(5)))


def test_a_partition_in_use_is_given_back_later(fake: Path, make: Make) -> None:
    keeper = make()
    keeper.start()
    keeper.open_lane(0, tuple(range(8)))
    mps_daemon.fail(fake, refuse_remove=5)
    keeper.close_lane(0)
    keeper.open_lane(1, tuple(range(15)))  # needs every chunk


def test_fixed_lanes_stay_when_they_close(fake: Path, make: Make, replica: Replica) -> None:
    keeper = make(lanes=[50, 50])
    info = keeper.start()
    assert info.fixed_lanes is not None
    before = len(told(fake))
    with pytest.raises(PlacementError, match="no lane of the units"):
        keeper.open_lane(0, (0, 1))
    keeper.open_lane(0, info.fixed_lanes[1])
    assert replica(keeper, 0)[2].sms == 8 * len(info.fixed_lanes[1])
    keeper.close_lane(0)
    keeper.open_lane(5, info.fixed_lanes[1])
    assert replica(keeper, 5)[2].sms == 8 * len(info.fixed_lanes[1])
    assert told(fake)[before:] == []


@BOTH
def test_a_percentage_lane(make: Make, replica: Replica) -> None:
    keeper = make(partitions="percentage")
    keeper.start()
    keeper.open_lane(0, tuple(range(27)))  # 20 % of 132 SMs, rounded up
    _, environ, granted = replica(keeper, 0)
    assert environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "20" and "CUDA_MPS_SM_PARTITION" not in environ
    assert granted == mps_daemon.Client(sms=27, memory_limit=GIB)


# -- health --------------------------------------------------------------------------------------------------------------


def test_a_healthy_gpu(fake: Path, make: Make) -> None:
    keeper = make()
    keeper.start()
    before = len(mps_daemon.transcript(fake))
    assert keeper.check().health is Health.READY and keeper.check().lanes == ()
    asked = {2: ["get_server_list", "get_server_status 7001"], 3: ["server list --format=csv,noheader"] * 2}
    assert mps_daemon.transcript(fake)[before:] == asked[spoken(fake)] * 2


@BOTH
def test_a_clients_work_is_ended_before_it_is_killed(fake: Path, make: Make, replica: Replica) -> None:
    keeper = make()
    keeper.start()
    keeper.open_lane(0, (0, 1))
    pid, environ, _ = replica(keeper, 0)
    before = len(told(fake))
    keeper.before_kill(pid)
    assert mps_daemon.ended(environ, pid)
    keeper.before_kill(pid)  # no client any more
    assert told(fake)[before:] == [f"end {pid}"]


def test_ending_work_is_bounded(fake: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    keeper = make()
    keeper.start()
    mps_daemon.fail(fake, slow_s=60.0)
    keeper.before_kill(os.getpid())
    assert "was not ended before it was killed" in caplog.text
    mps_daemon.fail(fake, slow_s=0.0)


@BOTH
def test_a_fault_takes_all_replicas_and_passes(fake: Path, make: Make, machine: Machine, replica: Replica) -> None:
    keeper = make()
    keeper.start()
    keeper.open_lane(0, (0, 1))
    keeper.open_lane(1, (2, 3))
    first, environ, _ = replica(keeper, 0)
    second, environ_2, _ = replica(keeper, 1)
    mps_daemon.fault(environ, first)
    assert mps_daemon.faulted(environ_2, second)
    found = keeper.check()
    assert (found.health, found.lanes) == (Health.RECOVERING, None) and "a replica faulted" in found.why
    before = len(told(fake))
    keeper.before_kill(first)
    assert told(fake)[before:] == []  # there is no work to end
    machine.now_s += 1.0
    assert keeper.check().lanes is None  # as long as one of them has not left
    for environ_of, pid in ((environ, first), (environ_2, second)):
        mps_daemon.leave(environ_of, pid)
    assert keeper.check().health is Health.READY
    replica(keeper, 0)


def test_faults_in_a_row_make_it_wait_longer(make: Make, machine: Machine, replica: Replica) -> None:
    keeper = make()
    keeper.start()
    keeper.open_lane(0, (0, 1))
    waits = []
    for _ in range(3):
        pid, environ, _ = replica(keeper, 0)
        mps_daemon.fault(environ, pid)
        keeper.check()
        mps_daemon.leave(environ, pid)
        began_s = machine.now_s
        while (found := keeper.check()).health is not Health.READY:
            assert found.lanes == () and "a replica faulted" in found.why
            machine.now_s += 0.5
        waits.append(machine.now_s - began_s)
    assert waits == [0.5, 1.0, 2.0]


def test_a_contained_fault_leaves_the_others_alone(fake: Path, make: Make, replica: Replica) -> None:
    mps_daemon.change(fake, isolates=True)
    keeper = make()
    keeper.start()
    keeper.open_lane(0, (0, 1))
    keeper.open_lane(1, (2, 3))
    first, environ, _ = replica(keeper, 0)
    second, environ_2, _ = replica(keeper, 1)
    mps_daemon.fault(environ, first)
    assert mps_daemon.faulted(environ, first) and not mps_daemon.faulted(environ_2, second)
    assert keeper.check().health is Health.READY


def test_a_server_that_does_not_recover_loses_its_daemon(
    fake: Path, make: Make, machine: Machine, replica: Replica
) -> None:
    keeper = make()
    keeper.start()
    keeper.open_lane(0, (0, 1))
    pid, environ, _ = replica(keeper, 0)
    mps_daemon.fault(environ, pid)  # and it never leaves
    keeper.check()
    machine.now_s += 31.0
    before = len(told(fake))
    found = keeper.check()
    assert found.lanes is None and "did not recover" in found.why
    assert told(fake)[before:] == [
        "quit",
        "start",
        "add 2",
    ]
    machine.now_s += 0.9  # the second fault in a row waits for a second
    assert keeper.check().health is Health.RECOVERING
    machine.now_s += 0.1
    assert keeper.check().health is Health.READY
    assert replica(keeper, 0)[2].sms == 16


@BOTH
def test_a_dead_daemon_is_started_again_with_its_partitions(
    fake: Path, make: Make, machine: Machine, replica: Replica
) -> None:
    keeper = make(lanes=[50, 25])
    info = keeper.start()
    assert info.fixed_lanes is not None
    keeper.open_lane(0, info.fixed_lanes[0])
    pid, environ, _ = replica(keeper, 0)
    mps_daemon.fail(fake, dead_daemon=True)
    assert mps_daemon.faulted(environ, pid)
    before = len(told(fake))
    found = keeper.check()
    assert (found.health, found.lanes) == (Health.RECOVERING, None) and "daemon ended" in found.why
    assert told(fake)[before:] == [
        "start",
        "add 8",
        "add 4",
    ]
    machine.now_s += 1.0
    assert keeper.check().health is Health.READY
    assert replica(keeper, 0)[2].sms == 64


def test_a_daemon_that_does_not_start_again_is_tried_later(
    fake: Path, make: Make, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = make()
    keeper.start()
    path = os.environ["PATH"]
    mps_daemon.fail(fake, dead_daemon=True)
    monkeypatch.setenv("PATH", "/nowhere")
    found = keeper.check()
    assert found.lanes is None and "a new one did not start" in found.why and found.cure
    monkeypatch.setenv("PATH", path)
    assert keeper.check() == found  # not before its time
    assert mps_daemon.daemons(fake) == []
    machine.now_s += 0.5
    assert keeper.check().health is Health.RECOVERING and len(mps_daemon.daemons(fake)) == 1
    machine.now_s += 1.0
    assert keeper.check().health is Health.READY


def test_a_dead_server(fake: Path, make: Make, machine: Machine, replica: Replica) -> None:
    keeper = make()
    keeper.start()
    keeper.open_lane(0, (0,))
    pid, environ, _ = replica(keeper, 0)
    mps_daemon.fail(fake, dead_server=True)
    assert mps_daemon.faulted(environ, pid)
    found = keeper.check()
    assert (found.health, found.lanes) == (Health.RECOVERING, None) and "server ended" in found.why
    machine.now_s += 1.0
    assert keeper.check().health is Health.READY
    replica(keeper, 0)
    assert keeper.check().health is Health.READY


def test_a_slow_daemon_takes_no_replica(fake: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = make()
    keeper.start()
    monkeypatch.setattr(keeper, "_control", MpsControl(keeper._control.folder, UUID, timeout_s=0.5))
    mps_daemon.fail(fake, slow_s=60.0)
    found = keeper.check()
    assert (found.health, found.lanes) == (Health.RECOVERING, ()) and "did not answer" in found.why
    mps_daemon.fail(fake, slow_s=0.0)


def test_an_unplugged_gpu(make: Make, machine: Machine) -> None:
    keeper = make()
    keeper.start()
    machine.there = False
    found = keeper.check()
    assert (found.health, found.lanes) == (Health.LOST, None) and found.cure
    machine.there = True
    assert keeper.check().health is Health.READY


# -- the probe process ---------------------------------------------------------------------------------------------------


def test_a_probe_is_held_inside_the_block(fake: Path) -> None:
    with probing({}, command=PROBE) as census:
        assert census == held_probe.Census(132, 132, 1980.0, 250.0)


def test_a_probe_that_says_nothing_of_use(fake: Path) -> None:
    with pytest.raises(BackendError, match="it said nothing"), probing({}, command=(*PROBE, "silent")):
        raise AssertionError("not reached")


def test_a_probe_that_stays_is_killed(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_probe, "_LEAVE_S", 0.3)
    ended: list[int] = []
    with probing({}, command=(*PROBE, "lingers"), before_kill=ended.append):
        pass
    (pid,) = ended
    assert not Path(f"/proc/{pid}").exists()


def test_a_probe_that_takes_too_long(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_probe, "START_S", 0.3)
    with pytest.raises(BackendError, match="said nothing"), probing({}, command=("sleep", "60")):
        raise AssertionError("not reached")
