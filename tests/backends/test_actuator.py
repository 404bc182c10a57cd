"""What is decided is done, in its order; what cannot be done has its reason, and nothing is raised."""

from __future__ import annotations

import pytest

from hasfaas.backends.actuator import Actuator
from hasfaas.node.lanes import Want
from hasfaas.scaling.decision import Action, AddReplica, Decision, DrainReplica, Rebatch, Resize
from tests.fakes.fleet_of_memory import MemoryFleet, record


def decision(*actions: Action) -> Decision:
    return Decision(actions, "a test", 1.0)


@pytest.fixture
def fleet() -> MemoryFleet:
    made = MemoryFleet(record(memory_bytes=2**28))
    made.seat("a")
    return made


def test_every_kind_of_action_is_carried_out_in_order(fleet: MemoryFleet) -> None:
    actions = (
        Resize("a", 12.5, "less suffices"),
        Rebatch("a", 3, "carries most"),
        AddReplica("app.f", "sim0", 4, 30.0, 55.0, 2, "more comes"),
        DrainReplica("a", "replaced"),
    )
    outcomes = Actuator(fleet, lend=False).apply(decision(*actions), 7.0)  # type: ignore[arg-type]
    want = Want(2**28, "sim0", 30.0, 55.0, lane=4)
    assert fleet.told == [("resize", "a", 12.5, False), ("rebatch", "a", 3), ("add", "app.f", want, 2), ("retire", "a")]
    assert [(each.function, each.at_s, each.refused) for each in outcomes] == [("app.f", 7.0, "")] * 4
    assert [each.action for each in outcomes] == list(actions)


def test_replicas_lend_where_functions_share_lanes_unless_an_operator_has_said_otherwise(fleet: MemoryFleet) -> None:
    actions = (Resize("a", 20.0, "less"), AddReplica("app.f", "sim0", 4, 30.0, 55.0, 2, "more comes"))
    Actuator(fleet, lend=True).apply(decision(*actions), 1.0)  # type: ignore[arg-type]
    assert fleet.told[0] == ("resize", "a", 20.0, True)
    assert fleet.told[1][2] == Want(2**28, "sim0", 30.0, 55.0, lend=True, lane=4)


def test_what_cannot_be_done_is_told_and_the_rest_goes_on(fleet: MemoryFleet) -> None:
    gone, much = DrainReplica("gone", "no call"), Resize("a", 140.0, "more")
    outcomes = Actuator(fleet, lend=False).apply(decision(gone, much, Resize("a", 20.0, "less")), 1.0)  # type: ignore[arg-type]
    assert "'gone' has gone" in outcomes[0].refused
    assert "not that much" in outcomes[1].refused
    assert outcomes[2].refused == ""
    assert fleet.told == [("resize", "a", 20.0, False)]


def test_a_start_that_finds_no_room_is_told_when_that_is_known(fleet: MemoryFleet) -> None:
    fleet.full = True
    [outcome] = Actuator(fleet, lend=False).apply(  # type: ignore[arg-type]
        decision(AddReplica("app.f", "sim0", 0, 30.0, 55.0, 2, "more comes")), 1.0
    )
    assert outcome.refused == ""
    for refuse in fleet.late:
        refuse()
    assert outcome.refused == "no room"
