"""A trace: when requests came, or how many came in each interval, for one function or many.

The value only; `trace_file` reads one, `arrivals` turns it into the times at which requests arrive.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError

Array = np.ndarray[Any, Any]
Kind = Literal["requests", "counts"]


def bad_trace(message: str) -> InvalidRequestError:
    """The error of everything that is wrong with a trace."""
    return InvalidRequestError(message, reason="BAD_TRACE")


@attrs.frozen(eq=False)
class Trace:
    """Requests of `names`, from second 0 to `duration_s`.

    Of kind "requests": `times_s` holds one array a function, sorted seconds from 0; `counts` is empty. Of kind "counts":
    `counts` [function, interval] holds whole numbers, `interval_s` is how long an interval is; `times_s` is empty.
    Raises InvalidRequestError (BAD_TRACE) for anything else.
    """

    names: tuple[str, ...]
    kind: Kind
    duration_s: float
    times_s: tuple[Array, ...] = ()
    counts: Array = attrs.field(factory=lambda: np.zeros((0, 0), np.int64))
    interval_s: float = 1.0

    def __attrs_post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise bad_trace(f"a trace needs functions with names of their own, it has {self.names}")
        if not 0.0 < self.duration_s < math.inf:
            raise bad_trace(f"duration_s={self.duration_s} must be positive and finite")
        if self.kind == "requests":
            self._check_times()
        else:
            self._check_counts()

    @classmethod
    def of_counts(cls, counts: Array, interval_s: float, names: tuple[str, ...]) -> Trace:
        """From counts [function, interval]."""
        counts = np.asarray(counts)
        return cls(names, "counts", interval_s * counts.shape[-1], counts=counts, interval_s=interval_s)

    @classmethod
    def of_requests(
        cls, times_s: tuple[Array, ...], names: tuple[str, ...], *, duration_s: float | None = None
    ) -> Trace:
        """From sorted seconds. It lasts until the end of the second in which the last request came, if nothing is said."""
        last = max((float(times[-1]) for times in times_s if len(times)), default=0.0)
        return cls(names, "requests", duration_s or math.floor(last) + 1.0, times_s=times_s)

    @property
    def requests(self) -> int:
        """How many requests there are in all."""
        return int(self.counts.sum()) if self.kind == "counts" else sum(map(len, self.times_s))

    @property
    def mean_rps(self) -> float:
        """Requests per second of all functions together."""
        return self.requests / self.duration_s

    def of(self, names: tuple[str, ...]) -> Trace:
        """Some of the functions, in that order. Raises InvalidRequestError (BAD_TRACE) for one that is not there."""
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise bad_trace(f"function {unknown[0]!r} is not in the trace; it holds {', '.join(self.names)}")
        rows = [self.names.index(name) for name in names]
        if self.kind == "counts":
            return attrs.evolve(self, names=names, counts=self.counts[rows])
        return attrs.evolve(self, names=names, times_s=tuple(self.times_s[row] for row in rows))

    def repeated(self, functions: int) -> Trace:
        """So many functions: these again and again, each copy from another part of the trace on, so that its peaks come at
        other times. Raises InvalidRequestError (BAD_TRACE) for fewer than there are."""
        there = len(self.names)
        if functions < there:
            raise bad_trace(
                f"functions={functions} are fewer than the {there} of the trace: choose some of them instead"
            )
        copies = math.ceil(functions / there)
        rows = [divmod(row, there) for row in range(functions)]
        names = tuple(self.names[row] if copy == 0 else f"{self.names[row]}@{copy + 1}" for copy, row in rows)
        if self.kind == "counts":
            intervals = self.counts.shape[1]
            counts = [np.roll(self.counts[row], -(copy * intervals // copies)) for copy, row in rows]
            return attrs.evolve(self, names=names, counts=np.stack(counts))
        part_s = self.duration_s / copies
        return attrs.evolve(self, names=names, times_s=tuple(self._from(row, copy * part_s) for copy, row in rows))

    def window(self, start_s: float, duration_s: float) -> Trace:
        """The part from `start_s` on, as a trace of its own; of counts, the whole intervals that cover it.

        Raises InvalidRequestError (BAD_TRACE) where the trace is shorter.
        """
        end_s = start_s + duration_s
        if not (start_s >= 0.0 and duration_s > 0.0 and end_s <= self.duration_s + 1e-6):
            raise bad_trace(
                f"the window from {start_s:g} s to {end_s:g} s does not lie in the trace, which lasts {self.duration_s:g} s"
            )
        if self.kind == "counts":
            first = math.floor(start_s / self.interval_s + 1e-9)
            last = math.ceil(end_s / self.interval_s - 1e-9)
            return Trace.of_counts(self.counts[:, first:last], self.interval_s, self.names)
        cut = tuple(times[np.searchsorted(times, start_s) : np.searchsorted(times, end_s)] for times in self.times_s)
        return Trace.of_requests(tuple(times - start_s for times in cut), self.names, duration_s=duration_s)

    def per_second(self) -> Array:
        """Requests [function, second]; of longer intervals, their mean rate."""
        if self.kind == "counts":
            if self.interval_s >= 1.0:
                return np.repeat(self.counts / self.interval_s, max(1, round(self.interval_s)), axis=1)
            return np.asarray(self.counts.reshape(len(self.names), -1, round(1.0 / self.interval_s)).sum(axis=2))
        seconds = math.ceil(self.duration_s)
        return np.stack([np.bincount(times.astype(np.int64), minlength=seconds)[:seconds] for times in self.times_s])

    def _from(self, row: int, start_s: float) -> Array:
        """The times of one function where `start_s` is the beginning, and what was before it comes after the end."""
        return np.sort((self.times_s[row] - start_s) % self.duration_s)

    def _check_times(self) -> None:
        if len(self.times_s) != len(self.names):
            raise bad_trace(f"{len(self.times_s)} series of times for {len(self.names)} functions")
        for name, times in zip(self.names, self.times_s, strict=True):
            if not np.all(np.isfinite(times)) or np.any(np.diff(times) < 0.0):
                raise bad_trace(f"the times of {name!r} must be finite and sorted")
            if len(times) and not (times[0] >= 0.0 and times[-1] <= self.duration_s):
                raise bad_trace(f"the times of {name!r} must lie between 0 and {self.duration_s:g} s")

    def _check_counts(self) -> None:
        if self.counts.ndim != 2 or len(self.counts) != len(self.names) or not self.counts.shape[1]:
            raise bad_trace(
                f"counts have the shape {self.counts.shape}, they need {len(self.names)} functions x intervals"
            )
        if not 0.0 < self.interval_s < math.inf:
            raise bad_trace(f"interval_s={self.interval_s} must be positive and finite")
        if not np.issubdtype(self.counts.dtype, np.integer) or self.counts.min() < 0:
            raise bad_trace("counts must be whole numbers from 0 on")
