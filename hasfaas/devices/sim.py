"""A stand-in for any GPU: real processes, real time, and kernels that are arithmetic.

A kernel starts when the lane's previous one, of whichever process, has ended, and ends its duration later.
Nothing is computed and no core is used; who waits, sleeps. So launches are asynchronous, as on a GPU, and
enforcement is tested against a device that does not slow down when the machine is busy.

Law: a lane's last end is one word in a file that all its processes map, changed under a file lock that dies
with its owner. The file also counts what the device did, which is the truth that debits are compared with.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import fcntl
import itertools
import json
import math
import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic_ns, sleep
from typing import Any

import attrs

from hasfaas.core.errors import InvalidRequestError
from hasfaas.devices import cpu
from hasfaas.devices.base import DeviceInfo, DeviceRequest, DeviceSlice, Stream, Unkept, cut, model_of

MAX_KERNEL_NS = 1_000_000
MAX_LANES = 64
MEMORY_BYTES = 16 << 30
DEFAULT = "default"
_FREE_AT, _BUSY, _KERNELS, _LANE_WORDS = 0, 1, 2, 4
_FILE_BYTES = MAX_LANES * _LANE_WORDS * 8
# A sleep of a thread with tight timers ends about 30 us late on an idle core; that much is spent looking at
# the clock.
_SPIN_NS = 40_000
_PR_SET_TIMERSLACK = 29
_TIMER_SLACK_NS = 1_000

# Share of a batch's time that more SMs do not shorten (launches, memory-bound parts): Amdahl's law.
SERIAL_SHARE = 0.1
_DEFAULT_BATCHES = (1, 2, 4, 8, 16, 32)
_DEFAULT_SM_PERCENTS = (5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)


@attrs.frozen
class SimProfile:
    """Measured or invented latency of one function: `grid_ms[i][j]` is at `batches[i]`, `sm_percents[j]`."""

    batches: tuple[int, ...]
    sm_percents: tuple[float, ...]
    grid_ms: tuple[tuple[float, ...], ...]

    def __attrs_post_init__(self) -> None:
        for name, axis in (("batches", self.batches), ("sm_percents", self.sm_percents)):
            if not axis or axis[0] <= 0 or any(b <= a for a, b in itertools.pairwise(axis)):
                raise InvalidRequestError(f"{name}={axis} must be positive and rise", reason="BAD_PROFILE")
        shape = [len(row) for row in self.grid_ms]
        if shape != [len(self.sm_percents)] * len(self.batches):
            raise InvalidRequestError(
                f"grid_ms has rows of {shape}: it needs {len(self.batches)} rows (batches) of "
                f"{len(self.sm_percents)} (sm_percents)",
                reason="BAD_PROFILE",
            )
        if any(not (0.0 < value < math.inf) for row in self.grid_ms for value in row):
            raise InvalidRequestError("grid_ms must be positive and finite everywhere", reason="BAD_PROFILE")

    @classmethod
    def affine(cls, *, base_ms: float = 2.0, per_item_ms: float = 0.5) -> SimProfile:
        """base + per_item x batch at 100 % of the SMs; at a share s it takes (p + (1 - p) / s) times as long.

        Amdahl's law with p = SERIAL_SHARE: half of the SMs make it 1.9 times slower, a tenth 9.1 times.
        """

        def at(batch: int, sm_percent: float) -> float:
            slow_down = SERIAL_SHARE + (1.0 - SERIAL_SHARE) * 100.0 / sm_percent
            return (base_ms + per_item_ms * batch) * slow_down

        grid = tuple(tuple(at(b, sm) for sm in _DEFAULT_SM_PERCENTS) for b in _DEFAULT_BATCHES)
        return cls(_DEFAULT_BATCHES, _DEFAULT_SM_PERCENTS, grid)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SimProfile:
        """From `to_dict`, or a JSON object of batches, sm_percents, latency_ms (one row per batch). Unknown
        or missing keys are errors.
        """
        expected = {"batches", "sm_percents", "latency_ms"}
        if set(data) != expected:
            raise InvalidRequestError(
                f"a profile has the keys {sorted(expected)}, this one has {sorted(data)}",
                reason="BAD_PROFILE",
            )
        try:
            batches = tuple(int(b) for b in data["batches"])
            sm_percents = tuple(float(s) for s in data["sm_percents"])
            grid_ms = tuple(tuple(float(v) for v in row) for row in data["latency_ms"])
        except (TypeError, ValueError) as exc:
            raise InvalidRequestError(f"a profile holds numbers only: {exc}", reason="BAD_PROFILE") from exc
        return cls(batches, sm_percents, grid_ms)

    @classmethod
    def from_json(cls, path: str | Path) -> SimProfile:
        """From a JSON file. Raises InvalidRequestError naming the file if it is not a profile."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (OSError, ValueError, AttributeError, TypeError) as exc:
            raise InvalidRequestError(f"path={str(path)!r} is not a profile: {exc}", reason="BAD_PROFILE") from exc

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {
            "batches": list(self.batches),
            "sm_percents": list(self.sm_percents),
            "latency_ms": [list(row) for row in self.grid_ms],
        }

    def latency_ms(self, batch: int, sm_percent: float) -> float:
        """Latency in ms: bilinear in the logarithms of batch, SM share and latency.

        Clamped at the edges of the SM axis and below the least batch. Beyond the greatest batch it goes on
        linearly in the batch, with the slope of the last two (in proportion to the batch, if there is only
        one).
        """
        if batch <= self.batches[-1]:
            low, high, weight = _bracket(self.batches, batch)
            return _blend(self._row(low, sm_percent), self._row(high, sm_percent), weight)
        last = self._row(-1, sm_percent)
        if len(self.batches) == 1:
            return last * batch / self.batches[-1]
        slope = (last - self._row(-2, sm_percent)) / (self.batches[-1] - self.batches[-2])
        return last + max(slope, 0.0) * (batch - self.batches[-1])

    def _row(self, index: int, sm_percent: float) -> float:
        low, high, weight = _bracket(self.sm_percents, sm_percent)
        row = self.grid_ms[index]
        return _blend(row[low], row[high], weight)


