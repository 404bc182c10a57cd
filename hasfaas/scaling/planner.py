"""From a plan to actions: quotas first, then replicas, then other shapes. Only functions that change are looked at."""

from __future__ import annotations

import numpy as np

from hasfaas.scaling.alternative import Alternatives
from hasfaas.scaling.decision import Action, AddReplica, DrainReplica, Rebatch, Resize
from hasfaas.scaling.memory import Memory
from hasfaas.scaling.observation import Array, Life
from hasfaas.scaling.placement import Book
from hasfaas.scaling.plan import Plan
from hasfaas.scaling.standing import EPSILON

# A reshape drains the old replica some seconds after the new one is ready.
OVERLAP_S = 3.0
READY, DRAINING = int(Life.READY), int(Life.DRAINING)


def act(plan: Plan, memory: Memory) -> tuple[tuple[Action, ...], tuple[str, ...]]:
    """What is done about a plan, in the order in which it must be done; and what could not be, in words."""
    acting = _Acting(plan, memory)
    for row in np.flatnonzero(acting.idle | acting.drop_old | acting.fewer | acting.resized).tolist():
        acting.settle(row)
    for row in np.flatnonzero(acting.first | acting.moved | acting.more | acting.reshaped | acting.short).tolist():
        acting.start(row)
    acting.rebatch()
    if plan.settings.pooling and memory.since_move_s >= plan.settings.move_every_s:
        acting.give_back()
    return (*acting.drains, *acting.shrinks, *acting.grows, *acting.starts), tuple(acting.refused)


