"""The simulated GPU: its latency grid, and a lane that runs one kernel at a time for all processes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.devices import base, sim
from hasfaas.devices.base import DeviceInfo, DeviceSlice
from hasfaas.devices.sim import SimProfile, SimStream

ROOT = Path(__file__).parents[2]
MS = 1_000_000
GRID = SimProfile((1, 4), (25.0, 100.0), ((8.0, 2.0), (16.0, 4.0)))


@pytest.fixture
def info(tmp_path: Path) -> Iterator[DeviceInfo]:
    made = sim.device("sim0", profiles={"grid": GRID}, lanes_file=tmp_path / "lanes")
    yield made
    sim.remove(made)


def _enter(info: DeviceInfo, lane: int = 0, sm_percent: float = 100.0) -> SimStream:
    stream = base.enter(DeviceSlice(info.device_id, "sim", lane, info.units, sm_percent, info.options))
    assert isinstance(stream, SimStream)
    return stream


# -- profiles ------------------------------------------------------------------------------------------------


def test_the_grid_is_met_at_its_points_and_in_logarithms_between() -> None:
    assert GRID.latency_ms(1, 25.0) == 8.0
    assert GRID.latency_ms(4, 100.0) == 4.0
    # Half-way in the logarithm of the share, or of the batch: the geometric mean.
    assert GRID.latency_ms(1, 50.0) == pytest.approx(4.0)
    assert GRID.latency_ms(2, 100.0) == pytest.approx(8.0**0.5)


def test_beyond_the_grid_shares_are_clamped_and_batches_go_on_linearly() -> None:
    assert GRID.latency_ms(1, 5.0) == 8.0
    assert GRID.latency_ms(10, 100.0) == pytest.approx(4.0 + 6 * 2.0 / 3)
    alone = SimProfile((2,), (100.0,), ((3.0,),))
    assert alone.latency_ms(1, 50.0) == 3.0
    assert alone.latency_ms(6, 50.0) == pytest.approx(9.0)


@given(batch=st.integers(1, 200), sm=st.floats(1.0, 100.0))
def test_the_default_profile_rises_with_the_batch_and_falls_with_the_share(batch: int, sm: float) -> None:
    profile = SimProfile.affine()
    here = profile.latency_ms(batch, sm)
    assert profile.latency_ms(batch + 1, sm) >= here
    assert profile.latency_ms(batch, min(sm * 1.5, 100.0)) <= here * (1 + 1e-9)


def test_the_default_profile_is_the_law_it_states() -> None:
    profile = SimProfile.affine(base_ms=2.0, per_item_ms=0.5)
    assert profile.latency_ms(4, 100.0) == pytest.approx(4.0)
    assert profile.latency_ms(4, 50.0) == pytest.approx(4.0 * 1.9)
    assert profile.latency_ms(64, 100.0) == pytest.approx(34.0)


def test_profiles_travel_as_json(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(GRID.to_dict()))
    assert SimProfile.from_json(path) == GRID


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a profile"),
        ("[]", "not a profile"),
        ('{"batches": [1], "sm_percents": [100]}', "has the keys"),
        ('{"batches": [1], "sm_percents": [100], "latency_ms": [["x"]]}', "numbers only"),
        ('{"batches": [1, 1], "sm_percents": [100], "latency_ms": [[1], [1]]}', "batches=.* must be positive"),
        ('{"batches": [1], "sm_percents": [50, 100], "latency_ms": [[1]]}', "needs 1 rows"),
        ('{"batches": [1], "sm_percents": [100], "latency_ms": [[0]]}', "positive and finite"),
    ],
)
def test_bad_profiles_are_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(InvalidRequestError, match=words):
        SimProfile.from_json(path)


# -- the device ----------------------------------------------------------------------------------------------


def test_the_inventory_is_plain_and_says_what_it_is(info: DeviceInfo) -> None:
    assert json.loads(json.dumps(dict(info.options))) == info.options
    sized = sim.device("big", sms=132, memory_bytes=80 << 30, cold_start_s=1.5)
    assert (len(sized.units), sized.memory_bytes, sized.cold_start_s) == (132, 80 << 30, 1.5)
    assert sized.options["lanes_file"] != sim.device("big").options["lanes_file"]
    with pytest.raises(InvalidRequestError, match="sms=0"):
        sim.device(sms=0)


def test_bad_slices_are_refused(info: DeviceInfo) -> None:
    with pytest.raises(InvalidRequestError, match="lane=64"):
        _enter(info, lane=64)
    with pytest.raises(InvalidRequestError, match=r"sim\.device"):
        _enter(attrs.evolve(info, options={}))


def test_launches_return_at_once_and_end_in_order(info: DeviceInfo) -> None:
    stream = _enter(info)
    start = monotonic_ns()
    stream.launch(30 * MS)
    first = stream.record()
    stream.launch(30 * MS)
    second = stream.record()
    assert first is not None
    assert not stream.query(second)
    stream.wait(first)
    assert stream.query(first)
    stream.drain()
    assert stream.query(second)
    assert monotonic_ns() - start >= 60 * MS
    assert (stream.kernels, stream.busy_ns) == (2, 60 * MS)


def test_a_fresh_stream_is_drained_and_its_event_is_not_none(info: DeviceInfo) -> None:
    stream = _enter(info)
    assert stream.record() is not None
    assert stream.query(stream.record())
    stream.drain()


def test_lanes_cut_in_advance_fit_an_odd_number_of_sms() -> None:
    assert sim.device(sms=15, lanes=(50, 25, 25)).fixed_lanes == (tuple(range(7)), (7, 8, 9, 10), (11, 12, 13, 14))
    assert base.cut(4, (50, 25)) == ((0, 1), (2,))
    with pytest.raises(InvalidRequestError, match="cannot be cut from 15 units"):
        sim.device(sms=15, lanes=(60, 50))


def test_one_lane_runs_one_kernel_at_a_time_and_lanes_run_apart(info: DeviceInfo) -> None:
    one, two, apart = _enter(info), _enter(info), _enter(info, lane=1)
    one.launch(500 * MS)
    two.launch(MS)
    apart.launch(MS)
    assert isinstance(one.record(), int)
    assert two.record() == one.record() + MS  # type: ignore[operator]
    assert apart.record() < one.record()  # type: ignore[operator]
    assert sim.lane_count(info, 0) == sim.LaneCount(kernels=2, busy_ns=501 * MS)
    assert sim.lane_count(info, 1) == sim.LaneCount(kernels=1, busy_ns=MS)


def test_another_process_queues_behind(info: DeviceInfo) -> None:
    stream = _enter(info)
    stream.launch(60_000 * MS)
    code = (
        "import json, sys\n"
        "from hasfaas.devices import sim\n"
        "from hasfaas.devices.base import DeviceSlice\n"
        "s = sim.enter(DeviceSlice('sim0', 'sim', 0, (0,), 100.0, json.loads(sys.argv[1])))\n"
        "s.launch(1000)\n"
        "print(s.record())\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, json.dumps(dict(info.options))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(out.stdout) == stream.record() + 1000  # type: ignore[operator]


def test_a_process_that_dies_with_the_lock_leaves_it_free(info: DeviceInfo) -> None:
    stream = _enter(info)
    pid = os.fork()
    if pid == 0:
        child = _enter(info)
        child._lane._locked().__enter__()
        os._exit(0)
    os.waitpid(pid, 0)
    stream.launch(MS)
    stream.drain()


def test_the_file_is_private_and_can_be_removed(info: DeviceInfo) -> None:
    _enter(info)
    path = Path(str(info.options["lanes_file"]))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    sim.remove(info)
    sim.remove(info)
    assert not path.exists()


@pytest.mark.parametrize(("function", "batch", "sm", "kernels"), [("grid", 4, 100.0, 4), ("grid", 1, 25.0, 8)])
def test_serving_launches_what_the_profile_says(
    info: DeviceInfo, function: str, batch: int, sm: float, kernels: int
) -> None:
    stream = _enter(info, sm_percent=sm)
    gates: list[int] = []
    stream.serve(function, batch, lambda: gates.append(stream.kernels))
    assert stream.kernels == kernels
    assert stream.busy_ns == kernels * MS
    assert gates == list(range(1, kernels))  # between kernels
    assert stream.query(stream.record())  # it returns when the result is there


def test_a_function_without_a_profile_has_the_default(info: DeviceInfo) -> None:
    stream = _enter(info)
    stream.serve("unknown", 1, lambda: None)
    assert stream.busy_ns == round(2.5 * MS)
    assert stream.kernels == 3
