"""What the scaler is tuned by."""

from __future__ import annotations

import attrs

from hasfaas.scaling.forecast import ForecastSettings


@attrs.frozen
class ScalerSettings:
    """What the scaler is tuned by.

    `late_factor` of the late share that a promise allows is planned for. `quota_calm_s` and `replica_calm_s` are how long
    less must have sufficed before a quota falls, or a replica goes. `reshape_payback` times its cost must have been missed
    before a replica is exchanged. `margin_step` moves each function's safety margin by what its calls have really met: up
    with every late one, down as calls are in time, within `margin_range` (factors on the rate). `vertical`, `forecast`,
    `frontier` switch parts off, for ablation. With `pooling`, functions share lanes.
    """

    tick_s: float = 1.0
    late_factor: float = 0.5
    forecasting: ForecastSettings = attrs.field(factory=ForecastSettings)
    hold_quantile: float = 0.9
    quota_calm_s: float = 10.0
    replica_calm_s: float = 30.0
    fall_share: float = 0.1
    reshape_payback: float = 2.0
    reshape_gain: float = 0.1
    keep_alive_s: float = 300.0
    margin_step: float = 0.02
    margin_range: tuple[float, float] = (0.7, 2.0)
    vertical: bool = True
    forecast: bool = True
    frontier: bool = True
    pooling: bool = False
    sm_percents: tuple[float, ...] | None = None
