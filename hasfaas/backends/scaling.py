"""The scaling loop of a gateway: observe, decide, apply, write down.

It governs the functions that have a profile and that nobody has sized by hand. Until there is one it only looks for it, and
imports none of the arithmetic. The policy runs in a thread, since a new profile costs it a tenth of a second; observing
and acting take turns with the calls on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasfaas.core.settings import ScalingSettings
from hasfaas.serving.ports import FunctionRecord, ProfileState

if TYPE_CHECKING:
    from hasfaas.backends.actuator import Actuator, Outcome
    from hasfaas.backends.decision_log import DecisionLog
    from hasfaas.backends.fleet import Fleet
    from hasfaas.backends.observer import Observer
    from hasfaas.backends.profiles import Profiles
    from hasfaas.scaling.decision import Decision
    from hasfaas.scaling.device_choice import DeviceChoice
    from hasfaas.scaling.device_offers import Offers
    from hasfaas.scaling.observation import Observation
    from hasfaas.scaling.policy import Policy
    from hasfaas.scaling.settings import ScalerSettings

log = logging.getLogger("hasfaas.scaling")
# Two ticks are at least so far apart, however urgent a call is: counts of a shorter time say little about a rate.
LEAST_INTERVAL_S = 0.1
KEPT_OUTCOMES = 64
POLICY = "hybrid"
LOG_FOLDER = "scaling"

MakePolicy = Callable[[], "tuple[Policy, Mapping[str, Any]]"]


class ScalingLoop:
    """Scaling (serving/ports.py) over one fleet."""

    def __init__(
        self,
        fleet: Fleet,
        profiles: Profiles,
        settings: ScalingSettings,
        *,
        window_ms: float,
        quantum_ms: float,
        state_dir: Path,
        make_policy: MakePolicy | None = None,
    ) -> None:
        """`make_policy` gives a fresh policy and its settings: the hybrid scaler, unless a test wants another."""
        self._fleet = fleet
        self._profiles = profiles
        self._settings = settings
        self._window_ms = window_ms
        self._quantum_ms = quantum_ms
        self._folder = state_dir / LOG_FOLDER
        self._make_policy = make_policy or (lambda: hybrid(settings))
        self._urgent = asyncio.Event()
        self._observer: Observer | None = None
        self._choice: DeviceChoice | None = None
        self._actuator: Actuator | None = None
        self._log: DecisionLog | None = None
        self._watches: set[asyncio.Future[None]] = set()
        self._last_s = float("-inf")
        self._latest: tuple[Observation, Decision] | None = None
        self._outcomes: dict[str, deque[Outcome]] = {}
        fleet.govern(self.governs, self.ask)

    # -- which functions -----------------------------------------------------------------------------------------------

    def governs(self, record: FunctionRecord) -> bool:
        """Whether the scaler sizes this function."""
        return not self.why_not(record)

    def why_not(self, record: FunctionRecord) -> str:
        """What keeps a function from being scaled, empty where nothing does."""
        if not self._settings.enabled:
            return "scaling is off (scaling.enabled)"
        if record.sizing.sized:
            return f"it was sized by hand; `hasfaas scale {record.name} --auto` gives it back to the scaler"
        if record.kind.streams:
            return "it streams: how long it holds the device depends on its reader"
        if self._profiles.state(record).state == ProfileState().state:
            return f"it has no profile yet; `hasfaas profile {record.name}` makes one"
        return ""

    def ask(self, name: str) -> None:
        """A function needs a replica now: the next tick is brought forward."""
        log.debug("%s: asks for a tick", name)
        self._urgent.set()

    # -- ticks ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ticks until cancelled. What goes wrong in one is logged, and calls are served as without a scaler."""
        if not self._settings.enabled:
            return
        next_s = time.monotonic()
        while True:
            await self._wait_until(next_s)
            next_s = time.monotonic() + self._settings.tick_s
            waited = [name for name in self._governed() if self._fleet.lacks(name)]
            try:
                if self._anything():
                    next_s = await self.tick()
            except Exception:
                log.exception("a scaling tick failed; the next one tries again")
            # No call waits for a replica that nobody will start, though the scaler saw it wait.
            for name in waited:
                self._fleet.rescue(name)
            # Who asked while it was being decided may have been served since.
            self._urgent.clear()
            if any(self._fleet.lacks(name) for name in self._governed()):
                self._urgent.set()

    async def _wait_until(self, at_s: float) -> None:
        """Until then, or sooner when somebody asks, but not within LEAST_INTERVAL_S of the last tick."""
        try:
            await asyncio.wait_for(self._urgent.wait(), max(0.0, at_s - time.monotonic()))
        except TimeoutError:
            pass
        await asyncio.sleep(max(0.0, self._last_s + LEAST_INTERVAL_S - time.monotonic()))
        self._urgent.clear()

    def _governed(self) -> list[str]:
        return [each.record.name for each in self._fleet.functions() if self.governs(each.record)]

    def _anything(self) -> bool:
        """Whether any function is governed, or was: then the others are a part of what is seen."""
        return self._log is not None or bool(self._governed())

    async def tick(self) -> float:
        """One decision; the instant of the next."""
        if self._log is None:
            await asyncio.to_thread(_import_arithmetic)
            self._open()
        assert self._observer is not None and self._actuator is not None and self._log is not None
        now_s = self._last_s = time.monotonic()
        seen = self._observer.observe(now_s)
        observation, decision = await asyncio.to_thread(self._decided, seen, self._observer.offers)
        outcomes = self._actuator.apply(decision, now_s)
        watch = asyncio.ensure_future(self._actuator.in_force(outcomes))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        for outcome in outcomes:
            self._outcomes.setdefault(outcome.function, deque(maxlen=KEPT_OUTCOMES)).append(outcome)
        self._latest = observation, decision
        for name in self._governed():
            self._fleet.settle(name)
        refused = {number: outcome.refused for number, outcome in enumerate(outcomes) if outcome.refused}
        await asyncio.to_thread(self._log.write, observation, decision, refused)
        return min(max(decision.next_tick_s, now_s + LEAST_INTERVAL_S), now_s + 60.0)

    def _decided(self, seen: Observation, offers: Offers) -> tuple[Observation, Decision]:
        """What the policy is shown, and what it makes of it."""
        assert self._choice is not None and self._log is not None
        observation = self._choice.shown(seen, offers)
        decision = self._log.decide(observation)
        self._choice.heed(observation.functions.names, decision)
        return observation, decision

    def _open(self) -> None:
        from hasfaas.backends.actuator import Actuator
        from hasfaas.backends.decision_log import DecisionLog
        from hasfaas.backends.observer import Observer
        from hasfaas.executor.quota import Timing
        from hasfaas.scaling.device_choice import DeviceChoice

        timing = Timing(round(self._window_ms * 1e6), round(self._quantum_ms * 1e6))
        self._observer = Observer(self._fleet, self._profiles, timing, self._settings.tick_s)
        self._choice = DeviceChoice(_scaler_settings(self._settings))
        self._actuator = Actuator(self._fleet, lend=self._settings.pooling)
        self._log = DecisionLog(
            self._folder,
            self._make_policy,
            name=POLICY,
            most_bytes=self._settings.log_mb * 2**20,
            segments=self._settings.log_segments,
        )

    def close(self) -> None:
        """Closes the log."""
        if self._log is not None:
            self._log.close()

    # -- Scaling -------------------------------------------------------------------------------------------------------

    def explain(self, record: FunctionRecord) -> str:
        """What the scaler knows of a function and has decided about it, as JSON."""
        found: dict[str, Any] = {
            "function": record.name,
            "version": record.version,
            "governed": self.governs(record),
            "why_not": self.why_not(record),
            "log": self._where(),
        }
        if self._latest is not None and self._observer is not None:
            from hasfaas.backends.explanation import explanation

            now_s = time.monotonic()
            recent = self._observer.recent(record.name, now_s)
            outcomes = list(self._outcomes.get(record.name, ()))
            quotas, choice = self._observer.quota_percents(), self._choice.of(record.name) if self._choice else None
            found |= explanation(record, self._latest, outcomes, recent, quotas, now_s, choice)
        return json.dumps(found, allow_nan=False)

    def _where(self) -> str:
        """The file of the log; before the first decision the folder that it will be in; empty where nothing is written."""
        if self._log is not None:
            return str(self._log.path)
        return str(self._folder) if self._settings.enabled else ""


def _import_arithmetic() -> None:
    """Numpy and the scaler take a tenth of a second to import: not on the event loop."""
    from hasfaas.backends import actuator, decision_log, explanation, observer  # noqa: F401
    from hasfaas.scaling import device_choice, scaler  # noqa: F401


def hybrid(settings: ScalingSettings) -> tuple[Policy, Mapping[str, Any]]:
    """A fresh hybrid scaler by the `[scaling]` table, and its own settings."""
    import attrs

    from hasfaas.scaling.scaler import HybridScaler

    made = _scaler_settings(settings)
    return HybridScaler(made), attrs.asdict(made)


def _scaler_settings(settings: ScalingSettings) -> ScalerSettings:
    from hasfaas.scaling.settings import ScalerSettings

    return ScalerSettings(
        tick_s=settings.tick_s,
        keep_alive_s=settings.keep_alive_s,
        quota_calm_s=settings.quota_calm_s,
        replica_calm_s=settings.replica_calm_s,
        vertical=settings.vertical,
        pooling=settings.pooling,
    )
