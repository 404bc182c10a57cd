"""Observations and decisions as JSON, one line each, and the replay that must come to the same decisions.

A log is a row of lines, each an object with its `kind`:

    begin     the form of the log, the version of hasfaas, the policy's name and its settings: a policy that remembers
              nothing starts here
    surface   a surface that the lines below name by its `id`; written when it is first used
    prime     an observation of the log before, shown to the policy so that it knows the latest load; not a decision
    tick      an observation, what was decided, and which actions came to nothing

JSON keeps every number to the last bit, so that equal decisions are equal as text. Numbers that JSON lacks are written as
text: "inf", "-inf", "nan". Nothing here opens a file.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.version import VERSION
from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface
from hasfaas.scaling.decision import Action, AddReplica, Decision, DrainReplica, Rebatch, Resize
from hasfaas.scaling.observation import Devices, FixedLanes, Functions, Observation, Replicas
from hasfaas.scaling.policy import Policy

Array = np.ndarray[Any, Any]
FORM = 1
ACTIONS: Mapping[str, type[Action]] = {
    "resize": Resize,
    "rebatch": Rebatch,
    "add": AddReplica,
    "drain": DrainReplica,
}
_NAMES = {cls: name for name, cls in ACTIONS.items()}
# Columns that hold whole numbers or truth values; all others hold floats. An empty list does not tell.
WHOLE = frozenset(
    "arrivals completed late waiting in_flight min_replicas max_replicas memory_bytes batch_max "  # noqa: SIM905
    "function device lane batch life units node type device_type".split()
)
TRUTH = frozenset({"by_hand", "devices"})
# Written only where there are several nodes or types of devices; logs of before do not know them.
SELDOM = frozenset({"node", "type", "device_type"})
_TEXT_COLUMNS = frozenset({"names", "ids", "surfaces"})
# Cells of a matrix, from which on rows that are alike are written once.
MOST_CELLS = 4096


def column(name: str, values: Any) -> Array:
    """A column of an observation with the type that a log gives it back with."""
    kind: type = np.int64 if name in WHOLE else np.bool_ if name in TRUTH else np.float64
    return np.array(values, kind)


# -- writing ----------------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Scribe:
    """Makes the lines of one log. It remembers which surfaces the log has."""

    policy: str
    settings: Mapping[str, Any]
    _numbers: dict[str, tuple[Surface, int]] = attrs.field(factory=dict)
    _count: int = 0

    def begin(self) -> str:
        """The first line."""
        entry = {
            "kind": "begin",
            "form": FORM,
            "version": VERSION,
            "policy": self.policy,
            "settings": dict(self.settings),
        }
        return _line(entry)

    def prime(self, observation: Observation) -> Iterator[str]:
        """The lines of an observation that was shown to the policy only so that it knows the load."""
        yield from self._new_surfaces(observation.functions)
        yield _line({"kind": "prime", "observation": self._observation(observation)})

    def tick(
        self, observation: Observation, decision: Decision, refused: Mapping[int, str] | None = None
    ) -> Iterator[str]:
        """The lines of one decision. `refused` says of actions, by their number, why they came to nothing."""
        yield from self._new_surfaces(observation.functions)
        entry = {
            "kind": "tick",
            "observation": self._observation(observation),
            "decision": decision_to_dict(decision),
            "refused": {str(number): why for number, why in (refused or {}).items()},
        }
        yield _line(entry)

    def _new_surfaces(self, functions: Functions) -> Iterator[str]:
        for name, surface in zip(functions.names, functions.surfaces, strict=True):
            if surface is None:
                self._numbers.pop(name, None)
            elif name not in self._numbers or self._numbers[name][0] is not surface:
                self._count += 1
                self._numbers[name] = (surface, self._count)
                yield _line({"kind": "surface", "id": self._count, "surface": surface.to_dict()})

    def _observation(self, observation: Observation) -> dict[str, Any]:
        functions = _table(observation.functions)
        functions["surfaces"] = [
            None if surface is None else self._numbers[name][1]
            for name, surface in zip(observation.functions.names, observation.functions.surfaces, strict=True)
        ]
        fixed = {"fixed_lanes": _table(observation.fixed_lanes)} if len(observation.fixed_lanes) else {}
        return {
            "now_s": observation.now_s,
            "interval_s": observation.interval_s,
            "functions": functions,
            "replicas": _table(observation.replicas),
            "devices": _table(observation.devices),
            **fixed,
            "timing": attrs.asdict(observation.timing),
        }


def _table(table: Functions | Replicas | Devices | FixedLanes) -> dict[str, Any]:
    return {
        field: list(values) if field in _TEXT_COLUMNS else _rows(values) if field == "devices" else _plain(values)
        for field, values in attrs.asdict(table, recurse=False).items()
        if field not in SELDOM or np.any(values)
    }


def _rows(matrix: Array) -> Any:
    """A matrix as lists. Of a large one each row that differs once, and for every row the number of the one that it is."""
    if matrix.size <= MOST_CELLS:
        return matrix.tolist()
    numbers: dict[bytes, int] = {}
    of = [numbers.setdefault(row.tobytes(), len(numbers)) for row in matrix]
    firsts = [of.index(number) for number in range(len(numbers))]
    return {"rows": matrix[firsts].tolist(), "of": of}


def decision_to_dict(decision: Decision) -> dict[str, Any]:
    """Plain values; `decision_from_dict` gives an equal decision back."""
    return {
        "actions": [{"do": _NAMES[type(action)], **attrs.asdict(action)} for action in decision.actions],
        "reason": decision.reason,
        "next_tick_s": decision.next_tick_s,
        "diagnostics": {name: _plain(np.asarray(values)) for name, values in decision.diagnostics.items()},
    }


def _plain(values: Array) -> Any:
    """An array as lists, with words for the numbers that JSON lacks."""
    found = np.asarray(values).tolist()
    if np.asarray(values).dtype.kind == "f" and not np.all(np.isfinite(values)):
        return _worded(found)
    return found


def _worded(value: Any) -> Any:
    if isinstance(value, list):
        return [_worded(each) for each in value]
    return value if math.isfinite(value) else str(value)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False, separators=(",", ":"), default=_scalar)


def _scalar(value: Any) -> Any:
    """A numpy number as Python's own."""
    return value.item()


