"""One run of the scaling benchmark in figures."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from hasfaas.simulator.result import Result

PRICE_USD_H = 2.48
# What is promised: at most this share of the calls is late.
FEASIBLE = 0.01
COSTS = ("reserved", "provisioned", "used", "billed")


@attrs.frozen
class Row:
    """One run. `policy` is what figures call it, `text` the policy with its options. Shares of the calls, GPU-seconds, ms;
    a percentile is infinite where so many calls were dropped. `actions_per_min` counts those that were carried out."""

    cell: str
    policy: str
    text: str
    seed: int
    requests: int
    violations: float
    worst_minute: float
    worst_function: float
    reserved_gpu_s: float
    provisioned_gpu_s: float
    used_gpu_s: float
    billed_gpu_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cold_starts: int
    actions_per_min: float
    refused: int
    peak_gpus: int

    @classmethod
    def of(cls, result: Result, *, cell: str, policy: str, text: str, seed: int) -> Row:
        """The figures of a run, those of its calls and costs after the warm-up."""
        arrived, latency_ms, slo_ms = result.counted()
        p50, p95, p99 = (_percentile(latency_ms, share) for share in (0.50, 0.95, 0.99))
        return cls(
            cell=cell,
            policy=policy,
            text=text,
            seed=seed,
            requests=len(arrived),
            violations=float(np.mean(latency_ms > slo_ms)) if len(arrived) else 0.0,
            worst_minute=result.worst_minute(),
            worst_function=float(result.violations_by_function().max()),
            reserved_gpu_s=result.reserved_gpu_s,
            provisioned_gpu_s=result.provisioned_gpu_s,
            used_gpu_s=result.used_gpu_s,
            billed_gpu_s=result.billed_gpu_s,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            cold_starts=result.cold_starts,
            actions_per_min=60.0 * len(result.actions) / result.duration_s,
            refused=result.refused,
            peak_gpus=result.peak_devices,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """The reverse of `to_dict`."""
        own: dict[str, Any] = {field.name: values[field.name] for field in attrs.fields(cls)}
        own |= {name: float("inf") for name, value in own.items() if value is None}
        return cls(**own)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: with the costs in USD per 1,000 requests, and None for what is infinite."""
        plain = {k: None if v == float("inf") else v for k, v in attrs.asdict(self).items()}
        usd = {name: self.usd_per_1k(name) for name in COSTS}
        return {**plain, "usd_per_1k": usd}

    def usd_per_1k(self, cost: str) -> float | None:
        """One of COSTS in USD per 1,000 requests at PRICE_USD_H; None without requests."""
        if not self.requests:
            return None
        return float(getattr(self, f"{cost}_gpu_s")) / 3600.0 * PRICE_USD_H / self.requests * 1e3


def _percentile(values: np.ndarray[Any, Any], share: float) -> float:
    """The least value that so many do not exceed; infinite without any."""
    if not len(values):
        return float("inf")
    place = max(0, int(np.ceil(share * len(values))) - 1)
    return float(np.partition(values, place)[place])
