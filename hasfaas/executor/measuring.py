"""Measuring a function in its replica: the same execution again and again, and when that is enough.

Law: nothing here reads a clock. Whoever measures hands in what each run took, by the replica's own account.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import attrs
import numpy as np

from hasfaas.executor import stacking
from hasfaas.executor.quota import PPM, Timing, run_ns
from hasfaas.executor.stacking import Arguments

# The gates of torch modules are placed in the first three executions, which are slower.
WARM_UP_RUNS = 4
FEWEST_RUNS = 5
MOST_RUNS = 2_000
# The median is known well enough at this relative standard error...
GOOD_ERROR = 0.005
# ...but not before so long, or so many turns of the lane: what a machine does beside comes and goes.
LEAST_S = 0.25
LEAST_TURNS = 12
# A run that took so much more wall time than it held the lane has waited for tokens.
WAIT_NS = 300_000


@attrs.define
class Runs:
    """The runs of one point, one after the other without a pause. All times are nanoseconds.

    `throttled` says that the quota is below 100 %: then runs count from the first to the last that waited for tokens, so
    that the credit is gone and only whole turns are in the mean response.
    """

    throttled: bool
    least_ns: int
    bound_ns: int
    warm_up: int = WARM_UP_RUNS
    holds_ns: list[int] = attrs.field(factory=list)
    responses_ns: list[int] = attrs.field(factory=list)

    @classmethod
    def at(cls, quota_ppm: int, timing: Timing, bound_s: float) -> Runs:
        """The runs of a point at this quota of a lane with this timing, which may take about `bound_s`."""
        least_ns = int(LEAST_S * 1e9)
        if 0 < quota_ppm < PPM:
            least_ns = max(least_ns, LEAST_TURNS * run_ns(quota_ppm, timing) * PPM // quota_ppm)
        bound_ns = int(bound_s * 1e9)
        return cls(quota_ppm < PPM, min(least_ns, bound_ns), bound_ns)

    def add(self, hold_ns: int, response_ns: int) -> None:
        """One more run: what it held the lane, and the time since the end of the run before."""
        self.holds_ns.append(hold_ns)
        self.responses_ns.append(response_ns)

    def counted(self) -> tuple[Sequence[int], Sequence[int]]:
        """(holds, responses) of the runs that count, as yet."""
        first, last = min(self.warm_up, max(len(self.holds_ns) - 1, 0)), len(self.holds_ns)
        if self.throttled:
            waited = [
                i
                for i in range(first, last)
                if self.responses_ns[i] - self.holds_ns[i] > max(WAIT_NS, self.holds_ns[i] // 50)
            ]
            if len(waited) >= 2:
                # The turn after the first wait begins the count, the last wait ends it.
                first, last = waited[0], waited[-1]
        return self.holds_ns[first:last], self.responses_ns[first:last]

    @property
    def enough(self) -> bool:
        """Whether the hold is known well enough, or the time is over."""
        seen = len(self.holds_ns)
        if seen < self.warm_up + 1:
            # A run of many seconds is not made five times before it counts.
            return seen >= 2 and sum(self.responses_ns) >= 2 * self.bound_ns
        spent_ns = sum(self.responses_ns[self.warm_up :])
        if spent_ns >= self.bound_ns or seen >= MOST_RUNS:
            return seen >= self.warm_up + 2 or spent_ns >= 2 * self.bound_ns
        if spent_ns < self.least_ns or seen % 4:
            return False
        holds, _ = self.counted()
        return len(holds) >= FEWEST_RUNS and relative_error(holds) <= GOOD_ERROR

    def measured(self) -> Mapping[str, Any]:
        """What is said of the point, in the order of a MEASURED frame: median and mean hold, mean response, how many runs,
        and the spread of log(hold)."""
        holds, responses = self.counted()
        return {
            "hold_ns": round(median(holds)),
            "mean_hold_ns": round(sum(holds) / len(holds)),
            "response_ns": round(sum(responses) / len(responses)),
            "runs": len(holds),
            "log_spread": log_spread(holds),
        }


def log_spread(holds: Sequence[int]) -> float:
    """Standard deviation of log(hold), by the median absolute deviation: interruptions count little."""
    logs = [math.log(max(hold, 1)) for hold in holds]
    middle = median(logs)
    return 1.4826 * median(abs(value - middle) for value in logs)


def relative_error(holds: Sequence[int]) -> float:
    """Standard error of the median hold, relative to it."""
    return 1.2533 * log_spread(holds) / math.sqrt(len(holds))


def examples(example: Callable[[int], Any], batch: int, *, batched: bool) -> list[Arguments]:
    """What the user's example makes, as the calls of one batch: its arrays are stacked already, so each row is a call.

    Without `batch=` it is the one call. Arguments that are not arrays of `batch` rows are every call's.
    """
    made = example(batch)
    args = made if isinstance(made, tuple) else (made,)
    if not batched:
        return [Arguments(args, {})]
    rows = [(stacking.is_array(a) and np.ndim(a) > 0 and len(a) == batch) for a in args]
    return [Arguments(tuple(a[i] if cut else a for a, cut in zip(args, rows, strict=True)), {}) for i in range(batch)]
