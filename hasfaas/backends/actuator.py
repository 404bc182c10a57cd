"""Carries out what a scaler decided. What cannot be done is kept with its reason, and nothing is raised."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

import attrs

from hasfaas.core.errors import HasFaasError
from hasfaas.node.lanes import Want
from hasfaas.scaling.decision import Action, AddReplica, Decision, DrainReplica, Rebatch, Resize
from hasfaas.serving.ports import FunctionRecord

if TYPE_CHECKING:
    from hasfaas.backends.fleet import Fleet

# How often it is looked whether a quota is in force.
POLL_S = 0.005
log = logging.getLogger("hasfaas.scaling")


@attrs.define(eq=False)
class Outcome:
    """One action of the tick at `at_s`, and why it came to nothing, empty while nothing says so: a start is only known to
    have failed some time after. `in_force_ms` is how long after the tick a quota was acted on, None while it was not."""

    function: str
    action: Action
    at_s: float
    refused: str = ""
    in_force_ms: float | None = None

    def refuse(self, why: str) -> None:
        """It came to nothing."""
        self.refused = why
        log.warning("%s: %s came to nothing: %s", self.function, type(self.action).__name__, why)


class Actuator:
    """Acts on one fleet. With `lend` replicas lend the idle time of their lanes, unless an operator has said otherwise."""

    def __init__(self, fleet: Fleet, *, lend: bool) -> None:
        self._fleet = fleet
        self._lend = lend

    def apply(self, decision: Decision, now_s: float) -> list[Outcome]:
        """Each action of a decision in its order, with what came of it; starts and drains go on after this returns."""
        return [self._outcome(action, now_s) for action in decision.actions]

    async def in_force(self, outcomes: Sequence[Outcome]) -> None:
        """Waits until replicas have acted on their new quotas, and notes when. One that has nothing to run does so at once;
        one that never does is given up after a second."""
        open_ = [outcome for outcome in outcomes if isinstance(outcome.action, Resize) and not outcome.refused]
        give_up_s = time.monotonic() + 1.0
        while open_ and time.monotonic() < give_up_s:
            for outcome in [o for o in open_ if self._acted_on(o.action)]:
                outcome.in_force_ms = (time.monotonic() - outcome.at_s) * 1000.0
                open_.remove(outcome)
            await asyncio.sleep(POLL_S)

    def _acted_on(self, action: Action) -> bool:
        return isinstance(action, Resize) and self._fleet.nodes.in_force(action.replica_id)

    def _outcome(self, action: Action, now_s: float) -> Outcome:
        outcome = Outcome(self._function(action), action, now_s)
        try:
            self._act(action, outcome)
        except HasFaasError as exc:
            outcome.refuse(str(exc))
        return outcome

    def _function(self, action: Action) -> str:
        if isinstance(action, AddReplica):
            return action.function
        process = self._fleet.nodes.replicas.get(action.replica_id)
        return process.request.function if process is not None else ""

    def _act(self, action: Action, outcome: Outcome) -> None:
        match action:
            case Resize():
                lend = self._lends(self._function(action))
                self._fleet.resize(action.replica_id, action.quota_percent, lend=lend)
            case Rebatch():
                self._fleet.rebatch(action.replica_id, action.batch)
            case DrainReplica():
                self._fleet.retire(action.replica_id)
            case AddReplica():
                self._fleet.add(action.function, self._want(action), action.batch, outcome.refuse)
            case _:
                assert_never(action)

    def _lends(self, name: str) -> bool:
        """What an operator has said of lending, else what all do."""
        record = self._record(name)
        return self._lend if record is None or record.sizing.lend is None else record.sizing.lend

    def _record(self, name: str) -> FunctionRecord | None:
        return next((d.record for d in self._fleet.functions() if d.record.name == name), None)

    def _want(self, action: AddReplica) -> Want:
        record = self._record(action.function)
        return Want(
            memory_bytes=record.spec.memory_bytes if record else 0,
            device=action.device,
            sm_percent=action.sm_percent,
            quota_percent=action.quota_percent,
            lend=self._lends(action.function),
            lane=action.lane,
        )
