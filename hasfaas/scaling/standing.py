"""What each function has now, counted from its replicas."""

from __future__ import annotations

import attrs
import numpy as np

from hasfaas.scaling.observation import Array, Life, Observation

# Shares and quotas in percent that differ by less are the same.
EPSILON = 1e-6


@attrs.frozen(eq=False)
class Standing:
    """What each function has now, as columns [function]; 0 where it has no such replica.

    The newest replica gives the shape that is aimed at: `sm_percent` is its share, `live` and `ready` count the replicas of
    that share that start or serve, and those that serve; `old_live` the others, which go once these serve. `main` [replica]
    marks those of that share.

    The newest one that serves gives the shape that carries the calls now: `serving` [replica], `serving_sm_percent`, their
    number `serving_count`, their greatest quota `quota_percent`; `uneven` where their quotas differ.
    """

    main: Array
    sm_percent: Array
    live: Array
    ready: Array
    old_live: Array
    serving: Array
    serving_sm_percent: Array
    serving_count: Array
    quota_percent: Array
    uneven: Array

    @classmethod
    def of(cls, observation: Observation) -> Standing:
        """Counts an observation's replicas."""
        replicas, count = observation.replicas, len(observation.functions)
        stays, serves = replicas.life != Life.DRAINING, replicas.life == Life.READY
        order = np.lexsort((np.arange(len(replicas)), replicas.since_s))

        def counted(mask: Array) -> Array:
            return np.bincount(replicas.function[mask], minlength=count)

        def newest(mask: Array) -> tuple[Array, Array]:
            """(share of each function's newest such replica, which replicas of the mask have that share)."""
            share = np.zeros(count)
            # In order of age, so that the last assignment, the newest, stays.
            rows = order[mask[order]]
            share[replicas.function[rows]] = replicas.sm_percent[rows]
            return share, mask & (np.abs(replicas.sm_percent - share[replicas.function]) < EPSILON)

        sm_percent, main = newest(stays)
        serving_sm_percent, serving = newest(serves)
        most, least = np.zeros(count), np.full(count, np.inf)
        np.maximum.at(most, replicas.function[serving], replicas.quota_percent[serving])
        np.minimum.at(least, replicas.function[serving], replicas.quota_percent[serving])
        return cls(
            main=main,
            sm_percent=sm_percent,
            live=counted(main),
            ready=counted(main & serves),
            old_live=counted(stays & ~main),
            serving=serving,
            serving_sm_percent=serving_sm_percent,
            serving_count=counted(serving),
            quota_percent=most,
            uneven=least < most - EPSILON,
        )
