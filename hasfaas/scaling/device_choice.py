"""Which type of device each function is on, where it has profiles on several: the cheapest with room that keeps its promise.

    cost = price of a device's hour x the devices that its cheapest shape there occupies

A function is on one type at a time. It stays on that which serves it until another is cheaper by `reshape_gain`, and would by
now have saved twice what the exchange costs, as shapes are exchanged (`planner.py`); or until its own has no room for what it
needs more. The scaler is then shown the surface and the devices of that type, and replaces what runs on others. Nothing here
reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from hasfaas.scaling.decision import Decision
from hasfaas.scaling.device_offers import Candidate, Look, Offers
from hasfaas.scaling.frontiers import Frontiers
from hasfaas.scaling.observation import Array, Observation
from hasfaas.scaling.planner import OVERLAP_S
from hasfaas.scaling.settings import ScalerSettings


@attrs.frozen
class Choice:
    """A type, why, and all that there were, the best first."""

    type: str
    why: str
    candidates: tuple[Candidate, ...]


def ordered(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """By cost; those that cannot keep the promise come last."""
    return tuple(sorted(candidates, key=lambda each: (not each.keeps, each.cost, each.type)))


def choose(candidates: Sequence[Candidate], served: str | None, *, gain: float, due: bool = True) -> Choice:
    """The type to be on. `served` is that which serves now, and is left for one that is cheaper by `gain` only when that is
    `due`. Who has nothing takes what has room, in time or not, and waits for the best where nothing has."""
    order = ordered(candidates)
    here = next((each for each in order if each.type == served), None)
    able = [each for each in order if each.room is not False and each.keeps]
    if here is None:
        best = (able or [each for each in order if each.room is not False] or order)[0]
        return Choice(best.type, _why(best, order), order)
    better = [each for each in able if each is not here]
    if not better:
        return Choice(here.type, "serves now, and no other type with room keeps the promise", order)
    best = better[0]
    if not here.keeps:
        return Choice(best.type, f"{here.type} cannot keep the promise", order)
    if here.room is False:
        return Choice(best.type, f"{here.type} has no room for more", order)
    saving = 1.0 - best.cost / here.cost if here.cost > 0.0 else 0.0
    if saving < gain:
        return Choice(here.type, f"serves now, and no other type is {100.0 * gain:g} % cheaper", order)
    what = f"{best.type} is {100.0 * saving:.0f} % cheaper"
    if not due:
        return Choice(here.type, f"serves now; {what}, but that has not paid for the exchange yet", order)
    return Choice(best.type, what, order)


def _why(best: Candidate, order: Sequence[Candidate]) -> str:
    if not best.keeps:
        return (
            "no type with room keeps the promise" if any(each.keeps for each in order) else "no type keeps the promise"
        )
    passed = [each.type for each in order[: order.index(best)]]
    full = f", {' and '.join(passed)} without room" if passed else ""
    waits = ": waits for room" if best.room is False else ""
    return f"costs least of those that keep the promise{full}{waits}"


class DeviceChoice:
    """Remembers what each function would have saved elsewhere, and its last choice. The same observations from the start on
    give the same choices."""

    def __init__(self, settings: ScalerSettings | None = None) -> None:
        """`settings` are those of the scaler that will be shown what is chosen."""
        self.settings = settings or ScalerSettings()
        self._frontiers: dict[str, Frontiers] = {}
        self._regret_s: dict[str, float] = {}
        self._choices: dict[str, Choice] = {}
        self._load: dict[str, tuple[float, float]] = {}

    def of(self, name: str) -> Choice | None:
        """The last choice of a function, None for one that has none to make."""
        return self._choices.get(name)

    def heed(self, names: Sequence[str], decision: Decision) -> None:
        """Takes over what a scaler plans for: the load of the functions of its last observation."""
        told = decision.diagnostics
        if self._choices and "rate_rps" in told and "peak_rps" in told:
            load = zip(told["rate_rps"].tolist(), told["peak_rps"].tolist(), strict=True)
            self._load = dict(zip(names, load, strict=True))

    def shown(self, seen: Observation, offers: Offers) -> Observation:
        """The observation with the surface, the devices and the type that are chosen for each function with a choice."""
        names = seen.functions.names
        rows = [row for row, name in enumerate(names) if name in offers.of]
        if not rows:
            self._choices, self._regret_s = {}, {}
            return seen
        look = Look(seen, offers, *self._loads(seen), self.settings, self._frontiers)
        self._choices = {names[row]: self._choice(look, row) for row in rows}
        self._regret_s = {name: self._regret_s[name] for name in self._choices}
        return look.shown({row: self._choices[names[row]].type for row in rows})

    def _loads(self, seen: Observation) -> tuple[Array, Array]:
        """(rate, peak) [function]: what was planned for last; what came, of one without replicas, where that is more."""
        functions = seen.functions
        came = (functions.arrivals + functions.waiting) / max(seen.interval_s, 1e-9)
        rate, peak = np.array([self._load.get(name, (0.0, 0.0)) for name in functions.names]).T
        has_none = np.bincount(seen.replicas.function, minlength=len(functions)) == 0
        rate = np.where(has_none | (rate == 0.0), np.maximum(came, rate), rate)
        return rate, np.maximum(peak, rate)

    def _choice(self, look: Look, row: int) -> Choice:
        name, gain = look.seen.functions.names[row], self.settings.reshape_gain
        served, candidates = look.served(row), look.candidates(row)
        regret_s, self._regret_s[name] = self._regret_s.get(name, 0.0), 0.0
        if served is None:
            if not look.wanted[row]:
                return choose(candidates, None, gain=gain)
            return self._taken(look, row, choose(look.with_room(row, candidates), None, gain=gain))
        if not look.settled[row]:
            # One change at a time.
            return Choice(served, "changes already", ordered(candidates))
        here, best = next(each for each in candidates if each.type == served), ordered(candidates)[0]
        missed = here.cost - best.cost * (1.0 + gain) if here.keeps else 0.0
        regret_s = max(0.0, regret_s + missed * look.seen.interval_s)
        exchange_s = best.cost * (float(look.seen.functions.cold_start_s[row]) + OVERLAP_S)
        due = regret_s > self.settings.reshape_payback * exchange_s
        if due or not here.keeps or not look.has_enough(row):
            candidates = look.with_room(row, candidates)
        found = choose(candidates, served, gain=gain, due=due)
        if found.type != served:
            return self._taken(look, row, found)
        self._regret_s[name] = regret_s
        return found

    def _taken(self, look: Look, row: int, choice: Choice) -> Choice:
        look.take(row, choice.type)
        return choice
