"""What `ps` and `status` show, as messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from hasfaas.serving.ports import (
    DeviceView,
    Figures,
    Fitted,
    FunctionRecord,
    News,
    Note,
    Plan,
    Point,
    ProfileState,
    ReplicaView,
)
from hasfaas.serving.router import Router
from hasfaas.wire.convert import spec_to_proto, usage_to_proto
from hasfaas.wire.frames import Started
from hasfaas.wire.v1 import functions_pb2 as pb

UNPROFILED = ProfileState().state


def function_to_proto(
    record: FunctionRecord, replicas: Sequence[ReplicaView], router: Router, profile: ProfileState
) -> pb.FunctionStatus:
    """One function with its replicas."""
    return pb.FunctionStatus(
        name=record.name,
        version=record.version,
        kind=record.kind.value,
        spec=spec_to_proto(record.spec),
        queue_depth=router.depth(record.name),
        unprofiled=not record.sizing.sized and profile.state == UNPROFILED,
        replicas=[_replica_to_proto(view, router) for view in replicas],
        calls=pb.CallCounts(**attrs.asdict(router.counts(record.name))),
        sized=record.sizing.sized,
        why_none="" if replicas else router.why_none(record.name),
        profile_state=profile.state,
        drifted=profile.drifted,
        drift_reason=profile.reason,
    )


def _replica_to_proto(view: ReplicaView, router: Router) -> pb.ReplicaStatus:
    return pb.ReplicaStatus(
        replica_id=view.replica_id,
        state=view.state,
        device=view.device_id,
        lane=view.lane,
        sm_asked_percent=view.sm_asked_percent,
        sm_granted_percent=view.sm_granted_percent,
        quota_percent=view.quota_percent,
        memory_bytes=view.memory_bytes,
        pid=view.pid,
        in_flight=router.in_flight(view.replica_id),
        usage=usage_to_proto(view.usage),
        version=view.version,
        error=view.error,
        lends=view.lends,
        **_started(view.started),
    )


def _started(started: Started | None) -> dict[str, Any]:
    """Nothing before a replica is ready."""
    if started is None:
        return {}
    cold = pb.ReplicaStatus.ColdStart(
        enter_ms=started.enter_ms, load_ms=started.load_ms, first_run_ms=started.first_run_ms
    )
    return {"sm_counted_percent": started.granted_percent, "cold_start": cold}


def device_to_proto(view: DeviceView) -> pb.DeviceStatus:
    """One device with its lanes."""
    return pb.DeviceStatus(
        device_id=view.device_id,
        kind=view.kind,
        units=view.units,
        memory_bytes=view.memory_bytes,
        memory_used_bytes=view.memory_used_bytes,
        occupancy=view.occupancy,
        health=view.health,
        why=view.why,
        cure=view.cure,
        fixed_lanes=view.fixed_lanes,
        facts={name: str(value) for name, value in view.facts.items()},
        lanes=[
            pb.DeviceStatus.Lane(
                lane=lane.lane, units=lane.units, sm_percent=lane.sm_percent, quota_percent=lane.quota_percent
            )
            for lane in view.lanes
        ],
    )


def news_to_proto(news: News) -> pb.ProfileResponse:
    """One message of a measurement under way."""
    match news:
        case Plan(points):
            return pb.ProfileResponse(plan=pb.ProfileResponse.Plan(points=[_point(point) for point in points]))
        case Figures(point, hold_ms, mean_hold_ms, response_ms, runs, log_spread):
            measured = pb.ProfileResponse.Measured(
                point=_point(point),
                hold_ms=hold_ms,
                mean_hold_ms=mean_hold_ms,
                response_ms=response_ms,
                runs=runs,
                log_spread=log_spread,
            )
            return pb.ProfileResponse(measured=measured)
        case Note(text):
            return pb.ProfileResponse(note=text)
        case Fitted(profile):
            return pb.ProfileResponse(profile_json=profile)


def _point(point: Point) -> pb.ProfilePoint:
    return pb.ProfilePoint(batch=point.batch, sm_percent=point.sm_percent, quota_percent=point.quota_percent)
