"""Observations and decisions survive their way through text; a log that is damaged says where."""

from __future__ import annotations

import json
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.version import VERSION
from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface
from hasfaas.scaling import journal
from hasfaas.scaling.decision import Action, AddReplica, Decision, DrainReplica, Rebatch, Resize
from hasfaas.scaling.journal import Begin, Change, Prime, Scribe, Tick, column
from hasfaas.scaling.observation import Devices, Functions, Observation, Replicas
from hasfaas.scaling.policy import Policy

SURFACE = Surface((1, 2), (50.0, 100.0), [[4.0, 2.0], [7.0, 3.5]], [[0.1, 0.1], [0.2, 0.1]])
numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True).map(tuple)


def columns_of(table: type[attrs.AttrsInstance], rows: int, value: float) -> dict[str, Any]:
    """Every column of a table, all rows alike."""
    fields = [f.name for f in attrs.fields(table) if f.name not in ("names", "ids", "surfaces", "devices")]
    return {name: column(name, [value] * rows) for name in fields}


def observation(
    functions: tuple[str, ...] = ("f",),
    replicas: int = 1,
    devices: int = 1,
    value: float = 1.0,
    surface: Surface | None = SURFACE,
    now_s: float = 5.0,
) -> Observation:
    """Columns that hold one value; replicas are those of the first function on the first device."""
    rows = columns_of(Replicas, replicas, value)
    rows |= {"function": column("function", [0] * replicas), "device": column("device", [0] * replicas)}
    return Observation(
        now_s,
        1.0,
        Functions(
            names=functions,
            surfaces=(surface,) * len(functions),
            **columns_of(Functions, len(functions), value),
            devices=column("devices", [[True] * devices] * len(functions)).reshape(len(functions), devices),
        ),
        Replicas(ids=tuple(f"r{n}" for n in range(replicas)), **rows),
        Devices(tuple(f"d{n}" for n in range(devices)), **columns_of(Devices, devices, value)),
        Timing(50_000_000, 5_000_000),
    )


def same(a: Observation, b: Observation) -> bool:
    """Whether two observations are equal to the last bit, types of columns included."""
    tables: list[tuple[Any, Any]] = [(a.functions, b.functions), (a.replicas, b.replicas), (a.devices, b.devices)]
    for mine, yours in tables:
        for name, values in attrs.asdict(mine, recurse=False).items():
            others = getattr(yours, name)
            if name == "surfaces":
                equal = [None if s is None else s.to_dict() for s in values] == [
                    None if s is None else s.to_dict() for s in others
                ]
            elif isinstance(values, tuple):
                equal = values == others
            else:
                equal = values.dtype == others.dtype and values.shape == others.shape and np.array_equal(values, others)
            if not equal:
                return False
    return (a.now_s, a.interval_s, a.timing) == (b.now_s, b.interval_s, b.timing)


actions = st.one_of(
    st.builds(Resize, st.text(), numbers, st.just("why")),
    st.builds(Rebatch, st.text(), st.integers(1, 64), st.just("why")),
    st.builds(AddReplica, st.text(), st.text(), st.integers(0, 7), numbers, numbers, st.integers(1, 9), st.just("why")),
    st.builds(DrainReplica, st.text(), st.just("why")),
)


