"""The nodes of a cluster as its control actor sees them: who has an agent, who should, and what the gateway is told.

Pure. A node goes by its name, and a second one of that name by another: its devices are named after it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from hasfaas.backends.cluster.child import NodeAddress, Nodes, Place
from hasfaas.backends.cluster.reservation import RayNode, Reservation

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 15.0


class Phase(enum.Enum):
    """How it is with a node's agent."""

    STARTING = "starting"
    READY = "ready"
    REFUSED = "refused"  # it says why, and tries again
    LOST = "lost"  # its actor does not answer or died, and comes again unless the node is gone too


@attrs.frozen
class Member:
    """A node that has an agent or should have one. `pid` is its actor's process, `child_pid` the
    agent's; `why` says what keeps it from being ready."""

    place: Place
    reservation: Reservation
    phase: Phase = Phase.STARTING
    port: int = 0
    pid: int = 0
    child_pid: int = 0
    why: str = ""


@attrs.frozen
class Wanted:
    """An agent that is to be started."""

    place: Place
    reservation: Reservation


def wanted(
    nodes: Iterable[RayNode], members: Mapping[str, Member], needs: Callable[[RayNode], Reservation | None]
) -> tuple[Wanted, ...]:
    """The living nodes that come to something and have no agent yet, in the order of their names."""
    names = {member.place.name for member in members.values() if member.phase is not Phase.LOST}
    found = []
    for node in sorted(nodes, key=lambda node: (node.name, node.node_id)):
        name = free_name(node.name, names)
        needed = None if node.node_id in members else needs(attrs.evolve(node, name=name))
        if needed is None:
            continue
        names.add(name)
        found.append(Wanted(Place(node.node_id, name, node.host), needed))
    return tuple(found)


def gone(nodes: Iterable[RayNode], members: Iterable[str]) -> tuple[str, ...]:
    """Those of the members whose node lives no more."""
    living = {node.node_id for node in nodes}
    return tuple(node_id for node_id in members if node_id not in living)


def free_name(name: str, taken: Iterable[str]) -> str:
    """The name, with a number after it if another node has it."""
    others = set(taken)
    return next(one for one in (name, *(f"{name}-{n}" for n in range(2, len(others) + 3))) if one not in others)


def line(members: Iterable[Member]) -> Nodes:
    """What the gateway is told of them: those that listen, as far as is known. It gives up a node that is not named any more,
    and that Ray's line to an actor broke is no reason to: whether an agent lives, the gateway sees by its own line to it."""
    named: dict[str, Member] = {}
    for member in members:
        # A lost one whose name another has taken is a raylet that was started anew.
        if member.port and (member.phase is not Phase.LOST or member.place.name not in named):
            named[member.place.name] = member
    return Nodes(tuple(NodeAddress(named[name].place, named[name].port) for name in sorted(named)))


def hosts(nodes: Iterable[RayNode], first: str) -> tuple[str, ...]:
    """Where a gateway may be, each once, with the host where it is now before the others."""
    return tuple(dict.fromkeys([*([first] if first else []), *sorted(node.host for node in nodes)]))


def bundles(asked: Sequence[Mapping[str, float]], members: Iterable[Member]) -> tuple[Mapping[str, float], ...]:
    """What Ray's autoscaler is asked for. It counts what a cluster has in all, so what the agents have taken belongs to it: a
    request for one GPU more would otherwise be met by those that are taken. Nothing once the gateway asks for nothing."""
    if not asked:
        return ()
    taken = [member.reservation.bundle for member in members]
    return (*(bundle for bundle in taken if bundle), *asked)


def delay_s(failures: int) -> float:
    """How long to wait before the next try after so many that failed."""
    return float(min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(failures, 10)))
