"""What the scaler is tuned by."""

from __future__ import annotations

import attrs

from hasfaas.core.errors import InvalidRequestError
from hasfaas.scaling.forecast import ForecastSettings


def _positive(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value > 0.0:
        raise InvalidRequestError(f"{attribute.name}={value} must be positive", reason="BAD_SCALER")


@attrs.frozen
class ScalerSettings:
    """All of them are factors, shares, or seconds.

    Planning. `late_factor` of the late share that a promise allows is given to the capacity rule, with the `hold_quantile`
    of the predicted hold. `insurance` is what a shape may cost more, as a share, for carrying greater peaks. `reserve` times
    what is planned for is possible in any case.

    Learning. Each function's margin moves by what its calls have met: up with each late one, down as calls are in time, so
    that `budget_factor` of the allowed share comes late; by `margin_step` for as many late calls as come in a second;
    within `margin_range`, factors on the rate. It also leads towards the last peak: `jump_share` of the way at margin 1, all
    of it at the greatest. It learns once all replicas have served for `settle_s`.

    Hysteresis. `quota_calm_s` and `replica_calm_s` are how long less must have sufficed before a quota falls (by
    `fall_share` at least), or a replica goes. `reshape_payback` times the cost of an exchange must have been missed, at a
    gain of `reshape_gain` at least, before replicas are exchanged. The last one goes after `keep_alive_s` without a call.

    `vertical`, `forecast` and `frontier` switch parts off, for ablation. With `pooling`, functions share lanes, and a
    replica's part of a device's memory counts `memory_weight` of that in area; quotas promise `guarantee` of what a function
    needs on its own, and no less than what it uses in the long run, since idle time of the lane is lent. What can be lent
    is a reserve, so the defaults of `insurance`, `reserve`, `budget_factor` and `jump_share` are then lower. At most every
    `move_every_s` replicas move so that a device can be given back. `sm_percents` bounds the SM shares that are planned with.
    Raises InvalidRequestError (BAD_SCALER) for values that cannot be.
    """

    pooling: bool = False
    tick_s: float = attrs.field(default=1.0, validator=_positive)
    late_factor: float = attrs.field(default=1.0, validator=_positive)
    hold_quantile: float = 0.6
    insurance: float = attrs.field()
    reserve: float = attrs.field(validator=_positive)
    forecasting: ForecastSettings = attrs.field(factory=ForecastSettings)
    budget_factor: float = attrs.field(validator=_positive)
    margin_step: float = 0.4
    margin_range: tuple[float, float] = (0.4, 2.0)
    jump_share: float = attrs.field()
    settle_s: float = 5.0
    quota_calm_s: float = 4.0
    replica_calm_s: float = 30.0
    fall_share: float = 0.05
    reshape_payback: float = 2.0
    reshape_gain: float = 0.1
    keep_alive_s: float = attrs.field(default=120.0, validator=_positive)
    vertical: bool = True
    forecast: bool = True
    frontier: bool = True
    memory_weight: float = 0.7
    guarantee: float = 0.7
    move_every_s: float = 60.0
    sm_percents: tuple[float, ...] | None = None

    @insurance.default
    def _insurance(self) -> float:
        return 0.1 if self.pooling else 0.3

    @reserve.default
    def _reserve(self) -> float:
        return 1.05 if self.pooling else 1.5

    @budget_factor.default
    def _budget_factor(self) -> float:
        return 0.5 if self.pooling else 0.35

    @jump_share.default
    def _jump_share(self) -> float:
        return 0.25 if self.pooling else 0.6

    def __attrs_post_init__(self) -> None:
        low, high = self.margin_range
        if not 0.0 < low <= 1.0 <= high:
            raise InvalidRequestError(
                f"margin_range={self.margin_range} must hold a factor up to 1 and one from 1 on, such as (0.5, 1.5)",
                reason="BAD_SCALER",
            )
