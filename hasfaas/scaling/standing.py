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

    The newest replica on the type of device that the function is planned on gives the shape that is aimed at: `sm_percent` is
    its share, `live` and `ready` count the replicas of that share there that start or serve, and those that serve;
    `old_live` the others, which go once these serve. `main` [replica] marks those of that share.

    The newest one that serves gives the shape that carries the calls now: `serving` [replica], `serving_sm_percent`, their
    number `serving_count`, their greatest quota `quota_percent`; `uneven` where their quotas differ. `foreign` [function]
    marks those served from another type of device: what the surface says is not true of them.
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
    foreign: Array

    @classmethod
    def of(cls, observation: Observation) -> Standing:
        """Counts an observation's replicas."""
        replicas, count = observation.replicas, len(observation.functions)
        type_there = observation.devices.type[replicas.device]
        type_aimed = observation.functions.device_type[replicas.function]
        settles = (type_aimed < 0) | (type_there == type_aimed)
        stays, serves = replicas.life != Life.DRAINING, replicas.life == Life.READY
        order = np.lexsort((np.arange(len(replicas)), replicas.since_s))

        def counted(mask: Array) -> Array:
            return np.bincount(replicas.function[mask], minlength=count)

        def newest(mask: Array) -> tuple[Array, Array]:
            """(share of each function's newest such replica, which replicas of the mask have that share)."""
            share, home = np.zeros(count), np.zeros(count, bool)
            # In order of age, so that the last assignment, the newest, stays.
            rows = order[mask[order]]
            share[replicas.function[rows]], home[replicas.function[rows]] = replicas.sm_percent[rows], settles[rows]
            same = np.abs(replicas.sm_percent - share[replicas.function]) < EPSILON
            return share, mask & same & (settles == home[replicas.function])

        sm_percent, main = newest(stays & settles)
        serving_sm_percent, serving = newest(serves)
        foreign = np.zeros(count, bool)
        foreign[replicas.function[serving & ~settles]] = True
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
            foreign=foreign,
        )
