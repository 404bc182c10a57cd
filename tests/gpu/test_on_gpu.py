"""What the CUDA path claims, on a real GPU, at small size: the very code that `make gpu-check` measures with.

Not yet run on a GPU.
"""

from __future__ import annotations

import statistics

import pytest

from benchmarks import gpu_faults, gpu_gates, gpu_lanes, gpu_memory, gpu_share
from benchmarks.gpu_box import Box, Client, clients
from benchmarks.gpu_sheet import Figure, Sheet
from hasfaas.devices.base import Failure, Health

pytestmark = pytest.mark.gpu
needs_torch = pytest.mark.usefixtures("torch_with_cuda")


def missed(sheet: Sheet) -> list[Figure]:
    """Figures that do not keep their bounds."""
    assert sheet.figures, "nothing was measured"
    return [figure for figure in sheet.figures if figure.met is False]


def test_a_replica_counts_the_sms_that_it_was_granted(home: Box) -> None:
    client = Client(home, gpu_lanes.counted)
    with clients(client):
        granted_percent = client.heard()
    assert granted_percent == pytest.approx(100.0 * home.share(0), abs=gpu_lanes.slack_percent(home))


def test_two_halves_of_the_time_are_half_of_the_device_each(home: Box) -> None:
    for (span,) in gpu_share.saturated(home, (0.5, 0.5), seconds=1.5, count=1):
        assert 100.0 * span.held == pytest.approx(50.0, abs=gpu_share.ERROR_PP)
        assert 100.0 * span.busy == pytest.approx(50.0, abs=gpu_share.ERROR_PP + gpu_share.BUBBLES_PP)


def test_a_lease_is_overrun_by_about_one_gate(home: Box) -> None:
    ((span,),) = gpu_share.saturated(home, (0.3,), seconds=1.5, count=1)
    assert span.grants > 0
    assert span.overrun_ms <= 2.0


def test_raw_kernels_of_cupy_are_gated_without_any_help_of_their_code(home: Box) -> None:
    ((span,),) = gpu_share.saturated(home, (0.3,), seconds=1.5, count=1, job=gpu_share.unguarded)
    assert 100.0 * span.held == pytest.approx(30.0, abs=gpu_share.ERROR_PP)
    assert span.overrun_ms <= 2.0


def test_a_quota_is_in_force_within_one_window(home: Box) -> None:
    effects_ms, errors_pp = gpu_share.resizes(home, 0.2, 0.6, 0.3, flips=4)
    assert max(effects_ms) <= home.table.timing.window_ns / 1e6
    assert statistics.median(errors_pp) <= gpu_share.ERROR_PP


def test_two_lanes_work_at_once(home: Box) -> None:
    if len(home.lanes) < 2:
        pytest.skip("one lane: there is no MPS here")
    one = Client(home, gpu_lanes.churn, 0, lane=0)
    with clients(one):
        rounds = one.heard()
        one.running()
        alone = gpu_lanes.rates([one], 1.0, 1)[0][0]
        other = Client(home, gpu_lanes.churn, rounds, lane=1)
        with clients(other):
            other.running()
            (beside,), (its,) = gpu_lanes.rates([one, other], 1.0, 1)
    assert beside >= 0.8 * alone
    assert its >= 0.8 * alone


@needs_torch
def test_memory_has_a_wall_and_one_error(home: Box) -> None:
    limit = gpu_memory.LIMIT_BYTES
    client = Client(home, gpu_memory.filled, 2 * limit, memory_bytes=limit)
    with clients(client):
        for name in ("torch", "CuPy", "cudaMalloc"):
            found: gpu_memory.Filled = client.heard()
            if name == "cudaMalloc" and home.partitions == "none":
                continue  # without MPS there is no wall
            assert limit - gpu_memory.CONTEXT_BYTES <= found.bytes <= limit, name
            assert found.failure is Failure.MEMORY, (name, found.error)
            assert found.goes_on, name


@needs_torch
def test_torch_and_cupy_share_memory_without_copies(home: Box, sheet: Sheet) -> None:
    gpu_memory.allocated(sheet, home)
    assert missed(sheet) == []


@needs_torch
def test_gates_lie_where_the_events_say(home: Box) -> None:
    client = Client(home, gpu_gates.distances, "bert_base", gpu_gates.LARGE)
    with clients(client):
        apart_ms, planned_ms, _forward_ms = client.heard()
    assert len(apart_ms) > 2
    assert max(apart_ms) <= 1.5 * planned_ms


@needs_torch
def test_a_graph_is_cut_at_its_gates(home: Box) -> None:
    client = Client(home, gpu_gates.replayed, True, quota=0.3)
    with clients(client):
        assert client.heard(), "a replay gave another result than the code"
        client.running()
        ((span,),) = gpu_share.spans([client], 1.5, 1)
    assert span.overrun_ms <= 3.0


def test_a_killed_holder_frees_its_lane(home: Box) -> None:
    other = Client(home, gpu_share.saturate, quota=0.5)
    with clients(other):
        _told_ms, gap_ms = gpu_faults.killed(home, other, as_agent=True)
    assert gap_ms <= gpu_faults.HELD_AGAIN_MS
    assert home.keeper.check().health is Health.READY


def test_a_fault_is_survived(home: Box, sheet: Sheet) -> None:
    """Last: it takes all replicas with it."""
    gpu_faults.faulted(sheet, home, other_lane=len(home.lanes) - 1)
    assert missed(sheet) == []
