"""Profiles of functions: measured in a replica of their own, fitted once, and corrected by what is served.

The figures come from replicas, the arithmetic is `hasfaas.rapp`'s; this file says what is measured when, and keeps the
results in the store. A function without a profile has none: nothing here makes a number up.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hasfaas.core.errors import ConflictError, HasFaasError, InvalidRequestError, NotFoundError, PlacementError
from hasfaas.devices.base import DeviceInfo, device_type
from hasfaas.node.lanes import Want, granted_units
from hasfaas.serving.ports import (
    Figures,
    Fitted,
    FunctionRecord,
    News,
    Note,
    Plan,
    Point,
    ProfileState,
    Store,
)
from hasfaas.wire.frames import Measure, RawPayload

if TYPE_CHECKING:
    from hasfaas.backends.bench import Bench
    from hasfaas.backends.fleet import Fleet
    from hasfaas.backends.nodes import Replica
    from hasfaas.rapp.online import Observation
    from hasfaas.rapp.profile import Profile
    from hasfaas.rapp.surface import Surface

log = logging.getLogger("hasfaas.profiles")
MOST_INTERRUPTED = 0.1
QUOTAS_PERCENT = (100.0, 60.0, 30.0)
# SM shares worth a process each; the surface itself is read at finer ones.
SM_PERCENTS = (10.0, 20.0, 35.0, 50.0, 75.0, 100.0)
SURFACE_SM_PERCENTS = tuple(5.0 * step for step in range(1, 21))
POINT_BOUND_S = 1.5
MOST_POINTS = 256
# A point whose hold varies more than that from run to run is measured twice.
NOISY_SPREAD = 0.08
# Of one function, between two folds: more teach nothing more, and each costs a fraction of a millisecond.
MOST_PENDING = 256
KEPT_OBSERVATIONS = 1_024
# A surface that has moved by less stays the same object: who has worked something out from it keeps that.
SAME_SURFACE = 0.02
# Distinct batch sizes (of those there are) from which a profile is made of served batches alone.
FEWEST_CELLS = 3
REFIT_EVERY_S = 5.0
# The first fit of served batches takes 0.2 s of the process that carries the calls: when they pause, or at last anyway.
QUIET_S, BUSY_S = 10.0, 600.0
SAVE_EVERY_S = 10.0

Key = tuple[str, str, str]


@attrs.define(eq=False)
class _Known:
    """What is known of one version on one type of device, by one device of it. `profile` is rebuilt from its JSON when it is
    first needed."""

    record: FunctionRecord
    device: DeviceInfo
    text: str = ""
    profile: Profile | None = None
    shown: ProfileState = attrs.field(factory=ProfileState)
    pending: deque[tuple[int, float, int]] = attrs.field(factory=lambda: deque(maxlen=MOST_PENDING))
    kept: deque[Observation] = attrs.field(factory=lambda: deque(maxlen=KEPT_OBSERVATIONS))
    dirty: bool = False
    saved_s: float = -math.inf
    tried_s: float = -math.inf
    since_s: float = math.inf
    latest_s: float = -math.inf
    looked_s: float = -math.inf

    def ripe(self, now_s: float) -> bool:
        """Whether what was served may be made something of now: at once with a profile, else when calls pause."""
        if self.profile is not None or self.text:
            return bool(self.pending)
        # What was looked at when calls paused is looked at again after further ones.
        waits = self.looked_s < self.latest_s
        return waits and (now_s - self.latest_s >= QUIET_S or now_s - max(self.since_s, self.looked_s) >= BUSY_S)


class Profiles:
    """Profiling (serving/ports.py) over one fleet. `fold` is to be called about once a second, off the path of calls."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._fleet: Fleet | None = None
        self._known: dict[Key, _Known] = {}
        self._running: set[str] = set()
        self._turns: dict[str, asyncio.Lock] = {}
        self._surfaces: dict[Key, tuple[Profile, Surface]] = {}

    def attach(self, fleet: Fleet) -> None:
        """The fleet whose replicas are measured."""
        self._fleet = fleet

    @property
    def fleet(self) -> Fleet:
        """The fleet, once there is one."""
        assert self._fleet is not None, "attach comes first"
        return self._fleet

    # -- Profiling ---------------------------------------------------------------------------------------------------

    def state(self, record: FunctionRecord) -> ProfileState:
        """What is known of the version that serves; of several devices the first that has a profile."""
        known = self._of(record)
        return known[0].shown if known else ProfileState()

    def surfaces(self, record: FunctionRecord) -> dict[str, Surface]:
        """By type of device that is here, the surface that served batches have corrected; the same object as last time unless
        it has moved by more than 2 % somewhere. Of devices of a kind that have no model, the first that has a profile tells
        for all. Empty for a function without a profile."""
        found: dict[str, Surface] = {}
        for known in self._of(record):
            profile, name = _loaded(known), device_type(known.device)
            if profile is None or name in found:
                continue
            key = (record.name, record.version, _place(known.device))
            profiled, surface = self._surfaces.get(key, (None, None))
            if surface is None or profiled is not profile:
                fresh = profile.current()
                surface = fresh if surface is None or _moved(surface, fresh) else surface
                self._surfaces[key] = (profile, surface)
            found[name] = surface
        return found

    def get(self, record: FunctionRecord, device: str) -> str:
        """The profile as JSON. NotFoundError for a device that is not here, and where there is none (UNPROFILED)."""
        if device:
            self._device(record, device)
        meant = {_place(info) for info in self.fleet.nodes.devices.values() if device in ("", *_names(info))}
        found = [known for known in self._of(record) if _place(known.device) in meant]
        if not found:
            where = f" on {device}" if device else ""
            raise NotFoundError(
                f"{record.name} is unprofiled{where}: measure it with `hasfaas profile {record.name}`",
                reason="UNPROFILED",
            )
        return _text(found[0])

    async def profile(
        self, record: FunctionRecord, *, device: str, points: int, arguments: RawPayload | None, at: Sequence[Point]
    ) -> AsyncGenerator[News, None]:
        """Measures, fits, keeps. With `at` it measures those points alone."""
        info = self._device(record, device)
        _check(record, info, points, at)
        given = arguments is not None
        sample = arguments or self.fleet.router.sample(record.name)
        if record.name in self._running:
            raise ConflictError(
                f"{record.name} is being profiled already: wait until that is done", reason="PROFILE_RUNNING"
            )
        self._running.add(record.name)
        try:
            turn = self._turns.setdefault(info.device_id, asyncio.Lock())
            if turn.locked():
                yield Note(f"another function is measured on {info.device_id}: waiting for it")
            async with turn:
                run = _Run(self.fleet, record, info, sample, given)
                async with contextlib.aclosing(run.measured(at or _chosen(points, record, info))) as news:
                    async for each in news:
                        yield each
                if not at:
                    profile, note = await asyncio.to_thread(_fitted, record, info, run.figures)
                    if note:
                        yield Note(note)
                    yield Fitted(self._keep(record, info, profile))
        finally:
            self._running.discard(record.name)

    def forget(self, name: str) -> None:
        """The function was deleted."""
        for table in (self._known, self._surfaces):
            for key in [key for key in table if key[0] == name]:
                del table[key]

    # -- live batches ------------------------------------------------------------------------------------------------

    def observe(self, record: FunctionRecord, process: Replica, holds: Sequence[tuple[int, int]]) -> None:
        """(batch, hold in nanoseconds) of what a replica has served. Only noted here: `fold` makes something of it."""
        info = self.fleet.nodes.devices.get(process.device_id)
        if info is None:
            return
        known = self._entry(record, info)
        known.latest_s = time.monotonic()
        known.since_s = min(known.since_s, known.latest_s)
        for batch, hold_ns in holds:
            known.pending.append((batch, process.sm_percent, hold_ns))

    async def fold(self) -> None:
        """Corrects profiles by what was served since; makes them where there is enough; saves, at a bounded rate."""
        for key, known in list(self._known.items()):
            current = self._store.get(key[0])
            if current is None or current.version != key[1]:
                del self._known[key]
                continue
            if known.ripe(time.monotonic()) and key[0] not in self._running:
                await self._folded(known)
            if known.dirty and time.monotonic() - known.saved_s >= SAVE_EVERY_S:
                self._save(known)

    def save(self) -> None:
        """Saves what has changed, now: the gateway ends."""
        for known in self._known.values():
            if known.dirty:
                with contextlib.suppress(NotFoundError):
                    self._save(known)

    async def _folded(self, known: _Known) -> None:
        known.looked_s = time.monotonic()
        seen = [known.pending.popleft() for _ in range(len(known.pending))]
        before = known.profile
        try:
            profile = await asyncio.to_thread(_corrected, known, seen)
        except HasFaasError as exc:
            log.debug("%s: served batches make no profile yet: %s", known.record.name, exc)
            return
        # One that was measured meanwhile is newer.
        if profile is not None and known.profile is before:
            known.profile, known.text, known.dirty = profile, "", True
            known.shown = _shown(profile)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _of(self, record: FunctionRecord) -> list[_Known]:
        """What is known of this version on the devices that are here, profiles only, once for each type; read from the store
        the first time."""
        devices = [info for _, info in sorted(self.fleet.nodes.devices.items())]
        mine = {_place(info): self._entry(record, info) for info in devices}
        return [known for known in mine.values() if known.shown.state != ProfileState().state]

    def _entry(self, record: FunctionRecord, info: DeviceInfo) -> _Known:
        key = (record.name, record.version, _place(info))
        if key not in self._known:
            known = self._known[key] = _Known(record, info)
            kept = self._store.profiles(record.name, record.version)
            # Profiles were once kept by device alone.
            known.text = kept.get(_place(info), kept.get(info.device_id, ""))
            known.shown = _shown_of_text(known.text)
        return self._known[key]

    def _keep(self, record: FunctionRecord, info: DeviceInfo, profile: Profile) -> str:
        current = self._store.get(record.name)
        if current is None or current.version != record.version:
            raise _superseded(record)
        known = self._entry(record, info)
        known.pending.clear()
        known.profile, known.text, known.shown = profile, "", _shown(profile)
        self._save(known)
        return known.text

    def _save(self, known: _Known) -> None:
        text = _text(known)
        self._store.put_profile(known.record.name, known.record.version, _place(known.device), text)
        known.dirty, known.saved_s = False, time.monotonic()

    def _device(self, record: FunctionRecord, name: str) -> DeviceInfo:
        """The device meant, by id, kind or model; without a name the one where the function's replicas are, or would be. Of
        several one that has memory for a replica."""
        known = self.fleet.nodes.devices
        devices = dict(sorted(known.items(), key=lambda item: item[1].memory_bytes < record.spec.memory_bytes))
        serving = [view.device_id for view in self.fleet.replicas(record.name)]
        wanted = [name] if name else [*serving[:1], record.spec.device]
        for one in wanted:
            for info in devices.values():
                if one in ("auto", *_names(info)):
                    return info
        named = ", ".join(f"{info.device_id} ({info.kind})" for info in known.values()) or "none"
        raise NotFoundError(
            f"device {name or record.spec.device!r} is not here; devices: {named}", reason="DEVICE_NOT_FOUND"
        )


