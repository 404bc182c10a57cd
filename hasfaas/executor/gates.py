"""Puts gates into a user's torch modules: measured over their first calls, installed where they matter.

While a module is watched, it and each of its submodules are timed and gated. After three calls only the
chosen ones keep a gate, and nothing else is left. Law: outputs stay bit-equal, `uninstall` leaves no trace.

Times are the stream's: the host's clock where work is done when its call returns, events where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hasfaas.devices.base import HostTimer, Timer
from hasfaas.executor.doors import Door, is_opaque, members
from hasfaas.executor.gate_plan import Node, Plan, plan
from hasfaas.executor.modules import find_modules

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PROFILED_CALLS", "Calibration", "Report", "calibrate", "find_modules"]

PROFILED_CALLS = 3
NS_PER_MS = 1_000_000
Span = tuple[object, object]
# Calls of one module that an invocation makes in a loop, whose end nobody knows while they are measured.
_ENDLESS = 1_000_000


@attrs.frozen
class Report:
    """What is known about one module that the user's code calls; `gates` is None before it is calibrated."""

    path: str
    profiled_calls: int = 0
    gates: tuple[str, ...] | None = None
    max_distance_ms: float = 0.0

    def __str__(self) -> str:
        if self.gates is None:
            return f"watching {self.profiled_calls}/{PROFILED_CALLS}"
        return f"calibrated: {len(self.gates)} gates, max distance {self.max_distance_ms:.1f} ms"


class Calibration:
    """Watches modules, places their gates, and takes everything back on demand.

    For one thread, the one that calls `watch`: calls from another one run ungated and are not measured. Each
    module that the user's code calls from outside any other is calibrated by itself. `gate` is called before
    units; what the stream stood still meanwhile is subtracted from every measurement around it.
    """

    def __init__(
        self,
        gate: Callable[[], None],
        *,
        target_ms: float = 1.0,
        timer: Timer | None = None,
    ) -> None:
        self._user_gate = gate
        self._target_ns = round(target_ms * NS_PER_MS)
        self._timer = timer or HostTimer()
        self._roots: list[str] = []
        self._doors: dict[int, Door] = {}
        self._paths: set[str] = set()
        self._tops: dict[int, _Top] = {}
        self._stack: list[_Record] = []
        # Marks before and after each gate of the call that is being measured.
        self._waits: list[Span] = []
        self._invocation = 0

    def watch(self, modules: Mapping[str, nn.Module]) -> None:
        """Starts to measure these modules, by name, and all below them. Those already known start afresh."""
        self._roots += [name for name in modules if name not in self._roots]
        watched: set[int] = set()
        for name, module in modules.items():
            watched |= self._open_all(name, module)
        self._tops = {key: top for key, top in self._tops.items() if not top.members & watched}

    def begin(self) -> None:
        """Says that a new invocation starts.

        A module that one invocation calls again and again gets a gate of its own, however short it is.
        Without this, each call of a module counts as an invocation.
        """
        self._invocation += 1

    def uninstall(self) -> None:
        """Puts every module back as it was."""
        for door in self._doors.values():
            door.close()
        self._doors.clear()
        self._paths.clear()
        self._tops.clear()
        self._roots.clear()

    @property
    def reports(self) -> tuple[Report, ...]:
        """One for each module that was called from outside, or before any call for each watched root."""
        if not self._tops:
            return tuple(map(Report, self._roots))
        return tuple(top.report() for top in self._tops.values())

    @property
    def state(self) -> str:
        """For people: `watching k/3` or `calibrated: n gates, max distance x ms`, by module if many."""
        reports = self.reports
        if len(reports) == 1:
            return str(reports[0])
        return "; ".join(f"{report.path}: {report}" for report in reports) or "no torch modules"

    @property
    def gates(self) -> int:
        """How many modules have a gate for good."""
        return sum(door.gated for door in self._doors.values())

    def _profiled(self, door: Door, args: Any, kwargs: Any) -> Any:
        """One timed call of a watched module. A module inside itself is part of its outer call."""
        if not self._stack:
            self._waits = []
        self._gate()
        if door.active:
            return door.forward(*args, **kwargs)
        top = None if self._stack else self._top(door)
        record = self._stack[-1].child(door) if self._stack else _Record(door)
        door.active = True
        self._stack.append(record)
        first_wait, start = len(self._waits), self._timer.mark()
        try:
            result = door.forward(*args, **kwargs)
            record.spans.append((start, self._timer.mark(), (first_wait, len(self._waits))))
            record.calls += 1
        finally:
            self._stack.pop()
            door.active = False
        if top is not None and top.plan is None:
            waits_ns = [self._timer.elapsed_ns(*wait) for wait in self._waits]
            for inner in record.walk():
                inner.read(self._timer, waits_ns)
            top.calls.append(record)
            if len(top.calls) == PROFILED_CALLS and top in self._tops.values():
                self._settle(top)
        return result

    def _gate(self) -> None:
        """On the stream's own clock: while the host waits in a gate, an asynchronous device may well work on."""
        before = self._timer.mark()
        try:
            self._user_gate()
        finally:
            self._waits.append((before, self._timer.mark()))

    def _open_all(self, name: str, module: nn.Module) -> set[int]:
        """Times the module and all below it. Returns their ids."""
        found = set()
        for path, member in members(name, module):
            if getattr(member, "forward", None) is None:
                continue  # a scripted module with other methods only
            found.add(id(member))
            door = self._doors.get(id(member))
            if door is None:
                unique = path if path not in self._paths else f"{path}#{len(self._paths)}"
                self._paths.add(unique)
                door = self._doors[id(member)] = Door(unique, member, self._profiled, self._user_gate)
            door.open(gated=False)
        return found

    def _top(self, door: Door) -> _Top:
        """The profile of a module that is called from outside. Its first call finds all below it timed."""
        top = self._tops.get(id(door.module))
        if top is None:
            top = _Top(door.path, self._open_all(door.path, door.module))
            self._tops[id(door.module)] = top
        if top.plan is None:
            top.looped = top.looped or 0 < top.invocation == self._invocation
            top.invocation = self._invocation
        return top

    def _settle(self, top: _Top) -> None:
        """Places the gates of a measured module, and stops timing whatever no unfinished one still needs."""
        for record in top.calls:
            top.members |= {id(inner.door.module) for inner in record.walk()}
        root = _merged([(record, 1) for record in top.calls])
        if top.looped:
            root = Node("", _ENDLESS * root.time_ns, 1, (attrs.evolve(root, calls=_ENDLESS),))
        top.plan = plan(root, self._target_ns)
        # What was once called from outside, but is a part of this one, is served by the gates of this one.
        self._tops = {
            key: other
            for key, other in self._tops.items()
            if other is top or other.plan is not None or key not in top.members
        }
        finished = [other.plan for other in self._tops.values() if other.plan is not None]
        gated = {path for done in finished for path in done.gates}
        pending = [other.members for other in self._tops.values() if other.plan is None]
        for key in top.members.difference(*pending):
            door = self._doors[key]
            if door.path in gated:
                door.open(gated=True)
            else:
                door.close()


