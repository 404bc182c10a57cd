"""The latency surface of a function: how long one batch holds the device, at every batch size and SM share.

A surface is kept at quota 100 %, where the hold and the response are the same; quotas follow from it by the lane law
(`lane_law`), since a quota of our lanes sells device time and does not change the work itself.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor.quota import Timing
from hasfaas.rapp import lane_law

Array = np.ndarray[Any, Any]

KEYS = ("batches", "sm_percents", "hold_ms", "log_sigma")
# Rounding of a monotone surface that went through a logarithm and back.
_ROUNDING = 1e-9


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_SURFACE")


def z_of(quantile: float) -> float:
    """How many standard deviations the quantile lies above the median of a normal distribution.

    Raises InvalidRequestError unless it lies strictly between 0 and 1.
    """
    if not 0.0 < quantile < 1.0:
        raise _bad(f"quantile={quantile} must lie between 0 and 1, both excluded, such as 0.5 or 0.9")
    return NormalDist().inv_cdf(quantile) if quantile != 0.5 else 0.0


def monotone(values: Array) -> Array:
    """The nearest simple surface [..., batch, sm] that never falls in the batch and never rises in the SM share.

    It lies halfway between the least such surface above and the greatest below; one that is monotone stays as it is.
    """
    return 0.5 * (_above(values) + _below(values))


def _above(values: Array) -> Array:
    up = np.maximum.accumulate(values, axis=-2)
    return np.maximum.accumulate(up[..., ::-1], axis=-1)[..., ::-1]


def _below(values: Array) -> Array:
    down = np.minimum.accumulate(values[..., ::-1, :], axis=-2)[..., ::-1, :]
    return np.minimum.accumulate(down, axis=-1)


def _axis(name: str, values: Sequence[float]) -> None:
    rises = all(a < b for a, b in itertools.pairwise(values))
    if not values or not all(0.0 < v < np.inf for v in values) or not rises:
        raise _bad(f"{name}={tuple(values)} must be positive and rise")


def _frozen(values: object) -> Array:
    try:
        array = np.array(values, float)
    except (TypeError, ValueError) as exc:
        raise _bad(f"a surface holds rows of numbers only: {exc}") from exc
    array.flags.writeable = False
    return array


def _whole(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _shares(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


@attrs.frozen(eq=False)
class Surface:
    """The hold of one function: median and uncertainty at each batch size and SM share, at quota 100 %.

    `batches` and `sm_percents` rise. `hold_ms` [batch, sm] is the median in ms; it never falls as the batch grows and
    never rises as the SM share grows. `log_sigma` [batch, sm] is the standard deviation of its natural logarithm: the
    quantile p is hold_ms exp(z_p log_sigma). Raises InvalidRequestError (BAD_SURFACE) for anything else.
    """

    batches: tuple[int, ...] = attrs.field(converter=_whole)
    sm_percents: tuple[float, ...] = attrs.field(converter=_shares)
    hold_ms: Array = attrs.field(converter=_frozen)
    log_sigma: Array = attrs.field(converter=_frozen)

    def __attrs_post_init__(self) -> None:
        _axis("batches", self.batches)
        _axis("sm_percents", self.sm_percents)
        shape = (len(self.batches), len(self.sm_percents))
        for name, values in (("hold_ms", self.hold_ms), ("log_sigma", self.log_sigma)):
            if values.shape != shape:
                raise _bad(f"{name} has the shape {values.shape}, it needs {shape}: batches x SM shares")
        if not np.all((self.hold_ms > 0.0) & (self.hold_ms < np.inf)):
            raise _bad("hold_ms must be positive and finite everywhere")
        if not np.all((self.log_sigma >= 0.0) & (self.log_sigma < np.inf)):
            raise _bad("log_sigma must be finite and not negative anywhere")
        rises = np.all(np.diff(self.hold_ms, axis=0) >= -_ROUNDING * self.hold_ms[1:])
        falls = np.all(np.diff(self.hold_ms, axis=1) <= _ROUNDING * self.hold_ms[:, 1:])
        if not (rises and falls):
            raise _bad("hold_ms must not fall as the batch grows nor rise as the SM share grows: make it `monotone`")

    # -- reading ------------------------------------------------------------------------------------------------------

    def quantile_ms(self, quantile: float = 0.5) -> Array:
        """That quantile of the hold [batch, sm] in ms, monotone as the median is.

        Where the uncertainty itself would break the order, a quantile above the median is raised and one below it is
        lowered, so that an upper bound stays one.
        """
        return _quantile_ms(self.hold_ms, self.log_sigma, z_of(quantile))

    def hold(self, batch: float, sm_percent: float, quantile: float = 0.5) -> float:
        """The hold in ms at any batch size and SM share: bilinear in the logarithms of batch, share and hold.

        Clamped at the edges; beyond the greatest batch it goes on linearly in the batch with the slope of the last
        two (in proportion to the batch where there is one only), as `devices/sim.py` does.
        """
        _positive("batch", batch)
        _positive("sm_percent", sm_percent)
        nodes = self.quantile_ms(quantile)
        low, high, share = _bracket(self.sm_percents, sm_percent)

        def column(row: int) -> float:
            at_low, at_high = float(nodes[row, low]), float(nodes[row, high])
            return at_low if share == 0.0 else math.exp((1.0 - share) * math.log(at_low) + share * math.log(at_high))

        greatest = self.batches[-1]
        if batch > greatest:
            last = column(-1)
            if len(self.batches) == 1:
                return last * batch / greatest
            slope = (last - column(-2)) / (greatest - self.batches[-2])
            return last + max(slope, 0.0) * (batch - greatest)
        below, above, part = _bracket(self.batches, batch)
        if part == 0.0:
            return column(below)
        return math.exp((1.0 - part) * math.log(column(below)) + part * math.log(column(above)))

    def doubt(self, batch: float, sm_percent: float) -> float:
        """`log_sigma` at any batch size and SM share, bilinear in their logarithms and clamped at the edges."""
        b_low, b_high, b_part = _bracket(self.batches, batch)
        s_low, s_high, s_part = _bracket(self.sm_percents, sm_percent)
        sigma = self.log_sigma
        low = (1.0 - s_part) * sigma[b_low, s_low] + s_part * sigma[b_low, s_high]
        high = (1.0 - s_part) * sigma[b_high, s_low] + s_part * sigma[b_high, s_high]
        return float((1.0 - b_part) * low + b_part * high)

    def over(self, batches: Sequence[int], sm_percents: Sequence[float]) -> Surface:
        """The same surface read at other batches and SM shares, with the uncertainty read likewise."""
        _axis("batches", batches)
        _axis("sm_percents", sm_percents)
        b, s = np.asarray(batches, float), np.asarray(sm_percents, float)
        sigma = _weights(self.batches, b) @ self.log_sigma @ _weights(self.sm_percents, s).T
        return Surface(batches, sm_percents, monotone(_at(self, b, s, 0.5)), sigma)

    def latency_ms(
        self, quotas: Sequence[float], timing: Timing, law: lane_law.Law = "mean", quantile: float = 0.5
    ) -> Array:
        """Latency [batch, sm, quota] in ms for quotas in (0, 1], by the lane law named (`lane_law.latency_ms`)."""
        return lane_law.latency_ms(self.quantile_ms(quantile)[..., None], _quotas(quotas), timing, law)

    def throughput(self, quotas: Sequence[float], quantile: float = 0.5) -> Array:
        """Items per second [batch, sm, quota] of a replica that never idles, for quotas in (0, 1]: q b / t."""
        batch = np.asarray(self.batches, float)[:, None, None]
        return lane_law.throughput_rps(batch, self.quantile_ms(quantile)[..., None], _quotas(quotas))

    # -- as plain values ------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers; JSON keeps each to the last bit."""
        return {
            "batches": list(self.batches),
            "sm_percents": list(self.sm_percents),
            "hold_ms": self.hold_ms.tolist(),
            "log_sigma": self.log_sigma.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Surface:
        """From `to_dict`. Raises InvalidRequestError if keys are missing or unknown, or values are no numbers."""
        if not isinstance(data, Mapping) or set(data) != set(KEYS):
            found = sorted(data) if isinstance(data, Mapping) else type(data).__name__
            raise _bad(f"a surface has the keys {sorted(KEYS)}, this one has {found}")
        try:
            batches, sm_percents = _whole(data["batches"]), _shares(data["sm_percents"])
        except (TypeError, ValueError) as exc:
            raise _bad(f"batches and sm_percents of a surface are lists of numbers: {exc}") from exc
        return cls(batches, sm_percents, data["hold_ms"], data["log_sigma"])


@attrs.frozen(eq=False)
class Surfaces:
    """Surfaces of many functions on the same axes, stacked so that all are read in one go.

    `hold_ms` and `log_sigma` are [function, batch, sm]; `names` has one entry for each function.
    """

    names: tuple[str, ...]
    batches: tuple[int, ...]
    sm_percents: tuple[float, ...]
    hold_ms: Array
    log_sigma: Array

    @classmethod
    def of(cls, surfaces: Mapping[str, Surface]) -> Surfaces:
        """Stacks surfaces by name. Raises InvalidRequestError if there is none, or if axes differ (use `over`)."""
        if not surfaces:
            raise _bad("surfaces must not be empty: give at least one function's")
        first, *rest = surfaces.values()
        for name, other in zip(list(surfaces)[1:], rest, strict=True):
            if (other.batches, other.sm_percents) != (first.batches, first.sm_percents):
                raise _bad(f"the surface of {name!r} has other batches or SM shares: read it `over` the common ones")
        hold_ms = _frozen([s.hold_ms for s in surfaces.values()])
        log_sigma = _frozen([s.log_sigma for s in surfaces.values()])
        return cls(tuple(surfaces), first.batches, first.sm_percents, hold_ms, log_sigma)

    def latency_ms(
        self, quotas: Sequence[float], timing: Timing, law: lane_law.Law = "mean", quantile: float = 0.5
    ) -> Array:
        """Latency [function, batch, sm, quota] in ms, as `Surface.latency_ms` for each function."""
        hold_ms = _quantile_ms(self.hold_ms, self.log_sigma, z_of(quantile))
        return lane_law.latency_ms(hold_ms[..., None], _quotas(quotas), timing, law)


# -- leaves -------------------------------------------------------------------------------------------------------------


def _quotas(quotas: Iterable[float]) -> Array:
    values = np.asarray(tuple(quotas), float)
    if not values.size or not np.all((values > 0.0) & (values <= 1.0)):
        raise _bad(f"quotas={tuple(values)} must lie in (0, 1]: 0.3 is 30 % of the lane's time")
    return values


def _quantile_ms(hold_ms: Array, log_sigma: Array, z: float) -> Array:
    if z == 0.0:
        return hold_ms
    shifted = hold_ms * np.exp(z * log_sigma)
    return _above(shifted) if z > 0.0 else _below(shifted)


def _positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise _bad(f"{name}={value} must be positive and finite")


def _bracket(axis: Sequence[float], value: float) -> tuple[int, int, float]:
    """The neighbours of `value` on a rising axis, and how far it is towards the upper one, in logarithms."""
    if value <= axis[0]:
        return 0, 0, 0.0
    if value >= axis[-1]:
        return len(axis) - 1, len(axis) - 1, 0.0
    high = bisect.bisect_left(axis, value)
    if axis[high] == value:
        return high, high, 0.0
    low = high - 1
    return low, high, math.log(value / axis[low]) / math.log(axis[high] / axis[low])


def _weights(axis: Sequence[float], values: Array) -> Array:
    """How much each node of a rising axis counts at each value [value, node]: linear in the logarithm, clamped."""
    nodes = np.log(np.asarray(axis, float))
    where = np.clip(np.log(values), nodes[0], nodes[-1])
    if len(nodes) == 1:
        return np.ones((len(values), 1))
    high = np.clip(np.searchsorted(nodes, where), 1, len(nodes) - 1)
    share = (where - nodes[high - 1]) / (nodes[high] - nodes[high - 1])
    weights = np.zeros((len(values), len(nodes)))
    rows = np.arange(len(values))
    weights[rows, high - 1] = 1.0 - share
    weights[rows, high] = share
    return weights


def _at(surface: Surface, batches: Array, sm_percents: Array, quantile: float) -> Array:
    """The quantile of the hold [value, value] at any batches and SM shares."""
    for name, values in (("batch", batches), ("sm_percent", sm_percents)):
        if not np.all((values > 0.0) & (values < np.inf)):
            raise _bad(f"{name}={values.tolist()} must be positive and finite")
    columns = np.log(surface.quantile_ms(quantile)) @ _weights(surface.sm_percents, sm_percents).T
    read = np.exp(_weights(surface.batches, batches) @ columns)
    greatest = surface.batches[-1]
    beyond = batches > greatest
    if beyond.any():
        last = np.exp(columns[-1])
        if len(surface.batches) == 1:
            slope = last / greatest
        else:
            slope = (last - np.exp(columns[-2])) / (greatest - surface.batches[-2])
        read[beyond] = last + np.maximum(slope, 0.0) * (batches[beyond, None] - greatest)
    return np.asarray(read)