# -- reading ----------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Begin:
    """A log starts: which policy, with which settings, of which version of hasfaas (empty where the log does not say)."""

    policy: str
    settings: Mapping[str, Any]
    version: str = ""


@attrs.frozen(eq=False)
class Prime:
    """An observation that was shown to the policy, of which no decision was kept."""

    observation: Observation


@attrs.frozen(eq=False)
class Tick:
    """One decision with what it was made of, and the actions that came to nothing."""

    observation: Observation
    decision: Decision
    refused: Mapping[int, str]


def read(lines: Iterable[str], origin: str = "the log") -> Iterator[tuple[int, Begin | Prime | Tick]]:
    """(line number, entry) for each line but those of surfaces. Raises InvalidRequestError (BAD_LOG) with the line's number
    for what is not JSON, is of another form, lacks a key, or names a surface that was not given."""
    surfaces: dict[int, Surface] = {}
    begun = False
    for number, text in enumerate(lines, 1):
        where = f"{origin}, line {number}"
        if not text.strip():
            continue
        entry = _parsed(text, where)
        kind = entry.get("kind")
        if kind != "begin" and not begun:
            raise _bad(f"{where}: a log starts with a line of the kind begin, this is {kind!r}; give the whole file")
        try:
            match kind:
                case "begin":
                    begun = True
                    yield number, _begin(entry, where)
                case "surface":
                    surfaces[int(entry["id"])] = Surface.from_dict(entry["surface"])
                case "prime":
                    yield number, Prime(_observation(entry["observation"], surfaces))
                case "tick":
                    refused = {int(index): str(why) for index, why in entry["refused"].items()}
                    observation = _observation(entry["observation"], surfaces)
                    yield number, Tick(observation, decision_from_dict(entry["decision"]), refused)
                case _:
                    raise _bad(f"{where}: kind={kind!r} is unknown; known: begin, surface, prime, tick")
        except KeyError as exc:
            raise _bad(f"{where}: a {kind} line lacks {exc}; the log is damaged there") from exc
        except (TypeError, ValueError, AttributeError) as exc:
            if isinstance(exc, InvalidRequestError) and str(exc).startswith(origin):
                raise
            raise _bad(f"{where}: this {kind} line cannot be read: {exc}") from exc


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except ValueError as exc:
        raise _bad(f"{where} is not JSON ({exc}); a line cut short is the mark of a gateway that was killed") from exc
    if not isinstance(entry, dict):
        raise _bad(f"{where} is not an object but {type(entry).__name__}: this is no decision log")
    return entry


def _begin(entry: Mapping[str, Any], where: str) -> Begin:
    if entry["form"] != FORM:
        raise _bad(f"{where}: the log has the form {entry['form']!r}, this version reads {FORM}")
    return Begin(str(entry["policy"]), dict(entry["settings"]), str(entry.get("version", "")))


