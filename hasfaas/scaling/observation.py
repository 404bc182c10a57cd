"""What a scaler sees at one instant: all functions, replicas and devices, as columns.

A column is a numpy array with one entry a row; rows of `replicas` name their function and device by row number. The same
values come from a running backend and from the simulator. Times are in seconds on the observer's clock.
"""

from __future__ import annotations

import enum
from typing import Any

import attrs
import numpy as np

from hasfaas.core.allocation import MAX_LANES
from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface

Array = np.ndarray[Any, Any]


class Life(enum.IntEnum):
    """Of a replica: STARTING until it can serve, DRAINING once it gets no further calls."""

    STARTING = 0
    READY = 1
    DRAINING = 2


@attrs.frozen(eq=False)
class Functions:
    """One row a function.

    Counts (`arrivals`, `completed`, `late`) are those since the last observation; `late` holds what was answered after the
    SLO, failed or was dropped. `waiting` calls queue, `in_flight` ones are at a replica. `late_share` is what the promise
    allows (0.01 for a 99th percentile). `memory_bytes` is one replica's. `batch_max` is 1 without batching. `overhead_ms`
    is what of a latency lies outside the lane. `surfaces` holds None for a function that nobody has profiled. `by_hand`
    marks those that an operator has sized: a scaler leaves them alone. `devices` [function, device] says which device a
    function may use, `device_type` which type its surface is of (-1: any); replicas on others are to be replaced.
    """

    names: tuple[str, ...]
    slo_ms: Array
    late_share: Array
    arrivals: Array
    completed: Array
    late: Array
    waiting: Array
    in_flight: Array
    min_replicas: Array
    max_replicas: Array
    memory_bytes: Array
    batch_max: Array
    cold_start_s: Array
    overhead_ms: Array
    by_hand: Array
    devices: Array
    surfaces: tuple[Surface | None, ...]
    device_type: Array = attrs.field()

    @device_type.default
    def _first_type(self) -> Array:
        return np.zeros(len(self.names), np.int64)

    def __len__(self) -> int:
        return len(self.names)


@attrs.frozen(eq=False)
class Replicas:
    """One row a replica. `life` holds `Life` numbers; `batch` is the greatest batch that the router may send it; `since_s`
    is when it was asked for. `used_s` is the device time that it has held since the last observation."""

    ids: tuple[str, ...]
    function: Array
    device: Array
    lane: Array
    sm_percent: Array
    quota_percent: Array
    batch: Array
    life: Array
    since_s: Array
    in_flight: Array
    used_s: Array

    def __len__(self) -> int:
        return len(self.ids)


@attrs.frozen(eq=False)
class Devices:
    """One row a device: its units (SMs, cores) and memory; the numbers of its node and of its type. Devices of one type are
    alike to a profile. All are of one node and one type where nothing is said."""

    ids: tuple[str, ...]
    units: Array
    memory_bytes: Array
    node: Array = attrs.field()
    type: Array = attrs.field()

    @node.default
    def _one_node(self) -> Array:
        return np.zeros(len(self.ids), np.int64)

    @type.default
    def _one_type(self) -> Array:
        return np.zeros(len(self.ids), np.int64)

    def __len__(self) -> int:
        return len(self.ids)


def _no_rows() -> Array:
    return np.zeros(0, np.int64)


@attrs.frozen(eq=False)
class FixedLanes:
    """One row a lane that was cut in advance: its device (row number), its number there, and its units. A device that has
    any here has no other lanes; of one that has none, any lane of whole units can be made."""

    device: Array = attrs.field(factory=_no_rows)
    lane: Array = attrs.field(factory=_no_rows)
    units: Array = attrs.field(factory=_no_rows)

    def __len__(self) -> int:
        return len(self.units)

    def same(self, other: FixedLanes) -> bool:
        """Whether both are the same lanes."""
        return self is other or (
            np.array_equal(self.device, other.device)
            and np.array_equal(self.lane, other.lane)
            and np.array_equal(self.units, other.units)
        )


_TABLES = (Functions, Replicas, Devices, FixedLanes)
_NAMES = {table: tuple(field.name for field in attrs.fields(table)) for table in _TABLES}


@attrs.frozen(eq=False)
class Observation:
    """Everything at `now_s`, `interval_s` after the last one. Raises InvalidRequestError (BAD_OBSERVATION) for columns of
    the wrong length and for rows that name what does not exist."""

    now_s: float
    interval_s: float
    functions: Functions
    replicas: Replicas
    devices: Devices
    timing: Timing = attrs.field(factory=Timing)
    fixed_lanes: FixedLanes = attrs.field(factory=FixedLanes)

    def __attrs_post_init__(self) -> None:
        for table in (self.functions, self.replicas, self.devices, self.fixed_lanes):
            rows = len(table)
            for name in _NAMES[type(table)]:
                if len(getattr(table, name)) != rows:
                    raise _bad(f"{type(table).__name__}.{name} has {len(getattr(table, name))} rows, it needs {rows}")
        if self.functions.devices.shape != (len(self.functions), len(self.devices)):
            raise _bad(f"Functions.devices has the shape {self.functions.devices.shape}, it needs functions x devices")
        for column, most in (("function", len(self.functions)), ("device", len(self.devices))):
            named = getattr(self.replicas, column)
            if len(named) and not (named.min() >= 0 and named.max() < most):
                raise _bad(f"Replicas.{column} names row {named.max()}, there are {most}")
        for column, least, most in (("device", 0, len(self.devices)), ("lane", 0, MAX_LANES), ("units", 1, 1 << 62)):
            named = getattr(self.fixed_lanes, column)
            if len(named) and not (named.min() >= least and named.max() < most):
                raise _bad(
                    f"FixedLanes.{column} holds {named.min()} to {named.max()}, it must lie in [{least}, {most})"
                )


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_OBSERVATION")
