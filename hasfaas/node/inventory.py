"""The devices of this machine, from its settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.settings import DeviceSettings
from hasfaas.devices import cpu, sim
from hasfaas.devices.base import DeviceInfo
from hasfaas.node.shm_files import shm_path

DEFAULT_SIM_MEMORY_BYTES = 16 * 2**30


def devices_of(settings: Iterable[DeviceSettings]) -> tuple[DeviceInfo, ...]:
    """One value a device, named `kind0`, `kind1`, ... or by its id. Raises InvalidRequestError for two of one name."""
    found: list[DeviceInfo] = []
    for entry in settings:
        for index in range(entry.count):
            name = entry.id if entry.count == 1 else entry.id and f"{entry.id}{index}"
            taken = sum(1 for device in found if device.kind == entry.kind)
            found.append(_device(entry, name or f"{entry.kind}{taken}"))
    names = [device.device_id for device in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequestError(f"devices: two are named {name!r}; give each its own id", reason="BAD_OPTION")
    if sum(1 for device in found if device.kind == "cpu") > 1:
        raise InvalidRequestError(
            "devices: two cpu devices would own the same cores; keep one and use lanes", reason="BAD_OPTION"
        )
    return tuple(found)


def _device(entry: DeviceSettings, name: str) -> DeviceInfo:
    if entry.kind == "cpu":
        device = cpu.inventory(name, cores=entry.cores)
        if entry.memory_bytes is None:
            return device
        return attrs.evolve(device, memory_bytes=entry.memory_bytes)
    return sim.inventory(
        name,
        sms=entry.sms,
        memory_bytes=entry.memory_bytes or DEFAULT_SIM_MEMORY_BYTES,
        cold_start_s=entry.cold_start_s,
        profiles=_profiles(entry),
        lanes_file=shm_path(os.getpid(), f"{name}.lanes"),
    )


def _profiles(entry: DeviceSettings) -> dict[str, sim.SimProfile]:
    """A profile is one latency table, or a table of them by function name."""
    given: Any = entry.profile
    if given is None:
        return {}
    if isinstance(given, Path):
        given = _read(given)
    if "latency_ms" in given or "batches" in given:
        return {sim.DEFAULT: sim.SimProfile.from_dict(given)}
    for name, table in given.items():
        if not isinstance(table, Mapping):
            raise InvalidRequestError(f"devices: profile: {name}={table!r:.60} is not a table", reason="BAD_PROFILE")
    return {str(name): sim.SimProfile.from_dict(table) for name, table in given.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise InvalidRequestError(
            f"devices: profile {str(path)!r} cannot be read: {exc}; give a JSON file of latencies", reason="BAD_PROFILE"
        ) from exc
    if not isinstance(given, dict):
        raise InvalidRequestError(
            f"devices: profile {str(path)!r} holds a {type(given).__name__}, not a table", reason="BAD_PROFILE"
        )
    return given
