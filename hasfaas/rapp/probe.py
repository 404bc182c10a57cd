"""Probe runs: which points of the surface to measure, and what one measurement is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp import hold_model

FEWEST_POINTS = 4
# One in so many points is spent on a lower quota, to see whether the lane law holds.
_POINTS_PER_QUOTA_CHECK = 5
# What one probe of a few runs is expected to be off by, when points are chosen.
_EXPECTED_NOISE = 0.02
# Two probes contradict each other beyond this many standard deviations of their difference...
_BEYOND_NOISE = 4.0
# ...and a factor of this much: smaller steps the wrong way are smoothed, not refused.
_TOLERATED = math.log(1.25)
# A probe that does not know its own spread, or claims less, is taken to be off by this much.
_LEAST_NOISE = 0.01


def _bad(message: str, reason: str = "BAD_PROBES") -> InvalidRequestError:
    return InvalidRequestError(message, reason=reason)


@attrs.frozen(order=True)
class Point:
    """Where to measure: batch size, SM share and quota, both in percent."""

    batch: int
    sm_percent: float
    quota_percent: float = 100.0

    def __str__(self) -> str:
        return f"batch {self.batch}, SM {self.sm_percent:g} %, quota {self.quota_percent:g} %"


@attrs.frozen
class Probe:
    """What was measured at one point.

    `hold_ms` is the median hold of the lane, from grant to drained, over `runs` batches; the quota does not change it.
    `response_ms` is the mean time per batch of a replica that never idled, where that was measured. `log_spread` is the
    standard deviation of log(hold) from run to run.
    """

    point: Point
    hold_ms: float
    response_ms: float | None = None
    runs: int = 1
    log_spread: float = 0.0

    @property
    def log_noise(self) -> float:
        """Standard deviation of log(hold_ms) as a median of that many runs, and 1 % at least."""
        # The median of n normal values varies by sqrt(pi / 2) more than their mean.
        of_median = 1.2533 * self.log_spread / math.sqrt(max(self.runs, 1))
        return max(of_median, _LEAST_NOISE)


# -- choosing -------------------------------------------------------------------------------------------------------------


def choose(
    points: int, batches: Sequence[int], sm_percents: Sequence[float], quotas: Sequence[float]
) -> tuple[Point, ...]:
    """The points to measure, most telling first: the same for the same arguments.

    `quotas` are in percent. Corners of (batch, SM share) come first at the greatest quota, then the points that
    shrink the mean uncertainty of the whole surface most under the fit's own beliefs (A-optimal, greedy). One in
    five points goes to a lower quota, more where there are not so many (batch, SM share). Gives fewer than asked
    where the grid has fewer. Raises InvalidRequestError below four points, and for axes that are empty or not positive.
    """
    if points < FEWEST_POINTS:
        raise _bad(f"points={points} is too few to fit a surface: ask for at least {FEWEST_POINTS}, 16 by default")
    for name, axis in (("batches", batches), ("sm_percents", sm_percents), ("quotas", quotas)):
        if not axis or not all(0 < value < math.inf for value in axis):
            raise _bad(f"{name}={tuple(axis)} must hold at least one value, all positive and finite")
    cells = list(itertools.product(sorted(set(batches)), sorted(set(sm_percents))))
    full, lower = max(quotas), sorted(set(quotas) - {max(quotas)})
    checks = 0 if points < 2 * FEWEST_POINTS else points // _POINTS_PER_QUOTA_CHECK
    at_full = min(len(cells), points - (checks if lower else 0))
    order = _most_telling(cells, at_full)
    chosen = [Point(batch, sm, full) for batch, sm in order]
    return (*chosen, *_at_lower_quotas(order, lower, points - at_full))


def _most_telling(cells: Sequence[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """`count` of the cells: corners, then greedily that which lowers the summed variance of all cells most."""
    batches, sm_percents = np.array(cells, float).T
    where = hold_model.places(batches, sm_percents)
    covariance = hold_model.prior_covariance(where)
    noise = _EXPECTED_NOISE**2 + hold_model.TYPICAL.nugget**2
    forced = _corners(cells)[:count]
    chosen: list[int] = []
    while len(chosen) < count:
        if len(chosen) < len(forced):
            best = forced[len(chosen)]
        else:
            gain = (covariance**2).sum(axis=0) / (np.diag(covariance) + noise)
            gain[chosen] = -1.0
            # Rounded, so that ties fall to the first cell whatever the linear algebra library.
            best = int(np.argmax(gain.round(12)))
        chosen.append(best)
        column = covariance[:, best]
        covariance = covariance - np.outer(column, column) / (column[best] + noise)
    return [cells[index] for index in chosen]


def _corners(cells: Sequence[tuple[int, float]]) -> list[int]:
    """The whole device first (least and greatest batch), then the least SM share."""
    least, greatest = cells[0], cells[-1]
    wanted = [(least[0], greatest[1]), greatest, (greatest[0], least[1]), least]
    return list(dict.fromkeys(cells.index(cell) for cell in wanted))


def _at_lower_quotas(order: Sequence[tuple[int, float]], quotas: Sequence[float], count: int) -> list[Point]:
    """Pairs of cell and lower quota without repetition: the middle quota first, each cell once before any twice."""
    middle_out = sorted(quotas, key=lambda quota: (abs(quotas.index(quota) - len(quotas) // 2), quota))
    turns = range(len(middle_out))
    pairs = ((order[i], middle_out[(i + turn) % len(middle_out)]) for turn in turns for i in range(len(order)))
    return [Point(batch, sm, quota) for (batch, sm), quota in itertools.islice(pairs, count)]


# -- checking -------------------------------------------------------------------------------------------------------------


def check(probes: Sequence[Probe]) -> None:
    """Raises InvalidRequestError for probes that no surface can be fitted to, and says what to do.

    EMPTY_PROBES; BAD_PROBES for a value that is no positive number; DISAGREEING_PROBES for two holds of one
    (batch, SM share) that differ beyond noise; NON_MONOTONE_PROBES for a hold that falls as the batch grows, or rises
    as the SM share grows, beyond noise (25 % and four standard deviations).
    """
    if not probes:
        raise _bad("probes is empty: measure at least one point with `hasfaas profile NAME`", "EMPTY_PROBES")
    for probe in probes:
        _check_values(probe)
    for one, other in itertools.combinations(probes, 2):
        _check_pair(one, other)


def _check_values(probe: Probe) -> None:
    point = probe.point
    values = {
        "batch": point.batch,
        "sm_percent": point.sm_percent,
        "quota_percent": point.quota_percent,
        "hold_ms": probe.hold_ms,
        "response_ms": 1.0 if probe.response_ms is None else probe.response_ms,
        "runs": probe.runs,
    }
    for name, value in values.items():
        if not 0 < value < math.inf:  # false for NaN too
            raise _bad(f"{name}={value} of the probe at {point} must be positive and finite: measure that point again")
    if not 0.0 <= probe.log_spread < math.inf:
        raise _bad(f"log_spread={probe.log_spread} of the probe at {point} must be finite and not negative")
    if point.sm_percent > 100 or point.quota_percent > 100:
        raise _bad(f"the probe at {point} has a share above 100 %: shares are percent of the device and of the lane")


def _check_pair(one: Probe, other: Probe) -> None:
    a, b = one.point, other.point
    rise = math.log(other.hold_ms / one.hold_ms)
    bound = max(_TOLERATED, _BEYOND_NOISE * math.hypot(one.log_noise, other.log_noise))
    if abs(rise) <= bound:
        return
    cure = "use a quiet machine, and leave out what else runs"
    if (a.batch, a.sm_percent) == (b.batch, b.sm_percent):
        raise _bad(
            f"two probes disagree: {one.hold_ms:.4g} ms at {a} and {other.hold_ms:.4g} ms at {b}; the hold does not "
            f"depend on the quota: {cure}",
            "DISAGREEING_PROBES",
        )
    # `a` has no more to do and no fewer SMs than `b`: its hold must not be the longer one (and the other way round).
    easier_a = a.batch <= b.batch and a.sm_percent >= b.sm_percent
    easier_b = b.batch <= a.batch and b.sm_percent >= a.sm_percent
    if (easier_a and rise < 0) or (easier_b and rise > 0):
        raise _bad(
            f"probes are non-monotone: {one.hold_ms:.4g} ms at {a} but {other.hold_ms:.4g} ms at {b}; a hold must not "
            f"fall as the batch grows nor rise as the SM share grows: {cure}; if it stays so, leave one of the two out",
            "NON_MONOTONE_PROBES",
        )


def rising(probes: Sequence[Probe]) -> list[Probe]:
    """The probes with holds that never fall as the batch grows, at each SM share: violators have their geometric mean.

    For code that really is quicker at four rows than at three. Probes that do not violate stay as they are.
    """
    logs: dict[float, dict[int, list[float]]] = {}
    for probe in probes:
        by_batch = logs.setdefault(probe.point.sm_percent, {})
        by_batch.setdefault(probe.point.batch, []).append(math.log(probe.hold_ms))
    level = {share: _pooled(by_batch) for share, by_batch in logs.items()}
    return [
        attrs.evolve(probe, hold_ms=math.exp(level[probe.point.sm_percent][probe.point.batch]))
        if probe.point.batch in level[probe.point.sm_percent]
        else probe
        for probe in probes
    ]


def _pooled(by_batch: dict[int, list[float]]) -> dict[int, float]:
    """Adjacent violators pooled: the common log of each batch size that is in a pool of several."""
    pools: list[tuple[list[int], float, int]] = []
    for batch in sorted(by_batch):
        pool = ([batch], sum(by_batch[batch]), len(by_batch[batch]))
        while pools and pools[-1][1] / pools[-1][2] > pool[1] / pool[2]:
            batches, total, count = pools.pop()
            pool = (batches + pool[0], total + pool[1], count + pool[2])
        pools.append(pool)
    return {batch: total / count for batches, total, count in pools if len(batches) > 1 for batch in batches}
