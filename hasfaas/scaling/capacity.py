"""How many requests per second replicas of one slice can take so that at most a share eps of them is late.

The rule for a plain server (latency L of a batch, n replicas, batches of b; an effective-bandwidth argument, Kelly 1996)
and its correction for batching are those of the project's scaling reference, section 4.6:

    m          = n b (d / L - 1) - 0.75 (b - 1)       requests that can be served before the deadline; m <= 0: none
    theta      = I ln(1 / eps) / m                    I = index of dispersion of the arrivals, 1 for Poisson
    lambda_max = (n b / L) theta / (e^theta - 1)

A replica under a quota of device time is a server of another kind (rapp/lane_law.py): in the long run a batch takes
L = t / q, but one that finds the account empty takes `worst`. What it lags behind the rate is at most worst - t / q,
once, so that much less of the deadline is left:

    no credit     L = t / q, d - (worst - t / q)
    credit        L = t / q, d - (worst - t / q) + cap / q, for batches of one

The second counts what an account saves while the replica idles. It holds for one replica exactly: the time the account
needs to be full is the workload of a queue with service t / q, and a batch is late if it finds more than
d - worst + cap / q. Several replicas spend their credit evenly, since the router sends a call to the one that was idle
longest. Batches that are not full spend credit at the price of full ones. Full speed is a bound as well: L = t, d.

What the router sends ahead to a busy replica may stand behind a batch that has just begun, though another replica ends
sooner. That costs a part of a batch of the deadline (b > 1, n > 1); full batches are of no use below 2.5 L, nor is a common
queue below 2 L. All constants were calibrated by simulation, not derived: benchmarks/rapp_capacity.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor.quota import Timing
from hasfaas.rapp import lane_law

Array = np.ndarray[Any, Any]

BATCHING_LOSS = 0.75
GREATEST_UTILISATION = 0.90
# Where less than one in 200 may be late: a cluster of arrivals near 0.9 makes more than that late now and then.
RARE, GREATEST_RARE_UTILISATION = 0.005, 0.85
# Of a batch's time: what waiting behind the wrong replica, and for a batch to fill, costs at most.
AHEAD_LOSS = 0.65
FILL_LOSS = 0.25
AHEAD_LEAST = 2.5
# (worst full batch / deadline at most, capacity over that of batches of one at least): the least of 672 simulated slices.
SHORT_GAINS = ((0.3, 1.8), (0.4, 1.25), (0.5, 1.1), (0.6, 1.0))
SHARED_LEAST = 2.0


def plain_rps(
    replicas: ArrayLike,
    batch: ArrayLike,
    latency_ms: ArrayLike,
    deadline_ms: ArrayLike,
    late_share: ArrayLike,
    *,
    dispersion: ArrayLike = 1.0,
    greatest_utilisation: ArrayLike | None = None,
) -> Array:
    """Capacity of `replicas` plain servers, each serving a batch in `latency_ms`. Arguments broadcast; 0: none."""
    n, b, latency, deadline = (np.asarray(v, float) for v in (replicas, batch, latency_ms, deadline_ms))
    whole = n * b / latency * 1e3
    if greatest_utilisation is None:
        greatest_utilisation = np.where(np.asarray(late_share) < RARE, GREATEST_RARE_UTILISATION, GREATEST_UTILISATION)
    with np.errstate(invalid="ignore", over="ignore"):
        servable = n * b * (deadline / latency - 1.0) - BATCHING_LOSS * (b - 1.0)
        some = servable > 0.0
        theta = np.asarray(dispersion, float) * -np.log(late_share) / np.where(some, servable, 1.0)
        utilisation = theta / np.expm1(theta)
    return np.where(some, whole * np.minimum(utilisation, greatest_utilisation), 0.0)


def lane_rps(
    replicas: ArrayLike,
    batch: ArrayLike,
    hold_ms: ArrayLike,
    quota: ArrayLike,
    deadline_ms: ArrayLike,
    timing: Timing,
    *,
    late_share: ArrayLike = 0.01,
    dispersion: ArrayLike = 1.0,
    overrun_ms: ArrayLike = 0.0,
    neighbours: ArrayLike = 0,
    greatest_utilisation: ArrayLike | None = None,
) -> Array:
    """Requests per second that `replicas` at `quota` of a lane can take with at most `late_share` of them late.

    All arguments broadcast as numpy arrays do, so one call covers (function, batch, SM share, quota) and more. `hold_ms` is
    the hold of a full batch; `deadline_ms` what is left of the SLO after all overheads. 0 where the deadline cannot be
    held. Raises InvalidRequestError (BAD_CAPACITY, BAD_LANE_LAW) for values out of range.
    """
    n, b, deadline, eps = (np.asarray(v, float) for v in (replicas, batch, deadline_ms, late_share))
    _check("replicas", n, (n >= 1.0) & (n < np.inf), "must be at least 1")
    _check("batch", b, (b >= 1.0) & (b < np.inf), "must be at least 1")
    _check("deadline_ms", deadline, np.isfinite(deadline), "must be finite: what is left of the SLO")
    _check("late_share", eps, (eps > 0.0) & (eps < 1.0), "must lie between 0 and 1, both excluded: 0.01 is one in 100")
    _check("dispersion", np.asarray(dispersion, float), np.asarray(dispersion) > 0.0, "must be positive: 1 is Poisson")
    hold, share = np.asarray(hold_ms, float), np.asarray(quota, float)
    worst = lane_law.saturated_worst_ms(hold, share, timing, overrun_ms, neighbours)
    mean = lane_law.saturated_mean_ms(hold, share)
    served = np.isfinite(mean)
    mean, worst = np.where(served, mean, 1.0), np.where(served, worst, 1.0)
    # A lease of each neighbour, which credit does not shorten.
    blocked = np.asarray(neighbours, float) * timing.quantum_ns / 1e6
    left = deadline - (worst - mean)
    credit = lane_law.credit_ms(share, timing)

    def rps(n: ArrayLike, b: ArrayLike, latency: Array, deadline: Array) -> Array:
        return plain_rps(n, b, latency, deadline, eps, dispersion=dispersion, greatest_utilisation=greatest_utilisation)

    empty = np.where(n == 1.0, rps(n, b, mean, left), _several_rps(rps, n, b, mean, left))
    # One at a time: what fuller batches add is not counted.
    saved = np.minimum(rps(n, 1.0, mean, left + credit), rps(n, 1.0, hold, deadline - blocked))
    return np.where(served, np.maximum(empty, np.where((n == 1.0) | (b == 1.0), saved, 0.0)), 0.0)


def slice_rps(
    replicas: ArrayLike,
    batches: ArrayLike,
    hold_ms: ArrayLike,
    quota: ArrayLike,
    deadline_ms: ArrayLike,
    timing: Timing,
    *,
    late_share: ArrayLike = 0.01,
    neighbours: ArrayLike = 0,
) -> Array:
    """`lane_rps` for each of `batches` [..., batch] (rising from 1) with `hold_ms` [..., batch], aware that batches are not
    always full: a replica takes what waits, up to its greatest batch.

    So a greatest batch of b is never worse than one of 1, as long as the worst full batch takes at most 0.6 of the deadline,
    and the shorter it is the more it adds (`SHORT_GAINS`, from simulation). The other arguments broadcast against [...].
    """
    n, b = np.asarray(replicas, float)[..., None], np.asarray(batches, float)
    share, deadline = np.asarray(quota, float)[..., None], np.asarray(deadline_ms, float)[..., None]
    hold = np.asarray(hold_ms, float)
    full = lane_rps(n, b, hold, share, deadline, timing, late_share=late_share, neighbours=neighbours)
    worst = lane_law.saturated_worst_ms(hold, share, timing, 0.0, neighbours)
    part = worst / np.where(deadline > 0.0, deadline, np.nan)
    gain = np.select([part <= most for most, _ in SHORT_GAINS], [gain for _, gain in SHORT_GAINS], 0.0)
    most = GREATEST_UTILISATION * n * lane_law.throughput_rps(b, hold, share)
    gained = np.where(b > 1.0, np.minimum(gain * full[..., :1], most), 0.0)
    return np.asarray(np.maximum(full, gained))


def _several_rps(rps: Callable[..., Array], n: Array, b: Array, mean: Array, left: Array) -> Array:
    """More than one replica: the best of full batches, calls one by one in a common queue, and replicas on their own."""
    full = np.where((b > 1.0) & (left >= AHEAD_LEAST * mean), rps(n, b, mean, left - AHEAD_LOSS * mean), 0.0)
    fills = np.where(b > 1.0, FILL_LOSS, 0.0)
    shared = np.where(left >= SHARED_LEAST * mean, rps(n, 1.0, mean, left - fills * mean), 0.0)
    return np.asarray(np.maximum(np.maximum(full, shared), n * rps(1.0, 1.0, mean, left)))


def _check(name: str, values: Array, good: Array, rule: str) -> None:
    if not np.all(good):
        raise InvalidRequestError(
            f"{name}={values[~good][0]} {rule} ({np.sum(~good)} of {values.size} values)", reason="BAD_CAPACITY"
        )