def _bracket(axis: tuple[float, ...], value: float) -> tuple[int, int, float]:
    """The neighbours of `value` on a rising axis, and how far it is towards the upper one, in logarithms."""
    if value <= axis[0]:
        return 0, 0, 0.0
    if value >= axis[-1]:
        return len(axis) - 1, len(axis) - 1, 0.0
    high = bisect.bisect_left(axis, value)
    low = high - 1
    return low, high, math.log(value / axis[low]) / math.log(axis[high] / axis[low])


def _blend(low: float, high: float, weight: float) -> float:
    return low if weight == 0.0 else math.exp((1.0 - weight) * math.log(low) + weight * math.log(high))


def inventory(request: DeviceRequest) -> Sequence[DeviceInfo]:
    """Devices of one kind of emulated GPU. Options: `sms`, `cold_start_s`, `profile` (a latency table, a table of them by
    function name, or a JSON file of either), `lanes` (SM percents of lanes cut in advance), `model` (a name for all devices
    of these latencies)."""
    request.only("sim", "sms", "cold_start_s", "profile", "lanes", "model")
    given: Any = request.options
    return tuple(
        device(
            "",
            sms=given.get("sms", 80),
            memory_bytes=request.memory_bytes or MEMORY_BYTES,
            cold_start_s=given.get("cold_start_s", 0.0),
            profiles=_profiles(given.get("profile")),
            lanes=given.get("lanes"),
            model=given.get("model", ""),
        )
        for _ in range(request.count or 1)
    )


keeper = Unkept
# The memory of this process is the device's.
wall = cpu.wall