class _Acting:
    """One decision being made. Every action is booked, so that later ones see what earlier ones took."""

    def __init__(self, plan: Plan, memory: Memory) -> None:
        self.plan, self.memory = plan, memory
        self.book = Book.of(plan.observation, plan.most_replicas)
        self._others = Alternatives(plan, self.book)
        self.drains: list[Action] = []
        self.shrinks: list[Action] = []
        self.grows: list[Action] = []
        self.starts: list[Action] = []
        self.refused: list[str] = []
        # Whose calls are late, and whose lanes have no more quota for replicas that have served for a while [function].
        self.short = np.zeros(len(plan.observation.functions), bool)
        self._mark()
        replicas = plan.observation.replicas
        self._order = np.argsort(replicas.function, kind="stable")
        self._starts_at = np.searchsorted(
            replicas.function[self._order], np.arange(len(plan.observation.functions) + 1)
        )
        # Read one by one below: plain numbers are several times quicker than array elements.
        self._life, self._quota = replicas.life.tolist(), replicas.quota_percent.tolist()
        self._device, self._lane = replicas.device.tolist(), replicas.lane.tolist()
        self._node = self.book.node[replicas.device].tolist()

    def _members(self, row: int) -> list[int]:
        """The rows of a function's replicas that do not drain already."""
        rows = self._order[self._starts_at[row] : self._starts_at[row + 1]]
        return [r for r in rows.tolist() if self._life[r] != DRAINING]

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
        # What is served from another type of device keeps what it has until that is replaced.
        self.resized = on & (now.serving_count > 0) & (up | down | now.uneven) & ~now.foreign & settings.vertical
        self.down = down & ~up
        self.first = on & (now.live == 0) & (now.old_live == 0) & (calls | (least > 0))
        # All that it has is on another type of device.
        self.moved = on & (now.live == 0) & (now.old_live > 0)
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
            own = self._quota[r]
            if self._life[r] != READY or abs(own - target) <= EPSILON:
                continue
            granted = self.book.resize(self._device[r], self._lane[r], own, target)
            if granted < target - EPSILON:
                self.refused.append(f"{replicas.ids[r]}: quota {target:g} %, its lane has {granted:g} % for it")
                settled = count is None and self.memory.settled_s[row] >= plan.settings.settle_s
                self.short[row] = settled and bool(plan.observation.functions.late[row])
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
        """New replicas: the first, more of the same, another where lanes are full, or others in place of what there is."""
        plan, now = self.plan, self.plan.now
        live = int(now.live[row])
        best = (int(plan.best_share[row]), int(plan.best_count[row]), float(plan.best_quota[row]))
        if self.moved[row]:
            self._start(row, *best, "in place of those on another type of device")
            return
        if self.first[row]:
            why = "first call" if plan.observation.functions.arrivals[row] else "at least one is wanted"
            self._start(row, *self._others.of(row, best), why)
            return
        if self.more[row]:
            count = int(plan.count[row])
            quota = plan.quota_for(row, count)
            area = plan.stack.price_of(row, count, float(now.sm_percent[row]), quota)
            why = f"up to {plan.peak[row]:.3g} rps may come before another replica serves; {live} cannot carry that"
            cheaper = plan.best_area[row] <= area * (1.0 - plan.settings.reshape_gain)
            # One change of shape at a time: else more of the one that is coming.
            if cheaper and plan.best_share[row] != plan.share[row] and now.old_live[row] == 0:
                why = f"{why}, and another shape carries it at less cost"
                start = best
            else:
                start = (int(plan.share[row]), count - live, quota)
            self._start(row, *self._others.of(row, start), why)
            return
        if self.short[row]:
            why = f"calls are late, and the lanes of its {live} have no more quota for {plan.rate[row]:.3g} rps"
            self._start(row, int(plan.share[row]), 1, plan.quota_for(row, live + 1), why)
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
        batch, most = plan.batch_for(row, share, max(count, 1), quota), int(plan.most_replicas[row])
        # Those that others are started in place of count for nothing: they go.
        replaced = bool(self.moved[row] or (self.reshaped[row] and share != plan.share[row]))
        nodes = set() if replaced else {self._node[r] for r in self._members(row) if plan.now.main[r]}
        leaving = int(plan.now.live[row] if self.reshaped[row] else plan.now.old_live[row] if self.moved[row] else 0)
        for number in range(count):
            if total + number >= functions.max_replicas[row] + leaving:
                self.refused.append(
                    f"{functions.names[row]}: at most {functions.max_replicas[row]} replicas are allowed"
                )
                return
            spot = self.book.spot(
                sm_percent,
                quota,
                memory_bytes,
                devices=functions.devices[row],
                most_replicas=most,
                exact=True,
                held=self._held(nodes),
            )
            if spot is None:
                self.refused.append(f"{functions.names[row]}: no room for sm {sm_percent:g} %, quota {quota:g} %")
                return
            self.book.take(spot, sm_percent, quota, memory_bytes, most)
            nodes.add(int(self.book.node[spot.device]))
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

    def _held(self, nodes: set[int]) -> Array | None:
        """The devices of these nodes [device]."""
        return np.isin(self.book.node, list(nodes)) if nodes else None

    def give_back(self) -> None:
        """Where all replicas of the emptiest device fit on the others in use, they are started there; the old ones then
        are the first of those that are not needed. Only of functions with nothing else under way, and none to a node that
        holds another of its function, if its own does not."""
        replicas, functions = self.plan.observation.replicas, self.plan.observation.functions
        devices = self.plan.observation.devices
        used = self.book.used()
        if self.starts or self.drains or used.sum() < 2:
            return
        taken = np.where(used, self.book.units - self.book.free_units, np.iinfo(int).max)
        device = int(taken.argmin())
        others = used.copy()
        others[device] = False
        book = self.book.copy()
        moves: list[Action] = []
        for r in np.flatnonzero(replicas.device == device).tolist():
            row = int(replicas.function[r])
            # One that nobody calls leaves by itself, and one in change must not be changed twice.
            if self.memory.settled_s[row] <= 0.0 or self.memory.idle_s[row] > 0.25 * self.plan.settings.keep_alive_s:
                return
            sm_percent, quota = float(replicas.sm_percent[r]), float(replicas.quota_percent[r])
            allowed, most = others & functions.devices[row].astype(bool), int(self.plan.most_replicas[row])
            memory_bytes = float(functions.memory_bytes[row])
            nodes = {self._node[other] for other in self._members(row) if other != r}
            held = self._held(nodes)
            spot = book.spot(
                sm_percent, quota, memory_bytes, devices=allowed, most_replicas=most, exact=True, held=held
            )
            if spot is None or functions.by_hand[row]:
                return
            if int(book.node[spot.device]) in nodes and self._node[r] not in nodes:
                return
            book.take(spot, sm_percent, quota, float(functions.memory_bytes[row]), most)
            why = f"moves, so that {devices.ids[device]} can be given back"
            moves.append(
                AddReplica(
                    functions.names[row], devices.ids[spot.device], spot.lane, book.sm_percent(spot.device, spot.lane),
                    quota, int(replicas.batch[r]), why,
                )
            )  # fmt: skip
        self.starts.extend(moves)
        self.memory.since_move_s = 0.0

    def rebatch(self) -> None:
        """The greatest batch that goes with each replica's quota."""
        plan, replicas = self.plan, self.plan.observation.replicas
        wanted = plan.batches[replicas.function]
        planned = (plan.known & ~plan.now.foreign)[replicas.function]
        changed = plan.now.serving & planned & (wanted != replicas.batch)
        leaving = {action.replica_id for action in self.drains if isinstance(action, DrainReplica)}
        for r in np.flatnonzero(changed).tolist():
            if replicas.ids[r] in leaving:
                continue
            self.grows.append(Rebatch(replicas.ids[r], int(wanted[r]), f"carries most at quota {self._quota[r]:g} %"))
