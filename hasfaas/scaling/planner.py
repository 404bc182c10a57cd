"""From what each function must carry to what is done about it: quotas first, then replicas, then other shapes."""

from __future__ import annotations

import attrs
import numpy as np

from hasfaas.scaling.decision import Action, AddReplica, DrainReplica, Rebatch, Resize
from hasfaas.scaling.memory import Memory
from hasfaas.scaling.observation import Array, Life, Observation
from hasfaas.scaling.placement import Book
from hasfaas.scaling.settings import ScalerSettings
from hasfaas.scaling.stack import COUNTS, QUOTAS, Stack, count_rows, quota_rows

# A reshape drains the old replica some seconds after the new one is ready.
OVERLAP_S = 3.0
EPSILON = 1e-6


@attrs.frozen(eq=False)
class Standing:
    """What each function has now, as columns [function]; 0 where it has no such replica.

    The newest replica gives the shape that is aimed at: `sm_percent` is its share, `live` and `ready` count the replicas of that
    share that start or serve, and those that serve; `old_live` the others, which go once these serve. `main` [replica] marks them.

    The newest one that serves gives the shape that carries the calls now: `serving` [replica], `serving_sm_percent`, their number
    `serving_count`, their greatest quota `quota_percent`; `uneven` where their quotas differ.
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


@attrs.define(eq=False)
class Plan:
    """One tick's plan. Columns are [function].

    `rate` and `peak` are what must be carried now, and before another replica could serve. `quota_percent` is what the serving
    replicas need, `count` how many of this share carry the peak with whole lanes, `area` what the present shape needs.
    `best_...` is the cheapest shape. `known` masks the functions that are planned for at all.
    """

    observation: Observation
    settings: ScalerSettings
    stack: Stack
    now: Standing
    rate: Array
    peak: Array
    known: Array
    share: Array
    serving_share: Array
    quota_percent: Array
    count: Array
    area: Array
    best_share: Array
    best_count: Array
    best_quota: Array
    best_area: Array

    @classmethod
    def of(cls, observation: Observation, stack: Stack, rate: Array, peak: Array, settings: ScalerSettings) -> Plan:
        """Reads the frontiers for all functions at once."""
        functions = observation.functions
        now = Standing.of(observation)
        if not settings.vertical:
            rate = peak
        best_row, best_share, carried = stack.cheapest(rate, peak)
        best_quota = QUOTAS[stack.quota_row(best_row, best_share, rate)]
        share = np.where(now.live > 0, stack.share_row(now.sm_percent), best_share)
        serving_share = np.where(now.serving_count > 0, stack.share_row(now.serving_sm_percent), share)
        # A replica that starts carries nothing yet, so those that serve are sized without it.
        quota = QUOTAS[stack.quota_row(count_rows(np.maximum(now.serving_count, 1)), serving_share, rate)]
        live_quota = QUOTAS[stack.quota_row(count_rows(np.maximum(now.live, 1)), share, rate)]
        if settings.vertical:
            count = COUNTS[stack.count_row(share, peak)]
        else:
            # Quotas stay as they were made.
            quota = live_quota = np.where(now.serving_count > 0, now.quota_percent, best_quota)
            count = COUNTS[stack.count_row(share, peak, quota)]
        best_area = COUNTS[best_row] * stack.sm_percents[stack.kind, best_share] * best_quota / 1e4
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
            count=np.clip(count, np.maximum(functions.min_replicas, 1), functions.max_replicas),
            area=np.maximum(now.live, 1) * now.sm_percent * live_quota / 1e4,
            best_share=best_share,
            best_count=np.clip(COUNTS[best_row], np.maximum(functions.min_replicas, 1), functions.max_replicas),
            best_quota=best_quota,
            best_area=np.where(carried, best_area, np.inf),
        )

    def quota_for(self, row: int, count: int) -> float:
        """The quota that so many replicas of the share aimed at need for the rate."""
        if not self.settings.vertical:
            return float(self.now.quota_percent[row])
        rps = self.stack.rps[self.stack.kind[row], int(count_rows(np.asarray(count))), self.share[row]]
        enough = rps >= self.rate[row]
        return float(QUOTAS[int(enough.argmax())] if enough[-1] else QUOTAS[-1])

    def batch_for(self, row: int, share: int, count: int, quota_percent: float) -> int:
        """The greatest batch that goes with a slice."""
        quota = int(quota_rows(np.asarray(quota_percent)))
        return int(self.stack.batch[self.stack.kind[row], int(count_rows(np.asarray(count))), share, quota])

    @property
    def batches(self) -> Array:
        """That of the shape that serves, at the quota that it has [function]."""
        count = count_rows(np.maximum(self.now.serving_count, 1))
        return np.asarray(
            self.stack.batch[self.stack.kind, count, self.serving_share, quota_rows(self.now.quota_percent)]
        )

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
        memory.held = np.where(lower, np.maximum(memory.held, self.quota_percent), 0.0)
        memory.calm_s = np.where(lower, memory.calm_s + dt, 0.0)
        settled = (now.live > 0) & (now.ready == now.live) & (now.old_live == 0)
        fewer = settled & (self.count < now.live)
        memory.needed = np.where(fewer, np.maximum(memory.needed, self.count), 0.0)
        memory.spare_s = np.where(fewer, memory.spare_s + dt, 0.0)
        missed = self.area - self.best_area * (1.0 + self.settings.reshape_gain)
        missed = np.where(np.isfinite(missed), missed, 0.0)
        memory.regret_s = np.where(settled, np.maximum(memory.regret_s + missed * dt, 0.0), 0.0)


def act(plan: Plan, memory: Memory) -> tuple[tuple[Action, ...], tuple[str, ...]]:
    """What is done about a plan, in the order in which it must be done; and what could not be, in words."""
    acting = _Acting(plan, memory)
    for row in np.flatnonzero(acting.idle | acting.drop_old | acting.fewer | acting.resized).tolist():
        acting.settle(row)
    for row in np.flatnonzero(acting.first | acting.more | acting.reshaped).tolist():
        acting.start(row)
    acting.rebatch()
    return (*acting.drains, *acting.shrinks, *acting.grows, *acting.starts), tuple(acting.refused)


class _Acting:
    """One decision being made. Every action is booked, so that later ones see what earlier ones took."""

    def __init__(self, plan: Plan, memory: Memory) -> None:
        self.plan, self.memory = plan, memory
        self.book = Book.of(plan.observation)
        self.drains: list[Action] = []
        self.shrinks: list[Action] = []
        self.grows: list[Action] = []
        self.starts: list[Action] = []
        self.refused: list[str] = []
        self._mark()
        replicas = plan.observation.replicas
        self._order = np.argsort(replicas.function, kind="stable")
        self._starts_at = np.searchsorted(
            replicas.function[self._order], np.arange(len(plan.observation.functions) + 1)
        )

    def _members(self, row: int) -> list[int]:
        """The rows of a function's replicas that do not drain already."""
        rows = self._order[self._starts_at[row] : self._starts_at[row + 1]]
        return [r for r in rows.tolist() if self.plan.observation.replicas.life[r] != Life.DRAINING]

    def _mark(self) -> None:
        """Which functions something is done about [function]."""
        plan, memory, settings = self.plan, self.memory, self.plan.settings
        functions, now = plan.observation.functions, plan.now
        calls = (functions.arrivals > 0) | (functions.waiting > 0) | (functions.in_flight > 0)
        least = functions.min_replicas
        settled = (now.live > 0) & (now.ready == now.live)
        self.idle = (
            plan.known
            & (now.live + now.old_live > 0)
            & (memory.idle_s >= settings.keep_alive_s)
            & (least == 0)
            & ~calls
        )
        on = plan.known & ~self.idle
        self.drop_old = on & settled & (now.old_live > 0)
        self.fewer = on & (memory.spare_s >= settings.replica_calm_s) & (np.maximum(memory.needed, least) < now.live)
        up = plan.quota_percent > now.quota_percent + EPSILON
        fallen = memory.held <= now.quota_percent * (1.0 - settings.fall_share)
        down = (memory.calm_s >= settings.quota_calm_s) & fallen
        self.resized = on & (now.serving_count > 0) & (up | down | now.uneven) & settings.vertical
        self.down = down & ~up
        self.first = on & (now.live == 0) & (now.old_live == 0) & (calls | (least > 0))
        self.more = on & (now.live > 0) & (plan.count > now.live)
        cost_s = plan.best_area * (functions.cold_start_s + OVERLAP_S)
        cheaper = plan.best_area < plan.area * (1.0 - settings.reshape_gain)
        other = (plan.best_share != plan.share) | (plan.best_count > now.live)
        regrets = memory.regret_s > settings.reshape_payback * cost_s
        self.reshaped = on & settled & (now.old_live == 0) & cheaper & other & regrets & ~self.more & ~self.fewer

    # -- what there is ------------------------------------------------------------------------------------------------

    def settle(self, row: int) -> None:
        """Drains what is not needed, and gives the others the quota that they then need."""
        plan, functions = self.plan, self.plan.observation.functions
        members = self._members(row)
        main = [r for r in members if plan.now.main[r]]
        if self.idle[row]:
            self._drain(members, f"no call for {self.memory.idle_s[row]:.0f} s")
            return
        if self.drop_old[row]:
            self._drain([r for r in members if not plan.now.main[r]], "replaced by replicas of a better shape")
        gone = 0
        if self.fewer[row]:
            keep = int(max(self.memory.needed[row], functions.min_replicas[row], 1))
            # The emptiest devices first, so that they can be given back; then the youngest.
            leavers = sorted(main, key=self._last_to_stay)[: len(main) - keep]
            gone = len(leavers)
            why = f"{keep} carried up to {plan.peak[row]:.3g} rps for {self.memory.spare_s[row]:.0f} s"
            self._drain(leavers, why)
            main = [r for r in main if r not in leavers]
            self.memory.spare_s[row] = self.memory.needed[row] = 0.0
        if plan.settings.vertical and (gone or self.resized[row]):
            serving = [r for r in members if plan.now.serving[r]]
            self._resize(row, main if gone else serving, len(main) if gone else None)

    def _last_to_stay(self, replica: int) -> tuple[float, float]:
        replicas = self.plan.observation.replicas
        taken = self.book.units[replicas.device[replica]] - self.book.free_units[replicas.device[replica]]
        return (float(taken), -float(replicas.since_s[replica]))

    def _drain(self, rows: list[int], why: str) -> None:
        # They keep their place until they have ended, so nothing is booked.
        self.drains.extend(DrainReplica(self.plan.observation.replicas.ids[r], why) for r in rows)

    def _resize(self, row: int, main: list[int], count: int | None) -> None:
        plan, replicas = self.plan, self.plan.observation.replicas
        target = float(plan.quota_percent[row]) if count is None else plan.quota_for(row, count)
        if count is None and self.down[row] and not plan.now.uneven[row]:
            target = float(self.memory.held[row])
        for r in main:
            own = float(replicas.quota_percent[r])
            if replicas.life[r] != Life.READY or abs(own - target) <= EPSILON:
                continue
            device, lane = int(replicas.device[r]), int(replicas.lane[r])
            granted = self.book.resize(device, lane, own, target)
            if granted < target - EPSILON:
                self.refused.append(f"{replicas.ids[r]}: quota {target:g} %, its lane has {granted:g} % for it")
            if abs(granted - own) > EPSILON:
                (self.grows if granted > own else self.shrinks).append(
                    Resize(replicas.ids[r], granted, self._quota_reason(row, target, own))
                )
        self.memory.calm_s[row] = self.memory.held[row] = 0.0

    def _quota_reason(self, row: int, target: float, own: float) -> str:
        plan = self.plan
        what = f"{plan.rate[row]:.3g} rps planned for"
        if target > own:
            return f"{what}, {own:g} % does not carry that within the SLO"
        return f"{what}, {target:g} % has sufficed for {self.memory.calm_s[row]:.0f} s"

    # -- what there should be ------------------------------------------------------------------------------------------

    def start(self, row: int) -> None:
        """New replicas: the first ones, more of the same, or others in place of what there is."""
        plan, now = self.plan, self.plan.now
        live = int(now.live[row])
        best = (int(plan.best_share[row]), int(plan.best_count[row]), float(plan.best_quota[row]))
        if self.first[row]:
            self._start(
                row, *best, "first call" if plan.observation.functions.arrivals[row] else "at least one is wanted"
            )
            return
        if self.more[row]:
            count = int(plan.count[row])
            quota = plan.quota_for(row, count)
            area = count * now.sm_percent[row] * quota / 1e4
            why = f"up to {plan.peak[row]:.3g} rps may come before another replica serves; {live} cannot carry that"
            if plan.best_share[row] == plan.share[row] or plan.best_area[row] > area * (
                1.0 - plan.settings.reshape_gain
            ):
                self._start(row, int(plan.share[row]), count - live, quota, why)
            elif now.old_live[row] == 0:
                self._start(row, *best, f"{why}, and another shape carries it at less cost")
            else:
                # One change of shape at a time: more of the one that is coming.
                self._start(row, int(plan.share[row]), count - live, quota, why)
            return
        saving = 100.0 * (1.0 - plan.best_area[row] / plan.area[row])
        same = plan.best_share[row] == plan.share[row]
        share, count, quota = best
        self._start(
            row, share, count - live if same else count, quota, f"{saving:.0f} % cheaper at {plan.rate[row]:.3g} rps"
        )
        self.memory.regret_s[row] = 0.0

    def _start(self, row: int, share: int, count: int, quota: float, why: str) -> None:
        plan, observation, functions = self.plan, self.plan.observation, self.plan.observation.functions
        sm_percent = float(plan.stack.sm_percents[plan.stack.kind[row], share])
        memory_bytes = float(functions.memory_bytes[row])
        total = int(plan.now.live[row] + plan.now.old_live[row])
        batch = plan.batch_for(row, share, max(count, 1), quota)
        for number in range(count):
            if total + number >= functions.max_replicas[row] + (plan.now.live[row] if self.reshaped[row] else 0):
                self.refused.append(
                    f"{functions.names[row]}: at most {functions.max_replicas[row]} replicas are allowed"
                )
                return
            spot = self.book.spot(
                sm_percent, quota, memory_bytes, devices=functions.devices[row], alone=not plan.settings.pooling
            )
            if spot is None:
                self.refused.append(f"{functions.names[row]}: no room for sm {sm_percent:g} %, quota {quota:g} %")
                return
            self.book.take(spot, sm_percent, quota, memory_bytes)
            device = observation.devices.ids[spot.device]
            self.starts.append(
                AddReplica(
                    functions.names[row],
                    device,
                    spot.lane,
                    self.book.sm_percent(spot.device, spot.lane),
                    quota,
                    batch,
                    why,
                )
            )

    def rebatch(self) -> None:
        """The greatest batch that goes with each replica's quota."""
        plan, replicas = self.plan, self.plan.observation.replicas
        rows = np.flatnonzero(plan.now.serving & plan.known[replicas.function])
        wanted = plan.batches[replicas.function[rows]]
        for r, batch in zip(rows.tolist(), wanted.tolist(), strict=True):
            if batch != replicas.batch[r]:
                self.grows.append(
                    Rebatch(replicas.ids[r], int(batch), f"carries most at quota {replicas.quota_percent[r]:g} %")
                )
