"""What `hasfaas explain` says of one function, as plain values: seen, expected, decided, and what that cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from hasfaas.backends.actuator import Outcome
from hasfaas.backends.observer import Recent
from hasfaas.rapp import lane_law
from hasfaas.scaling.decision import Decision
from hasfaas.scaling.device_choice import Choice
from hasfaas.scaling.frontier import Shape
from hasfaas.scaling.journal import ACTIONS, column
from hasfaas.scaling.observation import Life, Observation
from hasfaas.scaling.outlook import P95, latency_ms
from hasfaas.serving.ports import FunctionRecord

# Less is no load.
LEAST_RPS = 0.01
_NAMES = {cls: name for name, cls in ACTIONS.items()}


def explanation(
    record: FunctionRecord,
    latest: tuple[Observation, Decision],
    outcomes: Sequence[Outcome],
    recent: Recent,
    quota_percents: Mapping[str, float],
    now_s: float,
    choice: Choice | None = None,
) -> dict[str, Any]:
    """The keys beside those that need no tick. `latest` is the last tick, `outcomes` are oldest first, `quota_percents` are
    those of now by replica; times are told as seconds ago. `choice` is the type of device, where there was one to choose."""
    observation, decision = latest
    if record.name not in observation.functions.names:
        return {}
    # The scaler is shown less of replicas that give way to others; people are told what they have.
    seen = observation.replicas
    quotas = [quota_percents.get(name, float(was)) for name, was in zip(seen.ids, seen.quota_percent, strict=True)]
    observation = attrs.evolve(observation, replicas=attrs.evolve(seen, quota_percent=column("quota_percent", quotas)))
    row = observation.functions.names.index(record.name)
    diagnostics = {name: _plain(values[row]) for name, values in decision.diagnostics.items() if len(values) > row}
    observed = _observed(record, recent)
    # The forecast knows the rate of now, the last minute only its mean.
    level_rps = diagnostics.get("level_rps")
    return {
        "decided_ago_s": now_s - observation.now_s,
        "reason": decision.reason,
        "diagnostics": diagnostics,
        "observed": observed,
        "unpredicted": _unpredicted(record, observation, row),
        "predicted": _predicted(observation, row, observed["rps"] if level_rps is None else level_rps),
        "replicas": _replicas(observation, row),
        "occupancy": _occupancy(observation, row),
        "device_type": None if choice is None else attrs.asdict(choice),
        "actions": [_action(outcome, now_s) for outcome in reversed(outcomes)],
    }


def _observed(record: FunctionRecord, recent: Recent) -> dict[str, Any]:
    """What really happened in the last minute."""
    late, completed = recent.late, recent.completed
    return {
        "seconds": recent.seconds,
        "rps": recent.arrivals / recent.seconds if recent.seconds else 0.0,
        "completed": completed,
        "late": late,
        "late_share": late / max(late, completed) if late else 0.0,
        "late_share_promised": 1.0 - record.spec.slo_percentile / 100.0,
        "slo_ms": record.spec.slo_ms,
        "p50_ms": recent.p50_ms,
        "p95_ms": recent.p95_ms,
    }


def _unpredicted(record: FunctionRecord, observation: Observation, row: int) -> str:
    """Why nothing can be predicted of a function, empty where it can."""
    if record.kind.streams:
        return "it streams"
    return "no profile yet" if observation.functions.surfaces[row] is None else ""


def _predicted(observation: Observation, row: int, rps: float) -> dict[str, Any] | None:
    """What calls take at the slices of now and this rate; and what one call takes after a long idle time, and at worst when
    the account is empty. None while nobody serves. `p95_ms` is None where there is no load, and where `carried` is false:
    then the slices are not sure to answer that many calls in time, and how long calls take depends on how long it lasts."""
    functions, replicas = observation.functions, observation.replicas
    surface = functions.surfaces[row]
    serving = np.flatnonzero((replicas.function == row) & (replicas.life == Life.READY) & (replicas.quota_percent > 0))
    if surface is None or not len(serving):
        return None
    hold_ms = np.array([surface.hold(1, float(share)) for share in replicas.sm_percent[serving]])
    quota = replicas.quota_percent[serving] / 100.0
    overhead_ms = float(functions.overhead_ms[row])
    shape = Shape(
        len(serving),
        float(replicas.sm_percent[serving].min()),
        float(replicas.quota_percent[serving].min()),
        int(replicas.batch[serving].max()),
        rps,
    )
    loaded = rps >= LEAST_RPS
    p95_ms = overhead_ms + latency_ms(surface, shape, observation.timing, rps, P95) if loaded else 0.0
    carried = p95_ms <= float(functions.slo_ms[row])
    return {
        "rps": rps,
        "carried": carried,
        "p95_ms": p95_ms if loaded and carried else None,
        "idle_ms": overhead_ms + float(lane_law.idle_ms(hold_ms, quota, observation.timing).min()),
        "worst_ms": overhead_ms + float(lane_law.saturated_worst_ms(hold_ms, quota, observation.timing).max()),
        "overhead_ms": overhead_ms,
        "cold_start_s": float(functions.cold_start_s[row]),
    }


def _replicas(observation: Observation, row: int) -> list[dict[str, Any]]:
    replicas = observation.replicas
    return [
        {
            "replica": replicas.ids[at],
            "state": Life(int(replicas.life[at])).name.lower(),
            "device": observation.devices.ids[int(replicas.device[at])],
            "lane": int(replicas.lane[at]),
            "sm_percent": float(replicas.sm_percent[at]),
            "quota_percent": float(replicas.quota_percent[at]),
            "batch": int(replicas.batch[at]),
            "occupancy": float(replicas.sm_percent[at] * replicas.quota_percent[at]) / 1e4,
        }
        for at in np.flatnonzero(replicas.function == row)
    ]


def _occupancy(observation: Observation, row: int) -> float:
    """Whole devices that the function's replicas hold: the sum of sm x quota."""
    mine = observation.replicas.function == row
    return float((observation.replicas.sm_percent[mine] * observation.replicas.quota_percent[mine]).sum() / 1e4)


def _action(outcome: Outcome, now_s: float) -> dict[str, Any]:
    return {
        "ago_s": now_s - outcome.at_s,
        "do": _NAMES[type(outcome.action)],
        **attrs.asdict(outcome.action),
        "refused": outcome.refused,
        "in_force_ms": outcome.in_force_ms,
    }


def _plain(value: Any) -> Any:
    """A number or text as JSON has it; one that is not finite is None."""
    found = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(found, float) and not math.isfinite(found) else found
