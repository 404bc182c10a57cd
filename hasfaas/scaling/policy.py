"""What every scaler is, ours and those that we compare it with."""

from __future__ import annotations

from typing import Protocol

from hasfaas.scaling.decision import Decision
from hasfaas.scaling.observation import Observation


class Policy(Protocol):
    """Decides for all functions at once. It may remember what it has seen: the same observations from the start on, in the
    same order, give the same decisions. Nothing in it reads a clock or draws at random."""

    def decide(self, observation: Observation) -> Decision:
        """What to do at `observation.now_s`."""
        ...
