"""Replicas and devices as `ps` and `status` show them."""

from __future__ import annotations

from collections.abc import Sequence

from hasfaas.backends.member import Member
from hasfaas.backends.nodes import Nodes
from hasfaas.devices.base import DeviceInfo
from hasfaas.node.lanes import Lane
from hasfaas.serving.ports import DeviceView, LaneView, ReplicaView


def replica_view(nodes: Nodes, member: Member) -> ReplicaView:
    """One replica."""
    process = member.process
    return ReplicaView(
        replica_id=process.replica_id,
        version=member.record.version,
        state=member.state.value if member.bench is None else "profiling",
        device_id=process.device_id,
        lane=process.lane,
        sm_asked_percent=member.want.sm_percent or process.sm_percent,
        sm_granted_percent=process.sm_percent,
        quota_percent=nodes.quota_percent(process.replica_id),
        memory_bytes=member.want.memory_bytes,
        pid=process.pid,
        usage=nodes.usage(process.replica_id),
        lends=member.want.lend,
        started=member.started,
    )


def device_views(nodes: Nodes) -> Sequence[DeviceView]:
    """All devices with their lanes."""
    lanes = nodes.lanes()
    views = []
    for device in nodes.devices.values():
        mine = [lane for lane in lanes if lane.device_id == device.device_id]
        units = len(device.units)
        views.append(
            DeviceView(
                device_id=device.device_id,
                kind=device.kind,
                units=units,
                memory_bytes=device.memory_bytes,
                memory_used_bytes=sum(s.memory_bytes for lane in mine for s in lane.seats),
                lanes=tuple(
                    LaneView(x.lane, x.units, 100.0 * len(x.units) / units, x.quota_percent)
                    for x in sorted([*mine, *_empty(device, mine)], key=lambda lane: lane.lane)
                ),
                occupancy=sum(len(x.units) / units * x.quota_percent / 100.0 for x in mine),
                health=nodes.conditions[device.device_id].health.value,
                why=nodes.conditions[device.device_id].why,
                cure=nodes.conditions[device.device_id].cure,
                fixed_lanes=device.fixed_lanes is not None,
                facts=device.facts,
            )
        )
    return views


def _empty(device: DeviceInfo, taken: Sequence[Lane]) -> list[Lane]:
    """Lanes that were cut in advance and that nobody is in: they are there all the same."""
    numbers = {lane.lane for lane in taken}
    cut = enumerate(device.fixed_lanes or ())
    return [Lane(device.device_id, number, units) for number, units in cut if number not in numbers]
