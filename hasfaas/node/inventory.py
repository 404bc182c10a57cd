"""The devices of this machine, from its settings."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import attrs

from hasfaas.core.errors import HasFaasError, InvalidRequestError
from hasfaas.core.settings import AUTO, DeviceSettings
from hasfaas.devices.base import DeviceInfo, DeviceRequest, module_of

log = logging.getLogger("hasfaas.node")


def devices_of(settings: Iterable[DeviceSettings], node: str | None = None) -> tuple[DeviceInfo, ...]:
    """One value a device, named `kind0`, `kind1`, ... or by its id; of `node` of a cluster, those of the tables that are for
    it. Raises InvalidRequestError for two of one name, and for a table of a node where there is no cluster."""
    found: list[DeviceInfo] = []
    for entry in settings:
        if entry.node is not None and node is None:
            raise InvalidRequestError(
                f"devices: node={entry.node!r} binds a table to a node of a cluster, and this backend has no nodes; take it "
                'out, or say backend = "cluster"',
                reason="BAD_OPTION",
            )
        if entry.node not in (None, node):
            continue
        made = _auto() if entry.kind == AUTO else tuple(module_of(entry.kind).inventory(request_of(entry)))
        if not made:
            raise InvalidRequestError(f"devices: kind={entry.kind!r} offers no device here", reason="BAD_DEVICE")
        for index, device in enumerate(made):
            name = entry.id if len(made) == 1 else entry.id and f"{entry.id}{index}"
            taken = sum(1 for other in found if other.kind == device.kind)
            found.append(attrs.evolve(device, device_id=name or f"{device.kind}{taken}", price=entry.price))
    names = [device.device_id for device in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequestError(f"devices: two are named {name!r}; give each its own id", reason="BAD_OPTION")
    if sum(1 for device in found if device.kind == "cpu") > 1:
        raise InvalidRequestError(
            "devices: two cpu devices would own the same cores; keep one and use lanes", reason="BAD_OPTION"
        )
    return tuple(found)


def request_of(entry: DeviceSettings) -> DeviceRequest:
    """A table of the settings as its device reads it."""
    return DeviceRequest(entry.count, entry.memory_bytes, entry.given)


def _auto() -> tuple[DeviceInfo, ...]:
    """The GPUs of this machine, or its CPU where it has none that can be used; the log says why."""
    try:
        return tuple(module_of("cuda").inventory(DeviceRequest(count=None)))
    except HasFaasError as exc:
        log.info("serving from the CPU: %s", exc)
        return tuple(module_of("cpu").inventory(DeviceRequest()))
