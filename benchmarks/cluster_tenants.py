"""The functions of the cluster benchmark and what is asked of them: twelve of different latency, at Azure's own skew.

Each has the shape of one of the simulator's four models, in latency over batch and SM share, at a latency of its own. The
rates are those of twelve of the Azure sample's functions, minute by minute, times one factor that makes the load a given
share of the devices' time, counted call by call on whole devices. Within a minute arrivals are Poisson.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import hasfaas
from benchmarks import scaling_loads
from hasfaas import function
from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.surface import Surface
from hasfaas.sdk.function import Function
from hasfaas.simulator import arrivals, models
from hasfaas.simulator.trace import Trace
from hasfaas.simulator.trace_file import read_trace

Array = np.ndarray[Any, Any]

BATCH, SLO_FACTOR = 8, 5.0
MEMORY, MEMORY_BYTES = "1500MiB", 1500 * 2**20
# Of the sample's functions by popularity. The first alone has two thirds of all calls, so it is left out; the sixteenth comes
# in a burst, the last ones seldom.
RANKS = (2, 3, 4, 5, 6, 9, 10, 11, 13, 16, 21, 26)
# Model and milliseconds of one call on a whole device, dealt to the ranks in turn.
PROFILES = (
    *(("resnet50", 40.0), ("mobilenet_v3_large", 30.0), ("convnext_large", 60.0), ("vgg16", 25.0)),
    *(("resnet50", 60.0), ("mobilenet_v3_large", 20.0), ("convnext_large", 40.0), ("vgg16", 50.0)),
    *(("resnet50", 80.0), ("mobilenet_v3_large", 45.0), ("convnext_large", 75.0), ("vgg16", 35.0)),
)
MOST_RPS = 100.0


@attrs.frozen(eq=False)
class Tenant:
    """One function, and what its batches take on a device."""

    name: str
    base_ms: float
    truth: Surface
    deployed: Function[..., Array]

    @property
    def slo_ms(self) -> float:
        """What is promised."""
        return SLO_FACTOR * self.base_ms

    @property
    def table(self) -> dict[str, Any]:
        """The profile of a sim device."""
        surface = self.truth
        return {
            "batches": list(surface.batches),
            "sm_percents": list(surface.sm_percents),
            "latency_ms": surface.hold_ms.tolist(),
        }


def _ones(batch: int) -> Array:
    return np.ones((batch, 4))


def same(x: Array) -> Array:
    """Costs nothing itself: the device emulates the time."""
    return x


def tenants(*, careful: Collection[int] = ()) -> tuple[Tenant, ...]:
    """All twelve; those of the rows `careful` may not be run twice for one call."""
    return tuple(_tenant(row, idempotent=row not in careful) for row in range(len(PROFILES)))


def _tenant(row: int, *, idempotent: bool) -> Tenant:
    model_name, base_ms = PROFILES[row]
    model = models.named([model_name])[0]
    surface = model.surface
    truth = Surface(
        surface.batches, surface.sm_percents, surface.hold_ms * (base_ms / model.base_ms), surface.log_sigma
    )
    name = f"tenant.f{row:02d}"
    made = function(
        slo_ms=SLO_FACTOR * base_ms,
        batch=hasfaas.Batch(BATCH),
        memory=MEMORY,
        replicas=(0, 64),
        example=_ones,
        timeout_s=30,
        idempotent=idempotent,
        name=name,
    )(same)
    return Tenant(name, base_ms, truth, made)


def load(data: Path, share: float, devices: int, seconds: float, seed: int) -> tuple[Array, ...]:
    """When each tenant is called, in seconds. Raises InvalidRequestError for a load beyond MOST_RPS, and where `data` has no
    traces."""
    path = data / scaling_loads.AZURE
    if not path.exists():
        raise InvalidRequestError(
            f"--data {data}: it lacks {scaling_loads.AZURE}, counts per minute of the Azure functions trace of 2019 in the "
            "sample of 500 of eth-easl/dirigent (SOSP 2024); put it there",
            reason="BAD_TRACE",
        )
    trace = read_trace(path, "azure-functions", ranks=RANKS).window(scaling_loads.LATER_S, seconds)
    return drawn(trace, share * devices, seconds, seed)


def drawn(trace: Trace, busy_devices: float, seconds: float, seed: int) -> tuple[Array, ...]:
    """Arrivals that would keep so many whole devices busy, call by call."""
    calls = trace.counts.sum(axis=1)
    base_s = np.array([base_ms for _, base_ms in PROFILES]) / 1e3
    mix = calls / calls.sum()
    rps = busy_devices / float(mix @ base_s)
    if rps > MOST_RPS:
        raise InvalidRequestError(
            f"--share: that takes {rps:.0f} calls a second, and at most {MOST_RPS:g} are meant; give less",
            reason="BAD_BENCHMARK",
        )
    return arrivals.draw(trace, seed=seed, rps=rps / len(PROFILES), duration_s=seconds)


def device_share(arrived_s: Sequence[Array], devices: int, seconds: float) -> float:
    """What share of the devices' time the calls would take, one by one on whole devices."""
    spent_s = sum(len(each) * base_ms / 1e3 for each, (_, base_ms) in zip(arrived_s, PROFILES, strict=True))
    return float(spent_s / (devices * seconds))
