from __future__ import annotations

import itertools

import pytest

from hasfaas.core.state import LEGAL, ReplicaState, move

MOVES = tuple(itertools.product(ReplicaState, ReplicaState))


@pytest.mark.parametrize(("current", "to"), MOVES, ids=lambda state: state.value)
def test_only_what_the_table_allows_moves(current: ReplicaState, to: ReplicaState) -> None:
    if to in LEGAL[current]:
        assert move(current, to) is to
    else:
        with pytest.raises(AssertionError, match=f"from {current.value} to {to.value}"):
            move(current, to)


def test_the_table_speaks_of_every_state() -> None:
    assert set(LEGAL) == set(ReplicaState)


def test_every_life_ends_and_none_turns_back() -> None:
    """The moves have an order, so no state is entered twice, and ENDED is where all of them lead."""

    def lives(state: ReplicaState, path: tuple[ReplicaState, ...]) -> list[tuple[ReplicaState, ...]]:
        assert state not in path, "a state is entered twice"
        path = (*path, state)
        return [life for to in LEGAL[state] for life in lives(to, path)] or [path]

    assert {life[-1] for life in lives(ReplicaState.STARTING, ())} == {ReplicaState.ENDED}


def test_what_drains_or_has_failed_never_serves_again() -> None:
    assert ReplicaState.READY not in LEGAL[ReplicaState.DRAINING] | LEGAL[ReplicaState.FAILED]


def test_a_replica_can_end_in_whatever_state_it_is() -> None:
    assert all(ReplicaState.ENDED in LEGAL[state] for state in ReplicaState if state is not ReplicaState.ENDED)
