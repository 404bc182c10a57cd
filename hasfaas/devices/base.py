"""The seam between enforcement and an accelerator: four calls, a keeper, and what a replica must set before it starts.

Everything that meters, gates and re-sizes is written once, against `Stream`. A device that runs synchronously (a CPU)
records `None` events, which are always done.

A device is one file: a module with `inventory`, `keeper`, `wall` and `enter` (`DeviceModule`), found by its kind as
`hasfaas.devices.<kind>` or as an entry point of the group `hasfaas.devices`.
"""

from __future__ import annotations

import ast
import enum
import errno
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol

import attrs

from hasfaas import devices
from hasfaas.core.allocation import lane_units
from hasfaas.core.errors import InvalidRequestError

GROUP = "hasfaas.devices"
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""The environment of a replica on a device that is no GPU: what it launched on one, nobody would meter."""


@attrs.frozen
class DeviceInfo:
    """One device of this machine.

    `units` are its SMs (on a CPU its cores, by the kernel's numbers; of static partitions the chunks): a lane owns whole
    units, and a request is rounded up to them. `auto_sm_percent` is the partition given to a function that nobody has sized
    yet. With `fixed_lanes` the lanes were cut in advance, and these unit sets are all there are; `lane_percents` are the SM
    shares that they were cut for, where that was said: rounding to units may have left a lane a little less. `options` are
    the device's own settings, handed to the replica as they are; `facts` are for people.

    `model` says what makes devices of one kind alike to a profile (`device_type`), empty where nobody knows; `price` is what
    an hour of the device costs beside that of others; `node` is the name of its node in a cluster.
    """

    device_id: str
    kind: str
    units: tuple[int, ...]
    memory_bytes: int
    auto_sm_percent: float = 100.0
    cold_start_s: float = 0.0
    fixed_lanes: tuple[tuple[int, ...], ...] | None = None
    lane_percents: tuple[float, ...] = ()
    options: Mapping[str, object] = attrs.field(factory=dict, hash=False)
    facts: Mapping[str, object] = attrs.field(factory=dict, hash=False)
    model: str = ""
    price: float = 1.0
    node: str = ""

    def is_called(self, name: str) -> bool:
        """Whether a function's `device=` may mean this one: "auto", its kind, its node, its own name."""
        return name in ("auto", self.kind, self.device_id) or (name == self.node != "")


def device_type(info: DeviceInfo) -> str:
    """What a profile is of: the kind and the model, such as "sim:v100". Devices of a kind without a model count as alike."""
    return f"{info.kind}:{info.model}" if info.model else info.kind


def model_of(name: str, lanes: object = None) -> str:
    """The model of a device of that name, empty where it has none. Lanes cut in advance make another of it, since profiles
    tell of their shares alone."""
    return f"{name}, lanes {','.join(f'{p:g}' for p in lanes)}" if name and isinstance(lanes, list | tuple) else name


@attrs.frozen
class DeviceSlice:
    """The part of a device that one replica may use: the units of its lane, that lane's number, and memory. `environment` is
    set in the replica's process before any compute library starts; a variable whose value is None is removed."""

    device_id: str
    kind: str
    lane: int
    units: tuple[int, ...]
    sm_percent: float
    options: Mapping[str, object] = attrs.field(factory=dict, hash=False)
    memory_bytes: int = 0
    environment: Mapping[str, str | None] = attrs.field(factory=dict, hash=False)


class Failure(enum.Enum):
    """What an exception of the user's code says about its device."""

    MEMORY = "memory"  # an allocation was refused; the process goes on
    FATAL = "fatal"  # the process can use the device no more, and must end


class Timer(Protocol):
    """Measures how long stretches of work take on a stream."""

    def mark(self) -> object:
        """An instant of the stream."""
        ...

    def elapsed_ns(self, start: object, end: object) -> int:
        """The time between two marks. Blocks until the second is reached."""
        ...


class HostTimer:
    """The host's clock: right where work is done when its call returns."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns

    def mark(self) -> object:
        """Now."""
        return self._clock_ns()

    def elapsed_ns(self, start: object, end: object) -> int:
        """Their difference."""
        assert isinstance(start, int) and isinstance(end, int)
        return end - start


class Stream(ABC):
    """An in-order queue of device work, owned by one replica. Events are opaque; `None` stands for "already done".

    Enforcement needs the first four calls alone; the rest has defaults that are right for a device without an allocator
    or errors of its own.
    """

    @abstractmethod
    def record(self) -> object | None:
        """An event that is done when all work launched so far is done."""

    @abstractmethod
    def query(self, event: object | None) -> bool:
        """Whether the event is done. Never blocks."""

    @abstractmethod
    def wait(self, event: object | None) -> None:
        """Blocks until the event is done."""

    @abstractmethod
    def drain(self) -> None:
        """Blocks until all work launched so far is done, on whatever stream of this process."""

    def serve(self, function: str, batch: int, gate: Callable[[], None]) -> None:  # noqa: B027 - a default
        """Called inside the lease after the user's code ran. A real device does nothing; an emulated one launches the
        device time that the code would have taken, with a `gate` between kernels."""

    def gated(self, gate: Callable[[], None]) -> None:  # noqa: B027 - a default
        """Told once, before user code is loaded: a device whose libraries launch work that no module shows (raw kernels,
        graphs) has them call `gate` first."""

    def fetch(self, value: object) -> object:
        """A result as the host can send it: arrays in the device's memory are copied. Called inside the lease."""
        return value

    def failure(self, exc: BaseException) -> Failure | None:
        """What an exception says about the device; None for one that is the code's own."""
        return Failure.MEMORY if is_host_memory_error(exc) else None

    @property
    def timer(self) -> Timer:
        """How modules are timed to place their gates."""
        return HostTimer()

    @property
    def granted_percent(self) -> float | None:
        """The share of the device's SMs that this process really has, counted there; None where that cannot be told."""
        return None


def is_host_memory_error(exc: BaseException) -> bool:
    """Whether the host refused memory, as Python, the system or torch say it."""
    if isinstance(exc, RuntimeError):
        # torch reports a refused allocation on the CPU as a RuntimeError with one of these texts.
        texts = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
        return any(text in str(exc.args[0] if exc.args else "") for text in texts)
    return isinstance(exc, MemoryError) or (isinstance(exc, OSError) and exc.errno == errno.ENOMEM)


class Health(enum.Enum):
    """Whether replicas can be placed on a device."""

    READY = "ready"
    RECOVERING = "recovering"  # after a fault; it comes back by itself
    LOST = "lost"  # unplugged, or not to be reached


@attrs.frozen
class Condition:
    """A device's health, why, and what cures it; `lanes` are those whose replicas must go (None: all), empty for none."""

    health: Health = Health.READY
    why: str = ""
    cure: str = ""
    lanes: tuple[int, ...] | None = ()


class Keeper(Protocol):
    """The node agent's side of one device. Calls may block for seconds, and come from one thread at a time."""

    def start(self) -> DeviceInfo:
        """Makes the device ready and says what it can do. Raises BackendError or InvalidRequestError with the cure."""
        ...

    def open_lane(self, lane: int, units: tuple[int, ...]) -> None:
        """Sets aside a lane's units. Raises PlacementError when the device refuses."""
        ...

    def environment(self, lane: int, memory_bytes: int) -> Mapping[str, str | None]:
        """What a replica of an open lane must have in its environment (None: must not have)."""
        ...

    def close_lane(self, lane: int) -> None:
        """The last replica of a lane has gone."""
        ...

    def before_kill(self, pid: int) -> None:
        """Ends a process's work on the device, before it is killed. Must not raise."""
        ...

    def check(self) -> Condition:
        """Looks at the device: called every second, and when a replica has ended by itself. Must not raise."""
        ...

    def stop(self) -> None:
        """Takes back what `start` made. Must not raise."""
        ...


class Unkept:
    """The keeper of a device that needs none. Its replicas see no GPU: what they launched there, nobody would meter."""

    def __init__(self, info: DeviceInfo) -> None:
        self._info = info

    def start(self) -> DeviceInfo:
        """As it was."""
        return self._info

    def open_lane(self, lane: int, units: tuple[int, ...]) -> None:
        """Nothing to set aside."""

    def environment(self, lane: int, memory_bytes: int) -> Mapping[str, str | None]:
        """No GPU."""
        return NO_GPU

    def close_lane(self, lane: int) -> None:
        """Nothing to give back."""

    def before_kill(self, pid: int) -> None:
        """Nothing to end."""

    def check(self) -> Condition:
        """Always ready."""
        return Condition()

    def stop(self) -> None:
        """Nothing to take back."""


@attrs.frozen
class DeviceRequest:
    """A `[[devices]]` table as its device reads it: how many (None: all there are), the memory to use of each (None: all),
    and the kind's own options, which the device checks."""

    count: int | None = 1
    memory_bytes: int | None = None
    options: Mapping[str, object] = attrs.field(factory=dict, hash=False)

    def only(self, kind: str, *known: str) -> None:
        """Raises InvalidRequestError for an option that is not one of `known`."""
        for name, value in self.options.items():
            if name not in known:
                raise InvalidRequestError(
                    f"devices: a {kind} device has no option {name}={value!r}; it knows {', '.join(known) or 'none'}",
                    reason="BAD_OPTION",
                )


def cut(units: int, percents: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """Unit sets for lanes of these SM percents, of whole units that fit the device. Raises InvalidRequestError where the
    percents are more than there is, or more lanes than a device can have."""
    counts = lane_units(units, percents)
    starts = [sum(counts[:index]) for index in range(len(counts))]
    return tuple(tuple(range(start, start + count)) for start, count in zip(starts, counts, strict=True))


class DeviceModule(Protocol):
    """What the file of a device offers by name."""

    def inventory(self, request: DeviceRequest) -> Sequence[DeviceInfo]:
        """The devices that a table asks for, still without names (`device_id` is ""). Raises InvalidRequestError."""
        ...

    def keeper(self, info: DeviceInfo) -> Keeper:
        """The node agent's side of one of them."""
        ...

    def wall(self, memory_bytes: int) -> None:
        """Bounds the memory of this process before user code is loaded, if the device's memory is the host's."""
        ...

    def enter(self, part: DeviceSlice) -> Stream:
        """Confines this process to `part`, before any compute library starts threads, and opens its stream. The environment
        is set already."""
        ...


_OFFERS = ("inventory", "keeper", "wall", "enter")


@cache
def module_of(kind: str) -> DeviceModule:
    """The device's file, imported on this first use: one of this folder, else an installed package's. Raises
    InvalidRequestError for a kind that does not exist, naming those that do."""
    if any(module.name == kind for module in iter_modules(devices.__path__)):
        ours: DeviceModule = import_module(f"{GROUP}.{kind}")
        if all(hasattr(ours, name) for name in _OFFERS):
            return ours
    for entry in entry_points(group=GROUP, name=kind):
        return _loaded(entry)
    raise InvalidRequestError(
        f"device kind {kind!r} is unknown; known kinds: auto, {', '.join(kinds())}", reason="BAD_DEVICE"
    )


def _loaded(entry: EntryPoint) -> DeviceModule:
    """An installed package's device. Raises InvalidRequestError where it does not load, or lacks what a device offers."""
    try:
        found: DeviceModule = entry.load()
    except Exception as exc:  # importing runs a stranger's module
        raise InvalidRequestError(
            f"device kind {entry.name!r} cannot be used: {entry.value} does not load: {type(exc).__name__}: {exc}",
            reason="BAD_DEVICE",
        ) from exc
    lacks = [name for name in _OFFERS if not hasattr(found, name)]
    if lacks:
        raise InvalidRequestError(
            f"device kind {entry.name!r} cannot be used: {entry.value} has no {', '.join(lacks)} (see DeviceModule)",
            reason="BAD_DEVICE",
        )
    return found


def kinds() -> tuple[str, ...]:
    """Every kind of device there is, here or in an installed package."""
    return tuple(sorted(_files() | {entry.name for entry in entry_points(group=GROUP)}))


def enter(part: DeviceSlice) -> Stream:
    """Sets the environment of the slice in this process, confines it, and opens its stream."""
    for name, value in part.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return module_of(part.kind).enter(part)


def _files() -> set[str]:
    """The files of this folder that are devices, told by what they define: importing them all would cost, and one that is
    broken would keep the others from being used."""
    found = set()
    for module in iter_modules(devices.__path__):
        spec = module.module_finder.find_spec(module.name, None)
        if spec is not None and spec.origin is not None and _defined(Path(spec.origin)) >= set(_OFFERS):
            found.add(module.name)
    return found


def _defined(file: Path) -> set[str]:
    """Names that a file defines at its top."""
    names: set[str] = set()
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names
