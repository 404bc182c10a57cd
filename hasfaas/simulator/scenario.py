"""What is simulated: functions, devices, arrivals, and the law by which replicas serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np

from hasfaas.core.allocation import lane_units
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.spec import DEFAULT_MEMORY_BYTES
from hasfaas.executor.quota import Timing
from hasfaas.rapp.surface import Surface
from hasfaas.simulator.grid import LatencyGrid

Array = np.ndarray[Any, Any]
Law = Literal["lane", "table"]


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="BAD_SCENARIO")


def _at_least(least: float) -> Any:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not least <= value < np.inf:
            raise _bad(f"{attribute.name}={value} must be finite and at least {least:g}")

    return check


def _positive(_instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0.0 < value < np.inf:
        raise _bad(f"{attribute.name}={value} must be positive and finite")


def _rising(values: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(np.ascontiguousarray(v, dtype=float) for v in values)


def _numbers(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


@attrs.frozen(eq=False)
class SimFunction:
    """One function. `truth` is what its batches really hold a lane for, `told` what the scaler believes (None: the truth).

    `late_share` is what the promise allows, `overhead_ms` what each call takes outside its lane, whatever the load.
    `table` is needed for the law "table" only. A replica of one that `streams` is sent nothing ahead. `by_type` holds the
    truth, which the scaler is told as well, on types of device where it differs.
    """

    name: str
    slo_ms: float = attrs.field(validator=_positive)
    truth: Surface
    told: Surface | None = None
    late_share: float = attrs.field(default=0.01, validator=_positive)
    memory_bytes: int = attrs.field(default=DEFAULT_MEMORY_BYTES, validator=_at_least(0))
    cold_start_s: float = attrs.field(default=10.0, validator=_at_least(0))
    batch_max: int = attrs.field(default=8, validator=_at_least(1))
    min_replicas: int = attrs.field(default=0, validator=_at_least(0))
    max_replicas: int = attrs.field(default=64, validator=_at_least(1))
    overhead_ms: float = attrs.field(default=0.0, validator=_at_least(0))
    table: LatencyGrid | None = None
    streams: bool = False
    by_type: Mapping[str, Surface] = attrs.field(factory=dict)

    def truth_on(self, device_type: str) -> Surface:
        """What its batches hold a lane of such a device for."""
        return self.by_type.get(device_type, self.truth)

    def told_on(self, device_type: str) -> Surface:
        """What the scaler believes of that."""
        return self.by_type.get(device_type, self.truth if self.told is None else self.told)


@attrs.frozen
class SimDevice:
    """One device: its units (SMs, cores) and its memory. `lanes` are the SM percents of lanes cut in advance, of whole
    units that fit: then there are no others (None: any lane of whole units is made). `type` is what functions differ by, and
    `price` that of an hour beside the others; `node` is where it is."""

    name: str
    units: int = attrs.field(default=80, validator=_at_least(1))
    memory_bytes: int = attrs.field(default=16 * 2**30, validator=_at_least(1))
    lanes: tuple[float, ...] | None = attrs.field(default=None, converter=attrs.converters.optional(_numbers))
    type: str = ""
    price: float = attrs.field(default=1.0, validator=_positive)
    node: str = ""

    def __attrs_post_init__(self) -> None:
        try:
            _ = self.lane_units
        except ValueError as exc:
            raise _bad(f"lanes={self.lanes} of {self.name!r}: {exc}") from None

    @property
    def lane_units(self) -> tuple[int, ...]:
        """The units of each lane that was cut in advance."""
        return () if self.lanes is None else lane_units(self.units, self.lanes)


@attrs.frozen
class ClosedLoop:
    """The client of the HAS-GPU artefact (reference has-gpu.md, section 7), for one function.

    Stage i sends `stage_rps[i]` x `stage_s[i]` calls, 1 / rps apart, with at most ceil(`in_flight_factor` x rps) under way.
    It ends when its time is over and all its calls are answered, so the next one starts later under overload. Latency counts
    from the sending.
    """

    stage_s: tuple[float, ...] = attrs.field(converter=_numbers)
    stage_rps: tuple[float, ...] = attrs.field(converter=_numbers)
    in_flight_factor: float = attrs.field(default=2.0, validator=_positive)

    def __attrs_post_init__(self) -> None:
        if not self.stage_s or len(self.stage_s) != len(self.stage_rps):
            raise _bad(f"{len(self.stage_s)} stage_s and {len(self.stage_rps)} stage_rps: give one of each a stage")
        if min(self.stage_s) <= 0.0 or min(self.stage_rps) < 0.0:
            raise _bad("stage_s must be positive, stage_rps must not be negative")

    @property
    def calls(self) -> tuple[int, ...]:
        """Calls of each stage."""
        return tuple(round(s * r) for s, r in zip(self.stage_s, self.stage_rps, strict=True))


def _functions(values: Iterable[SimFunction]) -> tuple[SimFunction, ...]:
    return tuple(values)


def _devices(values: Iterable[SimDevice]) -> tuple[SimDevice, ...]:
    return tuple(values)


@attrs.frozen(eq=False)
class Scenario:
    """Everything that a run depends on, besides the policy.

    `arrivals` has one array a function: seconds from 0, sorted; calls come at these instants however slow the answers are
    (with a `client` they are empty). What begins before `warmup_s` counts in no figure, neither calls nor costs.

    The policy is asked at 0, then at its own `next_tick_s`, but never sooner than 1 ms and never later than 60 s after the
    last time; `tick_s` is used where a decision names no later instant. A decision is in force `act_delay_s` after its tick.

    `law` "lane": a batch holds the lane for its surface's hold and pays by executor/quota.py. "table": it takes what the
    function's table says, whoever else runs (launch-gated devices); the two are never mixed. `noise` is the standard
    deviation of the logarithm of that time, drawn for each batch; `factors`, if given, are used instead: the batch that
    starts with call i (counted over all functions, in the order of `arrivals`) takes factors[i mod len] times as long.
    `interference` is the factor while another lane of the device is busy as the batch starts. A call that has queued for
    `drop_after_s` is dropped, and counts as late. With `lend` replicas run on time that nobody is entitled to.

    Raises InvalidRequestError (BAD_SCENARIO), naming what is wrong.
    """

    functions: tuple[SimFunction, ...] = attrs.field(converter=_functions)
    devices: tuple[SimDevice, ...] = attrs.field(converter=_devices)
    arrivals: tuple[Array, ...] = attrs.field(converter=_rising)
    duration_s: float = attrs.field(validator=_positive)
    warmup_s: float = attrs.field(default=0.0, validator=_at_least(0))
    timing: Timing = attrs.field(factory=Timing)
    law: Law = "lane"
    tick_s: float = attrs.field(default=1.0, validator=_positive)
    act_delay_s: float = attrs.field(default=0.1, validator=_at_least(0))
    noise: float = attrs.field(default=0.03, validator=_at_least(0))
    factors: Array | None = None
    interference: float = attrs.field(default=1.0, validator=_at_least(1))
    drop_after_s: float = attrs.field(default=10.0, validator=_positive)
    lend: bool = False
    seed: int = 0
    client: ClosedLoop | None = None

    def __attrs_post_init__(self) -> None:
        if not self.functions or not self.devices:
            raise _bad("a scenario needs at least one function and one device")
        for what, names in (("function", [f.name for f in self.functions]), ("device", [d.name for d in self.devices])):
            if len(set(names)) < len(names):
                raise _bad(f"two {what}s are called {max(names, key=names.count)!r}: give each its own name")
        if len(self.arrivals) != len(self.functions):
            raise _bad(f"{len(self.arrivals)} arrays of arrivals for {len(self.functions)} functions: give one each")
        if not self.warmup_s < self.duration_s:
            raise _bad(f"warmup_s={self.warmup_s} must be less than duration_s={self.duration_s}")
        if self.law not in ("lane", "table"):
            raise _bad(f"law={self.law!r} is unknown: use 'lane' or 'table'")
        if self.client is not None and (len(self.functions) > 1 or self.arrivals[0].size):
            raise _bad("a closed-loop client is for one function without arrivals of its own")
        if self.factors is not None and (self.factors.ndim != 1 or not np.all(self.factors > 0.0)):
            raise _bad("factors must be a row of positive numbers")
        for function, times in zip(self.functions, self.arrivals, strict=True):
            if self.law == "table" and function.table is None:
                raise _bad(f"function {function.name!r} has no table: give one, or use law='lane'")
            if times.size and not (times[0] >= 0.0 and times[-1] < self.duration_s and np.all(np.diff(times) >= 0.0)):
                raise _bad(
                    f"arrivals of {function.name!r} must be sorted and lie in [0, duration_s={self.duration_s}): "
                    f"they run from {times.min()} to {times.max()}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions."""
        return tuple(function.name for function in self.functions)
