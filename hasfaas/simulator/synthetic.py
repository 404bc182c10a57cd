"""Made-up load where no trace is given: steady, stepped, on and off, and a day's rhythm with spikes.

`diurnal` has the statistics of the public Twitter stream of 2018, the shape that MArk, Cocktail, INFaaS and IPA are judged
by (the project's scaling reference, section 1.2): coefficient of variation 0.64 of counts per second, nearly all of it
slower than a minute, p99 over mean 3.3 to 3.9, 2 % of the seconds empty, about one spike an hour. It is a likeness drawn
from a seed, not the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.simulator.trace import Array, Trace

DAY_S = 86_400
DAYS = 3
# Fitted by hand to the figures above. Shares of the mean; a spike rises at once and fades.
RHYTHM = 0.5
SLOW_SIGMA, SLOW_S = 0.46, 5_400.0
SPIKE_EVERY_S, SPIKE_HEIGHT, SPIKE_S = 4_000.0, 1.2, 150.0
SILENT_SHARE, SILENCES = 0.02, 8
PARTS = ("rise", "spike", "all")


def steady(rps: float, duration_s: float, seed: int) -> Trace:
    """Poisson at one rate."""
    return _poisson(np.full(_seconds(rps, duration_s), rps), seed)


def step(rps: float, duration_s: float, seed: int, *, factor: float = 3.0, at: float = 0.5) -> Trace:
    """Poisson whose rate grows `factor`-fold in one second, at that part of the time; `rps` is the mean of all."""
    seconds = _seconds(rps, duration_s)
    shape = np.where(np.arange(seconds) < at * seconds, 1.0, factor)
    return _poisson(rps * shape / shape.mean(), seed)


def bursts(
    rps: float, duration_s: float, seed: int, *, on_s: float = 20.0, off_s: float = 40.0, floor: float = 0.1
) -> Trace:
    """On and off for exponential times with those means; off still has `floor` of the rate of on; `rps` is the mean."""
    seconds = _seconds(rps, duration_s)
    rng = np.random.default_rng([seed, 1])
    count = 2 + math.ceil(4.0 * seconds / (on_s + off_s))
    lengths = np.stack([rng.exponential(off_s, count), rng.exponential(on_s, count)], axis=1).ravel()
    phase = np.searchsorted(np.cumsum(lengths), np.arange(seconds), side="right")
    shape = np.where(phase % 2, 1.0, floor)
    return _poisson(rps * shape / shape.mean(), seed)


def diurnal(rps: float, duration_s: float, seed: int, *, part: str = "rise") -> Trace:
    """A part of three days: the steepest `rise`, the greatest `spike`, or `all` of them from the start.

    `rps` is the mean over the part. Raises InvalidRequestError (BAD_ARRIVALS) for more than three days.
    """
    if part not in PARTS:
        raise _bad(f"part={part!r} is not known; known are {', '.join(PARTS)}")
    seconds = _seconds(rps, duration_s)
    if seconds > DAYS * DAY_S:
        raise _bad(f"duration_s={duration_s:g} is longer than the {DAYS} days that there are: {DAYS * DAY_S} s at most")
    days = _three_days(seed)
    start = 0 if part == "all" or seconds == len(days) else _start(days, seconds, part)
    shape = days[start : start + seconds]
    return _poisson(rps * shape / shape.mean(), seed)


LOADS: Mapping[str, Callable[[float, float, int], Trace]] = {
    "steady": steady,
    "step": step,
    "bursts": bursts,
    "diurnal": diurnal,
    "spike": lambda rps, duration_s, seed: diurnal(rps, duration_s, seed, part="spike"),
}


def made(load: str, rps: float, duration_s: float, seed: int) -> Trace:
    """One of `LOADS`, as counts per second. Raises InvalidRequestError (BAD_ARRIVALS) for an unknown name."""
    if load not in LOADS:
        raise _bad(f"load={load!r} is not known; known are {', '.join(LOADS)}")
    return LOADS[load](rps, duration_s, seed)


# -- leaves -------------------------------------------------------------------------------------------------------------


def _seconds(rps: float, duration_s: float) -> int:
    if not 0.0 < rps < math.inf:
        raise _bad(f"rps={rps} must be positive and finite")
    if not 1.0 <= duration_s < math.inf:
        raise _bad(f"duration_s={duration_s} must be a second at least")
    return math.ceil(duration_s)


def _poisson(rates: Array, seed: int) -> Trace:
    counts = np.random.default_rng([seed, 0]).poisson(rates)
    return Trace.of_counts(counts[None, :].astype(np.int64), 1.0, ("trace",))


def _three_days(seed: int) -> Array:
    """The rate of each second over its mean."""
    rng = np.random.default_rng([seed, 2])
    seconds = DAYS * DAY_S
    at = np.arange(seconds)
    rhythm = 1.0 + RHYTHM * np.sin(2.0 * np.pi * (at / DAY_S - rng.random()))
    shape = rhythm * np.exp(_wander(seconds, rng)) * (1.0 + _spikes(seconds, rng))
    starts = rng.choice(seconds, SILENCES, replace=False)
    lengths = rng.dirichlet(np.full(SILENCES, 4.0)) * SILENT_SHARE * seconds
    for start, length in zip(starts, lengths, strict=True):
        shape[start : start + round(length)] = 0.0
    return np.asarray(shape / shape.mean())


def _wander(seconds: int, rng: np.random.Generator) -> Array:
    """A slow random walk that returns, a value a minute and straight between; its spread is exact for any seed."""
    minutes = seconds // 60 + 2
    keep = math.exp(-60.0 / SLOW_S)
    shocks = rng.normal(size=minutes)
    walk = np.empty(minutes)
    walk[0] = shocks[0]
    for minute in range(1, minutes):
        walk[minute] = keep * walk[minute - 1] + math.sqrt(1.0 - keep * keep) * shocks[minute]
    walk = SLOW_SIGMA * (walk - walk.mean()) / walk.std()
    return np.asarray(np.interp(np.arange(seconds) / 60.0, np.arange(minutes), walk))


def _spikes(seconds: int, rng: np.random.Generator) -> Array:
    heights = np.zeros(seconds)
    count = round(seconds / SPIKE_EVERY_S)
    heights[rng.choice(seconds, count, replace=False)] = SPIKE_HEIGHT * rng.uniform(0.3, 1.7, count)
    fade = np.exp(-np.arange(round(8.0 * SPIKE_S)) / SPIKE_S)
    size = 1 << (seconds + len(fade) - 1).bit_length()
    both = np.fft.irfft(np.fft.rfft(heights, size) * np.fft.rfft(fade, size), size)[:seconds]
    return np.asarray(np.maximum(both, 0.0))


def _start(days: Array, seconds: int, part: str) -> int:
    """Where the steepest rise, or the greatest spike over its surroundings, begins; silences are left out."""
    total = np.concatenate([[0.0], np.cumsum(days)])
    half = max(1, seconds // 2)
    starts = np.arange(0, len(days) - seconds, max(1, seconds // 20))
    first = total[starts + half] - total[starts]
    mean = (total[starts + seconds] - total[starts]) / seconds
    if part == "rise":
        gain = (total[starts + seconds] - total[starts + half]) / max(1, seconds - half) - first / half
    else:
        peaks = np.array([days[start : start + seconds].max() for start in starts])
        gain = peaks / np.maximum(mean, 1e-9)
    silent = np.concatenate([[0], np.cumsum(days == 0.0)])
    loud = silent[starts + seconds] == silent[starts]
    return int(starts[np.argmax(np.where(loud, gain, -np.inf))]) if loud.any() else 0


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_ARRIVALS")
