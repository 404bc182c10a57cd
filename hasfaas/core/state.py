"""The life of a replica, as one table of legal moves."""

from __future__ import annotations

import enum


class ReplicaState(enum.Enum):
    """STARTING: forked, loading. READY: serves. DRAINING: finishes what it has. FAILED: its start raised. ENDED: gone."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    ENDED = "ended"


_S = ReplicaState
LEGAL: dict[ReplicaState, frozenset[ReplicaState]] = {
    _S.STARTING: frozenset({_S.READY, _S.FAILED, _S.DRAINING, _S.ENDED}),
    _S.READY: frozenset({_S.DRAINING, _S.ENDED}),
    _S.DRAINING: frozenset({_S.ENDED}),
    _S.FAILED: frozenset({_S.ENDED}),
    _S.ENDED: frozenset(),
}


def move(current: ReplicaState, to: ReplicaState) -> ReplicaState:
    """The next state. An illegal move is a bug of ours, so it is an assertion, with both states in its text."""
    assert to in LEGAL[current], f"a replica cannot go from {current.value} to {to.value}"
    return to
