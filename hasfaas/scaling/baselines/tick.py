"""The period of a scaler, whoever asks it and when."""

from __future__ import annotations

import math

import attrs

_ROUNDING_S = 1e-6


@attrs.define
class Tick:
    """A caller may ask sooner than it was told to: what it brings is remembered, and nothing is decided."""

    period_s: float
    next_s: float = attrs.field(default=-math.inf, init=False)

    def due(self, now_s: float) -> bool:
        """Whether to decide at `now_s`; if so the next time is a period later."""
        if now_s < self.next_s - _ROUNDING_S:
            return False
        self.next_s = now_s + self.period_s
        return True
