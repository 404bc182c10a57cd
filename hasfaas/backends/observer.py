"""What a scaler sees, from the router's counters, the fleet and the nodes: one observation of everything."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from hasfaas.core.state import ReplicaState
from hasfaas.devices.base import DeviceInfo, Health, device_type
from hasfaas.executor.quota import Timing
from hasfaas.rapp import lane_law
from hasfaas.scaling.device_offers import Offer, Offers
from hasfaas.scaling.journal import column
from hasfaas.scaling.observation import Array, Devices, FixedLanes, Functions, Life, Observation, Replicas
from hasfaas.serving.router import Counts

if TYPE_CHECKING:
    from hasfaas.backends.fleet import Fleet
    from hasfaas.backends.member import Deployed
    from hasfaas.backends.nodes import Replica
    from hasfaas.backends.profiles import Profiles
    from hasfaas.rapp.surface import Surface

# Until a function has started once.
GUESSED_COLD_START_S = 3.0
# What is seen of a replica that nobody sized and no scaler governs: it gives way to others down to this much.
YIELDING_QUOTA_PERCENT = 10.0
# Of the calls that met an idle replica the quick ones tell what lies outside the lane. The estimate falls at once and rises
# slowly, since a busy machine only ever makes it longer.
QUICK_SHARE = 0.2
RISE = 0.1
LATENCY_WINDOW_S = 60.0
LIVES = {ReplicaState.STARTING: Life.STARTING, ReplicaState.READY: Life.READY}

Row = dict[str, Any]


@attrs.frozen
class _Look:
    """What became of one function's calls between two observations, of which this is the later one."""

    at_s: float
    interval_s: float
    arrivals: int
    completed: int
    late: int
    latencies_ms: tuple[float, ...]


@attrs.define(eq=False)
class _Seen:
    """What is remembered of one function between two observations."""

    counts: Counts
    overhead_ms: float = 0.0
    looks: deque[_Look] = attrs.field(factory=deque)


@attrs.frozen
class Recent:
    """What became of the calls of the last minute, all of the same `seconds`. The quantiles are None without answers."""

    seconds: float = 0.0
    arrivals: int = 0
    completed: int = 0
    late: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None


