"""The nodes as the control actor sees them: who gets an agent and under which name, and what the gateway and Ray are told."""

from __future__ import annotations

import attrs

from hasfaas.backends.cluster import members as book
from hasfaas.backends.cluster.child import NodeAddress, Nodes, Place
from hasfaas.backends.cluster.members import Member, Phase
from hasfaas.backends.cluster.reservation import RayNode, Reservation

ONE = RayNode("id1", "gpu1", "10.0.0.1", gpus=2)
TWO = RayNode("id2", "gpu2", "10.0.0.2", gpus=1)
HEAD = RayNode("id0", "head", "10.0.0.9")


def _needs(node: RayNode) -> Reservation | None:
    return Reservation(gpus=node.gpus) if node.gpus else None


def _member(node: RayNode, phase: Phase = Phase.READY, port: int = 0) -> Member:
    return Member(Place(node.node_id, node.name, node.host), Reservation(gpus=node.gpus), phase, port)


def test_nodes_with_devices_get_an_agent_once() -> None:
    found = book.wanted([TWO, HEAD, ONE], {}, _needs)
    assert [(one.place.name, one.reservation.gpus) for one in found] == [("gpu1", 2), ("gpu2", 1)]
    assert [one.place for one in book.wanted([ONE, TWO], {"id1": _member(ONE)}, _needs)] == [
        Place("id2", "gpu2", "10.0.0.2")
    ]


def test_a_second_node_of_a_name_gets_another() -> None:
    twin = attrs.evolve(ONE, node_id="id3")
    third = attrs.evolve(ONE, node_id="id4")
    found = book.wanted([ONE, third, twin], {}, _needs)
    assert [(one.place.node_id, one.place.name) for one in found] == [
        ("id1", "gpu1"),
        ("id3", "gpu1-2"),
        ("id4", "gpu1-3"),
    ]


def test_a_node_that_came_back_has_its_name_though_ray_has_not_missed_the_old_one() -> None:
    again = attrs.evolve(ONE, node_id="id3")
    (found,) = book.wanted([ONE, again], {"id1": _member(ONE, Phase.LOST)}, _needs)
    assert found.place.name == "gpu1"
    (found,) = book.wanted([ONE, again], {"id1": _member(ONE)}, _needs)
    assert found.place.name == "gpu1-2"


def test_what_a_node_needs_is_asked_by_the_name_it_gets() -> None:
    twin = attrs.evolve(ONE, node_id="id3")
    found = book.wanted([ONE, twin], {}, lambda node: Reservation() if node.name == "gpu1-2" else None)
    assert found == ()
    found = book.wanted([twin], {"id1": _member(ONE)}, lambda node: Reservation() if node.name == "gpu1-2" else None)
    assert [one.place.name for one in found] == ["gpu1-2"]


def test_members_whose_node_is_gone() -> None:
    assert book.gone([TWO], ["id1", "id2"]) == ("id1",)


def test_the_gateway_is_told_of_those_that_listen() -> None:
    """Also of one whose actor Ray has lost sight of: what is not named is given up with its replicas."""
    members = [_member(TWO, Phase.LOST, port=2), _member(HEAD, Phase.STARTING), _member(ONE, port=1)]
    assert book.line(members) == Nodes(
        (NodeAddress(Place("id1", "gpu1", "10.0.0.1"), 1), NodeAddress(Place("id2", "gpu2", "10.0.0.2"), 2))
    )


def test_of_two_with_one_name_the_gateway_is_told_of_the_one_that_answers() -> None:
    old, new = _member(ONE, Phase.LOST, port=1), _member(attrs.evolve(ONE, node_id="id3"), port=3)
    expected = Nodes((NodeAddress(Place("id3", "gpu1", "10.0.0.1"), 3),))
    assert book.line([old, new]) == book.line([new, old]) == expected


def test_hosts_begin_with_the_gateways() -> None:
    assert book.hosts([ONE, HEAD, TWO, attrs.evolve(ONE, node_id="x")], "10.0.0.2") == (
        "10.0.0.2",
        "10.0.0.1",
        "10.0.0.9",
    )
    assert book.hosts([ONE], "10.0.0.7") == ("10.0.0.7", "10.0.0.1")


def test_the_autoscaler_is_asked_for_what_is_taken_and_what_is_missing() -> None:
    """It compares a request with what the cluster has in all, and our agents hold that."""
    members = [_member(ONE), _member(TWO), _member(HEAD)]
    assert book.bundles(({"GPU": 1},), members) == ({"GPU": 2}, {"GPU": 1}, {"GPU": 1})
    assert book.bundles((), members) == ()


def test_delays_grow_to_a_limit() -> None:
    delays = [book.delay_s(failures) for failures in range(12)]
    assert delays == sorted(delays)
    assert delays[0] == book.FIRST_DELAY_S < delays[1]
    assert delays[-1] == book.LONGEST_DELAY_S == book.delay_s(10**6)