def _place(info: DeviceInfo) -> str:
    """What a profile is kept by: the type of its device, or the device itself, where nobody knows what it is like."""
    return device_type(info) if info.model else info.device_id


def _names(info: DeviceInfo) -> tuple[str, ...]:
    """What a person may call a device by."""
    return (info.device_id, info.kind, *((info.model, device_type(info)) if info.model else ()))


class _Run:
    """One measurement under way: point by point, one replica for each SM share."""

    def __init__(
        self, fleet: Fleet, record: FunctionRecord, info: DeviceInfo, sample: RawPayload | None, given: bool
    ) -> None:
        self._fleet = fleet
        self._record = record
        self._info = info
        self._sample = sample
        self._given = given
        self.figures: list[Figures] = []

    async def measured(self, points: Sequence[Point]) -> AsyncGenerator[News, None]:
        """The plan, then the figures of each point. A share that has no room is left out with a note; PlacementError when
        none has any."""
        left = sorted(points, key=lambda p: (-p.sm_percent, -p.quota_percent, p.batch))
        yield Plan(tuple(left))
        refused: PlacementError | None = None
        for sm_percent, group in itertools.groupby(left, lambda p: p.sm_percent):
            mine = list(group)
            try:
                async with contextlib.aclosing(self._share(sm_percent, mine)) as news:
                    async for each in news:
                        yield each
            except PlacementError as exc:
                refused = exc
                left = [p for p in left if p.sm_percent != sm_percent]
                yield Note(f"SM {sm_percent:g} % left out: {exc}")
                yield Plan(tuple(left))
        if not self.figures:
            raise refused or InvalidRequestError(f"{self._record.name}: there is no point to measure")

    async def _share(self, sm_percent: float, points: Sequence[Point]) -> AsyncGenerator[News, None]:
        spec = self._record.spec
        most = max(point.quota_percent for point in points)
        want = Want(spec.memory_bytes, self._info.device_id, sm_percent, most)
        async with self._fleet.bench(self._record, want) as bench:
            for point in points:
                figures = await self._point(bench, point)
                if figures.log_spread > NOISY_SPREAD:
                    # Something else had the core: what is steadier of two tries is believed.
                    again = await self._point(bench, point)
                    figures = min(figures, again, key=lambda f: f.log_spread)
                self.figures.append(figures)
                yield figures

    async def _point(self, bench: Bench, point: Point) -> Figures:
        self._fleet.resize_bench(bench, point.quota_percent)
        measure = Measure(point.batch, POINT_BOUND_S, self._given, self._sample)
        try:
            found = await bench.measure(measure)
        except HasFaasError as exc:
            if not self._fleet.serves(self._record):
                raise _superseded(self._record) from exc
            raise
        granted = attrs.evolve(point, sm_percent=bench.sm_percent)
        mean_ms, response_ms = found.mean_hold_ns / 1e6, found.response_ns / 1e6
        return Figures(granted, found.hold_ns / 1e6, mean_ms, response_ms, found.runs, found.log_spread)


