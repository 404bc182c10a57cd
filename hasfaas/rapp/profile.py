"""The profile of a function on a device: its probes, its surface, and what live batches have corrected since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError, NotFoundError
from hasfaas.core.version import VERSION
from hasfaas.rapp import few_shot, lane_law, online
from hasfaas.rapp.online import Correction
from hasfaas.rapp.probe import Point, Probe
from hasfaas.rapp.surface import Surface

FORM = 1
Law = Literal["lane"]
State = Literal["roofline only", "zero-shot", "few-shot", "live"]
LAWS: tuple[Law, ...] = get_args(Law)
STATES: tuple[State, ...] = get_args(State)
UNPROFILED = "unprofiled"
"""The state of a function without a profile: there are no numbers for it anywhere."""


def _bad(message: str, reason: str = "BAD_PROFILE") -> InvalidRequestError:
    return InvalidRequestError(message, reason=reason)


@attrs.frozen
class ProfiledDevice:
    """The device that a profile is of: its kind ("cpu", "sim", ...), its id on that machine, and the name of its
    description ("H100", ...), empty where it has none.
    """

    kind: str
    device_id: str
    description: str = ""


@attrs.frozen(eq=False)
class Profile:
    """What is known of one version of a function on one device.

    `state` says where the surface comes from: "roofline only" or "zero-shot" (the graph alone,
    without or with trained operator laws), "few-shot" (probes), "live" (probes made
    of live batches). `law` names the quota law of the device. `law_error_percent` is how far the saturated mean of
    that law was off at the probes below quota 100 %, on average; None where none was measured. `hasfaas` is the
    version that fitted it. Raises InvalidRequestError for an unknown state or law.
    """

    function: str
    version: str
    device: ProfiledDevice
    state: State
    surface: Surface
    probes: tuple[Probe, ...] = ()
    correction: Correction | None = None
    law: Law = "lane"
    law_error_percent: float | None = None
    hasfaas: str = VERSION

    def __attrs_post_init__(self) -> None:
        if self.state not in STATES:
            raise _bad(f"state={self.state!r} of a profile must be one of {', '.join(STATES)}")
        if self.law not in LAWS:
            raise _bad(f"law={self.law!r} of a profile must be one of {', '.join(LAWS)}")

    @classmethod
    def fitted(
        cls,
        function: str,
        version: str,
        device: ProfiledDevice,
        probes: Sequence[Probe],
        batches: Sequence[int],
        sm_percents: Sequence[float],
        *,
        prior: Surface | None = None,
        state: State = "few-shot",
    ) -> Profile:
        """Fits the surface to the probes (`few_shot.fit`) and states how well the lane law did on them."""
        surface = few_shot.fit(probes, batches, sm_percents, prior)
        error = law_error_percent(probes)
        return cls(function, version, device, state, surface, tuple(probes), law_error_percent=error)

    def current(self) -> Surface:
        """The surface as live batches have corrected it."""
        return self.surface if self.correction is None else online.apply(self.surface, self.correction)

    def observed(self, batch: int, sm_percent: float, hold_ms: float) -> Profile:
        """The profile after one more live batch (`online.update`)."""
        correction = self.correction or online.start(self.surface)
        return attrs.evolve(self, correction=online.update(correction, self.surface, batch, sm_percent, hold_ms))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are stored and sent."""
        return {
            "form": FORM,
            "function": self.function,
            "version": self.version,
            "device": attrs.asdict(self.device),
            "state": self.state,
            "law": self.law,
            "law_error_percent": self.law_error_percent,
            "surface": self.surface.to_dict(),
            "probes": [attrs.asdict(probe) for probe in self.probes],
            "correction": None if self.correction is None else self.correction.to_dict(),
            "hasfaas": self.hasfaas,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Profile:
        """From `to_dict`. Raises InvalidRequestError: UNKNOWN_FORM for one of another version, else BAD_PROFILE."""
        if not isinstance(data, Mapping) or data.get("form") != FORM:
            form = data.get("form") if isinstance(data, Mapping) else type(data).__name__
            raise _bad(f"the profile has the form {form!r}, this version reads {FORM}: profile it anew", "UNKNOWN_FORM")
        try:
            correction = data["correction"]
            return cls(
                function=str(data["function"]),
                version=str(data["version"]),
                device=ProfiledDevice(**data["device"]),
                state=data["state"],
                surface=Surface.from_dict(data["surface"]),
                probes=tuple(_probe(probe) for probe in data["probes"]),
                correction=None if correction is None else Correction.from_dict(correction),
                law=data["law"],
                law_error_percent=data["law_error_percent"],
                hasfaas=str(data["hasfaas"]),
            )
        except KeyError as exc:
            raise _bad(f"the profile lacks {exc}: profile the function anew") from exc
        except TypeError as exc:
            raise _bad(f"the profile cannot be read: {exc}; profile the function anew") from exc


def _probe(data: Mapping[str, Any]) -> Probe:
    return Probe(**{**data, "point": Point(**data["point"])})


def law_error_percent(probes: Sequence[Probe]) -> float | None:
    """Mean error in % of the saturated mean t / q at probes below quota 100 % whose response was measured, each by its
    own hold; None where there is none.
    """
    checked = [p for p in probes if p.point.quota_percent < 100.0 and p.response_ms is not None]
    if not checked:
        return None
    quotas = np.array([p.point.quota_percent for p in checked]) / 100.0
    predicted_ms = lane_law.saturated_mean_ms(np.array([p.hold_ms for p in checked]), quotas)
    measured_ms = np.array([p.response_ms for p in checked], float)
    return float(100.0 * np.mean(np.abs(predicted_ms / measured_ms - 1.0)))


def state_of(profile: Profile | None) -> str:
    """The state that is shown: `UNPROFILED` without a profile."""
    return UNPROFILED if profile is None else profile.state


def known(profile: Profile | None, function: str) -> Profile:
    """The profile. Raises NotFoundError (UNPROFILED) where there is none, instead of making a number up."""
    if profile is None:
        raise NotFoundError(
            f"function={function!r} is unprofiled: measure it with `hasfaas profile {function}`", reason="UNPROFILED"
        )
    return profile