@settings(max_examples=60, deadline=None)
@given(names, st.integers(0, 3), st.integers(1, 3), numbers, st.lists(actions, max_size=4), st.booleans())
def test_what_is_written_is_read_again_to_the_last_bit(
    functions: tuple[str, ...], replicas: int, devices: int, value: float, done: list[Action], profiled: bool
) -> None:
    whole = abs(value) % 2**40
    before = observation(functions, replicas, devices, whole, SURFACE if profiled else None)
    diagnostics = {"a": np.array([value] * len(functions)), "b": np.array([np.inf, -np.inf, np.nan])}
    decided = Decision(tuple(done), "because", value, diagnostics)
    scribe = Scribe("p", {"x": 1.5, "y": None, "z": (1.0, 2.0)})
    lines = [scribe.begin(), *scribe.tick(before, decided, {0: "no room"})]
    for line in lines:
        json.loads(line, parse_constant=refuse)  # plain JSON: no NaN, no Infinity
    [(_, begin), (number, tick)] = journal.read(lines)
    assert begin == Begin("p", {"x": 1.5, "y": None, "z": [1.0, 2.0]}, VERSION)
    assert isinstance(tick, Tick)
    assert number == len(lines)
    assert same(tick.observation, before)
    assert tick.refused == {0: "no room"}
    after = tick.decision
    assert (after.actions, after.reason, after.next_tick_s) == (decided.actions, "because", value)
    assert all(np.array_equal(after.diagnostics[k], v, equal_nan=True) for k, v in diagnostics.items())


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_a_surface_is_written_once_and_again_when_it_changes() -> None:
    scribe = Scribe("p", {})
    nothing = Decision((), "steady", 6.0)
    other = Surface((1, 2), (50.0, 100.0), [[5.0, 2.0], [7.0, 3.5]], [[0.1, 0.1], [0.2, 0.1]])
    steps = [SURFACE, SURFACE, other, None, other]
    kinds = [
        [json.loads(line)["kind"] for line in scribe.tick(observation(surface=surface), nothing)] for surface in steps
    ]
    assert kinds == [["surface", "tick"], ["tick"], ["surface", "tick"], ["tick"], ["surface", "tick"]]


def test_the_same_surface_is_the_same_object_in_a_replay() -> None:
    scribe = Scribe("p", {})
    nothing = Decision((), "steady", 6.0)
    lines = [scribe.begin(), *scribe.tick(observation(), nothing), *scribe.tick(observation(), nothing)]
    _, (_, first), (_, second) = journal.read(lines)
    assert isinstance(first, Tick) and isinstance(second, Tick)
    assert first.observation.functions.surfaces[0] is second.observation.functions.surfaces[0]


@attrs.define
class Counting:
    """Says how many observations it has seen; `off` makes it count wrong from then on."""

    off: int = 10**9
    seen: int = 0

    def decide(self, observation: Observation) -> Decision:
        self.seen += 1
        return Decision((), f"number {self.seen + (self.seen > self.off)}", observation.now_s + 1.0)


def log_of(ticks: int, primes: int = 0) -> list[str]:
    scribe, policy = Scribe("counting", {}), Counting()
    lines = [scribe.begin()]
    for number in range(primes):
        seen = observation(now_s=float(number))
        lines += scribe.prime(seen)
        policy.decide(seen)
    for number in range(primes, primes + ticks):
        seen = observation(now_s=float(number))
        lines += scribe.tick(seen, policy.decide(seen))
    return lines


def test_a_fresh_policy_comes_to_the_same_decisions() -> None:
    found = journal.replay(log_of(5, primes=2), lambda begin: Counting())
    assert (found.agree, found.difference) == (5, None)
    assert any(isinstance(entry, Prime) for _, entry in journal.read(log_of(1, primes=1)))


def test_the_first_difference_is_shown_with_its_line() -> None:
    lines = log_of(5)

    def another(begin: Begin) -> Policy:
        assert begin.policy == "counting"
        return Counting(off=3)

    found = journal.replay(lines, another)
    assert found.agree == 3
    assert found.difference is not None
    assert json.loads(lines[found.difference.line - 1])["decision"] == found.difference.logged
    assert (found.difference.logged["reason"], found.difference.replayed["reason"]) == ("number 4", "number 5")
    assert journal.changes(found.difference) == [Change("reason", "number 4", "number 5")]
    assert found.version == VERSION


def test_changes_name_the_column_and_the_function() -> None:
    logged = journal.decision_to_dict(
        Decision((Resize("r0", 5.0, "w"),), "same", 6.0, {"a": np.array([1.0, 2.0]), "b": np.array([0.0, np.inf])})
    )
    replayed = journal.decision_to_dict(Decision((), "same", 6.0, {"a": np.array([1.0, 3.0]), "c": np.array([1.0])}))
    found = journal.changes(journal.Difference(3, logged, replayed, ("f", "g")))
    assert found == [
        Change("action 1", logged["actions"][0], None),
        Change("a of g", 2.0, 3.0),
        Change("b", [0.0, "inf"], None),
        Change("c", None, [1.0]),
    ]


def test_a_log_cut_short_says_how_many_decisions_agreed_before() -> None:
    lines = log_of(3)
    lines[-1] = lines[-1][:40]
    with pytest.raises(InvalidRequestError, match=r"cut short.*before it that are the same: 2"):
        journal.replay(lines, lambda begin: Counting())


