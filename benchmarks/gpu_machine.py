"""The machine that a record is of: its GPU, driver, versions. Nothing here starts CUDA, and no library is imported for it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import attrs

from hasfaas.core.errors import BackendError
from hasfaas.core.version import VERSION
from hasfaas.devices import nvml

PACKAGES = ("torch", "cupy", "numpy", "pynvml", "attrs", "pytest")


@attrs.frozen
class Machine:
    """What a reader must know to weigh the figures. `versions` are those of the packages' distributions, "-" without one;
    `processes` are others that used the GPU when the checks began."""

    date: str
    gpu: str
    memory_gib: float
    capability: str
    compute_mode: str
    mig: bool
    driver: str
    cuda: str
    processes: int
    load: float
    cores: int
    system: str
    python: str
    hasfaas: str
    commit: str
    versions: Mapping[str, str] = attrs.field(hash=False)


def find(gpu: str) -> nvml.Gpu:
    """The GPU of that number or UUID. Raises BackendError (NO_DRIVER and others of nvml.py, NO_GPU), with the cure."""
    found = nvml.gpus()
    for each in found:
        if gpu in (str(each.index), each.uuid):
            return each
    there = ", ".join(f"{each.index} ({each.name})" for each in found) or "none"
    raise BackendError(f"gpu={gpu!r} is not here: give the number or the UUID of one of: {there}", reason="NO_GPU")


def describe(gpu: nvml.Gpu) -> Machine:
    """This machine, now."""
    driver = nvml.driver()
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        gpu=gpu.name,
        memory_gib=round(gpu.memory_bytes / 2**30, 1),
        capability=".".join(map(str, gpu.capability)),
        compute_mode=gpu.compute_mode,
        mig=gpu.mig,
        driver=driver.version,
        cuda=".".join(map(str, driver.cuda)),
        processes=len(nvml.processes(gpu.uuid)),
        load=round(os.getloadavg()[0], 1),
        cores=len(os.sched_getaffinity(0)),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        hasfaas=VERSION,
        commit=_commit(),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """By module name: the version, with the distribution's name where that is another, as CuPy's wheels have many."""
    owners = metadata.packages_distributions()
    return {
        name: " ".join(_version(name, owner) for owner in sorted(set(owners.get(name, ())))) or "-" for name in PACKAGES
    }


def _version(module: str, distribution: str) -> str:
    version = metadata.version(distribution)
    return version if distribution == module else f"{version} ({distribution})"


def _commit() -> str:
    """The commit of the sources; empty where git cannot tell."""
    root = Path(__file__).parents[1]
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()
