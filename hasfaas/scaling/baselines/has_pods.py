"""How HAS-GPU adds to the pods of one function and takes from them: the steps of its reference, section 5.4."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np

from hasfaas.core.allocation import granted_units
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.baselines.bounds import clamped
from hasfaas.scaling.baselines.draft import Draft
from hasfaas.scaling.baselines.has_capacity import (
    DEFAULT_QUOTA_PERCENT,
    default_slice,
    efficient_slice,
    empty_row_sm_percent,
    model_batch,
    pod_rps,
)
from hasfaas.scaling.baselines.member import Member
from hasfaas.scaling.baselines.slices import Slice
from hasfaas.scaling.observation import Array
from hasfaas.scaling.placement import Spot

QUOTA_STEP = 10.0
LEAST_QUOTA_PERCENT = 5.0
ROWS = 2
OPEN_OCCUPANCY, FIRST_OCCUPANCY = 0.95, 0.5
LAST_RESORT_QUOTA_PERCENT, LAST_RESORT_SM_PERCENT = 10.0, 50.0
DELETABLE_SM_PERCENT = 50.0
# Less quota than this left in a row is none.
LEAST_LEFT_PERCENT = 1.0
_ROUNDING = 1e-9


@attrs.define(eq=False)
class Pods:
    """The pods of one function while one decision about them is made.

    `batch` is what new ones get, `room` how many more the function may have. What is decided goes into `draft`.
    """

    draft: Draft
    row: int
    surface: Surface
    crew: list[Member]
    repaired: bool
    batch: int = attrs.field(init=False)
    room: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        functions = self.draft.observation.functions
        self.batch = model_batch(self._name, int(functions.batch_max[self.row]))
        self.room = max(0, int(functions.max_replicas[self.row]) - len(self.crew))

    @property
    def capacity_rps(self) -> float:
        """Of all pods, as they are."""
        return sum(self._rps(member, member.quota_percent) for member in self.crew)

    def first(self) -> None:
        """One pod of the default slice: on a device in use that is less than half full if there is one."""
        hgo, portion = self._occupancy(), default_slice(self.batch)
        used = self._devices(portion.quota_percent, used=True)
        half_full = [device for device in used if hgo[device] < FIRST_OCCUPANCY]
        fuller = [device for device in used if hgo[device] >= FIRST_OCCUPANCY]
        for device in (*half_full, *self._devices(portion.quota_percent, used=False), *fuller):
            if self._place(device, portion, "the first pod"):
                return
        self.draft.unplaced[self.row] += 1

    # -- up -------------------------------------------------------------------------------------------------------------

    def up(self, gap: float, said: str) -> None:
        """By `gap` rps if it can be had. `said` begins every reason."""
        for member in sorted(self.crew, key=lambda m: -m.sm_percent):
            gap -= self._raise(member, gap, said)
        while gap > 0.0 and (found := self._on_used(gap)):
            gap -= self._seat(*found, f"{said}: a pod on a device in use")
        if gap <= 0.0 or not self.room:
            return
        unused = self._devices(DEFAULT_QUOTA_PERCENT, used=False)
        if not unused:
            self._last_resort(said)
        elif self.repaired:
            portion = efficient_slice(self.surface, self.batch)
            if not any(self._place(device, portion, f"{said}: a pod on an unused device") for device in unused):
                self.draft.unplaced[self.row] += 1
        else:
            self.draft.note(f"{self._name} gets no unused device: there the published code panics")

    def _raise(self, member: Member, gap: float, said: str) -> float:
        free = self.draft.book.free_percent(member.device, member.lane)
        before, step, gain = self._rps(member, member.quota_percent), 0.0, 0.0
        while step + QUOTA_STEP <= free + _ROUNDING and gain < gap:
            step += QUOTA_STEP
            gain = self._rps(member, member.quota_percent + step) - before
        if step:
            self.draft.resize(member, member.quota_percent + step, f"{said}: quota up")
        return gain

    def _on_used(self, gap: float) -> tuple[Spot, Slice] | None:
        """A row and a quota on the first device in use that has any, devices by rising occupancy."""
        hgo = self._occupancy()
        for device in sorted(self._devices(QUOTA_STEP, used=True), key=lambda d: (hgo[d], d)):
            found = list(self._offers(device, gap)) if hgo[device] < OPEN_OCCUPANCY and self.room else []
            if found:
                return self._best(found, gap)
        return None

    def _offers(self, device: int, gap: float) -> Iterator[tuple[Spot, Slice]]:
        sm_of_new = empty_row_sm_percent(self._name, gap)
        for spot, sm_percent in self._rows(device, sm_of_new):
            for step in range(1, int((spot.left_percent + _ROUNDING) // QUOTA_STEP) + 1):
                yield spot, Slice(sm_percent, step * QUOTA_STEP, self.batch)

    def _best(self, offers: list[tuple[Spot, Slice]], gap: float) -> tuple[Spot, Slice]:
        enough = [offer for offer in offers if pod_rps(self.surface, offer[1]) >= gap]
        if self.repaired and enough:
            return min(enough, key=lambda offer: offer[1].area)
        return max(offers, key=lambda offer: pod_rps(self.surface, offer[1]))

    def _last_resort(self, said: str) -> None:
        hgo = self._occupancy()
        for device in sorted(self._devices(LEAST_LEFT_PERCENT, used=True), key=lambda d: (hgo[d], d)):
            portion = Slice(LAST_RESORT_SM_PERCENT, LAST_RESORT_QUOTA_PERCENT, self.batch)
            if self._place(device, portion, f"{said}: the last resort, on the least occupied device", shrink=True):
                return
        self.draft.unplaced[self.row] += 1

    # -- down -----------------------------------------------------------------------------------------------------------

    def down(self, gap: float, said: str) -> None:
        """By `gap` rps. `said` begins every reason."""
        quotas = {}
        crew = sorted(self.crew, key=lambda m: m.sm_percent)
        for member in crew:
            before, step, loss = self._rps(member, member.quota_percent), 0.0, 0.0
            while member.quota_percent - step - QUOTA_STEP > 0.0 and loss < gap:
                step += QUOTA_STEP
                loss = before - self._rps(member, member.quota_percent - step)
            quotas[member.id] = max(member.quota_percent - step, LEAST_QUOTA_PERCENT)
            gap -= loss
        least = clamped(self.draft.observation, self.row, 1, 1)
        left = len(crew)
        for member in crew:
            rps = self._rps(member, quotas[member.id])
            if gap > 0.0 and rps <= gap and left > least and member.sm_percent <= DELETABLE_SM_PERCENT:
                self.draft.drain(member, f"{said}: a pod of {rps:.2f} rps can be missed")
                gap, left = gap - rps, left - 1
            elif quotas[member.id] < member.quota_percent:
                self.draft.resize(member, quotas[member.id], f"{said}: quota down")

    # -- devices and their rows ------------------------------------------------------------------------------------------

    def _rps(self, member: Member, quota_percent: float) -> float:
        return pod_rps(self.surface, Slice(member.sm_percent, quota_percent, member.batch))

    @property
    def _name(self) -> str:
        return self.draft.observation.functions.names[self.row]

    def _devices(self, quota_percent: float, *, used: bool) -> list[int]:
        """Those in use, or those that are not, where a row has that much quota left and memory is left for a pod."""
        functions, book = self.draft.observation.functions, self.draft.book
        left = np.where(book.lane_units > 0, 100.0 - book.lane_quota_percent, 0.0).max(axis=1)
        empty_row = ((book.lane_units > 0).sum(axis=1) < ROWS) & (book.free_units > 0)
        fits = (left >= quota_percent - _ROUNDING) | empty_row
        fits &= (book.free_bytes >= functions.memory_bytes[self.row]) & (book.used() == used)
        return [int(device) for device in np.flatnonzero(fits & functions.devices[self.row].astype(bool))]

    def _occupancy(self) -> Array:
        """HGO [device]; in the published code an integer division makes it 0."""
        book = self.draft.book
        shares = book.lane_units / book.units[:, None]
        return (shares * book.lane_quota_percent).sum(axis=1) / 100.0 if self.repaired else np.zeros(len(book.units))

    def _rows(self, device: int, sm_of_new: float) -> Iterator[tuple[Spot, float]]:
        """The rows of a device, an empty one with `sm_of_new` among them if it has that many units (of those cut in advance
        one that is large enough)."""
        book = self.draft.book
        lanes = np.flatnonzero(book.lane_units[device]).tolist()
        for lane in lanes:
            yield Spot(device, lane, False, book.free_percent(device, lane)), book.sm_percent(device, lane)
        new = book.new_lane(device, book.granted_on(device, sm_of_new)) if len(lanes) < ROWS else None
        if new is not None:
            yield Spot(device, new, True, 100.0), book.sm_percent(device, new) if book.is_fixed[device] else sm_of_new

    def _place(self, device: int, portion: Slice, reason: str, *, shrink: bool = False) -> bool:
        """In the row of the same SM share; else in an empty one; else in the row with most quota left, at its share.

        `shrink` takes less quota where no more is left.
        """
        book, rows = self.draft.book, list(self._rows(device, portion.sm_percent))
        asked = book.granted_on(device, portion.sm_percent)
        least = LEAST_LEFT_PERCENT if shrink else portion.quota_percent
        fits = [(spot, sm) for spot, sm in rows if spot.left_percent >= least - _ROUNDING]
        if not fits or not self.room:
            return False

        def order(found: tuple[Spot, float]) -> tuple[bool, bool, float]:
            spot, sm_percent = found
            same = not spot.new and granted_units(int(book.units[device]), sm_percent) == asked
            return not same, not spot.new, -spot.left_percent

        spot, sm_percent = min(fits, key=order)
        quota_percent = min(portion.quota_percent, spot.left_percent)
        self._seat(spot, Slice(sm_percent, quota_percent, portion.batch), reason)
        return True

    def _seat(self, spot: Spot, portion: Slice, reason: str) -> float:
        self.draft.add_at(self.row, spot, portion, reason)
        self.room -= 1
        return pod_rps(self.surface, portion)
