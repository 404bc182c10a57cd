"""Published runs in the simulator: the client's stages, and a policy that does what a log says."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from benchmarks.simulator_published import STAGE_S, Slices
from hasfaas.scaling.decision import Action, AddReplica, Decision, DrainReplica, Resize
from hasfaas.scaling.observation import Life, Observation
from hasfaas.simulator import engine
from hasfaas.simulator.models import Model
from hasfaas.simulator.result import Array
from hasfaas.simulator.scenario import ClosedLoop, Scenario, SimDevice, SimFunction

FUNCTION = "served"
# Before the first call: the pods of the log's first line start, and what the log changes before the load is done.
LEAD_S = 45.0
# No log says when a pod was ready: this is the cold start of the other comparisons.
COLD_START_S = 10.0
# Longer than any published call took, so that nothing is dropped; and longer than any run.
_DROP_AFTER_S = 60.0
_LONGEST_S = 900.0


class LoggedSlices:
    """A policy that obeys a log: so many pods, of such a slice, from such an instant on. Each pod gets a device for itself,
    since by the law of the table nobody is in anyone's way. The youngest leave first."""

    def __init__(self, slices: Sequence[Slices], batch: int) -> None:
        self.slices, self.batch = slices, batch

    def decide(self, observation: Observation) -> Decision:
        """What the last line of the log says."""
        due = [s for s in self.slices if s.at_s <= observation.now_s + 1e-6]
        later = self.slices[len(due) :]
        actions = self._actions(observation, due[-1]) if due else ()
        return Decision(tuple(actions), "as logged", later[0].at_s if later else observation.now_s + STAGE_S)

    def _actions(self, observation: Observation, logged: Slices) -> list[Action]:
        replicas = observation.replicas
        rows = np.flatnonzero(replicas.life != Life.DRAINING)
        rows = rows[np.argsort(replicas.since_s[rows], kind="stable")]
        why = f"logged: {logged.pods} pods of {logged.sm_percent:g}/{logged.quota_percent:g}"
        actions: list[Action] = [
            Resize(replicas.ids[row], logged.quota_percent, why)
            for row in rows[: logged.pods]
            if abs(replicas.quota_percent[row] - logged.quota_percent) > 1e-6
        ]
        actions += [DrainReplica(replicas.ids[row], why) for row in rows[logged.pods :]]
        taken = set(replicas.device.tolist())
        free = [name for index, name in enumerate(observation.devices.ids) if index not in taken]
        actions += [
            AddReplica(FUNCTION, device, 0, logged.sm_percent, logged.quota_percent, self.batch, why)
            for device in free[: max(0, logged.pods - len(rows))]
        ]
        return actions


def replay(model: Model, slices: Sequence[Slices], stage_rps: Sequence[float], batch: int, *, seed: int = 0) -> Array:
    """Latencies in ms of all calls, in order of sending, without what a call takes outside its pod.

    On the launch-gated table of `model`, pods of at most `batch` calls at a time, the closed-loop client with stages of 5 s.
    The pods of the log's first line are there from the start.
    """
    assert model.grid is not None, f"{model.name} has no whole table, so it cannot be replayed"
    function = SimFunction(
        FUNCTION,
        slo_ms=200.0,
        truth=model.surface,
        memory_bytes=0,
        cold_start_s=COLD_START_S,
        batch_max=batch,
        table=model.grid,
    )
    planned = [attrs.evolve(s, at_s=0.0 if i == 0 else max(0.0, s.at_s + LEAD_S)) for i, s in enumerate(slices)]
    # One that drains keeps its device until it has answered.
    devices = 2 * max(s.pods for s in slices)
    scenario = Scenario(
        functions=(function,),
        devices=tuple(SimDevice(f"d{index}") for index in range(devices)),
        arrivals=(np.zeros(0),),
        duration_s=LEAD_S + _LONGEST_S,
        law="table",
        act_delay_s=0.0,
        drop_after_s=_DROP_AFTER_S,
        seed=seed,
        client=ClosedLoop((LEAD_S, *[STAGE_S] * len(stage_rps)), (0.0, *stage_rps)),
    )
    result = engine.run(scenario, LoggedSlices(planned, batch))
    assert not result.refusals, f"the log could not be obeyed: {result.refusals[0]}"
    return result.latency_ms[0]