def _observation(data: Mapping[str, Any], surfaces: Mapping[int, Surface]) -> Observation:
    functions = dict(data["functions"])
    names = tuple(functions["names"])
    functions["surfaces"] = tuple(_surface(number, surfaces) for number in functions["surfaces"])
    # Without devices, JSON cannot tell a table of so many empty rows from an empty one.
    functions["devices"] = _matrix(functions["devices"]).reshape(len(names), len(data["devices"]["ids"]))
    return Observation(
        now_s=float(data["now_s"]),
        interval_s=float(data["interval_s"]),
        functions=Functions(**_columns(functions)),
        replicas=Replicas(**_columns(data["replicas"])),
        devices=Devices(**_columns(data["devices"])),
        timing=Timing(**data["timing"]),
        # Only where lanes were cut in advance, which logs of before do not know.
        fixed_lanes=FixedLanes(**_columns(data.get("fixed_lanes", {}))),
    )


def _matrix(written: Any) -> Array:
    if isinstance(written, dict):
        return np.asarray(column("devices", written["rows"])[column("function", written["of"])])
    return column("devices", written)


def _surface(number: int | None, surfaces: Mapping[int, Surface]) -> Surface | None:
    if number is not None and number not in surfaces:
        raise ValueError(f"no line before it gives the surface {number}")
    return None if number is None else surfaces[number]


def _columns(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if name in _TEXT_COLUMNS else column(name, v) for name, v in table.items()}


def decision_from_dict(data: Mapping[str, Any]) -> Decision:
    """From `decision_to_dict`. KeyError, TypeError and ValueError for what is none."""
    actions = []
    for each in data["actions"]:
        options = dict(each)
        actions.append(ACTIONS[options.pop("do")](**options))
    diagnostics = {name: np.array(_numbers(values)) for name, values in data["diagnostics"].items()}
    return Decision(tuple(actions), str(data["reason"]), float(data["next_tick_s"]), diagnostics)


def _numbers(values: Any) -> Any:
    if isinstance(values, list):
        return [_numbers(each) for each in values]
    return float(values) if values in ("inf", "-inf", "nan") else values


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_LOG")


# -- replay -----------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Difference:
    """Where a fresh policy decided otherwise: the line, both decisions as plain values, and the functions that the columns
    of their diagnostics are about."""

    line: int
    logged: Mapping[str, Any]
    replayed: Mapping[str, Any]
    functions: tuple[str, ...] = ()


@attrs.frozen
class Change:
    """One thing that differs; None on the side that lacks it."""

    what: str
    logged: Any
    replayed: Any


@attrs.frozen
class Replayed:
    """How many decisions were the same, up to the first that was not, and the version that wrote the log."""

    agree: int
    actions: int
    difference: Difference | None = None
    version: str = ""


def replay(lines: Iterable[str], make_policy: Callable[[Begin], Policy], origin: str = "the log") -> Replayed:
    """Shows a log to a fresh policy and compares every decision, to the last bit. Raises InvalidRequestError as `read`,
    and says how many decisions were the same before."""
    policy: Policy | None = None
    agree = actions = 0
    version = ""
    try:
        for number, entry in read(lines, origin):
            if isinstance(entry, Begin):
                policy, version = make_policy(entry), entry.version
                continue
            assert policy is not None, "read begins with a begin line"
            decision = policy.decide(entry.observation)
            if isinstance(entry, Prime):
                continue
            logged, replayed = decision_to_dict(entry.decision), decision_to_dict(decision)
            if _line(logged) != _line(replayed):
                difference = Difference(number, logged, replayed, entry.observation.functions.names)
                return Replayed(agree, actions, difference, version)
            agree += 1
            actions += len(decision.actions)
    except InvalidRequestError as exc:
        if not agree:
            raise
        raise _bad(f"{exc}; decisions before it that are the same: {agree}") from exc
    return Replayed(agree, actions, None, version)


def changes(difference: Difference) -> Sequence[Change]:
    """What differs between the two decisions: actions by their number, columns of the diagnostics by function."""
    logged, replayed = difference.logged, difference.replayed
    pairs = [(key, logged[key], replayed[key]) for key in ("reason", "next_tick_s")]
    actions = itertools.zip_longest(logged["actions"], replayed["actions"])
    pairs += [(f"action {number}", mine, other) for number, (mine, other) in enumerate(actions, 1)]
    mine, other = logged["diagnostics"], replayed["diagnostics"]
    for name in dict.fromkeys([*mine, *other]):
        pairs += _cells(name, mine.get(name), other.get(name), difference.functions)
    return [Change(what, a, b) for what, a, b in pairs if _line({"": a}) != _line({"": b})]


def _cells(name: str, logged: Any, replayed: Any, functions: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """A column of the diagnostics by function, where both are one."""
    if all(isinstance(values, list) and len(values) == len(functions) for values in (logged, replayed)):
        return [(f"{name} of {who}", a, b) for who, a, b in zip(functions, logged, replayed, strict=True)]
    return [(name, logged, replayed)]