def _profiles(given: Any) -> dict[str, SimProfile]:
    """A profile is one latency table, or a table of them by function name."""
    if given is None:
        return {}
    if isinstance(given, str | Path):
        given = _read(Path(given))
    if "latency_ms" in given or "batches" in given:
        return {DEFAULT: SimProfile.from_dict(given)}
    for name, table in given.items():
        if not isinstance(table, Mapping):
            raise InvalidRequestError(f"devices: profile: {name}={table!r:.60} is not a table", reason="BAD_PROFILE")
    return {str(name): SimProfile.from_dict(table) for name, table in given.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise InvalidRequestError(
            f"devices: profile {str(path)!r} cannot be read: {exc}; give a JSON file of latencies", reason="BAD_PROFILE"
        ) from exc
    if not isinstance(given, dict):
        raise InvalidRequestError(
            f"devices: profile {str(path)!r} holds a {type(given).__name__}, not a table", reason="BAD_PROFILE"
        )
    return given


def device(
    device_id: str = "sim",
    *,
    sms: int = 80,
    memory_bytes: int = MEMORY_BYTES,
    cold_start_s: float = 0.0,
    profiles: Mapping[str, SimProfile] | None = None,
    lanes: Sequence[float] | None = None,
    lanes_file: str | Path | None = None,
    model: str = "",
) -> DeviceInfo:
    """A device of `sms` SMs. `profiles` maps a function's name to its latency, "default" to that of all
    others. With `lanes`, SM percents, these lanes are all there are.

    `lanes_file` is what its processes share, one file per device (`remove` deletes it); by default a new name
    in /dev/shm. It appears with the first replica.
    """
    if sms < 1:
        raise InvalidRequestError(f"sms={sms} must be at least 1", reason="BAD_DEVICE")
    known = {DEFAULT: SimProfile.affine(), **(profiles or {})}
    return DeviceInfo(
        device_id=device_id,
        kind="sim",
        units=tuple(range(sms)),
        memory_bytes=memory_bytes,
        cold_start_s=cold_start_s,
        fixed_lanes=None if lanes is None else cut(sms, lanes),
        lane_percents=tuple(lanes or ()),
        options={
            "lanes_file": str(lanes_file or _fresh_name()),
            "profiles": {name: profile.to_dict() for name, profile in known.items()},
        },
        model=model_of(model, lanes),
    )


def _fresh_name() -> Path:
    # Named so that the node agent's sweep of shared memory finds what a dead process left.
    return Path("/dev/shm") / f"hasfaas-{os.getuid()}-{os.getpid()}-sim-{secrets.token_hex(4)}.lanes"  # noqa: S108


def remove(info: DeviceInfo) -> None:
    """Deletes the file that this device's processes shared; those that have it mapped go on."""
    Path(str(info.options["lanes_file"])).unlink(missing_ok=True)


def enter(part: DeviceSlice) -> Stream:
    """Opens the lane that `part` names; the process itself is not confined. Raises InvalidRequestError for
    bad options.
    """
    if not 0 <= part.lane < MAX_LANES:
        raise InvalidRequestError(f"lane={part.lane} must lie in [0, {MAX_LANES - 1}]", reason="BAD_LANE")
    path, profiles = part.options.get("lanes_file"), part.options.get("profiles")
    if not isinstance(path, str) or not isinstance(profiles, Mapping) or DEFAULT not in profiles:
        raise InvalidRequestError(
            "options of a sim device need lanes_file and profiles with a default: use sim.device",
            reason="BAD_DEVICE",
        )
    known = {str(name): SimProfile.from_dict(data) for name, data in profiles.items()}
    return SimStream(_LaneFile(Path(path), part.lane), known, part)


@attrs.frozen
class LaneCount:
    """What a lane's device has been given so far: kernels, and their total duration."""

    kernels: int
    busy_ns: int


def lane_count(info: DeviceInfo, lane: int) -> LaneCount:
    """The device's own count of a lane, over all processes; what is queued but not finished is included."""
    words = _LaneFile(Path(str(info.options["lanes_file"])), lane)
    try:
        return words.count()
    finally:
        words.close()


class _LaneFile:
    """One lane's words in the shared file, behind a lock on a descriptor that this process opened itself."""

    def __init__(self, path: Path, lane: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self._locked():
            if os.fstat(self._descriptor).st_size < _FILE_BYTES:
                os.ftruncate(self._descriptor, _FILE_BYTES)
        self._map = mmap.mmap(self._descriptor, _FILE_BYTES, mmap.MAP_SHARED)
        self._words = memoryview(self._map).cast("q")
        self._base = lane * _LANE_WORDS

    def queue(self, duration_ns: int) -> int:
        """Appends a kernel; returns the instant at which it ends."""
        words, base = self._words, self._base
        with self._locked():
            end = max(monotonic_ns(), words[base + _FREE_AT]) + duration_ns
            words[base + _FREE_AT] = end
            words[base + _BUSY] += duration_ns
            words[base + _KERNELS] += 1
        return end

    def count(self) -> LaneCount:
        with self._locked():
            return LaneCount(self._words[self._base + _KERNELS], self._words[self._base + _BUSY])

    def close(self) -> None:
        self._words.release()
        self._map.close()
        os.close(self._descriptor)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


class SimStream(Stream):
    """The stream of one replica. An event is the instant at which the last kernel launched before it ends."""

    def __init__(self, lane: _LaneFile, profiles: Mapping[str, SimProfile], part: DeviceSlice) -> None:
        self._lane = lane
        self._profiles = profiles
        self._sm_percent = part.sm_percent
        self._end_ns = 0
        self.kernels = 0
        self.busy_ns = 0
        # The default slack of 50 us would be a twentieth of each kernel.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_TIMER_SLACK_NS), 0, 0, 0)

    def launch(self, duration_ns: int) -> None:
        """Queues one kernel and returns at once."""
        self._end_ns = self._lane.queue(duration_ns)
        self.kernels += 1
        self.busy_ns += duration_ns

    def record(self) -> object | None:
        """An event behind all launched so far (never None: the stream is asynchronous)."""
        return self._end_ns

    def query(self, event: object | None) -> bool:
        """Whether that instant has passed."""
        return monotonic_ns() >= _instant(event)

    def wait(self, event: object | None) -> None:
        """Sleeps until shortly before the instant, and looks at the clock for the rest."""
        end = _instant(event)
        while (left := end - monotonic_ns()) > 0:
            if left > _SPIN_NS:
                sleep((left - _SPIN_NS) / 1e9)

    def drain(self) -> None:
        """Waits for the last kernel."""
        self.wait(self._end_ns)

    @property
    def granted_percent(self) -> float | None:
        """As the lane has it: what is not there cannot be cut wrong."""
        return self._sm_percent

    def serve(self, function: str, batch: int, gate: Callable[[], None]) -> None:
        """Launches what the profile says for this batch, in kernels of at most 1 ms with a gate between two.

        Returns when they have ended, as a user's code does that reads its result.
        """
        profile = self._profiles.get(function, self._profiles[DEFAULT])
        left_ns = round(profile.latency_ms(batch, self._sm_percent) * 1e6)
        while left_ns > 0:
            self.launch(min(left_ns, MAX_KERNEL_NS))
            left_ns -= MAX_KERNEL_NS
            if left_ns > 0:
                gate()
        self.drain()


def _instant(event: object | None) -> int:
    assert isinstance(event, int), f"{event!r} is no event of a sim stream"
    return event
