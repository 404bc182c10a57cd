"""What a user asks for when decorating a function. Values only: building one does no I/O."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence

import attrs

from hasfaas.core import environment
from hasfaas.core.errors import InvalidRequestError

DEFAULT_MEMORY_BYTES = 2 * 2**30
DEFAULT_TIMEOUT_S = 60.0
MAX_NAME_BYTES = 160
MOST_REPLICAS = 10_000


class Kind(enum.Enum):
    """How the user's code is called. A CLASS is built once per replica and its `__call__` is served."""

    FUNCTION = "function"
    COROUTINE = "coroutine"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async_generator"
    CLASS = "class"
    GENERATOR_CLASS = "generator_class"

    @property
    def streams(self) -> bool:
        """Whether a call answers with many items rather than one."""
        return self in (Kind.GENERATOR, Kind.ASYNC_GENERATOR, Kind.GENERATOR_CLASS)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bad(name: str, value: object, cure: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name}={value!r}: {cure}", reason="BAD_OPTION")


def check_name(name: object) -> str:
    """The name of a function, which is also a part of file names. Raises InvalidRequestError that says what it may be."""
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or not (name[:1].isalnum() or name[:1] == "_")
        or len(name.encode()) > MAX_NAME_BYTES
        or any(bad in name for bad in "/\\")
    ):
        cure = f"give up to {MAX_NAME_BYTES} printable characters without / and \\, a letter, a digit or _ first"
        raise _bad("name", name, cure)
    return name


@attrs.frozen
class Batch:
    """Dynamic batching: up to `max_size` calls share one execution.

    Array arguments are stacked on a new axis 0 and the result is split on axis 0. A free replica takes what is queued
    at once; with `max_wait_ms` it first waits that long for a fuller batch.
    """

    max_size: int = 8
    max_wait_ms: float = 0.0

    def __attrs_post_init__(self) -> None:
        if not _is_whole(self.max_size) or not 1 <= self.max_size <= 4096:
            raise _bad("batch.max_size", self.max_size, "give a whole number from 1 to 4096")
        if not _is_number(self.max_wait_ms) or not 0.0 <= self.max_wait_ms <= 60_000.0:
            raise _bad("batch.max_wait_ms", self.max_wait_ms, "give milliseconds from 0 to 60000")


@attrs.frozen
class FunctionSpec:
    """The options of one function.

    `slo_ms` at `slo_percentile` is the promise. `memory_bytes` is the wall of each replica. `device` names a device or
    a kind, or "auto". `idempotent` calls may run again after a replica died. With `share_init` replicas
    fork from a process that has run `__init__`. `timeout_s` bounds a call
    whose caller gives no other bound. `env` are variables of each replica's environment, and `secrets` names of more, whose
    values are read on the machine where it runs.
    """

    slo_ms: float
    slo_percentile: float = 99.0
    batch: Batch | None = None
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    device: str = "auto"
    min_replicas: int = 0
    max_replicas: int = 8
    idempotent: bool = False
    share_init: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    env: Mapping[str, str] = attrs.field(factory=dict, converter=environment.copied, hash=False)
    secrets: Sequence[str] = attrs.field(default=(), converter=environment.ordered)

    def __attrs_post_init__(self) -> None:
        if not _is_number(self.slo_ms) or not self.slo_ms > 0:
            raise _bad("slo_ms", self.slo_ms, "give the promised latency in milliseconds, above 0")
        if not _is_number(self.slo_percentile) or not 0.0 < self.slo_percentile < 100.0:
            raise _bad("slo_percentile", self.slo_percentile, "give a percentile between 0 and 100, such as 99")
        if self.batch is not None and not isinstance(self.batch, Batch):
            raise _bad("batch", self.batch, "give hasfaas.Batch(max_size=...), or None")
        if not _is_whole(self.memory_bytes) or not 16 * 2**20 <= self.memory_bytes < 2**63:
            raise _bad("memory", self.memory_bytes, 'give at least 16 MiB, such as "2GiB"')
        counts = (self.min_replicas, self.max_replicas)
        if not all(map(_is_whole, counts)) or not 0 <= counts[0] <= counts[1] <= MOST_REPLICAS or counts[1] < 1:
            raise _bad(
                "replicas", counts, f"give (least, most) with 0 <= least <= most and 1 <= most <= {MOST_REPLICAS}"
            )
        for name in ("idempotent", "share_init"):
            if not isinstance(getattr(self, name), bool):
                raise _bad(name, getattr(self, name), "give True or False")
        if not _is_number(self.timeout_s) or not 0.0 < self.timeout_s <= 86_400.0:
            raise _bad("timeout_s", self.timeout_s, "give seconds above 0 and up to 86400")
        if not isinstance(self.device, str) or not self.device:
            raise _bad("device", self.device, 'give "auto", a device kind or a device name')
        environment.check_env(self.env)
        environment.check_secrets(self.secrets, self.env)
