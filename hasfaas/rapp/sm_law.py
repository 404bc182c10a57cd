"""Latency against the SM share: the p-norm law G(s) = ((A/s)^p + B^p)^(1/p).

A is the work that the SMs share out, B the floor that more SMs do not lower (memory bandwidth or the launch path), p how
sharp the bend between the two is: 1 is their sum, a large p their larger one. The law and the ranges are those of
rapp.md 3.3. MPS and MIG are two devices here: fit each by its own points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError

Array = np.ndarray[Any, Any]

P_GRID = np.array([1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12], dtype=float)
SOFT_L1_SCALE = 0.05  # log error from which on a point counts by its size and no longer by its square
RISE_TOLERANCE = 2.0  # runs of one V100 table differ by up to 1.7 for the same work; a larger rise is a mistake
_STEPS = 25


@attrs.frozen(eq=False)
class SmPrior:
    """How often each exponent occurred on curves measured before: `p` [k] and `log_prior` [k] (log probability).

    `noise` is the log deviation of the points by which the prior is weighed against them.
    """

    p: Array
    log_prior: Array
    noise: float

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """From the trained arrays `p`, `log_prior` and `noise`."""
        return cls(
            np.asarray(arrays["p"], float), np.asarray(arrays["log_prior"], float), float(np.ravel(arrays["noise"])[0])
        )


@attrs.frozen
class SmLaw:
    """((work/s)^p + floor^p)^(1/p) in ms, s being the share as a fraction: `work` is A and `floor` B, both in ms."""

    work: float
    floor: float
    p: float

    def latency_ms(self, sm_percent: Any) -> Array:
        """The latency at each share in (0, 100] %, in the shape of the argument; falls with the share, never rises.

        Raises InvalidRequestError for a share outside that range.
        """
        share = _shares(sm_percent)
        with np.errstate(divide="ignore"):
            logs = _log_law(np.log(self.work), np.log(self.floor), self.p, np.log(share))
        return np.asarray(np.exp(logs))


def fit(
    sm_percents: Sequence[float] | Array, latencies_ms: Sequence[float] | Array, prior: SmPrior | None = None
) -> SmLaw:
    """The law through at least two points, by soft-L1 on log errors (scale 0.05), p from 1 to 12.

    Three points barely fix p. With a `prior` the curves of all p are averaged, each weighed by its prior and its fit,
    and the law nearest to that average is returned; without one the best p is taken. Raises InvalidRequestError for fewer
    than two different shares, arrays of unequal length, values that are not positive numbers, and latencies that rise
    with the share by more than noise does.
    """
    x, y = _points(sm_percents, latencies_ms)
    grid = P_GRID if prior is None else prior.p
    work, floor, cost = _solve(x, y, grid)
    if prior is not None:
        weight = prior.log_prior - cost / prior.noise**2
        weight = np.exp(weight - weight.max())
        dense = np.linspace(x.min(), 0.0, 20) if x.min() < 0 else x
        curves = _log_law(work[:, None], floor[:, None], grid[:, None], dense)
        x, y = dense, weight @ curves / weight.sum()
        work, floor, cost = _solve(x, y, grid)
    best = int(np.argmin(cost))
    return SmLaw(float(np.exp(work[best])), float(np.exp(floor[best])), float(grid[best]))


def _log_law(log_work: Any, log_floor: Any, p: Any, log_share: Any) -> Array:
    return np.asarray(np.logaddexp(p * (log_work - log_share), p * log_floor) / p)


def _solve(x: Array, y: Array, p: Array) -> tuple[Array, Array, Array]:
    """Log work, log floor and cost per p: damped Gauss-Newton steps for all p at once. x = log share, y = log ms."""
    work = np.full(len(p), y[np.argmin(x)] + x.min() - 0.1)
    floor = np.full(len(p), y.min() - 0.1)
    damping = np.full(len(p), 1e-3)

    def errors(work: Array, floor: Array) -> tuple[Array, Array]:
        r = _log_law(work[:, None], floor[:, None], p[:, None], x) - y
        return r, np.sum(SOFT_L1_SCALE**2 * (np.sqrt(1 + (r / SOFT_L1_SCALE) ** 2) - 1), axis=1)

    r, cost = errors(work, floor)
    for _ in range(_STEPS):
        share = 1 / (1 + np.exp(np.clip(p[:, None] * ((floor - work)[:, None] + x), -50, 50)))  # d log G / d log A
        weight = 1 / np.sqrt(1 + (r / SOFT_L1_SCALE) ** 2)
        by_work, by_floor = np.sum(weight * share * r, axis=1), np.sum(weight * (1 - share) * r, axis=1)
        cross = np.sum(weight * share * (1 - share), axis=1)
        work_2 = np.sum(weight * share**2, axis=1) * (1 + damping) + 1e-9
        floor_2 = np.sum(weight * (1 - share) ** 2, axis=1) * (1 + damping) + 1e-9
        det = work_2 * floor_2 - cross**2
        # A step of at most a factor e: far from the bend one of the two hardly matters and would run away.
        to_work = work + np.clip((cross * by_floor - floor_2 * by_work) / det, -1, 1)
        to_floor = floor + np.clip((cross * by_work - work_2 * by_floor) / det, -1, 1)
        new_r, new_cost = errors(to_work, to_floor)
        better = new_cost <= cost
        work, floor = np.where(better, to_work, work), np.where(better, to_floor, floor)
        r, cost = np.where(better[:, None], new_r, r), np.where(better, new_cost, cost)
        damping = np.clip(np.where(better, damping / 3, damping * 10), 1e-9, 1e6)
    return work, floor, cost


def _shares(sm_percent: Any) -> Array:
    share = np.asarray(sm_percent, float) / 100
    bad = ~((share > 0) & (share <= 1))
    if bad.any():
        raise InvalidRequestError(
            f"sm_percent={100 * share[bad].flat[0]:g} is outside (0, 100]: give a share of the device in %",
            reason="BAD_SM_PERCENT",
        )
    return share


def _points(sm_percents: Sequence[float] | Array, latencies_ms: Sequence[float] | Array) -> tuple[Array, Array]:
    """Log shares and log latencies, in order of the share."""
    share, latency = _shares(sm_percents).ravel(), np.asarray(latencies_ms, float).ravel()
    if len(share) != len(latency):
        raise InvalidRequestError(
            f"sm_percents has {len(share)} values and latencies_ms {len(latency)}: give one latency per share",
            reason="BAD_PROBES",
        )
    if len(np.unique(share)) < 2:
        raise InvalidRequestError(
            f"sm_percents={(100 * share).tolist()} are too few: measure at two different shares at least",
            reason="TOO_FEW_PROBES",
        )
    bad = ~(np.isfinite(latency) & (latency > 0))
    if bad.any():
        raise InvalidRequestError(
            f"latencies_ms={latency[bad][0]:g} at sm_percent={100 * share[bad][0]:g} is no positive number: "
            "measure that point again, or leave it out",
            reason="BAD_LATENCY",
        )
    order = np.argsort(share, kind="stable")
    share, latency = share[order], latency[order]
    rise = latency / np.minimum.accumulate(latency)
    if rise.max() > RISE_TOLERANCE:
        at = int(np.argmax(rise))
        raise InvalidRequestError(
            f"latencies_ms={latency[at]:g} at sm_percent={100 * share[at]:g} is {rise[at]:.2f} times that of a smaller "
            f"share ({latency[:at].min():g}): more SMs do not slow a run so much; measure again, alone on the device",
            reason="NON_MONOTONE_PROBES",
        )
    return np.log(share), np.log(latency)
