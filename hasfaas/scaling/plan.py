"""What each function needs at this tick, beside what it has: all functions at once, read from their frontiers."""

from __future__ import annotations

import attrs
import numpy as np

from hasfaas.scaling.memory import Memory
from hasfaas.scaling.observation import Array, Observation
from hasfaas.scaling.settings import ScalerSettings
from hasfaas.scaling.stack import COUNTS, QUOTAS, Stack, count_rows, quota_rows
from hasfaas.scaling.standing import EPSILON, Standing


def most_replicas(observation: Observation) -> Array:
    """How many may share a lane with one of each function, itself included [function]: as many others as twice its promise
    holds leases. A neighbour keeps it waiting for one lease, but only while that neighbour is busy."""
    quantum_ms = observation.timing.quantum_ns / 1e6
    return np.asarray(1 + np.maximum(1, (2.0 * observation.functions.slo_ms / quantum_ms).astype(int)))


@attrs.frozen(eq=False)
class Load:
    """What each function must carry [function], in requests per second: `rate` within the promise; `urgent`, with what
    waits, for those that serve now; `least` at all; `peak` within the promise, before another replica could serve."""

    rate: Array
    urgent: Array
    least: Array
    peak: Array


@attrs.define(eq=False)
class Plan:
    """One tick's plan. Columns are [function].

    `rate` and `peak` are what must be carried within the promise now, and before another replica could serve; `least` what
    must be served at all. `quota_percent` is what the serving replicas need, `count` how many of this share carry the peak
    with whole lanes, `enough` how many are not too many, `area` what the present shape costs, with a little for each replica.
    `best_...` is the cheapest shape. `most_replicas` bounds those of a lane, this function's own included. `known` masks the
    functions that are planned for at all.
    """

    observation: Observation
    settings: ScalerSettings
    stack: Stack
    now: Standing
    rate: Array
    least: Array
    peak: Array
    known: Array
    share: Array
    serving_share: Array
    quota_percent: Array
    count: Array
    enough: Array
    area: Array
    best_share: Array
    best_count: Array
    best_quota: Array
    best_area: Array
    most_replicas: Array

    @classmethod
    def of(cls, observation: Observation, stack: Stack, load: Load, settings: ScalerSettings) -> Plan:
        """Reads the frontiers for all functions at once."""
        functions = observation.functions
        now = Standing.of(observation)
        least, peak = load.least, load.peak
        # Where quotas stay as they were made, they are made for the peak.
        rate = load.rate if settings.vertical else peak
        best_row, best_share, carried = stack.cheapest(rate, peak)

        def quota_of(row: Array, sm_row: Array, rate: Array) -> Array:
            """The quota that such a shape needs [function]; where lanes are shared, the part of it that is promised."""
            needed = QUOTAS[stack.quota_row(row, sm_row, rate, least)]
            if not settings.pooling:
                return needed
            used = QUOTAS[stack.quota_row(row, sm_row, np.zeros_like(rate), least)]
            return np.asarray(np.maximum(needed * settings.guarantee, used))

        best_quota = quota_of(best_row, best_share, rate)
        share = np.where(now.live > 0, stack.share_row(now.sm_percent), best_share)
        serving_share = np.where(now.serving_count > 0, stack.share_row(now.serving_sm_percent), share)
        # A replica that starts carries nothing yet, so those that serve are sized without it.
        quota = quota_of(count_rows(np.maximum(now.serving_count, 1)), serving_share, load.urgent)
        live_quota = quota_of(count_rows(np.maximum(now.live, 1)), share, rate)
        if settings.vertical:
            count = COUNTS[stack.count_row(share, peak)]
        else:
            quota = live_quota = np.where(now.serving_count > 0, now.quota_percent, best_quota)
            count = COUNTS[stack.count_row(share, peak, quota)]
        best_count = np.clip(COUNTS[best_row], np.maximum(functions.min_replicas, 1), functions.max_replicas)
        count = np.clip(count, np.maximum(functions.min_replicas, 1), functions.max_replicas)
        # Who has more than the peak needs keeps them, where the cheapest shape is that.
        enough = np.where(best_share == share, np.maximum(count, best_count), count)
        best_area = stack.price(COUNTS[best_row], stack.sm_percents[stack.kind, best_share], best_quota)
        return cls(
            observation=observation,
            settings=settings,
            stack=stack,
            now=now,
            rate=rate,
            peak=peak,
            known=(stack.kind >= 0) & ~functions.by_hand.astype(bool),
            share=share,
            serving_share=serving_share,
            quota_percent=quota,
            least=least,
            count=count,
            enough=enough,
            area=stack.price(np.maximum(now.live, 1), now.sm_percent, live_quota),
            best_share=best_share,
            best_count=best_count,
            best_quota=best_quota,
            best_area=np.where(carried, best_area, np.inf),
            most_replicas=most_replicas(observation) if settings.pooling else np.ones(len(functions), int),
        )

    def quota_for(self, row: int, count: int, share: int | None = None) -> float:
        """The quota that so many replicas need for the rate, of the share aimed at or another (its row)."""
        share = int(self.share[row]) if share is None else share
        if not self.settings.vertical:
            # As they were made; the first ones by what the cheapest shape needs.
            return float(self.now.quota_percent[row] or self.best_quota[row])
        rps = self.stack.rps[self.stack.kind[row], int(count_rows(np.asarray(count))), share]
        limit = self.stack.limit_rps[self.stack.kind[row], int(count_rows(np.asarray(count))), share]
        able = limit >= self.least[row]
        enough = (rps >= self.rate[row]) & able
        quota = float(QUOTAS[int(enough.argmax())] if enough[-1] else QUOTAS[-1])
        if not self.settings.pooling:
            return quota
        return max(quota * self.settings.guarantee, float(QUOTAS[int(able.argmax())] if able[-1] else QUOTAS[-1]))

    def batch_for(self, row: int, share: int, count: int, quota_percent: float) -> int:
        """The greatest batch that goes with a slice."""
        quota = int(quota_rows(self._counted_on(np.asarray(quota_percent))))
        return int(self.stack.batch[self.stack.kind[row], int(count_rows(np.asarray(count))), share, quota])

    @property
    def batches(self) -> Array:
        """That of the shape that serves, at the quota that it has [function]."""
        count = count_rows(np.maximum(self.now.serving_count, 1))
        return np.asarray(
            self.stack.batch[
                self.stack.kind, count, self.serving_share, quota_rows(self._counted_on(self.now.quota_percent))
            ]
        )

    def _counted_on(self, quota_percent: Array) -> Array:
        """What a function is planned to have of its lane with such a quota: where lanes are shared, lent time as well."""
        if not self.settings.pooling:
            return quota_percent
        return np.asarray(np.minimum(quota_percent / self.settings.guarantee, QUOTAS[-1]))

    def diagnostics(self, memory: Memory) -> dict[str, Array]:
        """Columns that tell a person why [function]."""
        now, functions = self.now, self.observation.functions
        serving = count_rows(np.maximum(now.serving_count, 1))
        capacity = self.stack.rps[self.stack.kind, serving, self.serving_share, quota_rows(now.quota_percent)]
        return {
            "arrival_rps": functions.arrivals / max(self.observation.interval_s, 1e-9),
            "level_rps": memory.forecast.level_rps.copy(),
            "rate_rps": self.rate,
            "peak_rps": self.peak,
            "capacity_rps": np.where((now.serving_count > 0) & (self.stack.kind >= 0), capacity, 0.0),
            "replicas": now.live,
            "ready": now.ready,
            "sm_percent": now.sm_percent,
            "quota_percent": now.quota_percent,
            "needed_quota_percent": np.where(self.stack.kind >= 0, self.quota_percent, np.nan),
            "area": self.area,
            "best_area": self.best_area,
            "margin": np.exp(memory.log_margin),
        }

    def remember(self, memory: Memory) -> None:
        """Moves the memory on by one tick: for how long less has sufficed, and what a better shape would have saved."""
        now, dt = self.now, self.observation.interval_s
        lower = (self.quota_percent < now.quota_percent - EPSILON) & (now.serving_count > 0)
        # A window of calm that did not lead to a smaller quota is over; the next one has a greatest need of its own.
        over = memory.calm_s >= self.settings.quota_calm_s
        held = np.where(over, 0.0, memory.held)
        memory.held = np.where(lower, np.maximum(held, self.quota_percent), 0.0)
        memory.calm_s = np.where(lower, np.where(over, 0.0, memory.calm_s) + dt, 0.0)
        memory.since_move_s += dt
        settled = (now.live > 0) & (now.ready == now.live) & (now.old_live == 0)
        memory.settled_s = np.where(settled, memory.settled_s + dt, 0.0)
        fewer = settled & (self.enough < now.live)
        memory.needed = np.where(fewer, np.maximum(memory.needed, self.enough), 0.0)
        memory.spare_s = np.where(fewer, memory.spare_s + dt, 0.0)
        missed = self.area - self.best_area * (1.0 + self.settings.reshape_gain)
        missed = np.where(np.isfinite(missed), missed, 0.0)
        memory.regret_s = np.where(settled, np.maximum(memory.regret_s + missed * dt, 0.0), 0.0)
