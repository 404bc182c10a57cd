"""What a replica process is told when it is forked. JSON on the zygote's control socket, a value on both
sides.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from hasfaas.devices.base import DeviceSlice


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
    memory_bytes: int
    batch_max: int | None
    cold_start_s: float
    settings_json: str
    idempotent: bool = False

    def to_dict(self) -> dict[str, object]:
        """As JSON can hold it."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> ReplicaConfig:
        """The inverse of `to_dict`."""
        values = dict(fields)
        part = dict(values.pop("part"))  # type: ignore[call-overload]
        part["units"] = tuple(part["units"])
        return cls(part=DeviceSlice(**part), **values)  # type: ignore[arg-type]
