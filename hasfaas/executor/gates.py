"""Puts gates into a user's torch modules: measured over their first calls, then installed where they matter.

A gate stands in front of a module's `forward`, as an attribute of the instance. Hooks would be silently left out
on torch's fused transformer path, or turn it off. While a module is watched, each of its submodules is timed and
gated; after three calls only the chosen ones keep a gate. Law: outputs stay bit-equal, and `uninstall` leaves no
trace.

Times are the host's, which is right for devices that run synchronously.
"""

from __future__ import annotations

import functools
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from hasfaas.executor.gate_plan import Node, Plan, plan
from hasfaas.executor.modules import find_modules

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PROFILED_CALLS", "Calibration", "Report", "calibrate", "find_modules"]

PROFILED_CALLS = 3
NS_PER_MS = 1_000_000
# Calls of one module that an invocation makes in a loop, whose end nobody knows while they are measured.
_ENDLESS = 1_000_000


@attrs.frozen
class Report:
    """What is known about one module that the user's code calls: `gates` is None until it is calibrated."""

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
    units; what it waits is subtracted from every measurement around it.
    """

    def __init__(
        self,
        gate: Callable[[], None],
        *,
        target_ms: float = 1.0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._user_gate = gate
        self._target_ns = round(target_ms * NS_PER_MS)
        self._clock_ns = clock_ns
        self._roots: list[str] = []
        self._doors: dict[int, _Door] = {}
        self._tops: dict[int, _Top] = {}
        self._stack: list[_Record] = []
        self._waited_ns = 0
        self._invocation = 0

    def watch(self, modules: Mapping[str, nn.Module]) -> None:
        """Starts to measure these modules, by name, and all below them. Those already known start afresh."""
        self._roots += [name for name in modules if name not in self._roots]
        taken = {door.path for door in self._doors.values()}
        watched: set[int] = set()
        for name, module in modules.items():
            for path, member in _members(name, module):
                watched.add(id(member))
                door = self._doors.get(id(member))
                if door is None:
                    unique = path if path not in taken else f"{path}#{len(taken)}"
                    door = self._doors[id(member)] = _Door(self, unique, member)
                    taken.add(unique)
                door.thread = threading.get_ident()
                door.open(gated=False)
        self._tops = {key: top for key, top in self._tops.items() if not top.members & watched}

    def begin(self) -> None:
        """Says that a new invocation starts.

        A module that one invocation calls again and again gets a gate of its own, however short it is. Without
        this, each call of a module counts as an invocation.
        """
        self._invocation += 1

    def uninstall(self) -> None:
        """Puts every module back as it was."""
        for door in self._doors.values():
            door.close()
        self._doors.clear()
        self._tops.clear()
        self._roots.clear()

    @property
    def reports(self) -> tuple[Report, ...]:
        """One for each module that was called from outside; before any call, one for each watched root."""
        if not self._tops:
            return tuple(map(Report, self._roots))
        return tuple(top.report() for top in self._tops.values())

    @property
    def state(self) -> str:
        """For people: `watching k/3` or `calibrated: n gates, max distance x ms`, by module if several."""
        reports = self.reports
        if len(reports) == 1:
            return str(reports[0])
        return "; ".join(f"{report.path}: {report}" for report in reports) or "no torch modules"

    @property
    def gates(self) -> int:
        """How many modules have a gate for good."""
        return sum(door.gated for door in self._doors.values())

    def _profiled(self, door: _Door, args: Any, kwargs: Any) -> Any:
        """One timed call of a watched module. A module inside itself is part of its outer call."""
        self._gate()
        if door.active:
            return door.forward(*args, **kwargs)
        top = None if self._stack else self._top(door)
        record = self._stack[-1].child(door) if self._stack else _Record(door)
        door.active = True
        self._stack.append(record)
        start_ns = self._clock_ns() - self._waited_ns
        try:
            result = door.forward(*args, **kwargs)
            record.time_ns += self._clock_ns() - self._waited_ns - start_ns
            record.calls += 1
        finally:
            self._stack.pop()
            door.active = False
        if top is not None and top.plan is None:
            top.calls.append(record)
            if len(top.calls) == PROFILED_CALLS and top in self._tops.values():
                self._settle(top)
        return result

    def _gate(self) -> None:
        start_ns = self._clock_ns()
        try:
            self._user_gate()
        finally:
            self._waited_ns += self._clock_ns() - start_ns

    def _top(self, door: _Door) -> _Top:
        """The profile of a module that is called from outside. Its first call finds all below it timed."""
        top = self._tops.get(id(door.module))
        if top is None:
            top = self._tops[id(door.module)] = _Top(door.path, {id(door.module)})
            for _, member in _members(door.path, door.module):
                top.members.add(id(member))
                self._doors[id(member)].open(gated=False)
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


class _Door:
    """Stands in for one module's `forward`: timed, gated, or (closed) not there."""

    def __init__(self, owner: Calibration, path: str, module: nn.Module) -> None:
        import torch

        self.path = path
        self.module = module
        self.opaque = _is_opaque(module)
        self.active = False
        self.gated = False
        self.thread = 0
        self._owner = owner
        self._open = False
        self._is_compiling = torch.compiler.is_compiling
        # After `module.compile()` torch calls this attribute, and traces the `forward` below it: nothing of ours
        # may stand there.
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        self._slot = "_compiled_call_impl" if compiled else "forward"
        self.forward: Callable[..., Any] = getattr(module, self._slot)
        self._had = self._slot in vars(module)
        functools.update_wrapper(self, self.forward, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The compiler is asked first: while it traces, this is a constant, and it sees nothing of what follows.
        if self._is_compiling() or not self._open or threading.get_ident() != self.thread:
            return self.forward(*args, **kwargs)
        if not self.gated:
            return self._owner._profiled(self, args, kwargs)
        self._owner._user_gate()
        return self.forward(*args, **kwargs)

    def open(self, *, gated: bool) -> None:
        """Stands in front of the module from now on."""
        self.gated = gated
        if not self._open:
            self._open = True
            vars(self.module)[self._slot] = self

    def close(self) -> None:
        """Puts back what was there. If somebody has replaced or wrapped us meanwhile, we only let calls through."""
        self._open = self.gated = False
        attributes = vars(self.module)
        if attributes.get(self._slot) is self:
            if self._had:
                attributes[self._slot] = self.forward
            else:
                del attributes[self._slot]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module calls itself, not the original, and has no gates."""
        import copy

        twin = memo.get(id(self.module))
        if self._had or twin is None:
            return copy.deepcopy(self.forward, memo)
        return type(self.module).forward.__get__(twin)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled module has no gates, and needs nothing of ours to be loaded."""
        if self._had:
            return operator.itemgetter(0), ((self.forward,),)
        return getattr, (self.module, "forward")  # the instance is still bare then: its class's own


@attrs.define(eq=False)
class _Record:
    """What one module did within one call of a top."""

    door: _Door
    time_ns: int = 0
    calls: int = 0
    children: dict[int, _Record] = attrs.field(factory=dict)

    def child(self, door: _Door) -> _Record:
        found = self.children.get(id(door))
        if found is None:
            found = self.children[id(door)] = _Record(door)
        return found

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
        door.opaque,
    )


def _is_opaque(module: nn.Module) -> bool:
    """Compiled and scripted modules: what they call inside is not ours to stand in front of."""
    import torch

    return (
        isinstance(module, torch.jit.ScriptModule)
        or getattr(module, "_compiled_call_impl", None) is not None
        or "_orig_mod" in module._modules
    )


def _members(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The module and all below it, once each, by path; nothing below an opaque one."""
    seen = {id(module)}
    waiting = deque([(path, module)])
    while waiting:
        path, module = waiting.popleft()
        yield path, module
        for name, child in () if _is_opaque(module) else module.named_children():
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append((f"{path}.{name}", child))
