"""Figures with their intervals: geometric means over cells, intervals by a bootstrap over cells and, within them, seeds."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

Array = np.ndarray[Any, Any]
DRAWS = 2000
COVERED_PERCENT = (2.5, 97.5)


@attrs.frozen
class Figure:
    """A figure, its 95 % interval, and the target that it is held against; `n` is the number of cells. NaN without any.

    `more` is a target that is to be reached at least, otherwise at most.
    """

    value: float
    low: float
    high: float
    n: int
    target: float
    more: bool = True

    @property
    def met(self) -> bool:
        """Whether the value itself meets the target."""
        return bool(self.value >= self.target if self.more else self.value <= self.target)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; None for what is not there."""
        numbers = {key: _or_none(getattr(self, key)) for key in ("value", "low", "high")}
        return {**numbers, "target": self.target, "met": self.met, "n": self.n}


def geometric(ratios: Array, target: float, *, more: bool = True) -> Figure:
    """The geometric mean of ratios [cell, seed], all positive; each cell counts the same."""
    logs = np.log(ratios)
    if not logs.size:
        return _none(target, more)
    low, high = np.exp(np.percentile(_drawn(logs).mean(axis=(1, 2)), COVERED_PERCENT))
    return Figure(float(np.exp(logs.mean())), float(low), float(high), len(logs), target, more)


def share(values: Array, target: float, *, limit: float) -> Figure:
    """The share of the cells whose mean over seeds is at most `limit`, from values [cell, seed]."""
    if not values.size:
        return _none(target, True)
    within = (values.mean(axis=1) <= limit).mean()
    low, high = np.percentile((_drawn(values).mean(axis=2) <= limit).mean(axis=1), COVERED_PERCENT)
    return Figure(float(within), float(low), float(high), len(values), target)


def _drawn(values: Array) -> Array:
    """[draw, cell, seed]: cells drawn with replacement, and of each so many seeds."""
    rng = np.random.default_rng(0)
    cells, seeds = values.shape
    rows = rng.integers(cells, size=(DRAWS, cells, 1))
    return np.asarray(values[rows, rng.integers(seeds, size=(DRAWS, cells, seeds))])


def _none(target: float, more: bool) -> Figure:
    return Figure(float("nan"), float("nan"), float("nan"), 0, target, more)


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
