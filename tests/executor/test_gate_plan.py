"""The placement rule: what is a unit, where gates go, and how far apart they can be."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.executor.gate_plan import Node, is_unit, place, plan, units


def leaf(path: str, time_ns: int, calls: int = 1) -> Node:
    return Node(path, time_ns, calls)


def paths(nodes: tuple[Node, ...]) -> list[str]:
    return [node.path for node in nodes]


def test_a_short_module_is_one_unit_and_gets_no_gate() -> None:
    root = Node("m", 100, 1, (leaf("m.a", 40), leaf("m.b", 60)))
    assert units(root, 100) == (root,)
    assert plan(root, 100).gates == () and plan(root, 100).max_distance_ns == 100


def test_a_long_module_without_called_children_is_one_unit() -> None:
    assert place(leaf("m", 900), 100) == ()
    assert plan(leaf("m", 900), 100).max_distance_ns == 900


def test_a_fused_module_is_one_unit() -> None:
    """Its children explain less than half of its time: most of the work is its own."""
    assert paths(units(Node("m", 1000, 1, (leaf("m.a", 499),)), 100)) == ["m"]
    assert paths(units(Node("m", 1000, 1, (leaf("m.a", 500),)), 100)) == ["m.a"]
    # Calls count: ten calls of 60 explain 600.
    assert paths(units(Node("m", 1000, 1, (leaf("m.a", 60, 10),)), 100)) == ["m.a"]


def test_an_opaque_module_is_not_descended() -> None:
    root = Node("m", 1000, 1, (leaf("m.a", 500), leaf("m.b", 500)), opaque=True)
    assert is_unit(root, 100) and place(root, 100) == ()


def test_units_come_in_call_order_and_gates_before_the_sum_would_pass_the_target() -> None:
    block = Node("m.b", 150, 1, (leaf("m.b.x", 90), leaf("m.b.y", 60)))
    root = Node("m", 400, 1, (leaf("m.a", 60), leaf("m.c", 40), block, leaf("m.d", 30), leaf("m.e", 30)))
    assert paths(units(root, 100)) == ["m.a", "m.c", "m.b.x", "m.b.y", "m.d", "m.e"]
    # 60+40 | 90 | 60+30 | 30
    assert place(root, 100) == ("m.b.x", "m.b.y", "m.e")
    assert plan(root, 100).max_distance_ns == 100


def test_no_gate_before_the_first_unit_however_long() -> None:
    """Four layers above the target take three gates."""
    layers = tuple(leaf(f"m.{i}", 330) for i in range(4))
    result = plan(Node("m", 1320, 1, layers), 100)
    assert result.gates == ("m.1", "m.2", "m.3") and result.max_distance_ns == 330


def test_a_module_that_runs_often_in_a_row_is_gated_before_each_run() -> None:
    root = Node("m", 1000, 1, (leaf("m.step", 80, 12),))
    result = plan(root, 100)
    assert result.gates == ("m.step",) and result.max_distance_ns == 80
    # Often but short in all: one summand.
    root = Node("m", 120, 1, (leaf("m.a", 5, 10), leaf("m.b", 60)))
    assert place(root, 100) == ("m.b",)


def test_the_end_of_one_round_counts_into_the_next() -> None:
    """A block of 60 + 30 that runs again and again needs a gate that one round does not show."""
    block = Node("m.block", 110, 5, (leaf("m.block.a", 60), leaf("m.block.b", 30)))
    result = plan(Node("m", 600, 1, (block,)), 100)
    assert result.gates == ("m.block.a",) and result.max_distance_ns == 90
    once = Node("m", 120, 1, (Node("m.block", 110, 1, block.children),))
    assert place(once, 100) == ()


def test_a_module_that_two_parents_call_is_gated_in_both_places() -> None:
    shared = leaf("m.s", 50)
    first = Node("m.p", 140, 1, (leaf("m.p.a", 90), shared))
    second = Node("m.q", 140, 1, (leaf("m.q.a", 40), shared, leaf("m.q.b", 55)))
    # 90 | s | 40: s is gated because of the first parent, so the second passes that gate too.
    result = plan(Node("m", 280, 1, (first, second)), 100)
    assert result.gates == ("m.s", "m.q.b")
    assert result.max_distance_ns == 90


# -- invariants

TIMES = st.integers(0, 400)


def trees(prefix: str = "m", depth: int = 3) -> st.SearchStrategy[Node]:
    if depth == 0:
        return st.builds(Node, st.just(prefix), TIMES, st.integers(1, 4))
    children = st.integers(0, 3).flatmap(lambda n: st.tuples(*(trees(f"{prefix}.{i}", depth - 1) for i in range(n))))

    def build(calls: int, own_ns: int, inner: tuple[Node, ...], opaque: bool) -> Node:
        return Node(prefix, own_ns + sum(c.time_ns * c.calls for c in inner), calls, inner, opaque)

    return st.builds(build, st.integers(1, 4), TIMES, children, st.booleans())


def run(node: Node, target_ns: int) -> list[tuple[str, int]]:
    """What really happens in one call: each unit, as often as it runs, in order."""
    if is_unit(node, target_ns):
        return [(node.path, node.time_ns)]
    return [step for child in node.children for _ in range(child.calls) for step in run(child, target_ns)]


@settings(max_examples=200, deadline=None)
@given(trees(), st.integers(1, 500))
def test_no_stretch_between_gates_is_longer_than_planned(root: Node, target_ns: int) -> None:
    result = plan(root, target_ns)
    since = longest = 0
    longest_unit = 0
    for path, time_ns in run(root, target_ns):
        since = time_ns if path in result.gates else since + time_ns
        longest = max(longest, since)
        longest_unit = max(longest_unit, time_ns)
    assert longest <= result.max_distance_ns
    assert result.max_distance_ns <= max(target_ns, longest_unit)


@given(trees(), st.integers(1, 500))
def test_gates_are_units_and_none_is_named_twice(root: Node, target_ns: int) -> None:
    gates = place(root, target_ns)
    assert len(set(gates)) == len(gates)
    assert set(gates) <= set(paths(units(root, target_ns)))


@given(trees())
def test_a_target_beyond_the_whole_needs_no_gates(root: Node) -> None:
    assert place(root, root.time_ns * root.calls) == ()
