"""One policy's run in the figures that people compare: promises kept, what it cost, what it did, and how it went on."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from hasfaas.simulator.packing import Packing
from hasfaas.simulator.result import Result

Array = np.ndarray[Any, Any]

# Points of a curve over time, and of the tail of latencies: as many as a picture can show.
MOST_POINTS = 480
TAIL = np.geomspace(1.0, 1e-4, 161)
SECONDS_PER_HOUR = 3600.0


@attrs.frozen
class FunctionOutcome:
    """One function's part. Costs in GPU-seconds, latencies in ms (infinite if so many calls were dropped)."""

    name: str
    slo_ms: float
    requests: int
    late_share: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    reserved_gpu_s: float
    used_gpu_s: float
    billed_gpu_s: float


@attrs.frozen(eq=False)
class Course:
    """How a run went on, at so many instants. `lane_sm_percent` and `lane_quota_percent` are [time, device, lane].

    `arrivals_rps` and `late_share` are means over the time up to the next instant; `reserved_gpus` is the sum of SM share x
    quota of all replicas, in devices.
    """

    now_s: Array
    arrivals_rps: Array
    late_share: Array
    replicas: Array
    quota_percent: Array
    reserved_gpus: Array
    lane_sm_percent: Array
    lane_quota_percent: Array


@attrs.frozen(eq=False)
class Outcome:
    """What counts is what began after the warm-up; `cold_starts`, `actions` and `refused` are those of the whole run.

    `tail` holds, for each share of `TAIL`, the latency over the SLO that this share of the requests exceeded.
    """

    policy: str
    requests: int
    late_share: float
    worst_minute: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    reserved_gpu_s: float
    provisioned_gpu_s: float
    used_gpu_s: float
    billed_gpu_s: float
    peak_gpus: int
    cold_starts: int
    actions: int
    refused: int
    refusal: str
    dropped: int
    decide_ms: float
    functions: tuple[FunctionOutcome, ...]
    tail: Array
    course: Course
    interpreted: bool = False
    decide_mean_ms: float = float("nan")
    decide_p99_ms: float = float("nan")
    packing: Packing | None = None

    @classmethod
    def of(cls, policy: str, result: Result) -> Outcome:
        """The figures of a run."""
        _, latency_ms, slo_ms = result.counted()
        decide_ms = 1e3 * result.decide_s if len(result.decide_s) else np.array([np.nan])
        return cls(
            policy=policy,
            requests=len(latency_ms),
            late_share=result.violations(),
            worst_minute=result.worst_minute(),
            p50_ms=result.percentile_ms(50.0),
            p95_ms=result.percentile_ms(95.0),
            p99_ms=result.percentile_ms(99.0),
            reserved_gpu_s=result.reserved_gpu_s,
            provisioned_gpu_s=result.provisioned_gpu_s,
            used_gpu_s=result.used_gpu_s,
            billed_gpu_s=result.billed_gpu_s,
            peak_gpus=result.peak_devices,
            cold_starts=result.cold_starts,
            actions=len(result.actions),
            refused=result.refused,
            refusal=result.refusals[0].why if result.refusals else "",
            dropped=result.counts.dropped,
            decide_ms=float(np.median(decide_ms)),
            decide_mean_ms=float(np.mean(decide_ms)),
            decide_p99_ms=float(np.quantile(decide_ms, 0.99)),
            packing=Packing.of(result),
            functions=tuple(_function(result, row) for row in range(len(result.arrived_s))),
            tail=_tail(latency_ms / slo_ms),
            course=_course(result),
            interpreted=result.interpreted,
        )

    def usd_per_1k(self, gpu_s: float, price_usd_h: float) -> float:
        """A cost in GPU-seconds as USD per 1,000 requests; NaN without any."""
        if not self.requests:
            return float("nan")
        return gpu_s / SECONDS_PER_HOUR * price_usd_h / self.requests * 1e3

    def to_dict(self, price_usd_h: float) -> dict[str, Any]:
        """The JSON form: the figures without curves. What is not finite (a percentile of dropped calls) is None."""
        left_out = ("tail", "course", "functions", "packing")
        plain = attrs.asdict(self, recurse=False, filter=lambda field, _: field.name not in left_out)
        usd = {
            name: self.usd_per_1k(getattr(self, f"{name}_gpu_s"), price_usd_h)
            for name in ("reserved", "provisioned", "used", "billed")
        }
        functions = [_finite(attrs.asdict(function)) for function in self.functions]
        packing = None if self.packing is None else {**attrs.asdict(self.packing), "quality": self.packing.quality}
        return {**_finite(plain), "usd_per_1k": _finite(usd), "packing": packing, "functions": functions}


# -- leaves -------------------------------------------------------------------------------------------------------------


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


def _function(result: Result, row: int) -> FunctionOutcome:
    function = result.scenario.functions[row]
    return FunctionOutcome(
        name=function.name,
        slo_ms=function.slo_ms,
        requests=len(result.counted(row)[0]),
        late_share=result.violations(row),
        p50_ms=result.percentile_ms(50.0, row),
        p95_ms=result.percentile_ms(95.0, row),
        p99_ms=result.percentile_ms(99.0, row),
        reserved_gpu_s=float(result.reserved[row]),
        used_gpu_s=float(result.used[row]),
        billed_gpu_s=float(result.billed[row]),
    )


def _tail(over_slo: Array) -> Array:
    """For each share of TAIL the value that so many exceed; NaN beyond what so few requests can tell."""
    if not len(over_slo):
        return np.full(len(TAIL), np.nan)
    ordered = np.sort(over_slo)
    place = np.ceil((1.0 - TAIL) * len(ordered)).astype(int) - 1
    return np.where(TAIL * len(ordered) >= 1.0, ordered[np.clip(place, 0, len(ordered) - 1)], np.nan)


def _course(result: Result) -> Course:
    """The series at no more than MOST_POINTS of its instants. Empty for a run that ended before the first."""
    series = result.series
    chosen = np.unique(np.linspace(0, len(series.now_s) - 1, min(MOST_POINTS, len(series.now_s))).astype(int))
    now_s = series.now_s[chosen]
    arrivals, late = result.per_interval(np.append(now_s, max(result.duration_s, now_s[-1] + 1e-9)))
    seconds = np.diff(np.append(now_s, max(result.duration_s, now_s[-1] + 1e-9)))
    calls = arrivals.sum(axis=1)
    replicas = series.replicas[chosen].sum(axis=1)
    return Course(
        now_s=now_s,
        arrivals_rps=calls / seconds,
        late_share=late.sum(axis=1) / np.maximum(calls, 1.0),
        replicas=replicas,
        quota_percent=series.quota_percent[chosen].sum(axis=1) / np.maximum(replicas, 1.0),
        reserved_gpus=series.reserved[chosen].sum(axis=1),
        lane_sm_percent=series.lane_sm_percent[chosen],
        lane_quota_percent=series.lane_quota_percent[chosen],
    )
