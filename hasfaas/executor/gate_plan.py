"""Where the gates of a model go: the calibrated placement rule, over measured times.

A model is cut into units in call order, and a gate is put before a unit where the time since the last gate
would pass the target. Nothing here reads a clock or knows what a module is.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

# A group of units that runs again and again is followed this often: the second time round places a first gate
# at the latest, the third one sees what the second left at its end, and from then on nothing changes.
_ROUNDS = 3


@attrs.frozen
class Node:
    """One module as it was called, with the modules that it called, in call order.

    `time_ns` is one call, all that it contains included. `calls` is how often it runs within one call of its
    parent. `opaque` modules (compiled, scripted) are never looked into.
    """

    path: str
    time_ns: int
    calls: int = 1
    children: tuple[Node, ...] = ()
    opaque: bool = False


@attrs.frozen
class Plan:
    """The modules that get a gate in front, and the longest time between two gates by the measured times."""

    gates: tuple[str, ...]
    max_distance_ns: int


def place(root: Node, target_ns: int) -> tuple[str, ...]:
    """The paths of the modules that get a gate, in call order."""
    return plan(root, target_ns).gates


def units(root: Node, target_ns: int) -> tuple[Node, ...]:
    """The units of one call, in call order."""
    return tuple(_units(root, target_ns, rounds=1))


def plan(root: Node, target_ns: int) -> Plan:
    """Sums the units in order; a gate goes before a unit when the sum plus that unit would pass the target.

    There is none before the very first unit: whoever starts the call has a gate of its own there. A unit that
    runs several times in a row is one summand, and each of its runs passes its gate.
    """
    gates: dict[str, None] = {}
    since_ns = longest_ns = 0
    for unit in _units(root, target_ns, rounds=_ROUNDS):
        all_ns = unit.time_ns * unit.calls
        apart = since_ns > 0 or unit.calls > 1
        if unit.path in gates or (apart and since_ns + all_ns > target_ns):
            gates[unit.path] = None
            since_ns = unit.time_ns
        else:
            since_ns += all_ns
        longest_ns = max(longest_ns, since_ns)
    return Plan(tuple(gates), longest_ns)


def is_unit(node: Node, target_ns: int) -> bool:
    """Whether no gate goes inside: short enough, no way in, or mostly one fused operation of its own."""
    if node.opaque or not node.children or node.time_ns <= target_ns:
        return True
    explained_ns = sum(child.time_ns * child.calls for child in node.children)
    return 2 * explained_ns < node.time_ns


def _units(node: Node, target_ns: int, *, rounds: int) -> Iterator[Node]:
    if is_unit(node, target_ns):
        yield node
        return
    for _ in range(min(node.calls, rounds)):
        for child in node.children:
            yield from _units(child, target_ns, rounds=rounds)
