"""How many replicas a function may have."""

from __future__ import annotations

from hasfaas.scaling.observation import Observation


def clamped(observation: Observation, row: int, desired: int, least: int = 0, most: int | None = None) -> int:
    """`desired` within the function's own bounds and the scaler's `least` and `most`; the upper ones win."""
    functions = observation.functions
    top = int(functions.max_replicas[row]) if most is None else min(most, int(functions.max_replicas[row]))
    return max(min(desired, top), min(top, max(least, int(functions.min_replicas[row]))))
