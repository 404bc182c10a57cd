"""What enforcement relies on, of every device: the seam of devices/base.py, tried on each device of `DEVICES`.

A device is one entry here, and one file elsewhere. `cuda` runs on a stand-in for CuPy, a fake MPS and a fake NVML: this
says that our side keeps the contract, and nothing about a GPU.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from hasfaas import devices
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.settings import DeviceSettings
from hasfaas.devices import base, cpu, sim
from hasfaas.devices.base import DeviceSlice, Failure, Stream
from hasfaas.devices.cuda_stream import CudaStream
from hasfaas.executor.tokens import SlotLease, TokenTable
from hasfaas.node.inventory import devices_of
from tests.fakes import mps_daemon, nvml_library, standin_cupy, threads
from tests.fakes.async_stream import AsyncStream
from tests.fakes.threads import ThreadStream

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
MS = 1_000_000
MEMORY_BYTES = 1 << 30


@attrs.frozen
class Bench:
    """A stream, and how device time is launched on it (in ms)."""

    stream: Stream
    launch: Callable[[float], None]


@attrs.frozen
class Device:
    """One device: how to get at its stream in this process, and what a node agent's process needs to have it.

    `measures`: its timer tells the device's time, as code made of torch modules needs it. `file`: its module, where that
    is not one of hasfaas.
    """

    bench: Callable[[Path], AbstractContextManager[Bench]]
    asynchronous: bool = True
    measures: bool = False
    file: str | None = None
    options: Mapping[str, object] = attrs.field(factory=dict)
    environment: Callable[[Path], Mapping[str, str]] = lambda _: {}


@contextlib.contextmanager
def _cpu(_: Path) -> Iterator[Bench]:
    # Entering would confine the test's own process.
    yield Bench(cpu.SynchronousStream(50.0), lambda ms: time.sleep(ms / 1e3))


@contextlib.contextmanager
def _sim(folder: Path) -> Iterator[Bench]:
    info = sim.device(lanes_file=folder / "lanes")
    stream = base.enter(DeviceSlice("sim", "sim", 0, info.units, 100.0, info.options, MEMORY_BYTES))
    assert isinstance(stream, sim.SimStream)
    yield Bench(stream, lambda ms: stream.launch(round(ms * MS)))
    sim.remove(info)


@contextlib.contextmanager
def _threads(_: Path) -> Iterator[Bench]:
    stream = ThreadStream(50.0)
    yield Bench(stream, lambda ms: stream.launch(round(ms * MS)))


@contextlib.contextmanager
def _cuda(_: Path) -> Iterator[Bench]:
    with standin_cupy.imported() as cupy:
        stream = base.enter(DeviceSlice("gpu", "cuda", 0, (0,), 100.0, {"sms": 132}, MEMORY_BYTES))
        assert isinstance(stream, CudaStream)
        yield Bench(stream, cupy.standin.launch)
        stream.close()


def _cuda_environment(folder: Path) -> Mapping[str, str]:
    mps, nvml = mps_daemon.install(folder / "mps"), nvml_library.install(folder / "nvml")
    return {**mps, **nvml, **standin_cupy.environment()}


DEVICES = {
    "cpu": Device(_cpu, asynchronous=False, measures=True, options={"cores": 1}),
    "sim": Device(_sim),
    "threads": Device(_threads, file=threads.__file__),
    "cuda": Device(_cuda, measures=True, options={"partitions": "percentage"}, environment=_cuda_environment),
}
needs_fakes = (
    nvml_library.needs_compiler,
    pytest.mark.skipif(find_spec("pynvml") is None, reason="the package nvidia-ml-py is not installed"),
)


@pytest.fixture(params=sorted(DEVICES))
def device(request: pytest.FixtureRequest) -> Device:
    """Each device."""
    return DEVICES[request.param]


@pytest.fixture
def bench(device: Device, tmp_path: Path) -> Iterator[Bench]:
    """Its stream, in this process."""
    with device.bench(tmp_path) as made:
        yield made


# -- the four calls ----------------------------------------------------------------------------------------------------


def test_events_are_done_in_the_order_of_their_records(bench: Bench, device: Device) -> None:
    events = []
    for _ in range(4):
        bench.launch(20)
        events.append(bench.stream.record())
    assert device.asynchronous == (events[-1] is not None)
    bench.stream.wait(events[1])
    assert all(bench.stream.query(event) for event in events[:2])
    while not bench.stream.query(events[3]):
        seen = [bench.stream.query(event) for event in events]
        assert seen == sorted(seen, reverse=True), "a later event was done before an earlier one"
        time.sleep(0.001)
    assert all(bench.stream.query(event) for event in events)


def test_a_launch_and_a_query_never_wait_for_the_device(bench: Bench, device: Device) -> None:
    bench.launch(200)
    event = bench.stream.record()
    answers = [bench.stream.query(event) for _ in range(5)]
    # Were one of these to wait, the event would be done.
    assert answers == [not device.asynchronous] * 5


def test_what_is_recorded_on_an_idle_stream_is_done_or_soon_is(bench: Bench) -> None:
    event = bench.stream.record()
    bench.stream.wait(event)
    assert bench.stream.query(event)
    bench.stream.wait(event)  # again, for one that is done


def test_a_wait_leaves_later_work_under_way_and_a_drain_does_not(bench: Bench, device: Device) -> None:
    bench.launch(10)
    first = bench.stream.record()
    bench.launch(300)
    second = bench.stream.record()
    bench.stream.wait(first)
    assert bench.stream.query(second) != device.asynchronous
    bench.stream.drain()
    assert bench.stream.query(second)
    bench.stream.drain()


# -- time --------------------------------------------------------------------------------------------------------------


def test_time_runs_forward_and_adds_up(bench: Bench) -> None:
    timer = bench.stream.timer
    marks = []
    for ms in (5, 10, 15, 0):
        marks.append(timer.mark())
        bench.launch(ms)
    parts = [timer.elapsed_ns(a, b) for a, b in itertools.pairwise(marks)]
    assert all(part >= 0 for part in parts)
    # Events of a GPU are in steps of half a microsecond.
    assert timer.elapsed_ns(marks[0], marks[-1]) == pytest.approx(sum(parts), abs=5_000)


@pytest.mark.parametrize("device", [name for name in sorted(DEVICES) if DEVICES[name].measures], indirect=True)
def test_what_a_timer_measures_is_the_work_and_not_its_launch(bench: Bench) -> None:
    timer = bench.stream.timer
    start = timer.mark()
    bench.launch(30)
    middle = timer.mark()
    bench.launch(60)
    end = timer.mark()
    assert timer.elapsed_ns(start, middle) >= 30 * MS
    assert timer.elapsed_ns(middle, end) >= 60 * MS


# -- leases ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lease(bench: Bench) -> Iterator[SlotLease]:
    """A whole lane, taken, with leases so short that each gate renews."""
    path = Path(f"/dev/shm/hasfaas-test-{os.getpid()}-{time.monotonic_ns()}.tokens")
    table = TokenTable.create(path, window_ns=10 * MS, quantum_ns=MS)
    try:
        slot = table.admit(0, 1_000_000)
        table.attach(slot)
        made = SlotLease(table, slot, bench.stream)
        made.acquire()
        yield made
        made.release()
    finally:
        table.close()
        table.unlink()


def test_no_gate_leaves_more_than_one_burst_under_way(bench: Bench, lease: SlotLease) -> None:
    events = []
    for _ in range(6):
        bench.launch(10)
        events.append(bench.stream.record())
        lease.gate()
        assert all(bench.stream.query(event) for event in events[:-1])


def test_a_lane_is_given_up_with_the_device_drained_and_paid_for(bench: Bench, lease: SlotLease) -> None:
    for _ in range(5):
        bench.launch(10)
    event = bench.stream.record()
    assert lease.suspend()
    assert bench.stream.query(event)
    assert lease.held_ns >= 50 * MS
    lease.resume()


def test_emulated_work_is_gated_and_a_real_device_has_none(bench: Bench) -> None:
    gates: list[None] = []
    bench.stream.serve("f", 8, lambda: gates.append(None))
    emulates = isinstance(bench.stream, sim.SimStream | AsyncStream)
    assert bool(gates) == emulates
    bench.stream.drain()


def test_being_told_of_the_gate_changes_nothing_by_itself(bench: Bench) -> None:
    gates: list[None] = []
    bench.stream.gated(lambda: gates.append(None))
    bench.launch(1)
    bench.stream.drain()
    assert gates == []


# -- values, errors, share ---------------------------------------------------------------------------------------------


@attrs.frozen
class Result:
    """A value of a user's."""

    scores: Any
    label: str = "cat"


