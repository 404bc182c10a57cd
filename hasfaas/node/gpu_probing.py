"""Measures a GPU at several shares of its SMs, each in a process of its own, for the record of `hasfaas doctor --probe`.

Shares below the whole need MPS: a daemon of ours is started for it and ended again. Not yet run on a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hasfaas.core.errors import BackendError
from hasfaas.devices.mps import VARIABLES, MpsControl
from hasfaas.devices.mps_folders import daemon_folder, daemon_root, make_private
from hasfaas.devices.nvml import Driver, Gpu
from hasfaas.devices.probe_record import ProbeRecord

SHARES = (10, 25, 50, 75, 100)
"""SM percents: enough to see where the bandwidth saturates, and how FLOP/s grow."""
PROBE_TIMEOUT_S = 120.0
"""One share takes seconds; the first one compiles the kernels."""


def probe(
    gpu: Gpu, driver: Driver, date: str, progress: Callable[[str], None], *, timeout_s: float = PROBE_TIMEOUT_S
) -> ProbeRecord:
    """The record of a GPU or slice, `date` being today's. Without MPS only the whole of it is measured.

    Raises BackendError: the reason of the probe that failed, PROBE_TIMEOUT, or what MPS refused.
    """
    runs: list[tuple[float, Mapping[str, Any]]] = []
    with _shares_of(gpu) as (shares, environment):
        for percent in shares:
            progress(f"gpu {gpu.index}: measuring {percent} % of its SMs")
            runs.append((percent, _figures(environment(percent), timeout_s)))
    return ProbeRecord.of(gpu.uuid, gpu.name, driver.version, date, runs)


def plain_environment() -> dict[str, str]:
    """This process's environment without what others set for MPS and for the choice of GPUs."""
    return {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "CUDA_VISIBLE_DEVICES")}


@contextmanager
def _shares_of(gpu: Gpu) -> Iterator[tuple[tuple[int, ...], Callable[[int], dict[str, str]]]]:
    """The shares that can be had, and the environment of each, while the block runs."""
    # As the keeper of a GPU names its folder: if this process is killed, the next gateway sweeps the daemon away.
    folder = daemon_folder(daemon_root(), gpu.uuid)
    control = MpsControl(folder, gpu.uuid)
    try:
        control.version()
    except BackendError as exc:
        if exc.reason != "MPS_NOT_FOUND":
            raise
        yield (100,), lambda _percent: plain_environment() | {"CUDA_VISIBLE_DEVICES": gpu.uuid}
        return
    make_private(folder.parent)
    try:
        control.start(static=False)
        yield (
            SHARES,
            lambda percent: (
                plain_environment()
                | {
                    "CUDA_MPS_PIPE_DIRECTORY": str(control.pipe),
                    "CUDA_MPS_LOG_DIRECTORY": str(control.log),
                    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent),
                }
            ),
        )
    finally:
        control.quit()
        shutil.rmtree(folder, ignore_errors=True)


def _figures(environment: Mapping[str, str], timeout_s: float) -> Mapping[str, Any]:
    """What `python -m hasfaas.devices.probes all` printed. Raises BackendError with its reason and words."""
    command = [sys.executable, "-P", "-m", "hasfaas.devices.probes", "all"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"the probes did not end within {timeout_s:g} s: end what else uses the GPU, then probe it again",
            reason="PROBE_TIMEOUT",
        ) from None
    last = (done.stderr.strip().splitlines() or [f"the probes ended with exit code {done.returncode}"])[-1]
    if done.returncode:
        reason, mark, words = last.partition(": ")
        raise BackendError(words if mark else last, reason=reason if mark and reason.isupper() else "PROBE_FAILED")
    figures: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
