"""The replicas of a simulation and the room that they take: what an action may do, and what it does to the arrays.

An action that cannot be carried out is refused with a reason, never silently: the rules are those of node/lanes.py and of the
token table (whole units, `MAX_LANES` lanes, quotas of a lane within 100 %, memory, slots).
"""

from __future__ import annotations

from typing import Any, assert_never

import attrs
import numpy as np

from hasfaas.core.allocation import MAX_LANES, PPM_PER_PERCENT, granted_units
from hasfaas.executor.quota import PPM, SlotState
from hasfaas.scaling.decision import Action, AddReplica, DrainReplica, Rebatch, Resize
from hasfaas.scaling.observation import Life
from hasfaas.simulator import worlds
from hasfaas.simulator.kernel import Kernel
from hasfaas.simulator.records import SLOTS_OF_DEVICE, World
from hasfaas.simulator.scenario import Scenario

Array = np.ndarray[Any, Any]


@attrs.define
class ReplicaLife:
    """One replica from when it was asked for; `ready_ns` and `gone_ns` are None for what has not happened."""

    replica_id: str
    function: int
    device: int
    lane: int
    sm_percent: float
    asked_ns: int
    ready_ns: int | None = None
    gone_ns: int | None = None


class Fleet:
    """All replicas, ready or not. Rows are those of `world.slots`; a row is used again once its replica is gone."""

    def __init__(self, scenario: Scenario, kernel: Kernel) -> None:
        self.scenario, self.kernel = scenario, kernel
        self.world: World = worlds.of(scenario)
        self.lives: list[ReplicaLife] = []
        self.rows: Array = np.zeros(0, np.int64)
        # Whether an action was carried out, or a replica has gone, since somebody took note.
        self.changed = True
        self._life: dict[int, ReplicaLife] = {}
        self._row: dict[str, int] = {}
        self._free: list[int] = []
        self._functions = {f.name: i for i, f in enumerate(scenario.functions)}
        self._devices = {d.name: i for i, d in enumerate(scenario.devices)}
        self._holds: dict[tuple[int, str, float, int], Array] = {}
        devices = len(scenario.devices)
        self.lane_units = np.zeros(devices * MAX_LANES, np.int64)
        self.lane_ppm = np.zeros(devices * MAX_LANES, np.int64)
        self.device_units = np.array([device.units for device in scenario.devices])
        self._memory = np.zeros(devices, np.int64)
        self._memory_there = np.array([device.memory_bytes for device in scenario.devices])
        self._grow()

    @property
    def now_ns(self) -> int:
        """The present."""
        return int(self.world.clock["now_ns"][0])

    def life(self, row: int) -> ReplicaLife:
        """Whose row that is."""
        return self._life[row]

    # -- actions ------------------------------------------------------------------------------------------------------

    def apply(self, action: Action) -> str | int | None:
        """Carries an action out now. A text says why it was refused, a number is the row of a new replica."""
        self.changed = True
        match action:
            case AddReplica():
                return self._add(action)
            case Resize(replica_id, quota_percent):
                return self._resize(replica_id, quota_percent)
            case Rebatch(replica_id, batch):
                row = self._row.get(replica_id)
                if row is None or batch < 1:
                    return f"replica {replica_id} is gone" if row is None else f"batch={batch} must be at least 1"
                most = self.scenario.functions[self._life[row].function].batch_max
                self.kernel.rebatch(self.world, row, min(batch, most))
            case DrainReplica(replica_id):
                row = self._row.get(replica_id)
                if row is None or self.world.slots[row].life == Life.DRAINING:
                    return f"replica {replica_id} is {'gone' if row is None else 'draining already'}"
                self.kernel.drain(self.world, row)
            case _:
                assert_never(action)
        return None

    def ready(self, row: int, replica_id: str) -> None:
        """A replica has started, unless it has been taken back meanwhile."""
        if self._row.get(replica_id) != row or self.world.slots[row].life != Life.STARTING:
            return
        self._life[row].ready_ns = self.now_ns
        function = self._life[row].function
        if self.world.functions[function].ready == self.world.ready.shape[1]:
            self.world = worlds.with_places(self.world, 2 * self.world.ready.shape[1])
        self.kernel.attach(self.world, row)

    def collect(self) -> None:
        """Frees the rows and the room of replicas that are gone."""
        if not self.world.clock["gone"][0]:
            return
        self.world.clock["gone"] = 0
        self.changed = True
        slots = self.world.slots
        gone = self.rows[slots["state"][self.rows] == SlotState.FREE]
        for row in gone:
            life = self._life.pop(int(row))
            life.gone_ns = int(slots[row].gone_ns)
            del self._row[life.replica_id]
            lane = life.device * MAX_LANES + life.lane
            self.lane_ppm[lane] -= slots[row].quota_ppm
            if self.world.lanes[lane].seats == 0:
                self.lane_units[lane] = 0
            self._memory[life.device] -= self.scenario.functions[life.function].memory_bytes
            self._free.append(int(row))
        self.rows = self.rows[slots["state"][self.rows] != SlotState.FREE]

    def memory_fits(self) -> bool:
        """Whether the memory of every device suffices for its replicas."""
        return bool(np.all((self._memory >= 0) & (self._memory <= self._memory_there)))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _add(self, asked: AddReplica) -> str | int:
        function, device = self._functions.get(asked.function), self._devices.get(asked.device)
        if function is None or device is None:
            return f"there is no {asked.function!r} on {asked.device!r}"
        if not (0 <= asked.lane < MAX_LANES and 0 < asked.sm_percent <= 100 and 0 <= asked.quota_percent <= 100):
            return f"lane {asked.lane} at sm {asked.sm_percent:g} %, quota {asked.quota_percent:g} % cannot be"
        lane, total = device * MAX_LANES + asked.lane, self.scenario.devices[device].units
        units, cut = granted_units(total, asked.sm_percent), self.scenario.devices[device].lane_units
        if cut:
            # There are no others, and a larger one gives all that it has.
            if asked.lane >= len(cut) or cut[asked.lane] < units:
                return f"{asked.device} has no lane {asked.lane} of {units} units, its lanes have {', '.join(map(str, cut))}"
            units = cut[asked.lane]
        quota_ppm = round(asked.quota_percent * PPM_PER_PERCENT)
        refusal = self._no_room(asked, function, device, units, quota_ppm)
        if refusal is not None:
            return refusal
        if not self._free:
            self._grow()
        row = self._free.pop()
        self.lane_units[lane] = units
        self.lane_ppm[lane] += quota_ppm
        self._memory[device] += self.scenario.functions[function].memory_bytes
        sm_percent = 100.0 * units / total
        replica_id = f"{asked.function}-{len(self.lives)}"
        life = ReplicaLife(replica_id, function, device, asked.lane, sm_percent, self.now_ns)
        self.lives.append(life)
        self._life[row], self._row[replica_id] = life, row
        self.rows = np.append(self.rows, row)
        worlds.seat(self.world, row, function, lane, sm_percent / 100.0, quota_ppm, lend=self.scenario.lend)
        self.world.slots[row].batch = max(1, min(asked.batch, self.scenario.functions[function].batch_max))
        self._set_holds(row)
        return row

    def _no_room(self, asked: AddReplica, function: int, device: int, units: int, quota_ppm: int) -> str | None:
        lane = device * MAX_LANES + asked.lane
        first = device * MAX_LANES
        of_device = slice(first, first + MAX_LANES)
        here, total = self.scenario.devices[device], int(self.lane_units[of_device].sum())
        where = f"lane {asked.lane} of {asked.device}"
        if self.lane_units[lane] not in (0, units):
            return f"{where} has {self.lane_units[lane]} units, sm {asked.sm_percent:g} % is {units}"
        if self.lane_units[lane] == 0 and total + units > here.units:
            return f"{asked.device} has {here.units - total} units left, sm {asked.sm_percent:g} % is {units}"
        if self.lane_ppm[lane] + quota_ppm > PPM:
            left = (PPM - self.lane_ppm[lane]) / PPM_PER_PERCENT
            return f"{where} has {left:g} % left, quota {asked.quota_percent:g} % is asked"
        if self._memory[device] + self.scenario.functions[function].memory_bytes > here.memory_bytes:
            left_mib = int(here.memory_bytes - self._memory[device]) >> 20
            return f"{asked.device} has {left_mib} MiB of memory left"
        if self.world.lanes["seats"][of_device].sum() >= SLOTS_OF_DEVICE:
            return f"{asked.device} has {SLOTS_OF_DEVICE} replicas, the most that it can have"
        return None

    def _resize(self, replica_id: str, quota_percent: float) -> str | None:
        row = self._row.get(replica_id)
        if row is None:
            return f"replica {replica_id} is gone"
        slots = self.world.slots
        quota_ppm, lane = round(quota_percent * PPM_PER_PERCENT), slots["lane"][row]
        others_ppm = int(self.lane_ppm[lane] - slots["quota_ppm"][row])
        if not 0 <= quota_ppm <= PPM - others_ppm:
            left = (PPM - others_ppm) / PPM_PER_PERCENT
            return f"quota {quota_percent:g} % of {replica_id} does not fit its lane: {left:g} % is left"
        self.lane_ppm[lane] = others_ppm + quota_ppm
        self.kernel.requota(self.world, row, quota_ppm)
        if self.scenario.law == "table":
            self._set_holds(row)
        return None

    def _set_holds(self, row: int) -> None:
        life, slot = self._life[row], self.world.slots[row]
        function = self.scenario.functions[life.function]
        table = function.table if self.scenario.law == "table" else None
        device_type = self.scenario.devices[life.device].type
        key = (life.function, device_type, life.sm_percent, int(slot.quota_ppm) if table is not None else 0)
        holds = self._holds.get(key)
        if holds is None:
            holds = np.zeros(self.world.hold_ns.shape[1])
            for batch in range(1, function.batch_max + 1):
                if table is None:
                    holds[batch] = function.truth_on(device_type).hold(batch, life.sm_percent) * 1e6
                else:
                    quota_percent = max(int(slot.quota_ppm), 1) / PPM_PER_PERCENT
                    holds[batch] = table.latency(batch, life.sm_percent, quota_percent) * 1e6
            self._holds[key] = holds
        self.world.hold_ns[row] = holds

    def _grow(self) -> None:
        had = len(self.world.slots)
        slots = max(64, 2 * had)
        self.world = worlds.with_slots(self.world, slots)
        self._free += range(slots - 1, had - 1, -1)
