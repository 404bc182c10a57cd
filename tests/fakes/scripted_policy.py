"""A policy that does what it was told when it was told, and remembers what it saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from hasfaas.scaling.decision import Action, AddReplica, Decision
from hasfaas.scaling.observation import Observation


@attrs.define
class ScriptedPolicy:
    """`script` has the actions of the first tick at or after each instant."""

    script: Mapping[float, Sequence[Action]] = attrs.field(factory=dict)
    tick_s: float = 1.0
    seen: list[Observation] = attrs.field(factory=list)

    def decide(self, observation: Observation) -> Decision:
        """The actions that are due."""
        last_s = self.seen[-1].now_s if self.seen else -1.0
        self.seen.append(observation)
        due = [a for at_s, actions in self.script.items() if last_s < at_s <= observation.now_s for a in actions]
        return Decision(tuple(due), "as scripted", observation.now_s + self.tick_s)


def add(
    function: str = "f", device: str = "d0", lane: int = 0, sm: float = 100.0, quota: float = 100.0, batch: int = 8
) -> AddReplica:
    """A replica, on the whole device if nothing else is said."""
    return AddReplica(function, device, lane, sm, quota, batch, "a test")