def _superseded(record: FunctionRecord) -> ConflictError:
    return ConflictError(f"{record.name}: deployed anew, or deleted, while it was measured; profile it again")


# -- what is measured ----------------------------------------------------------------------------------------------------


def _check(record: FunctionRecord, info: DeviceInfo, points: int, at: Sequence[Point]) -> None:
    if record.kind.streams:
        raise InvalidRequestError(
            f"{record.name} streams: how long it holds the device depends on its reader, so it has no profile"
        )
    if not 4 <= points <= MOST_POINTS:
        raise InvalidRequestError(
            f"points={points} must lie in [4, {MOST_POINTS}]; 16 is the default", reason="BAD_POINT"
        )
    most = record.spec.batch.max_size if record.spec.batch else 1
    for point in at:
        if not 1 <= point.batch <= most:
            raise InvalidRequestError(
                f"batch={point.batch} must lie in [1, {most}] of {record.name}", reason="BAD_POINT"
            )
        for name, value in (("sm_percent", point.sm_percent), ("quota_percent", point.quota_percent)):
            if not 0.0 < value <= 100.0:
                raise InvalidRequestError(f"{name}={value:g} must lie in (0, 100]", reason="BAD_POINT")


def batches_of(record: FunctionRecord) -> tuple[int, ...]:
    """Batch sizes worth a probe: powers of two, what lies halfway between two, and the largest; 1 without `batch=`."""
    most = record.spec.batch.max_size if record.spec.batch else 1
    powers = [2**k for k in range(most.bit_length())]
    halfway = [3 * power for power in powers if 3 * power <= most]
    return tuple(sorted({*powers, *halfway, most}))


