"""The types of device that functions have profiles on: what each would cost, whether it keeps the promise, and has room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np

from hasfaas.rapp.surface import Surface
from hasfaas.scaling.frontiers import Frontiers
from hasfaas.scaling.observation import Array, Life, Observation
from hasfaas.scaling.placement import Book
from hasfaas.scaling.plan import most_replicas
from hasfaas.scaling.settings import ScalerSettings
from hasfaas.scaling.stack import COUNTS, QUOTAS, Stack, count_rows


@attrs.frozen(eq=False)
class Offer:
    """A type of device that a function has a profile on: its number, the surface, and the devices of it that the function may
    use now [device]."""

    type: int
    surface: Surface
    devices: Array


@attrs.frozen(eq=False)
class Offers:
    """What there is to choose from: `names` and `prices` (of a device's hour) of all types by number, `of` what each function
    has a profile on. A function that is not in it has no choice."""

    names: tuple[str, ...] = ()
    prices: tuple[float, ...] = ()
    of: Mapping[str, tuple[Offer, ...]] = attrs.field(factory=dict)


@attrs.frozen
class Candidate:
    """One type for one function: its cost in whole devices of price 1, whether any shape there keeps the promise at the rate
    of now, and whether it has room for what is needed (None: nobody has looked)."""

    type: str
    cost: float
    keeps: bool
    room: bool | None = None


@attrs.frozen(eq=False)
class _Shapes:
    """The cheapest shape of each function on one type, and its cost, as columns [function]. `enough`: what a function has
    there carries the peak with whole lanes."""

    stack: Stack
    count: Array
    share: Array
    quota_percent: Array
    keeps: Array
    cost: Array
    enough: Array


class Look:
    """One observation, read for every type. Room that one function has chosen is taken for those after it.

    `settled` [function]: all replicas serve, on one type. `wanted` [function]: it is called, or a replica is to be there.
    """

    def __init__(
        self,
        seen: Observation,
        offers: Offers,
        rate: Array,
        peak: Array,
        settings: ScalerSettings,
        frontiers: dict[str, Frontiers],
    ) -> None:
        """The load is [function]; `frontiers` keeps those of each type from one look to the next."""
        self.seen, self._offers, self._settings = seen, offers, settings
        self._rate, self._peak = rate, peak
        self._most = most_replicas(seen) if settings.pooling else np.ones(len(seen.functions), int)
        self._book: Book | None = None
        self._stand()
        self._offered = {
            (row, offers.names[offer.type]): offer
            for row, name in enumerate(seen.functions.names)
            for offer in offers.of.get(name, ())
        }
        used = {name for _, name in self._offered}
        self._shapes = {
            name: self._shaped(name, price, frontiers.setdefault(name, Frontiers(settings)))
            for name, price in zip(offers.names, offers.prices, strict=True)
            if name in used
        }

    def _stand(self) -> None:
        """What each function has [function]: its newest replica (-1: none), how many."""
        functions, replicas, count = self.seen.functions, self.seen.replicas, len(self.seen.functions)
        stays, types = replicas.life != Life.DRAINING, self.seen.devices.type[replicas.device]
        order = np.lexsort((np.arange(len(replicas)), replicas.since_s))
        rows = order[stays[order]]
        self._newest = np.full(count, -1)
        self._newest[replicas.function[rows]] = rows
        self._live = np.bincount(replicas.function[stays], minlength=count)
        self._type = np.full(count, -1)
        self._type[replicas.function[rows]] = types[rows]
        other = stays & ((replicas.life != Life.READY) | (types != self._type[replicas.function]))
        self.settled = np.bincount(replicas.function[other], minlength=count) == 0
        self.wanted = (
            (functions.arrivals > 0)
            | (functions.waiting > 0)
            | (functions.in_flight > 0)
            | (functions.min_replicas > 0)
        )

    def _shaped(self, name: str, price: float, frontiers: Frontiers) -> _Shapes:
        functions, replicas = self.seen.functions, self.seen.replicas
        offers = [self._offered.get((row, name)) for row in range(len(functions))]
        none = np.zeros(len(self.seen.devices), bool)
        there = attrs.evolve(
            functions,
            surfaces=tuple(None if offer is None else offer.surface for offer in offers),
            devices=np.array([none if offer is None else offer.devices for offer in offers]),
        )
        stack = frontiers.stacked(attrs.evolve(self.seen, functions=there))
        count, share, keeps = stack.cheapest(self._rate, self._peak)
        quota = QUOTAS[stack.quota_row(count, share, self._rate)]
        if self._settings.pooling:
            quota = quota * self._settings.guarantee
        cost = price * stack.price(COUNTS[count], stack.sm_percents[stack.kind, share], quota)
        has = np.zeros(len(functions))
        has[self._newest >= 0] = replicas.sm_percent[self._newest[self._newest >= 0]]
        whole = stack.rps[stack.kind, count_rows(np.maximum(self._live, 1)), stack.share_row(has), -1]
        return _Shapes(stack, COUNTS[count], share, quota, keeps, cost, whole >= self._peak)

    def candidates(self, row: int) -> list[Candidate]:
        """All types that a function has a profile on."""
        return [
            Candidate(name, float(shapes.cost[row]), bool(shapes.keeps[row]))
            for name, shapes in self._shapes.items()
            if (row, name) in self._offered
        ]

    def served(self, row: int) -> str | None:
        """The type that a function's newest replica is on; None for one without replicas, or on a type without profile."""
        name = self._offers.names[self._type[row]] if self._type[row] >= 0 else ""
        return name if (row, name) in self._offered else None

    # -- room -----------------------------------------------------------------------------------------------------------

    def has_enough(self, row: int) -> bool:
        """Whether what a function has carries the peak with whole lanes, or one more of it finds room."""
        name = self._offers.names[self._type[row]]
        if self._shapes[name].enough[row]:
            return True
        newest, replicas = self._newest[row], self.seen.replicas
        sm_percent, quota_percent = float(replicas.sm_percent[newest]), float(replicas.quota_percent[newest])
        return self._seated(row, name, sm_percent, quota_percent, 1) is not None

    def with_room(self, row: int, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The same, each with whether it has room: for all replicas of its shape; that which serves, for what is needed
        more."""
        served = self.served(row)
        return [
            attrs.evolve(
                each, room=self.has_enough(row) if each.type == served else self._fitted(row, each.type) is not None
            )
            for each in candidates
        ]

    def take(self, row: int, name: str) -> None:
        """Takes the room of a function's shape on that type, where it has any."""
        self._book = self._fitted(row, name) or self._book

    def _fitted(self, row: int, name: str) -> Book | None:
        """The book with the cheapest shape of a type in it, None where that does not fit."""
        shapes, functions = self._shapes[name], self.seen.functions
        least, most = max(int(functions.min_replicas[row]), 1), int(functions.max_replicas[row])
        count = min(max(int(shapes.count[row]), least), most)
        sm_percent = float(shapes.stack.sm_percents[shapes.stack.kind[row], shapes.share[row]])
        return self._seated(row, name, sm_percent, float(shapes.quota_percent[row]), count)

    def _seated(self, row: int, name: str, sm_percent: float, quota_percent: float, count: int) -> Book | None:
        if self._book is None:
            self._book = Book.of(self.seen, self._most)
        book, most = self._book.copy(), int(self._most[row])
        memory_bytes, devices = float(self.seen.functions.memory_bytes[row]), self._offered[row, name].devices
        for _ in range(count):
            spot = book.spot(sm_percent, quota_percent, memory_bytes, devices=devices, most_replicas=most, exact=True)
            if spot is None:
                return None
            book.take(spot, sm_percent, quota_percent, memory_bytes, most)
        return book

    def shown(self, types: Mapping[int, str]) -> Observation:
        """The observation with these types, by function."""
        functions = self.seen.functions
        surfaces, devices, numbers = list(functions.surfaces), functions.devices.copy(), functions.device_type.copy()
        for row, name in types.items():
            offer = self._offered[row, name]
            surfaces[row], devices[row], numbers[row] = offer.surface, offer.devices, offer.type
        chosen = attrs.evolve(functions, surfaces=tuple(surfaces), devices=devices, device_type=numbers)
        return attrs.evolve(self.seen, functions=chosen)
