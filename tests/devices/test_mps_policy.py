"""What a keeper decides: the mode, the lanes, a client's environment, and the wait after faults."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import BackendError, InvalidRequestError
from hasfaas.devices.mps import VARIABLES
from hasfaas.devices.mps_policy import (
    LONGEST_WAIT_S,
    QUIET_S,
    STUCK_S,
    Recovery,
    client_environment,
    modes,
    plain_environment,
    thread_percentage,
)

NEW, OLD = (13, 1), (12, 8)
HOPPER, TURING, PASCAL = (9, 0), (7, 5), (6, 1)


@pytest.mark.parametrize(
    ("cuda", "capability", "mode", "mps", "tried", "why"),
    [
        (NEW, HOPPER, "default", True, ("static", "percentage", "none"), ""),
        (NEW, HOPPER, "exclusive_process", True, ("static", "percentage"), ""),
        (OLD, HOPPER, "default", True, ("percentage", "none"), "CUDA 13.1, this one is of 12.8"),
        (NEW, TURING, "default", True, ("percentage", "none"), "capability 8.0, this GPU has 7.5"),
        (NEW, PASCAL, "default", True, ("none",), "capability 7.0, this GPU has 6.1"),
        (NEW, HOPPER, "default", False, ("none",), "nvidia-cuda-mps-control is not on PATH"),
    ],
)
def test_auto_tries_the_best_first(
    cuda: tuple[int, int], capability: tuple[int, int], mode: str, mps: bool, tried: tuple[str, ...], why: str
) -> None:
    found, barred = modes("auto", cuda, capability, mode, mps=mps)
    assert found == tried
    assert why in barred and bool(why) == bool(barred)


@pytest.mark.parametrize(
    ("wanted", "cuda", "capability", "mode", "mps", "cure"),
    [
        ("static", OLD, HOPPER, "default", True, "install a newer one"),
        ("percentage", NEW, HOPPER, "default", False, "install it"),
        ("percentage", NEW, PASCAL, "default", True, "capability 7.0"),
        ("none", NEW, HOPPER, "exclusive_process", True, "nvidia-smi -c DEFAULT"),
        ("auto", NEW, HOPPER, "exclusive_process", False, "nvidia-smi -c DEFAULT"),
        ("auto", NEW, HOPPER, "prohibited", True, "nvidia-smi -c DEFAULT"),
        ("static", NEW, HOPPER, "prohibited", True, "nvidia-smi -c DEFAULT"),
    ],
)
def test_what_cannot_be_had_is_an_error_with_its_cure(
    wanted: str, cuda: tuple[int, int], capability: tuple[int, int], mode: str, mps: bool, cure: str
) -> None:
    with pytest.raises(BackendError, match=f'partitions="{wanted}" cannot be had: .*{cure}') as caught:
        modes(wanted, cuda, capability, mode, mps=mps)
    assert caught.value.reason == "PARTITIONS_UNAVAILABLE"


def test_an_explicit_choice_is_tried_alone() -> None:
    assert modes("percentage", NEW, HOPPER, "default", mps=True) == (("percentage",), "")
    with pytest.raises(InvalidRequestError, match="'mig' is unknown; give auto, static"):
        modes("mig", NEW, HOPPER, "default", mps=True)


@given(st.integers(1, 100), st.integers(1, 200))
def test_a_lane_of_whole_percents_gets_that_percentage_again(percent: int, sms: int) -> None:
    """Where the GPU has 100 SMs or more; with fewer a unit is more than a percent, and what CUDA rounds up is the same."""
    units = max(1, -(-sms * percent // 100))
    given_percent = thread_percentage(units, sms)
    assert given_percent >= percent or sms < 100
    assert max(1, -(-sms * given_percent // 100)) <= units


def test_a_clients_environment_says_every_variable() -> None:
    found = client_environment("/p", "/l", memory_bytes=(512 << 20) + 5, partition="GPU-1/A")
    assert set(found) == {*VARIABLES, "CUDA_VISIBLE_DEVICES"}
    assert {name: value for name, value in found.items() if value is not None} == {
        "CUDA_MPS_PIPE_DIRECTORY": "/p",
        "CUDA_MPS_LOG_DIRECTORY": "/l",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=512M",
        "CUDA_MPS_SM_PARTITION": "GPU-1/A",
    }
    capped = client_environment("/p", "/l", memory_bytes=0, percentage=25)
    assert capped["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
    assert capped["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] is None


def test_without_mps_the_gpu_is_named_and_nothing_else() -> None:
    found = plain_environment("GPU-1")
    assert {name: value for name, value in found.items() if value is not None} == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert set(VARIABLES) < set(found)


def test_each_fault_in_a_row_doubles_the_wait() -> None:
    recovery, now_s, waits = Recovery(), 1000.0, []
    for _ in range(7):
        recovery = recovery.struck(now_s)
        waits.append(recovery.until_s - now_s)
        now_s = recovery.until_s + 1.0
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, LONGEST_WAIT_S, LONGEST_WAIT_S]


def test_a_quiet_time_forgets_what_was() -> None:
    recovery = Recovery().struck(0.0).struck(1.0)
    assert recovery.struck(recovery.until_s + QUIET_S - 0.1).faults == 3
    assert recovery.struck(recovery.until_s + QUIET_S).faults == 1


def test_the_wait_ends_and_a_long_fault_is_stuck() -> None:
    fresh, recovery = Recovery(), Recovery().struck(100.0)
    assert not fresh.waits(0.0)
    assert recovery.waits(100.4) and not recovery.waits(100.5)
    assert not recovery.stuck(100.0 + STUCK_S) and recovery.stuck(100.1 + STUCK_S)


def test_faults_for_days_do_not_overflow() -> None:
    assert Recovery(faults=10**6, since_s=0.0, until_s=0.0).struck(1.0).until_s == 1.0 + LONGEST_WAIT_S
