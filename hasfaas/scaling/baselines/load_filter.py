"""HAS-GPU's forecast: a scalar Kalman filter that is pushed up after each step (has-gpu reference, 5.3)."""

from __future__ import annotations

import math

import attrs

# A and H are 1. Units: (requests per second) squared.
PROCESS_NOISE, MEASUREMENT_NOISE = 1.0, 10.0
MIN_BUFFER_RPS = 5.0
ALPHA = 1.0


@attrs.define
class LoadFilter:
    """`estimate_rps` and its variance. The inflated estimate is fed back as the state, as published: at a steady load it
    stays sqrt(P) / K = 6.08 rps above it, whatever the load (defect 3)."""

    estimate_rps: float = 0.0
    variance: float = 1.0

    def step(self, measured_rps: float) -> float:
        """The forecast after one more measurement."""
        predicted = self.variance + PROCESS_NOISE
        gain = predicted / (predicted + MEASUREMENT_NOISE)
        self.variance = (1.0 - gain) * predicted
        estimate = self.estimate_rps + gain * (measured_rps - self.estimate_rps)
        estimate += ALPHA * math.sqrt(self.variance)
        self.estimate_rps = max(estimate, measured_rps + MIN_BUFFER_RPS)
        return self.estimate_rps
