"""`MpsControl` against a fake daemon that lives in a process of its own, in both protocols."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasfaas.core.errors import BackendError, PlacementError
from hasfaas.devices.mps import MpsControl
from hasfaas.devices.mps_replies import PartitionTable, ServerStatus
from tests.fakes import mps_daemon

GPU = "GPU-74d43ed3-cdf7-e667-3644-bf5b4f46ed65"


V2_ALONE = pytest.mark.parametrize("fake", [(2,)], indirect=True, ids=["v2"])
V3_ALONE = pytest.mark.parametrize("fake", [(3,)], indirect=True, ids=["v3"])


@pytest.fixture(params=[(2,), (3,)], ids=["v2", "v3"])
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An installed fake on PATH that speaks these protocols, and nothing of it left behind."""
    folder = tmp_path / "fake"
    for name, value in mps_daemon.install(folder, protocols=request.param).items():
        monkeypatch.setenv(name, value)
    yield folder
    mps_daemon.stop_all(folder)


@pytest.fixture
def control(fake: Path, tmp_path: Path) -> MpsControl:
    return MpsControl(tmp_path / "mps", GPU)


@pytest.fixture
def client() -> Iterator[int]:
    """A process that lives."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def environ(control: MpsControl, **more: str) -> dict[str, str]:
    return {
        "FAKE_MPS": os.environ["FAKE_MPS"],
        "CUDA_MPS_PIPE_DIRECTORY": str(control.pipe),
        **more,
    }


def test_a_daemon_lives_until_it_quits(fake: Path, control: MpsControl) -> None:
    assert not control.alive
    control.start(static=False)
    assert control.alive and [control.pid] == mps_daemon.daemons(fake)
    control.quit()
    assert not control.alive and mps_daemon.daemons(fake) == []
    listed = "server list --format=csv,noheader"
    assert (
        mps_daemon.transcript(fake)
        == {
            2: ["-d", "get_server_list", "quit -t 5"],
            3: ["-d", "-d -p 3", listed, "-q"],  # the first was refused
        }[control.protocol]
    )


@V2_ALONE
def test_protocol_2_is_spoken_where_both_are(fake: Path, control: MpsControl) -> None:
    mps_daemon.change(fake, protocols=(2, 3))
    control.start(static=True)
    assert control.protocol == 2
    control.quit()
    asked_for = MpsControl(control.folder, GPU, protocols=(3,))
    asked_for.start(static=True)
    assert asked_for.protocol == 3 and asked_for.add_partition(2)
    assert control.protocol == 3 and control.servers()  # whoever comes later speaks as the daemon does
    control.quit()
    assert mps_daemon.transcript(fake, queries=False) == [
        "-d -S",
        "quit -t 5",
        "-d -p 3",
        f"server create --uid={os.getuid()}",
        f"sm-partition create lane_1 --server=uid_{os.getuid()} --device={GPU} --chunks=2",
        "-q",
    ]


@V2_ALONE
def test_a_protocol_that_is_not_there_is_an_error(fake: Path, control: MpsControl) -> None:
    with pytest.raises(BackendError, match=r"MPS refused `-d -p 3`: .*invalid option") as caught:
        MpsControl(control.folder, GPU, protocols=(3,)).start(static=True)
    assert caught.value.reason == "MPS_FAILED" and mps_daemon.daemons(fake) == []


def test_a_daemon_without_its_file_is_found(fake: Path, control: MpsControl) -> None:
    control.start(static=False)
    (pid,) = mps_daemon.daemons(fake)
    (control.pipe / "nvidia-cuda-mps-control.pid").unlink()
    assert control.pid == pid
    MpsControl(control.folder, GPU, timeout_s=0.5).quit()
    assert not control.alive


def test_its_folders_are_private(control: MpsControl) -> None:
    control.start(static=False)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (control.folder, control.pipe, control.log)} == {0o700}


def test_the_daemon_sees_one_gpu_and_no_limit_of_ours(
    fake: Path, control: MpsControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "10")
    monkeypatch.setenv("CUDA_MPS_PROTOCOL_VERSION", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    control.start(static=True)
    (started,) = [entry for entry in mps_daemon.records(fake) if "environ" in entry]
    assert started["environ"] == {
        "CUDA_MPS_LOG_DIRECTORY": str(control.log),
        "CUDA_MPS_PIPE_DIRECTORY": str(control.pipe),
        "CUDA_MPS_PROTOCOL_VERSION": str(control.protocol),
        "CUDA_VISIBLE_DEVICES": GPU,
    }


def test_servers_and_clients(control: MpsControl, client: int) -> None:
    control.start(static=False)
    assert control.servers() == ()
    mps_daemon.connect(environ(control), client)
    (server,) = control.servers()
    assert control.server_status(server) is ServerStatus.ACTIVE
    assert control.clients(server) == (client,)
    control.terminate_client(server, client)
    assert control.clients(server) == ()
    assert mps_daemon.ended(environ(control), client)
    with pytest.raises(
        BackendError, match={2: f"terminate_client {server} ", 3: "client terminate "}[control.protocol]
    ):
        control.terminate_client(server, client)


def test_a_server_can_be_started_first(control: MpsControl) -> None:
    control.start(static=False)
    control.start_server(os.getuid())
    assert len(control.servers()) == 1


def test_a_fault_shows_until_all_that_were_hit_have_left(control: MpsControl, client: int) -> None:
    control.start(static=False)
    for pid in (client, os.getpid()):
        mps_daemon.connect(environ(control), pid)
    (server,) = control.servers()
    mps_daemon.fault(environ(control), client)
    assert mps_daemon.faulted(environ(control), os.getpid())
    assert control.server_status(server) is ServerStatus.FAULT
    with pytest.raises(mps_daemon.Refused, match="807"):
        mps_daemon.connect(environ(control), os.getppid())
    mps_daemon.leave(environ(control), client)
    assert control.server_status(server) is ServerStatus.FAULT
    mps_daemon.leave(environ(control), os.getpid())
    assert control.server_status(server) is ServerStatus.ACTIVE


@pytest.mark.parametrize("form", ["id", "created"])
def test_partitions_come_and_go(fake: Path, control: MpsControl, form: str) -> None:
    mps_daemon.change(fake, add_form=form)
    control.start(static=True)
    assert control.partitions() == PartitionTable(15, 0, free_sms=132)
    partition = control.add_partition(4)
    assert partition.startswith(f"{GPU}/") and partition.count("/") == 2
    table = control.partitions()
    assert (table.free_chunks, table.used_chunks, table.chunks) == (11, 4, 15)
    assert [(each.chunks, each.sms) for each in table.partitions] == [(4, 32)]
    assert f"{GPU}/{table.partitions[0].partition}" == partition
    assert table.partitions[0].used is {2: False, 3: None}[control.protocol]
    assert table.sms == 132
    control.remove_partition(partition)
    assert control.partitions() == PartitionTable(15, 0, free_sms=132)


def test_sms_beyond_whole_chunks_are_in_the_last_partition(fake: Path, control: MpsControl) -> None:
    mps_daemon.change(fake, sms=92, chunks=10, remainder=True)
    control.start(static=True)
    for chunks in (5, 3, 2):
        control.add_partition(chunks)
    table = control.partitions()
    assert [each.sms for each in table.partitions] == [40, 24, 28]
    assert (table.sms, table.chunks, table.free_sms) == (92, 10, 0)


def test_a_partition_is_refused_with_mpss_own_words(control: MpsControl) -> None:
    control.start(static=True)
    with pytest.raises(PlacementError, match=r"16 chunks .*Failed to fulfill .*INVALID_RESOURCE_CONFIGURATION"):
        control.add_partition(16)


def test_a_partition_in_use_stays(control: MpsControl, client: int) -> None:
    control.start(static=True)
    partition = control.add_partition(2)
    granted = mps_daemon.connect(environ(control, CUDA_MPS_SM_PARTITION=partition), client)
    assert granted.sms == 16
    with pytest.raises(PlacementError, match="in use"):
        control.remove_partition(partition)
    assert control.partitions().used_chunks == 2


@V3_ALONE
def test_protocol_3_takes_no_partition_while_there_are_clients(control: MpsControl, client: int) -> None:
    control.start(static=True)
    partition = control.add_partition(2)
    mps_daemon.connect(environ(control, CUDA_MPS_SM_PARTITION=partition), client)
    with pytest.raises(PlacementError, match="1 chunks"):
        control.add_partition(1)


@V3_ALONE
def test_a_partition_that_is_only_noted_down_is_none(control: MpsControl) -> None:
    control.start(static=False)  # and so without a server
    with pytest.raises(PlacementError, match="'lane_1' configured"):
        control.add_partition(1)


@V2_ALONE
def test_no_partitions_without_static_mode(control: MpsControl) -> None:
    control.start(static=False)
    with pytest.raises(PlacementError, match="not enabled"):
        control.add_partition(1)


@V2_ALONE
def test_a_driver_without_static_mode(fake: Path, control: MpsControl) -> None:
    mps_daemon.change(fake, static_ok=False)
    with pytest.raises(BackendError, match=r"`-d -S`: .*invalid option") as caught:
        control.start(static=True)
    assert caught.value.reason == "MPS_FAILED" and not control.alive


def test_without_the_program(control: MpsControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackendError, match="not on PATH: install") as caught:
        control.version()
    assert caught.value.reason == "MPS_NOT_FOUND"


def test_without_a_daemon(control: MpsControl) -> None:
    assert control.version() == "13010"
    with pytest.raises(BackendError, match="Cannot find MPS control daemon process") as caught:
        control.servers()
    assert caught.value.reason == "MPS_FAILED"
    control.quit()


def test_a_slow_reply_is_an_error_and_no_wait(fake: Path, control: MpsControl) -> None:
    control.start(static=False)
    hurried = MpsControl(control.folder, GPU, timeout_s=0.5)
    mps_daemon.fail(fake, slow_s=30.0)
    before_s = time.monotonic()
    with pytest.raises(BackendError, match=r"did not answer `(get_server_list|server list .*)` within 0.5 s") as caught:
        hurried.servers()
    assert caught.value.reason == "MPS_TIMEOUT" and time.monotonic() - before_s < 15.0


def test_a_deaf_daemon_is_killed(fake: Path, tmp_path: Path) -> None:
    control = MpsControl(tmp_path / "mps", GPU, timeout_s=0.7)
    MpsControl(control.folder, GPU).start(static=False)
    mps_daemon.fail(fake, deaf_quit=True)
    control.quit()
    assert not control.alive and mps_daemon.daemons(fake) == []


def test_a_number_that_somebody_else_has_is_no_daemon(control: MpsControl, client: int) -> None:
    control.start(static=False)
    control.quit()
    (control.pipe / "nvidia-cuda-mps-control.pid").write_text(f"{client}\n")
    assert not control.alive
    control.quit()
    os.kill(client, 0)  # it lives


def test_a_path_too_long_for_a_socket(fake: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    with pytest.raises(BackendError, match="use a shorter folder"):
        MpsControl(deep, GPU).start(static=False)
    assert mps_daemon.transcript(fake) == []