def shares_of(info: DeviceInfo, wanted: Iterable[float]) -> tuple[float, ...]:
    """The distinct SM shares, in percent, that the device grants for these, up to what a function that nobody has sized
    gets: on a `cpu` device one core is the gateway's, and a share that takes it too tells of their quarrel. Of lanes cut in
    advance theirs, whatever is wanted: there are no others to run in.
    """
    units = len(info.units)
    if info.fixed_lanes is not None:
        return tuple(sorted({100.0 * len(lane) / units for lane in info.fixed_lanes}))
    granted = {100.0 * granted_units(info, min(share, info.auto_sm_percent)) / units for share in wanted}
    return tuple(sorted(granted))


def _chosen(points: int, record: FunctionRecord, info: DeviceInfo) -> list[Point]:
    from hasfaas.rapp import probe

    shares = shares_of(info, SM_PERCENTS)
    return [
        Point(point.batch, point.sm_percent, point.quota_percent)
        for point in probe.choose(points, batches_of(record), shares, QUOTAS_PERCENT)
    ]


def _surface_axes(record: FunctionRecord, info: DeviceInfo) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Where the surface is kept."""
    return batches_of(record), shares_of(info, SURFACE_SM_PERCENTS)


def _fitted(record: FunctionRecord, info: DeviceInfo, figures: Sequence[Figures]) -> tuple[Profile, str]:
    """The profile, and what whoever waits should know of it. Raises what the fit raises.

    Three things that probes of a CPU say are no mistakes, and no surface has them: small operators run slower on more cores,
    so shares above the best are left out; a hold is longer at a small quota, since caches are cold after each wait, so
    then the surface is that of the greatest quota, and the law's error says how far off the others are; and a library may
    have a better kernel for four rows than for three, so then such neighbours are given their mean.
    """
    from hasfaas.rapp import probe
    from hasfaas.rapp.profile import Profile, ProfiledDevice, law_error_percent

    probes = [
        probe.Probe(probe.Point(*attrs.astuple(f.point)), _probed_ms(f), f.response_ms, f.runs, f.log_spread)
        for f in figures
    ]
    device = ProfiledDevice(info.kind, info.device_id)
    batches, shares = _surface_axes(record, info)
    kept, notes = probes, []
    while True:
        try:
            made = Profile.fitted(record.name, record.version, device, kept, batches, shares)
        except InvalidRequestError as exc:
            measured = sorted({p.point.sm_percent for p in kept})
            most = max(p.point.quota_percent for p in kept)
            if exc.reason == "DISAGREEING_PROBES" and any(p.point.quota_percent < most for p in kept):
                notes.append(f"holds differ between quotas, the profile is that of {most:g} %: {exc}")
                kept = [p for p in kept if p.point.quota_percent == most]
            elif exc.reason == "NON_MONOTONE_PROBES" and len(measured) > 1 and _slower_on_more(kept, measured[-1]):
                best, worse = measured[-2], measured[-1]
                notes.append(f"SM {worse:g} % is slower than {best:g} %: the profile goes up to {best:g} %")
                kept = [p for p in kept if p.point.sm_percent < worse]
                shares = tuple(share for share in shares if share <= best)
            elif exc.reason == "NON_MONOTONE_PROBES" and (level := probe.rising(kept)) != kept:
                notes.append(f"holds fall as the batch grows in places, neighbours there have their mean: {exc}")
                kept = level
            else:
                raise
        else:
            return attrs.evolve(made, probes=tuple(probes), law_error_percent=law_error_percent(probes)), "; ".join(
                notes
            )


def _probed_ms(figures: Figures) -> float:
    """The mean, since that is what a lane sells; but not more than a tenth above the median: stalls are the machine's."""
    return min(figures.mean_hold_ms, figures.hold_ms * (1.0 + MOST_INTERRUPTED))


