"""One figure of RaPP beside the one it is held against."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np


@attrs.frozen
class Row:
    """One protocol's result. Errors are absolute percentage errors, in %.

    `key` names the figure in the JSON output; `protocol` says in a few words what was held out; `target` is the bound
    that we set ourselves (None: none), `published` what others report, as text. `by_seed` holds one mean per seed.
    `group_errors` holds the mean of each group (model, GPU, curve) by name. `coverage` is the share of points inside
    the nominal 90 % interval.
    """

    key: str
    protocol: str
    n: int
    mean: float
    median: float
    p90: float
    target: float | None = None
    published: str = ""
    by_seed: tuple[float, ...] = ()
    group_errors: tuple[tuple[str, float], ...] = ()
    coverage: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.mean <= self.target


def row(
    key: str,
    protocol: str,
    errors_by_seed: Sequence[np.ndarray],
    *,
    target: float | None = None,
    published: str = "",
    group_errors: Sequence[tuple[str, float]] = (),
    coverage: float | None = None,
    note: str = "",
) -> Row:
    """A row from the absolute percentage errors of each seed (all points of a seed in one array)."""
    pooled = np.concatenate([np.asarray(errors, float) for errors in errors_by_seed])
    means = tuple(float(np.mean(errors)) for errors in errors_by_seed)
    return Row(
        key=key,
        protocol=protocol,
        n=len(errors_by_seed[0]),
        mean=float(np.mean(means)),
        median=float(np.median(pooled)),
        p90=float(np.percentile(pooled, 90)),
        target=target,
        published=published,
        by_seed=means,
        group_errors=tuple(group_errors),
        coverage=coverage,
        note=note,
    )