class Observer:
    """Makes observations; each counts from the one before."""

    def __init__(self, fleet: Fleet, profiles: Profiles, timing: Timing, tick_s: float) -> None:
        self._fleet = fleet
        self._profiles = profiles
        self._timing = timing
        self._tick_s = tick_s
        self._last_s: float | None = None
        self._seen: dict[str, _Seen] = {}
        self._used_ns: dict[str, int] = {}
        # At the last look: the types of device that there was a choice of, that of each device, and each one's number.
        self.offers = Offers()
        self._type_of: tuple[str, ...] = ()
        self._numbers: dict[str, int] = {}
        # Of this look: the row of each device, and which devices each wish names, since functions by the thousand share it.
        self._device_rows: dict[str, int] = {}
        self._masks: dict[tuple[str, str | None], Array] = {}
        self._guess_s = GUESSED_COLD_START_S

    def observe(self, now_s: float) -> Observation:
        """Everything at `now_s`, on the clock of the fleet. Of a function that has profiles on several types of device it
        shows the first; `offers` has them all."""
        interval_s = self._tick_s if self._last_s is None else max(now_s - self._last_s, 1e-3)
        self._last_s = now_s
        nodes = self._fleet.nodes
        devices = list(nodes.devices.values())
        self._type_of = tuple(device_type(device) for device in devices)
        self._numbers = {name: number for number, name in enumerate(dict.fromkeys(self._type_of))}
        self._device_rows = {device_id: row for row, device_id in enumerate(nodes.devices)}
        self._masks = {}
        self._guess_s = max((device.cold_start_s for device in devices), default=0.0) or GUESSED_COLD_START_S
        processes = list(nodes.replicas.values())
        known = {deployed.record.name: deployed for deployed in self._fleet.functions()}
        # Replicas of deleted functions hold room until they have finished.
        left = sorted({process.request.function for process in processes} - set(known))
        names = (*known, *left)
        surfaces = {name: self._surfaces(deployed) for name, deployed in known.items()}
        rows = {name: row for row, name in enumerate(names)}
        replicas = [self._replica(process, rows, surfaces) for process in processes]
        held = dict.fromkeys(names, 0)
        for row in replicas:
            held[names[row["function"]]] += row["in_flight"]
        functions = [
            {**self._function(deployed, surfaces[name], now_s, interval_s), "in_flight": held[name]}
            for name, deployed in known.items()
        ]
        functions += [self._deleted() for _ in left]
        self._forget(known, processes)
        self.offers = self._offers(known, surfaces)
        homes = list(dict.fromkeys(device.node for device in devices))
        return Observation(
            now_s=now_s,
            interval_s=interval_s,
            functions=Functions(
                names=names,
                surfaces=tuple(next(iter(surfaces.get(name, {}).values()), None) for name in names),
                **_columns(Functions, functions, width=len(devices)),
            ),
            replicas=Replicas(ids=tuple(process.replica_id for process in processes), **_columns(Replicas, replicas)),
            devices=Devices(
                tuple(nodes.devices),
                column("units", [len(device.units) for device in devices]),
                column("memory_bytes", [device.memory_bytes for device in devices]),
                column("node", [homes.index(device.node) for device in devices]),
                column("type", [self._numbers[name] for name in self._type_of]),
            ),
            timing=self._timing,
            fixed_lanes=_fixed_lanes(devices),
        )

    def recent(self, name: str, now_s: float) -> Recent:
        """The last minute of one function: counts and latencies of the same calls."""
        seen = self._seen.get(name)
        looks = [look for look in seen.looks if now_s - look.at_s <= LATENCY_WINDOW_S] if seen else []
        values = [ms for look in looks for ms in look.latencies_ms]
        p50_ms, p95_ms = (float(ms) for ms in np.percentile(values, (50, 95))) if values else (None, None)
        return Recent(
            seconds=sum(look.interval_s for look in looks),
            arrivals=sum(look.arrivals for look in looks),
            completed=sum(look.completed for look in looks),
            late=sum(look.late for look in looks),
            p50_ms=p50_ms,
            p95_ms=p95_ms,
        )

    def quota_percents(self) -> Mapping[str, float]:
        """The quota of every replica as it is now, also of those that an observation shows as giving way."""
        nodes = self._fleet.nodes
        return {replica_id: nodes.seat(replica_id).quota_percent for replica_id in nodes.replicas}

    def _forget(self, known: Mapping[str, Deployed], processes: Sequence[Replica]) -> None:
        for name in set(self._seen) - set(known):
            del self._seen[name]
        for replica_id in set(self._used_ns) - {process.replica_id for process in processes}:
            del self._used_ns[replica_id]

    # -- functions -----------------------------------------------------------------------------------------------------

    def _surfaces(self, deployed: Deployed) -> Mapping[str, Surface]:
        return {} if deployed.record.kind.streams else self._profiles.surfaces(deployed.record)

    def _allowed(self, deployed: Deployed, of_type: str | None) -> Array:
        """The devices that a function may use now, those of one type or of any [device]."""
        wanted = deployed.record.spec.device
        wish = wanted, of_type
        if wish not in self._masks:
            conditions = self._fleet.nodes.conditions
            mask = [
                device.is_called(wanted)
                and of_type in (None, its_type)
                and conditions[device.device_id].health is Health.READY
                for device, its_type in zip(self._fleet.nodes.devices.values(), self._type_of, strict=True)
            ]
            self._masks[wish] = column("devices", mask)
        return self._masks[wish]

    def _offers(self, known: Mapping[str, Deployed], surfaces: Mapping[str, Mapping[str, Surface]]) -> Offers:
        offered = {
            name: tuple(
                Offer(self._numbers[one], surface, self._allowed(known[name], one)) for one, surface in found.items()
            )
            for name, found in surfaces.items()
            if len(found) > 1
        }
        if not offered:
            return Offers()
        prices: dict[str, float] = {}
        for device, its_type in zip(self._fleet.nodes.devices.values(), self._type_of, strict=True):
            prices[its_type] = min(device.price, prices.get(its_type, device.price))
        return Offers(tuple(prices), tuple(prices.values()), offered)

    def _function(self, deployed: Deployed, surfaces: Mapping[str, Surface], now_s: float, interval_s: float) -> Row:
        record, spec, router = deployed.record, deployed.record.spec, self._fleet.router
        counts = attrs.evolve(router.counts(record.name))
        # What came before the first look is nobody's load of this second.
        first = record.name not in self._seen
        seen = self._seen.setdefault(record.name, _Seen(counts))
        # A function that was deleted and deployed anew counts from nothing.
        before = seen.counts if counts.accepted >= seen.counts.accepted else Counts()
        seen.counts = counts
        latencies_ms = self._answered(deployed, seen, surfaces)
        first_type = next(iter(surfaces), None)

        def grown(*fields: str) -> int:
            return sum(getattr(counts, field) - getattr(before, field) for field in fields)

        arrivals, completed = grown("accepted", "refused"), grown("completed")
        late = grown("completed", "failed", "expired", "refused") - grown("slo_met")
        if not first:
            seen.looks.append(_Look(now_s, interval_s, arrivals, completed, late, latencies_ms))
        while seen.looks and now_s - seen.looks[0].at_s > LATENCY_WINDOW_S:
            seen.looks.popleft()
        return {
            "slo_ms": spec.slo_ms,
            "late_share": 1.0 - spec.slo_percentile / 100.0,
            "arrivals": arrivals,
            "completed": completed,
            "late": late,
            "waiting": router.depth(record.name),
            "min_replicas": spec.min_replicas,
            "max_replicas": spec.max_replicas,
            "memory_bytes": spec.memory_bytes,
            "batch_max": spec.batch.max_size if spec.batch else 1,
            "cold_start_s": deployed.cold_start_s or self._guess_s,
            "overhead_ms": seen.overhead_ms,
            "by_hand": record.sizing.sized,
            "devices": self._allowed(deployed, first_type),
            "device_type": self._numbers.get(first_type or "", -1),
        }

    def _deleted(self) -> Row:
        """A function that is not there any more, while its replicas finish: nobody is to do anything about it."""
        return {
            **dict.fromkeys(("arrivals", "completed", "late", "waiting", "in_flight", "min_replicas"), 0),
            **dict.fromkeys(("max_replicas", "batch_max", "memory_bytes"), 1),
            "slo_ms": 1000.0,
            "late_share": 0.01,
            "cold_start_s": GUESSED_COLD_START_S,
            "overhead_ms": 0.0,
            "by_hand": True,
            "devices": [False] * len(self._fleet.nodes.devices),
            "device_type": -1,
        }

    def _answered(self, deployed: Deployed, seen: _Seen, surfaces: Mapping[str, Surface]) -> tuple[float, ...]:
        """The latencies in ms since the last time; takes over what they tell of the time outside the lane."""
        answered = self._fleet.router.answered(deployed.record.name)
        latencies_ms = tuple(each.latency_ms for each in answered)
        alone = sorted(each.latency_ms for each in answered if each.alone)
        nodes = self._fleet.nodes
        slices = [
            (surface, member.process.sm_percent, nodes.quota_percent(member.process.replica_id) / 100.0)
            for member in deployed.members.values()
            if member.state is ReplicaState.READY
            and (device := nodes.devices.get(member.process.device_id)) is not None
            and (surface := surfaces.get(device_type(device))) is not None
        ]
        if not alone or not slices:
            return latencies_ms
        lane_ms = min(
            float(lane_law.idle_ms(surface.hold(1, sm_percent), quota, self._timing))
            for surface, sm_percent, quota in slices
        )
        sample_ms = max(0.0, alone[int(QUICK_SHARE * len(alone))] - lane_ms)
        before_ms = seen.overhead_ms
        seen.overhead_ms = sample_ms if sample_ms < before_ms else before_ms + RISE * (sample_ms - before_ms)
        return latencies_ms

    # -- replicas ------------------------------------------------------------------------------------------------------

    def _replica(self, process: Replica, rows: Mapping[str, int], surfaces: Mapping[str, Mapping[str, Surface]]) -> Row:
        nodes, replica_id = self._fleet.nodes, process.replica_id
        member = self._fleet.member(replica_id)
        name, cap = process.request.function, process.request.batch_cap
        life = Life.STARTING
        if member is not None:
            cap = member.batch
            # One that is being measured holds its room and serves nobody.
            life = Life.DRAINING if member.bench is not None else LIVES.get(member.state, Life.DRAINING)
        seat = nodes.seat(replica_id)
        quota_percent = seat.quota_percent
        if not seat.pinned and not surfaces.get(name):
            quota_percent = min(quota_percent, YIELDING_QUOTA_PERCENT)
        used_ns = nodes.usage(replica_id).used_ns
        before_ns = self._used_ns.get(replica_id, 0)
        self._used_ns[replica_id] = used_ns
        return {
            "function": rows[name],
            "device": self._device_rows[process.device_id],
            "lane": process.lane,
            "sm_percent": process.sm_percent,
            "quota_percent": quota_percent,
            "batch": cap or process.request.batch_max or 1,
            "life": life,
            "since_s": process.asked_s,
            "in_flight": self._fleet.router.in_flight(replica_id),
            "used_s": (used_ns - before_ns) / 1e9,
        }


def _fixed_lanes(devices: Sequence[DeviceInfo]) -> FixedLanes:
    """The lanes that were cut in advance, of all devices."""
    rows = [
        {"device": row, "lane": number, "units": len(units)}
        for row, device in enumerate(devices)
        for number, units in enumerate(device.fixed_lanes or ())
    ]
    return FixedLanes(**_columns(FixedLanes, rows))


def _columns(table: type[attrs.AttrsInstance], rows: Sequence[Row], width: int = 0) -> dict[str, Any]:
    """The rows as columns, each with its type; the matrix of devices is `width` wide also without rows."""
    fields = [f.name for f in attrs.fields(table) if f.name not in ("names", "ids", "surfaces")]
    made = {name: column(name, [row[name] for row in rows]) for name in fields}
    if "devices" in made:
        made["devices"] = made["devices"].reshape(len(rows), width)
    return made
