"""The order of actions in a decision, who goes first, and what it says of those that found no room."""

from __future__ import annotations

from hasfaas.scaling.baselines.draft import Draft
from hasfaas.scaling.baselines.member import members
from hasfaas.scaling.baselines.slices import Slice
from hasfaas.scaling.decision import DrainReplica, Resize
from hasfaas.scaling.observation import Life
from tests.scaling.baselines.stage import GIB, Function, Replica, Stage

WHOLE = Slice(100.0, 100.0, 4)


def test_quotas_that_shrink_come_before_those_that_grow() -> None:
    stage = Stage([Function()], replicas=[Replica("a", "f", 0, 0, 30.0, 60.0), Replica("b", "f", 1, 0, 30.0, 60.0)])
    observation = stage.observe()
    draft, (crew,) = Draft.of(observation), members(observation)
    assert draft.resize(crew[0], 90.0, "more") == 90.0
    assert draft.resize(crew[1], 20.0, "less") == 20.0
    decision = draft.decision(1.0)
    assert [a.replica_id for a in decision.actions if isinstance(a, Resize)] == ["b", "a"]
    assert decision.reason == "2 actions"


def test_a_quota_grows_as_far_as_its_lane_has_room() -> None:
    stage = Stage([Function()], replicas=[Replica("a", "f", 0, 0, 30.0, 30.0), Replica("b", "f", 0, 0, 30.0, 60.0)])
    observation = stage.observe()
    draft, (crew,) = Draft.of(observation), members(observation)
    assert draft.resize(crew[0], 90.0, "more") == 40.0


def test_those_that_start_go_first_then_the_idlest_then_the_youngest() -> None:
    stage = Stage([Function()], devices=5)
    for number, (life, in_flight, since_s) in enumerate(
        [(Life.READY, 0, 1.0), (Life.READY, 2, 5.0), (Life.READY, 0, 3.0), (Life.STARTING, 3, 0.0)]
    ):
        stage.replicas.append(Replica(f"r{number}", "f", number, 0, 100.0, 100.0, 4, life, since_s, in_flight))
    stage.replicas.append(Replica("gone", "f", 4, 0, 100.0, 100.0, 4, Life.DRAINING))
    observation = stage.observe()
    draft, (crew,) = Draft.of(observation), members(observation)
    draft.scale_to(0, crew, 1, WHOLE, "fewer")
    drained = [a.replica_id for a in draft.decision(1.0).actions if isinstance(a, DrainReplica)]
    assert drained == ["r3", "r2", "r0"]


def test_what_found_no_room_is_counted_and_not_looked_for_again_until_a_quota_changes() -> None:
    stage = Stage([Function()], devices=1, replicas=[Replica("a", "f", 0, 0, 100.0, 60.0)])
    observation = stage.observe()
    draft, (crew,) = Draft.of(observation), members(observation)
    half = Slice(100.0, 50.0, 4)
    assert draft.add(0, half, "one more") is None
    assert draft.add(0, half, "one more") is None
    draft.resize(crew[0], 50.0, "less")
    assert draft.add(0, half, "one more") is not None
    decision = draft.decision(1.0)
    assert decision.reason == "2 actions; no room for 2 of f"
    assert decision.diagnostics["unplaced"].tolist() == [2]


def test_memory_is_room_too() -> None:
    stage = Stage([Function(memory_bytes=9 * GIB)], devices=1)
    draft = Draft.of(stage.observe())
    assert draft.add(0, Slice(10.0, 10.0, 1), "first") is not None
    assert draft.add(0, Slice(10.0, 10.0, 1), "second") is None