def calibrate(
    modules: Mapping[str, nn.Module],
    call: Callable[[], object],
    gate: Callable[[], None],
    target_ms: float = 1.0,
) -> Calibration:
    """Runs `call` as often as it takes to place the gates of the modules that it calls."""
    calibration = Calibration(gate, target_ms=target_ms)
    calibration.watch(modules)
    for _ in range(PROFILED_CALLS):
        calibration.begin()
        call()
    return calibration


@attrs.define(eq=False)
class _Record:
    """What one module did within one call of a top."""

    door: Door
    time_ns: int = 0
    calls: int = 0
    children: dict[int, _Record] = attrs.field(factory=dict)
    # (start, end, which of the waits lie in between) of each call, until the marks are read.
    spans: list[tuple[object, object, tuple[int, int]]] = attrs.field(factory=list)

    def child(self, door: Door) -> _Record:
        found = self.children.get(id(door))
        if found is None:
            found = self.children[id(door)] = _Record(door)
        return found

    def read(self, timer: Timer, waits_ns: Sequence[int]) -> None:
        """Turns the marks into time; on an asynchronous device they are reached only now."""
        for start, end, (first, last) in self.spans:
            self.time_ns += max(0, timer.elapsed_ns(start, end) - sum(waits_ns[first:last]))
        self.spans.clear()

    def walk(self) -> Iterator[_Record]:
        yield self
        for child in self.children.values():
            yield from child.walk()


@attrs.define(eq=False)
class _Top:
    """A module that the user's code calls from outside, and what is known about it so far."""

    path: str
    members: set[int]
    calls: list[_Record] = attrs.field(factory=list)
    plan: Plan | None = None
    looped: bool = False
    invocation: int = 0

    def report(self) -> Report:
        if self.plan is None:
            return Report(self.path, len(self.calls))
        return Report(self.path, len(self.calls), self.plan.gates, self.plan.max_distance_ns / NS_PER_MS)


def _merged(records: list[tuple[_Record, int]]) -> Node:
    """One node of several calls of a top: the minimum of the times, the maximum of the counts.

    Each record comes with how often its parent ran.
    """
    children: dict[int, list[tuple[_Record, int]]] = {}
    for record, _ in records:
        for key, child in record.children.items():
            if child.calls:  # it may only have raised
                children.setdefault(key, []).append((child, record.calls))
    door = records[0][0].door
    return Node(
        door.path,
        min(record.time_ns // record.calls for record, _ in records),
        max(-(-record.calls // max(1, parent_calls)) for record, parent_calls in records),
        tuple(map(_merged, children.values())),
        is_opaque(door.module),
    )
