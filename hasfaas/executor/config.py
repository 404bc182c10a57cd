"""What a replica process is told when it is forked. JSON on the zygote's control socket, a value on both
sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from hasfaas.devices.base import DeviceSlice

# How a replica process ends, besides 0: our own bug, a function that could not start, a device that failed.
EXIT_BROKEN, EXIT_START_FAILED, EXIT_DEVICE_FAILED = 1, 3, 4


@attrs.frozen
class ReplicaConfig:
    """Everything one replica needs to start. Paths are of this machine; `slot` is its place in the token
    table.
    """

    replica_id: str
    function: str
    version: str
    bundle_path: str
    signature_hex: str
    key_path: str
    work_dir: str
    part: DeviceSlice
    token_path: str
    slot: int
    batch_max: int | None
    cold_start_s: float
    settings_json: str
    idempotent: bool = False
    env: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    # Names alone: their values are read where they are set.
    secrets: Sequence[str] = ()

    @property
    def memory_bytes(self) -> int:
        """What the function was granted of its device's memory."""
        return self.part.memory_bytes

    def to_dict(self) -> dict[str, object]:
        """As JSON can hold it."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> ReplicaConfig:
        """The inverse of `to_dict`."""
        values = dict(fields)
        part = dict(values.pop("part"))  # type: ignore[call-overload]
        part["units"] = tuple(part["units"])
        values["secrets"] = tuple(values["secrets"])  # type: ignore[arg-type]
        return cls(part=DeviceSlice(**part), **values)  # type: ignore[arg-type]