def _slower_on_more(probes: Sequence[Any], share: float) -> bool:
    """Whether some batch was held longer at this share than at a smaller one."""
    at = {p.point.batch: p.hold_ms for p in probes if p.point.sm_percent == share}
    return any(p.point.sm_percent < share and at.get(p.point.batch, 0.0) > p.hold_ms for p in probes)


# -- what is known -------------------------------------------------------------------------------------------------------


def _corrected(known: _Known, seen: Sequence[tuple[int, float, int]]) -> Profile | None:
    """The profile after these batches: corrected, or made of what was seen so far; None while that is too little."""
    from hasfaas.rapp import online
    from hasfaas.rapp.profile import Profile, ProfiledDevice

    profile = _loaded(known)
    if profile is not None:
        for batch, sm_percent, hold_ns in seen:
            profile = profile.observed(batch, sm_percent, hold_ns / 1e6)
        return profile
    known.kept.extend(online.Observation(batch, sm, hold_ns / 1e6) for batch, sm, hold_ns in seen)
    probes = online.probes_of(known.kept)
    batches, shares = _surface_axes(known.record, known.device)
    now_s = time.monotonic()
    if len(probes) < min(FEWEST_CELLS, len(batches)) or now_s - known.tried_s < REFIT_EVERY_S:
        return None
    known.tried_s = now_s
    device = ProfiledDevice(known.device.kind, known.device.device_id)
    return Profile.fitted(known.record.name, known.record.version, device, probes, batches, shares, state="live")


def _loaded(known: _Known) -> Profile | None:
    if known.profile is None and known.text:
        from hasfaas.rapp.profile import Profile

        try:
            known.profile = Profile.from_dict(json.loads(known.text))
        except HasFaasError as exc:
            log.warning("%s: its profile is let go: %s", known.record.name, exc)
            known.text, known.shown = "", ProfileState()
    return known.profile


def _moved(before: Surface, after: Surface) -> bool:
    """Whether a hold or its uncertainty has moved by more than SAME_SURFACE anywhere, or the axes differ."""
    if (before.batches, before.sm_percents) != (after.batches, after.sm_percents):
        return True
    holds = abs(after.hold_ms / before.hold_ms - 1.0).max()
    return bool(max(holds, abs(after.log_sigma - before.log_sigma).max()) > SAME_SURFACE)


def _text(known: _Known) -> str:
    if not known.text:
        assert known.profile is not None, "there is a profile"
        known.text = json.dumps(known.profile.to_dict())
    return known.text


def _shown(profile: Profile) -> ProfileState:
    correction = profile.correction
    if correction is None:
        return ProfileState(profile.state)
    return ProfileState(profile.state, correction.drifted, correction.reason)


def _shown_of_text(text: str) -> ProfileState:
    if not text:
        return ProfileState()
    data = json.loads(text)
    correction = data.get("correction") or {}
    return ProfileState(str(data["state"]), bool(correction.get("drifted")), str(correction.get("reason", "")))