def test_a_log_without_a_version_is_read() -> None:
    entry = json.loads(GOOD[0])
    del entry["version"]
    [(_, begin)] = journal.read([json.dumps(entry)])
    assert begin == Begin("counting", {}, "")


def test_a_log_may_hold_several_beginnings() -> None:
    found = journal.replay([*log_of(3), *log_of(2)], lambda begin: Counting())
    assert (found.agree, found.difference) == (5, None)


GOOD = log_of(2)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (3, "{", "line 3 is not JSON.*cut short"),
        (3, "[1]", "line 3 is not an object but list"),
        (1, GOOD[1], "line 1: a log starts with a line of the kind begin, this is 'surface'"),
        (1, GOOD[0].replace('"form":1', '"form":9'), "line 1: the log has the form 9, this version reads 1"),
        (2, '{"kind":"picture"}', "line 2: kind='picture' is unknown; known: begin"),
        (3, '{"kind":"tick"}', "line 3: a tick line lacks 'refused'"),
        (2, '{"kind":"surface","id":1,"surface":{}}', "line 2: this surface line cannot be read"),
        (
            3,
            GOOD[2].replace('"surfaces":[1]', '"surfaces":[7]'),
            "line 3: this tick line cannot be read: no line before it gives the surface 7",
        ),
        (3, GOOD[2].replace('"names":["f"]', '"names":["f","g"]'), "line 3: this tick line cannot be read"),
        (3, GOOD[2].replace('"arrivals":[1]', '"arrivals":["x"]'), "line 3: this tick line cannot be read"),
        (3, GOOD[2].replace('"actions":[]', '"actions":[{"do":"dance"}]'), "line 3: a tick line lacks 'dance'"),
        (3, GOOD[2].replace('"actions":[]', '"actions":[{"do":"drain"}]'), "line 3: this tick line cannot be read"),
    ],
)
def test_a_damaged_log_says_where(line: int, text: str, message: str) -> None:
    lines = [*GOOD]
    assert lines[line - 1] != text, "the damage is none"
    lines[line - 1] = text
    with pytest.raises(InvalidRequestError, match=message) as caught:
        list(journal.read(lines, "x.jsonl"))
    assert caught.value.reason == "BAD_LOG"
    assert str(caught.value).startswith("x.jsonl, line")


def test_empty_lines_count_and_are_nothing_else() -> None:
    assert len(list(journal.read([GOOD[0], "", *GOOD[1:], "\n"]))) == 3


def test_one_node_and_one_type_are_not_written_and_logs_without_them_are_read() -> None:
    def log(seen: Observation) -> list[str]:
        scribe = Scribe("p", {})
        return [scribe.begin(), *scribe.tick(seen, Decision((), "steady", 6.0))]

    seen = observation(devices=2)
    one = attrs.evolve(
        seen,
        devices=attrs.evolve(seen.devices, node=np.zeros(2, np.int64), type=np.zeros(2, np.int64)),
        functions=attrs.evolve(seen.functions, device_type=np.zeros(1, np.int64)),
    )
    several = attrs.evolve(one, devices=attrs.evolve(one.devices, node=np.array([0, 1]), type=np.array([1, 0])))
    assert not any(key in log(one)[-1] for key in ('"node"', '"type"', '"device_type"'))
    assert '"node":[0,1]' in log(several)[-1] and '"type":[1,0]' in log(several)[-1]
    for each in (one, several):
        (tick,) = [entry for _, entry in journal.read(log(each)) if isinstance(entry, Tick)]
        assert same(tick.observation, each)


def test_rows_of_a_large_cluster_that_are_alike_are_written_once() -> None:
    seen = observation(tuple(f"f{n}" for n in range(60)), devices=100)
    mask = seen.functions.devices.copy()
    mask[1::2, :50] = False
    seen = attrs.evolve(seen, functions=attrs.evolve(seen.functions, devices=mask))
    scribe = Scribe("p", {})
    lines = [scribe.begin(), *scribe.tick(seen, Decision((), "because", 6.0))]
    # As lists it would be four letters a cell at least.
    assert len(lines[-1]) < 2 * mask.size
    [_, (_, tick)] = journal.read(lines)
    assert isinstance(tick, Tick) and same(tick.observation, seen)
