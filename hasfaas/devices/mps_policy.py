"""What a keeper of a GPU decides, as arithmetic: how lanes are kept apart, what a client's environment says, and when a GPU
that faulted is trusted again. Nothing here acts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile

import attrs

from hasfaas.core.errors import BackendError, InvalidRequestError
from hasfaas.devices.mps import STATIC_CUDA, VARIABLES

AUTO, STATIC, PERCENTAGE, NONE = "auto", "static", "percentage", "none"
DEFAULT_LANES = (50.0, 25.0, 25.0)
"""SM percents of lanes cut in advance, where the GPU takes no new partition while it has clients and nobody said others."""

STATIC_CAPABILITY = (8, 0)  # Ampere: NVIDIA, "Using Static SM Partitioning", release 615
PERCENTAGE_CAPABILITY = (7, 0)  # Volta: NVIDIA, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", release 615
_NO_MPS = "nvidia-cuda-mps-control is not on PATH, and lanes are kept apart by MPS: install it"
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0
QUIET_S = 60.0
"""A GPU that went without a fault for so long starts with the first wait again."""
STUCK_S = 30.0
"""A server that has not recovered by then has its daemon started anew."""


def modes(
    wanted: str, cuda: tuple[int, int], capability: tuple[int, int], compute_mode: str, *, mps: bool
) -> tuple[tuple[str, ...], str]:
    """The modes to try, best first, and why better ones are not among them. An explicit choice is tried alone. Raises
    BackendError, PARTITIONS_UNAVAILABLE, where none, or what was asked for, can be had."""
    if wanted not in (AUTO, STATIC, PERCENTAGE, NONE):
        raise InvalidRequestError(
            f"devices: partitions={wanted!r} is unknown; give auto, static, percentage or none", reason="BAD_OPTION"
        )
    obstacles = {
        STATIC: _static_obstacle(cuda, capability, mps=mps),
        PERCENTAGE: _percentage_obstacle(capability, mps=mps),
        NONE: _sharing_obstacle(compute_mode),
    }
    if compute_mode == "prohibited":
        obstacles = dict.fromkeys(obstacles, f"its compute mode is {compute_mode}: run `nvidia-smi -c DEFAULT` as root")
    asked = {mode: why for mode, why in obstacles.items() if wanted in (AUTO, mode)}
    tried = tuple(mode for mode, why in asked.items() if not why)
    better = takewhile(bool, asked.values())
    barred = "; ".join(dict.fromkeys(better))
    if not tried:
        raise BackendError(f'devices: partitions="{wanted}" cannot be had: {barred}', reason="PARTITIONS_UNAVAILABLE")
    return tried, barred


def _static_obstacle(cuda: tuple[int, int], capability: tuple[int, int], *, mps: bool) -> str:
    if not mps:
        return _NO_MPS
    if cuda < STATIC_CUDA:
        need = ".".join(map(str, STATIC_CUDA))
        return (
            f"static partitions need a driver of CUDA {need}, this one is of {cuda[0]}.{cuda[1]}: install a newer one"
        )
    if capability < STATIC_CAPABILITY:
        return f"static partitions need compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    return ""


def _percentage_obstacle(capability: tuple[int, int], *, mps: bool) -> str:
    if not mps:
        return _NO_MPS
    if capability < PERCENTAGE_CAPABILITY:
        return f"thread percentages need compute capability 7.0, this GPU has {capability[0]}.{capability[1]}"
    return ""


def _sharing_obstacle(compute_mode: str) -> str:
    if compute_mode.startswith("exclusive"):
        return f"without MPS, compute mode {compute_mode} lets one replica use the GPU: run `nvidia-smi -c DEFAULT` as root"
    return ""


def thread_percentage(units: int, of: int) -> int:
    """CUDA_MPS_ACTIVE_THREAD_PERCENTAGE for a lane of `units` SMs of a GPU's `of`.

    Rounded down to a whole percent, at least 1: CUDA rounds what a percent gives up to whole SMs again (NVIDIA, "Volta MPS
    Execution Resource Provisioning"), and a lane's units are themselves a percentage rounded up, so the lane gets what it
    was asked for and no more.
    """
    return max(1, 100 * units // of)


def client_environment(
    pipe: str, log: str, *, memory_bytes: int, partition: str | None = None, percentage: int | None = None
) -> Mapping[str, str | None]:
    """What a client of MPS must have in its environment, all of it read when CUDA starts and never later; None: must not
    have. The GPU is the client's number 0, since its daemon sees no other, and CUDA_VISIBLE_DEVICES would number them
    again. `memory_bytes` 0 is no limit."""
    given = {
        "CUDA_MPS_PIPE_DIRECTORY": pipe,
        "CUDA_MPS_LOG_DIRECTORY": log,
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={max(1, memory_bytes >> 20)}M" if memory_bytes else None,
        "CUDA_MPS_SM_PARTITION": partition,
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": None if percentage is None else str(percentage),
    }
    return {**dict.fromkeys(VARIABLES), **given, "CUDA_VISIBLE_DEVICES": None}


def plain_environment(gpu_uuid: str) -> Mapping[str, str | None]:
    """What a process has that uses a GPU without MPS."""
    return {**dict.fromkeys(VARIABLES), "CUDA_VISIBLE_DEVICES": gpu_uuid}


@attrs.frozen
class Recovery:
    """How a GPU comes back after faults: each in a row doubles the wait, from half a second to ten. `since_s` is when the
    last began, `until_s` when the GPU is trusted again at the earliest."""

    faults: int = 0
    since_s: float = 0.0
    until_s: float = 0.0

    def struck(self, now_s: float) -> Recovery:
        """After another fault."""
        faults = self.faults + 1 if self.faults and now_s - self.until_s < QUIET_S else 1
        # No power of two beyond what reaches the longest wait: a GPU may fault for days.
        wait_s = min(FIRST_WAIT_S * 2 ** min(faults - 1, 16), LONGEST_WAIT_S)
        return Recovery(faults, now_s, now_s + wait_s)

    def waits(self, now_s: float) -> bool:
        """Whether the GPU is not trusted yet."""
        return now_s < self.until_s

    def stuck(self, now_s: float) -> bool:
        """Whether a fault lasts too long to be waited for."""
        return now_s - self.since_s > STUCK_S