@pytest.mark.parametrize(
    "value",
    [None, 3, "text", np.arange(4), [1, {"a": (np.zeros(2), "b")}], Result(np.ones(3)), np.float32(2), {1, 2}, int],
    ids=lambda value: type(value).__name__,
)
def test_host_values_are_fetched_as_they_are(bench: Bench, value: object) -> None:
    assert bench.stream.fetch(value) is value


def test_a_value_that_holds_itself_is_fetched_as_it_is(bench: Bench) -> None:
    value: list[object] = [1, {}]
    value.append(value)
    assert bench.stream.fetch(value) is value


@pytest.mark.parametrize(
    ("exc", "failure"),
    [
        (MemoryError("no room"), Failure.MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Failure.MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), Failure.MEMORY),
        (OSError(errno.ENOENT, "no such file"), None),
        (RuntimeError("illegal instruction in the recipe"), None),
        (ValueError("out of memory"), None),
        (KeyboardInterrupt(), None),
    ],
    ids=repr,
)
def test_errors_of_the_host_mean_the_same_everywhere(bench: Bench, exc: BaseException, failure: Failure | None) -> None:
    assert bench.stream.failure(exc) is failure


def test_a_share_is_counted_or_not_told(bench: Bench) -> None:
    percent = bench.stream.granted_percent
    assert percent is None or 0 < percent <= 100


