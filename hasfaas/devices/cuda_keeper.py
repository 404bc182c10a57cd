"""The node agent's side of one GPU: its MPS daemon, its lanes, its health.

Lanes are kept apart in one of three ways. *static*: each lane is an MPS partition of whole chunks of SMs, which nobody else
may use. *percentage*: each replica is capped to its lane's share of the SMs, of which none is reserved. *none*: one lane of
the whole GPU, without MPS. A probe process tells what the GPU grants; where it takes no new partition while it has clients,
lanes are cut in advance.

A fatal fault of one client is reported to every client of its server, and the server takes nobody new until all of them
have left: the blast radius is the GPU. With static partitions a driver of release 610 or later keeps most faults to the
client that caused them (NVIDIA, "Using Static SM Partitioning", release 615): then the server stays active, the replica ends
by itself, and nothing is to be done here. No reply says which partition a fault was in, so where a server does fault, all
replicas go. Not yet run on a GPU.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from hasfaas.core.errors import BackendError, InvalidRequestError, PlacementError
from hasfaas.devices import held_probe, nvml
from hasfaas.devices.base import Condition, DeviceInfo, Health, cut
from hasfaas.devices.held_probe import Census
from hasfaas.devices.mps import PROTOCOLS, MpsControl
from hasfaas.devices.mps_folders import daemon_folder, daemon_root, make_private, sweep
from hasfaas.devices.mps_partitions import Partitions, Units
from hasfaas.devices.mps_policy import (
    DEFAULT_LANES,
    NONE,
    PERCENTAGE,
    STATIC,
    Recovery,
    client_environment,
    modes,
    plain_environment,
    thread_percentage,
)
from hasfaas.devices.mps_replies import ServerStatus

log = logging.getLogger("hasfaas.devices")

ONE: Units = (0,)
_HURRY_S = 2.0


class CudaKeeper:
    """Keeps one GPU. `root` is where daemons have their folders, `probe` the command of the probe process."""

    def __init__(
        self,
        info: DeviceInfo,
        *,
        root: Path | None = None,
        probe: Sequence[str] = held_probe.COMMAND,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._info = info
        self._uuid = str(info.options["uuid"])
        self._root = root or daemon_root()
        folder = daemon_folder(self._root, self._uuid)
        protocol = info.options.get("protocol")
        protocols = PROTOCOLS if protocol is None else (int(str(protocol)),)
        self._control = MpsControl(folder, self._uuid, protocols=protocols)
        self._hurried = MpsControl(folder, self._uuid, timeout_s=_HURRY_S)
        self._probe = probe
        self._clock_s = clock_s
        self._mode = NONE
        self._partitions = Partitions(self._control)
        self._lanes: dict[int, Units] = {}
        self._server: int | None = None
        self._faulty = False
        self._recovery = Recovery()
        self._condition = Condition()

    # -- the seam ----------------------------------------------------------------------------------------------------

    def start(self) -> DeviceInfo:
        """Starts the best mode that the GPU allows, or the one asked for, and says what it gives. Raises BackendError or
        InvalidRequestError; then nothing is left running."""
        make_private(self._root)
        sweep(self._root, self._control.folder)
        gpu, driver = self._look()
        version = self._version()
        wanted = str(self._info.options.get("partitions", "auto"))
        choices, why = modes(wanted, driver.cuda, gpu.capability, gpu.compute_mode, mps=version is not None)
        facts = {"uuid": gpu.uuid, "name": gpu.name, "driver": driver.version, "cuda": ".".join(map(str, driver.cuda))}
        for mode in choices:
            try:
                info = self._enter(mode)
            except BaseException as exc:
                self.stop()
                if isinstance(exc, PlacementError) and mode == choices[-1]:
                    raise BackendError(
                        f'devices: partitions="{mode}" cannot be had: {exc}', reason="PARTITIONS_UNAVAILABLE"
                    ) from exc
                if mode == choices[-1] or not isinstance(exc, BackendError | PlacementError):
                    raise
                why = "; ".join(filter(None, (why, f"{mode}: {exc}")))
                continue
            if why:
                log.warning("%s: lanes are kept apart by %s: %s", self._uuid, mode, why)
            more = {"mps": version, "partitions": mode, "partitions_why": why}
            self._info = attrs.evolve(info, facts={**self._info.facts, **facts, **more, **info.facts})
            return self._info
        raise AssertionError("there is always a mode")

    def open_lane(self, lane: int, units: Units) -> None:
        """Cuts the lane's partition, where it was not cut in advance. Raises PlacementError when the GPU refuses."""
        fixed = self._info.fixed_lanes
        if fixed is not None and units not in fixed:
            raise PlacementError(
                f"{self._uuid} has no lane of the units {units}; its lanes were cut in advance: {fixed}"
            )
        if self._mode == STATIC:
            self._partitions.cut(units)
        self._lanes[lane] = units

    def environment(self, lane: int, memory_bytes: int) -> Mapping[str, str | None]:
        """What a replica of an open lane has in its environment."""
        if self._mode == NONE:
            return plain_environment(self._uuid)
        units = self._lanes[lane]
        return self._client(
            memory_bytes,
            partition=self._partitions.of(units) if self._mode == STATIC else None,
            percentage=thread_percentage(len(units), len(self._info.units)) if self._mode == PERCENTAGE else None,
        )

    def close_lane(self, lane: int) -> None:
        """Gives the lane's partition back, unless it was cut in advance. One that is still in use is given back later."""
        units = self._lanes.pop(lane, None)
        if units is not None and self._info.fixed_lanes is None:
            self._partitions.give_back(units)

    def before_kill(self, pid: int) -> None:
        """Ends a client's work on the GPU: a client killed in its midst can take the server with it. Bounded, and does not
        raise; after a fault there is no work to end."""
        if self._mode == NONE or self._condition.health is not Health.READY:
            return
        try:
            for server in self._hurried.servers():
                if pid in self._hurried.clients(server):
                    self._hurried.terminate_client(server, pid)
        except BackendError as exc:
            log.warning("%s: the work of %d was not ended before it was killed: %s", self._uuid, pid, exc)

    def check(self) -> Condition:
        """Looks at the GPU, the daemon and its server. Does not raise."""
        try:
            self._condition = self._checked()
        except (BackendError, PlacementError) as exc:
            self._condition = Condition(Health.RECOVERING, str(exc), lanes=())
        return self._condition

    def stop(self) -> None:
        """Ends the daemon and removes its folder. Does not raise."""
        self._control.quit()
        shutil.rmtree(self._control.folder, ignore_errors=True)
        self._partitions.forget()
        self._server = None

    # -- starting ----------------------------------------------------------------------------------------------------

    def _look(self) -> tuple[nvml.Gpu, nvml.Driver]:
        driver = nvml.driver()
        gpu = next((each for each in nvml.gpus() if each.uuid == self._uuid), None)
        if gpu is None:
            raise BackendError(f"GPU {self._uuid} is not there any more: see `nvidia-smi -L`", reason="GPU_LOST")
        return gpu, driver

    def _version(self) -> str | None:
        """The control program's; "" where it does not tell, None where there is none."""
        try:
            return self._control.version()
        except BackendError as exc:
            return None if exc.reason == "MPS_NOT_FOUND" else ""

    def _enter(self, mode: str) -> DeviceInfo:
        self._mode = mode
        return {STATIC: self._enter_static, PERCENTAGE: self._enter_percentage, NONE: self._enter_none}[mode]()

    def _enter_static(self) -> DeviceInfo:
        self._control.start(static=True)
        self._partitions.cut(ONE)
        with self._held(self._client(0, partition=self._partitions.of(ONE))) as census:
            self._server = self._current_server()
            live = self._partitions.can_cut_live()
        self._partitions.give_back(ONE)
        left = self._partitions.reclaim()
        if left:
            raise PlacementError(f"{self._uuid} does not give partitions back: {', '.join(left)}")
        table = self._control.partitions()
        chunks = table.chunks
        lanes = self._cut(chunks, None if live else DEFAULT_LANES)
        for units in lanes or ():
            self._partitions.cut(units)
        # A client of MPS may be told its own share, and SMs beyond whole chunks may be in the probe's partition.
        sms = max(census.device_sms, table.sms or chunks * census.sms)
        facts = {"chunk": min(census.sms, sms // chunks), "chunks": chunks, "can_add_lane_live": live}
        return self._described(census, tuple(range(chunks)), sms, lanes, facts)

    def _enter_percentage(self) -> DeviceInfo:
        self._control.start(static=False)
        with self._held(self._client(0)) as census:
            self._server = self._current_server()
        lanes = self._cut(census.sms, None)
        return self._described(census, tuple(range(census.sms)), census.sms, lanes, {"can_add_lane_live": True})

    def _enter_none(self) -> DeviceInfo:
        asked = self._option_lanes()
        if asked is not None and len(asked) > 1:
            raise InvalidRequestError(
                f"devices: lanes={list(asked)} need MPS, and without it a GPU is one lane: install "
                "nvidia-cuda-mps-control, or leave lanes out",
                reason="BAD_OPTION",
            )
        with self._held(plain_environment(self._uuid)) as census:
            pass
        return self._described(census, (0,), census.sms, ((0,),), {"can_add_lane_live": False})

    def _described(
        self,
        census: Census,
        units: Units,
        sms: int,
        lanes: tuple[Units, ...] | None,
        facts: Mapping[str, object],
    ) -> DeviceInfo:
        """`sms` are all that the GPU has, which a replica's count is a share of. A lane's own `sm_percent` is a share of the
        units; with static partitions both differ by the SMs beyond whole chunks, of which a lane may have all or none (of
        132 SMs in 15 chunks of 8 these are 12). Counted against the chunks alone, a lane could have more than 100 %."""
        found = {"sms": sms, "context_ms": census.context_ms, "clock_mhz": census.clock_mhz, **facts}
        if self._mode != NONE:
            found["protocol"] = self._control.protocol
        options = {**self._info.options, "sms": sms}
        cut_for = () if lanes is None or self._mode == NONE else self._option_lanes() or DEFAULT_LANES
        return attrs.evolve(
            self._info, units=units, fixed_lanes=lanes, lane_percents=cut_for, options=options, facts=found
        )

    def _option_lanes(self) -> tuple[float, ...] | None:
        lanes = self._info.options.get("lanes")
        assert lanes is None or isinstance(lanes, Sequence)
        return None if lanes is None else tuple(float(percent) for percent in lanes)

    def _cut(self, units: int, default: tuple[float, ...] | None) -> tuple[Units, ...] | None:
        """Lanes cut in advance, if anybody wants them."""
        percents = self._option_lanes() or default
        return None if percents is None else cut(units, percents)

    def _held(self, environment: Mapping[str, str | None]) -> AbstractContextManager[Census]:
        return held_probe.held_probe(environment, command=self._probe, before_kill=self.before_kill)

    def _client(
        self, memory_bytes: int, *, partition: str | None = None, percentage: int | None = None
    ) -> Mapping[str, str | None]:
        pipe, logs = str(self._control.pipe), str(self._control.log)
        return client_environment(pipe, logs, memory_bytes=memory_bytes, partition=partition, percentage=percentage)

    # -- health ------------------------------------------------------------------------------------------------------

    def _checked(self) -> Condition:
        lost = self._lost()
        if lost is not None:
            return lost
        if self._mode == NONE:
            return Condition()
        waits = self._recovery.waits(self._clock_s())
        if not self._control.alive:
            return self._condition if waits else self._struck("its MPS daemon ended", restart=True)
        before, self._server = self._server, self._current_server()
        if before is not None and self._server != before:
            # With static partitions the daemon goes too: whether they outlive their server, no page says, and in protocol 3
            # they may come back under other names.
            return self._struck("its MPS server ended", restart=self._mode == STATIC)
        status = ServerStatus.ACTIVE if self._server is None else self._control.server_status(self._server)
        if status is ServerStatus.FAULT:
            return self._fault()
        self._faulty = False
        if status is ServerStatus.INITIALIZING:
            return Condition(Health.RECOVERING, "its MPS server is starting")
        return attrs.evolve(self._condition, health=Health.RECOVERING, lanes=()) if waits else Condition()

    def _lost(self) -> Condition | None:
        try:
            if nvml.present(self._uuid):
                return None
            why = f"GPU {self._uuid} does not answer"
        except BackendError as exc:
            why = str(exc)
        cure = "see Xid messages in `dmesg`; plug it in or reset it, then restart the gateway"
        return Condition(Health.LOST, why, cure, lanes=None)

    def _current_server(self) -> int | None:
        return next(iter(self._control.servers()), None)

    def _fault(self) -> Condition:
        """All clients must leave, and are told at each look; a server that does not recover loses its daemon."""
        if not self._faulty:
            self._faulty = True
            return self._struck("a replica faulted, and all that share the GPU with it were hit")
        if self._recovery.stuck(self._clock_s()):
            return self._struck("its MPS server did not recover from a fault", restart=True)
        return attrs.evolve(self._condition, health=Health.RECOVERING, lanes=None)

    def _struck(self, why: str, *, restart: bool = False) -> Condition:
        """Every replica is lost, and the GPU is left alone for a while."""
        self._recovery = self._recovery.struck(self._clock_s())
        cure = "it comes back by itself"
        if restart:
            try:
                self._restart()
            except (BackendError, PlacementError) as exc:
                why, cure = f"{why}, and a new one did not start: {exc}", "it is tried again"
        return Condition(Health.RECOVERING, why, cure, lanes=None)

    def _restart(self) -> None:
        """A daemon anew, with the partitions that lanes have. On failure there is none, which the next look sees."""
        self._control.quit()
        self._server, self._faulty = None, False
        try:
            self._control.start(static=self._mode == STATIC)
            self._partitions.recut()
        except (BackendError, PlacementError):
            self._control.quit()
            raise
