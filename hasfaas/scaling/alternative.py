"""What to start where lanes were cut in advance and none of the share aimed at has room: the next best that has some."""

from __future__ import annotations

import math

import attrs

from hasfaas.scaling.placement import Book
from hasfaas.scaling.plan import Plan

Start = tuple[int, int, float]
"""What is to be started: the row of the SM share, how many replicas, their quota in percent."""


@attrs.define(eq=False)
class Alternatives:
    """Those of one decision, while replicas are started in `book` and none leaves it."""

    plan: Plan
    book: Book
    # The least quota that found no room, by what else was asked; what has found none will find none.
    _full: dict[tuple[object, ...], float] = attrs.field(factory=dict, init=False)

    def of(self, row: int, start: Start) -> Start:
        """`start` itself where lanes can be cut, or one of its replicas finds room. Else another share: the cheapest that
        carries the peak, or that which carries most, if it is more than what the function has. `start`, if there is none."""
        plan, stack, now = self.plan, self.plan.stack, self.plan.now
        # One change of shape at a time.
        if not stack.bounded[stack.kind[row]] or now.old_live[row] or self._seats(row, (start[0], 1, start[2])):
            return start
        peak, most = float(plan.peak[row]), int(plan.observation.functions.max_replicas[row])
        # Who has nothing takes what there is, in time or not.
        has_rps = stack.whole_rps(row, int(plan.share[row]), int(now.live[row])) if now.live[row] else -1.0
        found: list[tuple[tuple[bool, float], Start]] = []
        for share, sm_percent in enumerate(stack.sm_percents[stack.kind[row]].tolist()):
            if share == start[0] or sm_percent <= 0.0:
                continue
            wanted = min(stack.replicas_for(row, share, peak), most)
            if stack.whole_rps(row, share, wanted) <= has_rps:
                continue
            other = self._what_fits(row, share, wanted)
            rps = stack.whole_rps(row, share, other[1]) if other[1] else -1.0
            if rps > has_rps:
                price = stack.price_of(row, other[1], sm_percent, other[2])
                found.append(((rps >= peak, -price if rps >= peak else rps), other))
        return max(found, key=lambda each: each[0])[1] if found else start

    def _what_fits(self, row: int, share: int, wanted: int) -> Start:
        """As many of a share as find room, up to `wanted`, with the quota that so many need. Fewer need more quota each."""
        number, quota = wanted, self.plan.quota_for(row, wanted, share)
        while number and (fit := self._seats(row, (share, number, quota))) < number:
            number = fit
            quota = self.plan.quota_for(row, max(number, 1), share)
        return share, number, quota

    def _seats(self, row: int, start: Start) -> int:
        """How many of these replicas find room in the book now; it stays as it is."""
        functions = self.plan.observation.functions
        share, count, quota = start
        sm_percent = float(self.plan.stack.sm_percents[self.plan.stack.kind[row], share])
        devices, memory_bytes = functions.devices[row], float(functions.memory_bytes[row])
        most = int(self.plan.most_replicas[row])
        wish = (sm_percent, memory_bytes, most, devices.tobytes())
        if quota >= self._full.get(wish, math.inf):
            return 0
        book = self.book
        for number in range(count):
            spot = book.spot(sm_percent, quota, memory_bytes, devices=devices, most_replicas=most, exact=True)
            if spot is None:
                if number == 0:
                    self._full[wish] = quota
                return number
            book = book.copy() if number == 0 else book
            book.take(spot, sm_percent, quota, memory_bytes, most)
        return count