# -- a whole life ------------------------------------------------------------------------------------------------------

AGENT = """
import json, os, subprocess, sys, time
from hasfaas import devices
devices.__path__.append(sys.argv[1])
import attrs
from hasfaas.core.allocation import granted_units
from hasfaas.devices import base
kind, options = sys.argv[2], json.loads(sys.argv[3])
module = base.module_of(kind)
keeper = module.keeper(module.inventory(base.DeviceRequest(options=options))[0])
info = keeper.start()
try:
    half = info.units[: granted_units(len(info.units), 50.0)]
    keeper.open_lane(3, half)
    environment = keeper.environment(3, 1 << 30)
    percent = 100.0 * len(half) / len(info.units)
    part = base.DeviceSlice(info.device_id, kind, 3, half, percent, dict(info.options), 1 << 30, dict(environment))
    replica = subprocess.Popen(
        [sys.executable, "-c", os.environ["REPLICA"], sys.argv[1], json.dumps(attrs.asdict(part))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
    told = json.loads(replica.stdout.readline())
    health = keeper.check().health.value
    keeper.before_kill(replica.pid)
    replica.kill()
    replica.wait()
    keeper.close_lane(3)
finally:
    keeper.stop()
print(json.dumps({"percent": percent, "health": health, "wanted": dict(environment), **told}))
"""
REPLICA = """
import json, os, sys
from hasfaas import devices
devices.__path__.append(sys.argv[1])
from hasfaas.devices import base
part = json.loads(sys.argv[2])
part["units"] = tuple(part["units"])
stream = base.enter(base.DeviceSlice(**part))
stream.wait(stream.record())
stream.drain()
seen = {name: os.environ.get(name) for name in part["environment"]}
print(json.dumps({"granted": stream.granted_percent, "seen": seen}), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs_fakes if kind == "cuda" else ()) for kind in DEVICES])
def test_a_replica_enters_with_the_environment_that_the_keeper_gives_it(kind: str, tmp_path: Path) -> None:
    device = DEVICES[kind]
    dropped = tmp_path / "dropped"
    dropped.mkdir()
    if device.file is not None:
        shutil.copy(device.file, dropped)
    environment = {**os.environ, **device.environment(tmp_path), "REPLICA": REPLICA}
    done = subprocess.run(
        [sys.executable, "-c", AGENT, str(dropped), kind, json.dumps(device.options)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if (tmp_path / "mps").exists():
        left = mps_daemon.daemons(tmp_path / "mps")
        mps_daemon.stop_all(tmp_path / "mps")
        assert left == []
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["health"] == "ready"
    assert told["seen"] == told["wanted"]
    assert told["granted"] == pytest.approx(told["percent"])


def test_a_device_is_added_by_dropping_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "threads" not in base.kinds()
    with pytest.raises(InvalidRequestError, match="'threads' is unknown"):
        devices_of([DeviceSettings(kind="threads")])
    shutil.copy(threads.__file__, tmp_path)
    monkeypatch.setattr(devices, "__path__", [*devices.__path__, str(tmp_path)])
    try:
        assert "threads" in base.kinds()
        first, second = devices_of([DeviceSettings(kind="threads", count=2)])
        assert (first.device_id, second.device_id) == ("threads0", "threads1")
        module = base.module_of("threads")
        keeper = module.keeper(first)
        info = keeper.start()
        keeper.open_lane(0, info.units[:2])
        environment = keeper.environment(0, MEMORY_BYTES)
        part = DeviceSlice(info.device_id, info.kind, 0, info.units[:2], 50.0, info.options, MEMORY_BYTES, environment)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        stream = base.enter(part)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        assert stream.granted_percent == 50.0
    finally:
        sys.modules.pop("hasfaas.devices.threads", None)
