"""Which SM shares a function can be given: any that one plans with, or those of the lanes that were cut in advance."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from hasfaas.scaling.observation import Array, Observation


@attrs.frozen(cache_hash=True)
class LaneShares:
    """SM shares in percent, rising. `most` says how many lanes of each there are, so how many replicas of that share can
    have a lane each; None where lanes can still be cut, and where nothing is known of the devices."""

    sm_percents: tuple[float, ...] | None
    most: tuple[int, ...] | None = None

    @classmethod
    def of(cls, observation: Observation, row: int, wanted: Sequence[float] | None, *, bounded: bool) -> LaneShares:
        """Those of one function. `wanted` are the shares to plan with where lanes can be cut (None: all that its surface
        has). Lanes cut in advance are all planned with, unless `bounded`: then only those that `wanted`, rounded up, names.
        """
        any_share = None if wanted is None else tuple(wanted)
        allowed = _allowed(observation, row)
        fixed = observation.fixed_lanes
        mine = allowed[fixed.device]
        if not mine.any():
            return cls(any_share)
        shares, counts = np.unique(
            100.0 * fixed.units[mine] / observation.devices.units[fixed.device[mine]], return_counts=True
        )
        if bounded and wanted is not None:
            # The greatest where all are smaller than what is wanted: somewhere it must run.
            named = np.unique(np.minimum(np.searchsorted(shares, np.asarray(wanted) - 1e-9), len(shares) - 1))
            shares, counts = shares[named], counts[named]
        if np.isin(np.flatnonzero(allowed), fixed.device).all():
            return cls(tuple(shares.tolist()), tuple(counts.tolist()))
        surface = observation.functions.surfaces[row]
        free = any_share or (surface.sm_percents if surface is not None else ())
        return cls(tuple(sorted({*free, *shares.tolist()})))


def _allowed(observation: Observation, row: int) -> Array:
    """The devices that a function may use [device]; all of them while it may use none, since that passes."""
    allowed = observation.functions.devices[row].astype(bool)
    return allowed if allowed.any() else np.ones(len(allowed), bool)
