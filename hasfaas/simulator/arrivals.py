"""From a trace to the times at which requests arrive.

A rate is changed by thinning (each request stays with a probability) and superposition (copies of the trace on top of each
other), never by stretching time: bursts keep their length. Counts are kept exactly, and spread within their interval by one
of three processes: "poisson" (independent), "gamma" (lumps: gaps with a coefficient of variation of 4) or "even" (a paced
client, as HAS-GPU's). Everything is drawn from the seed.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.simulator.trace import Array, Trace, bad_trace

Spread = Literal["poisson", "gamma", "even"]
SPREADS: tuple[str, ...] = get_args(Spread)
# As in AlpaServe and Faro's runs on minute data: a gap is 1/CV^2 parts of an exponential one.
GAMMA_CV = 4.0
# Copies of requests come within so much of the original: seconds of a burst stay a burst, and no two come at one instant.
COPY_WITHIN_S = 3.0
# More than fits in memory with all that a run keeps of each.
MOST_REQUESTS = 100_000_000


def draw(
    trace: Trace,
    *,
    seed: int,
    rps: float | None = None,
    spread: str = "poisson",
    start_s: float = 0.0,
    duration_s: float | None = None,
    smear_s: float = 0.0,
) -> tuple[Array, ...]:
    """Sorted arrival times in seconds from `start_s` on, an array for each function of the trace.

    `rps` is the mean over the functions and the window: one factor for all, so that busy functions stay busy. None: as
    traced. `smear_s` moves each request of a requests trace later by up to so much, for traces whose requests come in
    lumps that their recording made. Raises InvalidRequestError (BAD_TRACE, BAD_ARRIVALS).
    """
    if spread not in SPREADS:
        raise _bad(f"spread={spread!r} is not known; known are {', '.join(SPREADS)}")
    if rps is not None and not 0.0 < rps < np.inf:
        raise _bad(f"rps={rps} must be positive and finite")
    if not 0.0 <= smear_s < np.inf:
        raise _bad(f"smear_s={smear_s} must not be negative")
    length_s = trace.duration_s - start_s if duration_s is None else duration_s
    part = trace.window(start_s, length_s)
    if not part.requests:
        raise bad_trace(f"no request in the window from {start_s:g} s on for {length_s:g} s: choose another window")
    factor = 1.0 if rps is None else rps * len(part.names) / part.mean_rps
    if part.requests * factor > MOST_REQUESTS:
        raise _bad(
            f"{part.requests * factor:.3g} requests are more than {MOST_REQUESTS:,}: choose a lower rps, or a window"
        )
    if part.kind == "requests":
        return tuple(
            _copied(times, factor, smear_s, part.duration_s, _generator(seed, row))
            for row, times in enumerate(part.times_s)
        )
    before_s = start_s % part.interval_s
    every = (
        _spread(_scaled(counts, factor, rng), part.interval_s, spread, rng) - before_s
        for counts, rng in ((counts, _generator(seed, row)) for row, counts in enumerate(part.counts))
    )
    return tuple(times[(times >= 0.0) & (times < length_s)] for times in every)


def rotated(times_s: Array, by_s: float, duration_s: float) -> Array:
    """The same arrivals, with the part before `by_s` put after the end: for functions that share one series."""
    at = int(np.searchsorted(times_s, by_s))
    return np.concatenate([times_s[at:] - by_s, times_s[:at] + (duration_s - by_s)])


def counted(times_s: Array, duration_s: float, interval_s: float = 1.0) -> Array:
    """How many arrive in each interval."""
    bins = int(np.ceil(duration_s / interval_s - 1e-9))
    return np.bincount(np.minimum(times_s / interval_s, bins - 1).astype(np.int64), minlength=bins)


def dispersion(counts: Array, seconds: int = 1) -> float:
    """Index of dispersion of counts per second: variance over mean in windows of so many seconds. 1 for Poisson."""
    whole = counts[: len(counts) // seconds * seconds].reshape(-1, seconds).sum(axis=1)
    return float(whole.var() / whole.mean())


# -- leaves -------------------------------------------------------------------------------------------------------------


def _generator(seed: int, row: int) -> np.random.Generator:
    # A function's arrivals do not depend on how many others there are.
    return np.random.default_rng([seed, row])


def _copied(times: Array, factor: float, smear_s: float, duration_s: float, rng: np.random.Generator) -> Array:
    """Requests `factor` times as often; up to one copy of each is where it was."""
    if smear_s:
        times = _reflected(times + rng.uniform(0.0, smear_s, len(times)), duration_s)
    whole, rest = divmod(factor, 1.0)
    copies = np.repeat(times, max(int(whole) - 1, 0))
    thinned = times[rng.random(len(times)) < rest]
    if whole < 1.0:
        return np.sort(thinned)
    extra = np.concatenate([copies, thinned])
    extra = _reflected(extra + rng.uniform(-0.5, 0.5, len(extra)) * COPY_WITHIN_S, duration_s)
    return np.sort(np.concatenate([times, extra]))


def _reflected(times: Array, duration_s: float) -> Array:
    """What passed an end of the window comes back from it, so that none is lost there."""
    within = np.abs(times)
    within = np.where(within > duration_s, 2.0 * duration_s - within, within)
    return np.clip(within, 0.0, np.nextafter(duration_s, 0.0))


def _scaled(counts: Array, factor: float, rng: np.random.Generator) -> Array:
    whole, rest = divmod(factor, 1.0)
    return np.asarray(counts * int(whole) + rng.binomial(counts, rest))


def _spread(counts: Array, interval_s: float, spread: str, rng: np.random.Generator) -> Array:
    """Sorted times for so many requests in each interval."""
    interval = np.repeat(np.arange(len(counts)), counts)
    if spread == "poisson":
        return np.asarray(np.sort((interval + rng.random(len(interval))) * interval_s))
    if spread == "even":
        place = np.arange(len(interval)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray((interval + place / np.maximum(counts, 1)[interval]) * interval_s)
    return np.asarray((interval + _lumps(counts, rng)) * interval_s)


def _lumps(counts: Array, rng: np.random.Generator) -> Array:
    """Where in its interval each request comes, 0 to 1: a renewal process with gamma gaps, made to fit the interval.

    n requests have n + 1 gaps, the last of which leads out of the interval.
    """
    gaps = rng.gamma(GAMMA_CV**-2, GAMMA_CV**2, int((counts + 1).sum()))
    # A gap of nothing at all would leave an interval of one such gap without a length.
    passed = np.cumsum(gaps + 1e-12)
    ends = np.cumsum(counts + 1)
    begun = np.concatenate([[0.0], passed[ends[:-1] - 1]])
    length = passed[ends - 1] - begun
    inner: Any = np.ones(len(gaps), bool)
    inner[ends - 1] = False
    where = (passed[inner] - np.repeat(begun, counts)) / np.repeat(length, counts)
    return np.asarray(np.minimum(where, 1.0 - 1e-9))


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_ARRIVALS")
