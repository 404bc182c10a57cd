"""The lane law over arrays: what one batch takes in a lane of ours at a quota, given how long it holds the device.

A quota of our lanes sells device time in leases of run = min(Q, W q). A lease takes `threshold` = run (1 - q) tokens to
start, and tokens are earned at the rate q. A lease ends at the first gate after it is over and then drains, so it lasts
run + overrun, and what it overran (times 1 - q) is earned before the next. A batch that holds the device for t:

    saturated mean   t / q                                                        any rate server
    saturated worst  t + m (threshold + overrun (1 - q)) / q                      m = ceil(t / (run + overrun))
    idle             t + max(0, (n + k) threshold + k overrun (1 - q) - cap) / q  n = floor(cap / threshold),
                                                                                  k = ceil((t - n run - overrun) /
                                                                                           (run + overrun)), 0: t
    throughput       q b / t

The worst case finds the account empty, idle finds it full (`cap`): n leases in a row, then one at a time. It is the law of a
lane that the replica has for itself. Another replica that always has work adds at most one of its leases to a response
(`neighbours`). One that idles and comes back with its credit can add more: up to `lag` times its quota and a lease. The
scalar forms, which a test holds equal to these, stand beside the rules they follow from: `executor/quota.py`.

Holds are in ms, quotas are fractions of the lane's time in [0, 1]. `overrun_ms` is the mean overrun of a lease, which the
token table counts (`Usage.overrun_ns` / grants): up to one burst between gates. With an overrun the worst case holds to
5 %, since leases differ in length. All arguments broadcast as numpy arrays do. A quota of 0 (what rounds to 0 ppm, as the
table keeps it) serves nothing: latencies are infinite, the throughput is 0. Raises InvalidRequestError (BAD_LANE_LAW) for
holds that are not positive and finite, quotas outside [0, 1], and NaN.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor.quota import MIN_LEASE_NS, PPM, Timing

Array = np.ndarray[Any, Any]
Law = Literal["mean", "worst", "idle"]
LAWS: tuple[Law, ...] = get_args(Law)
# A hold that ends with its lease starts no further one, whatever the last bit says (as in executor/quota.py).
_ROUNDING = 1e-9


def latency_ms(hold_ms: ArrayLike, quota: ArrayLike, timing: Timing, law: Law = "mean") -> Array:
    """Latency in ms by the law named: "mean" and "worst" of a saturated replica, or "idle"."""
    if law == "mean":
        return saturated_mean_ms(hold_ms, quota)
    if law == "worst":
        return saturated_worst_ms(hold_ms, quota, timing)
    if law == "idle":
        return idle_ms(hold_ms, quota, timing)
    raise _bad(f"law={law!r} is unknown: use one of {', '.join(LAWS)}")


def idle_ms(
    hold_ms: ArrayLike, quota: ArrayLike, timing: Timing, overrun_ms: ArrayLike = 0.0, neighbours: ArrayLike = 0
) -> Array:
    """Time that one batch takes after a long idle time: at full speed while the credit lasts."""
    hold, share, late = _holds(hold_ms), _quotas(quota), _overruns(overrun_ms)
    run, need, most = _account_ms(share, timing)
    per_need = most / np.where(need > 0.0, need, 1.0)
    # Gates come a little late: where they do, credit for exactly n leases is short of the n-th.
    leases = np.where(late > 0.0, np.ceil(per_need - _ROUNDING) - 1.0, np.floor(per_need + _ROUNDING))
    later = np.ceil((hold - (leases * run + late)) / (run + late) - _ROUNDING)
    lacking = later * (need + late * (1.0 - share)) + (leases * need - most)
    waits = (later > 0.0) & (need > 0.0)
    response = hold + np.where(waits, np.maximum(lacking, 0.0), 0.0) / _divisor(share)
    return np.where(share > 0.0, response + _leases_of(neighbours, timing), np.inf)


def saturated_mean_ms(hold_ms: ArrayLike, quota: ArrayLike) -> Array:
    """Mean time per batch of a replica that never idles: t / q (of many batches, never the latency of one request)."""
    hold, share = _holds(hold_ms), _quotas(quota)
    return np.where(share > 0.0, hold / _divisor(share), np.inf)


def saturated_worst_ms(
    hold_ms: ArrayLike, quota: ArrayLike, timing: Timing, overrun_ms: ArrayLike = 0.0, neighbours: ArrayLike = 0
) -> Array:
    """Most that one batch takes when no credit is left."""
    hold, share, late = _holds(hold_ms), _quotas(quota), _overruns(overrun_ms)
    run, need, _ = _account_ms(share, timing)
    wait = (need + late * (1.0 - share)) / _divisor(share)
    response = hold + np.ceil(hold / (run + late) - _ROUNDING) * wait
    return np.where(share > 0.0, response + _leases_of(neighbours, timing), np.inf)


def throughput_rps(batch: ArrayLike, hold_ms: ArrayLike, quota: ArrayLike) -> Array:
    """Items per second of a replica that never idles, in batches of `batch`: q b / t."""
    items, hold, share = np.asarray(batch, float), _holds(hold_ms), _quotas(quota)
    _checked("batch", items, (items > 0.0) & (items < np.inf), "must be positive and finite: count the items of a run")
    return np.asarray(share * items / hold * 1e3)


def credit_ms(quota: ArrayLike, timing: Timing) -> Array:
    """Time that an empty account takes to fill up while its replica idles: cap / q (infinite at quota 0)."""
    share = _quotas(quota)
    return np.where(share > 0.0, _account_ms(share, timing)[2] / _divisor(share), np.inf)


# -- leaves ---------------------------------------------------------------------------------------------------------


def _account_ms(share: Array, timing: Timing) -> tuple[Array, Array, Array]:
    """`run_ns`, `threshold` and `cap` of executor/quota.py in ms, to the same integer nanoseconds."""
    ppm = np.rint(share * PPM).astype(np.int64)
    run = np.maximum(np.minimum(timing.quantum_ns, timing.window_ns * ppm // PPM), MIN_LEASE_NS)
    need = run * (PPM - ppm) // PPM
    most = np.maximum(timing.lag_ns * ppm // PPM, 2 * need)
    return run / 1e6, need / 1e6, most / 1e6


def _divisor(share: Array) -> Array:
    """The quota where there is one, so that quota 0 divides by nothing of consequence."""
    return np.where(share > 0.0, share, 1.0)


def _holds(hold_ms: ArrayLike) -> Array:
    hold = np.asarray(hold_ms, float)
    return _checked("hold_ms", hold, (hold > 0.0) & (hold < np.inf), "must be positive and finite: measure it first")


def _quotas(quota: ArrayLike) -> Array:
    share = np.asarray(quota, float)
    _checked("quota", share, (share >= 0.0) & (share <= 1.0), "must lie in [0, 1]: 0.3 is 30 % of the time")
    return np.where(share * PPM > 0.5, share, 0.0)


def _overruns(overrun_ms: ArrayLike) -> Array:
    late = np.asarray(overrun_ms, float)
    good = (late >= 0.0) & (late < np.inf)
    return _checked("overrun_ms", late, good, "must not be negative: it is the time between two gates at most")


def _leases_of(neighbours: ArrayLike, timing: Timing) -> Array:
    count = np.asarray(neighbours, float)
    good = (count >= 0.0) & (count < np.inf)
    _checked("neighbours", count, good, "must not be negative: count the lane's other replicas")
    return np.asarray(count * (timing.quantum_ns / 1e6))


def _checked(name: str, values: Array, good: Array, rule: str) -> Array:
    if not np.all(good):
        raise _bad(f"{name}={values[~good][0]} {rule} ({np.sum(~good)} of {values.size} values)")
    return values


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_LANE_LAW")
