"""The GPU under check, kept as a node agent keeps it: lanes, a token table of its own, and client processes in them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import attrs

from benchmarks import gpu_client, gpu_machine
from benchmarks.gpu_sheet import NotRunError, Sheet
from hasfaas.core.allocation import Usage
from hasfaas.core.errors import BackendError, InvalidRequestError
from hasfaas.devices.base import DeviceInfo, DeviceRequest, DeviceSlice, Keeper, cut, module_of
from hasfaas.executor.quota import PPM, SlotState
from hasfaas.executor.tokens import TokenTable

MEMORY_BYTES = 4 << 30
"""The memory wall of a client that does not test it."""
START_S = 60.0
spawn = multiprocessing.get_context("spawn")


class ClientError(Exception):
    """A client of the check raised, died, or did not answer; the message says which."""


@attrs.frozen
class Box:
    """One GPU with open lanes. `partitions` is how its lanes are kept apart: "static", "percentage" or "none"."""

    info: DeviceInfo
    keeper: Keeper
    table: TokenTable
    lanes: tuple[tuple[int, ...], ...]

    @property
    def partitions(self) -> str:
        """As the keeper says."""
        return str(self.info.facts["partitions"])

    def share(self, lane: int) -> float:
        """The part of the device's units, and so of its SMs, that a lane asks for; in (0, 1]."""
        return len(self.lanes[lane]) / len(self.info.units)

    def part(self, lane: int, memory_bytes: int = MEMORY_BYTES) -> DeviceSlice:
        """What a client of the lane is started with."""
        info, environment = self.info, self.keeper.environment(lane, memory_bytes)
        percent = 100.0 * self.share(lane)
        return DeviceSlice(
            info.device_id, info.kind, lane, self.lanes[lane], percent, info.options, memory_bytes, environment
        )


@contextlib.contextmanager
def box(sheet: Sheet, percents: Sequence[float] = (100.0,), partitions: str = "auto") -> Iterator[Box]:
    """The GPU with one open lane for each of these SM percents; all taken back at the end. The sheet is told how lanes are
    kept apart. One at a time: a process can keep a GPU only once.

    Raises NotRunError where this machine has no such partitions, or only one lane of the several that are asked for.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="hasfaas-gpu-check-") as folder:
        keeper, info = _started(sheet.gpu, percents, partitions)
        table = TokenTable.create(Path(folder) / "tokens")
        try:
            _remark(sheet, info)
            lanes = _lanes(info, percents)
            for lane, units in enumerate(lanes):
                keeper.open_lane(lane, units)
            yield Box(info, keeper, table, lanes)
        finally:
            keeper.stop()
            table.close()


def needs_torch() -> None:
    """Raises NotRunError where torch is missing, or is built without CUDA. Starts no CUDA."""
    try:
        import torch
    except ImportError as exc:
        raise NotRunError(f"torch cannot be imported: {exc}") from exc
    if torch.version.cuda is None:
        raise NotRunError(f"torch {torch.__version__} is built without CUDA")


def _started(gpu: str, percents: Sequence[float], partitions: str) -> tuple[Keeper, DeviceInfo]:
    cuda = module_of("cuda")
    options = {"gpu": gpu_machine.find(gpu).uuid, "partitions": partitions, "lanes": list(percents)}
    try:
        info = attrs.evolve(cuda.inventory(DeviceRequest(options=options))[0], device_id="gpu-check")
        keeper = cuda.keeper(info)
        return keeper, keeper.start()
    except BackendError as exc:
        if exc.reason != "PARTITIONS_UNAVAILABLE":
            raise
        raise NotRunError(str(exc)) from exc
    except InvalidRequestError as exc:
        if len(percents) == 1:
            raise
        raise NotRunError(f"{len(percents)} lanes are needed: {exc}") from exc


def _remark(sheet: Sheet, info: DeviceInfo) -> None:
    why = info.facts.get("partitions_why")
    sheet.remark(f"lanes are kept apart by: {info.facts['partitions']}{f' ({why})' if why else ''}")


def _lanes(info: DeviceInfo, percents: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    if info.fixed_lanes is not None:
        return info.fixed_lanes
    return tuple(tuple(info.units[place] for place in lane) for lane in cut(len(info.units), percents))


class Client:
    """A process in a lane, with a quota of it, running a job of its own (`gpu_client.Job`)."""

    def __init__(
        self,
        home: Box,
        job: gpu_client.Job,
        *arguments: object,
        lane: int = 0,
        quota: float = 1.0,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.home, self.lane, self.quota = home, lane, quota
        self.slot = home.table.admit(lane, round(quota * PPM))
        self._counters: Any = spawn.RawArray("q", gpu_client.COUNTERS)
        self._line, theirs = spawn.Pipe()
        part = home.part(lane, memory_bytes)
        self.started_ns = time.monotonic_ns()
        self.process: SpawnProcess = spawn.Process(
            target=gpu_client.main,
            args=(home.table.path, self.slot, part, self._counters, theirs, job, arguments),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def busy_ns(self) -> int:
        """What its kernels took so far, by device events."""
        return int(self._counters[gpu_client.BUSY_NS])

    @property
    def units(self) -> int:
        """Kernels so far."""
        return int(self._counters[gpu_client.UNITS])

    @property
    def usage(self) -> Usage:
        """Its account."""
        return self.home.table.usage(self.slot)

    @property
    def holds(self) -> bool:
        """Whether it holds its lane now."""
        return self.home.table.view(self.slot).state == SlotState.RUN

    def say(self, value: object) -> None:
        """Tells its job something."""
        self._line.send(value)

    def heard(self, timeout_s: float = START_S) -> Any:
        """What the job says next. Raises ClientError if it raised, ended or was silent for so long."""
        if not self._line.poll(timeout_s):
            raise ClientError(f"a client said nothing for {timeout_s:g} s")
        try:
            kind, value = self._line.recv()
        except (EOFError, ConnectionResetError):  # reset: it ended with something of ours unread
            self.process.join(5.0)
            raise ClientError(f"a client ended with exit code {self.process.exitcode}") from None
        if kind == "raised":
            raise ClientError(str(value))
        return value

    def running(self, timeout_s: float = START_S) -> None:
        """Waits until it has had a kernel done. Raises ClientError as `heard` does."""
        end_s = time.monotonic() + timeout_s
        while self.units == 0:
            if self._line.poll(0.002):
                self.heard()  # it raised, or ended
            if time.monotonic() > end_s:
                raise ClientError(f"a client had no kernel done after {timeout_s:g} s")

    def must_live(self) -> None:
        """Raises ClientError, with what it raised, if it ended by itself."""
        if not self.process.is_alive():
            self.heard()
            raise ClientError(f"a client ended with exit code {self.process.exitcode}")

    def ended(self, timeout_s: float) -> int | None:
        """Its exit code, or None while it lives after so long."""
        self.process.join(timeout_s)
        return self.process.exitcode

    def kill(self, *, as_agent: bool = True) -> None:
        """SIGKILL, after the device has been told as the agent does; its slot is free again."""
        if as_agent and self.process.is_alive():
            self.home.keeper.before_kill(self.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.join()
        self._line.close()
        self.home.table.free(self.slot)


@contextlib.contextmanager
def clients(*made: Client) -> Iterator[None]:
    """Ends them all, whatever happens."""
    try:
        yield
    finally:
        for client in made:
            try:
                client.kill()
            except Exception as exc:  # the others have to end too
                print(f"client {client.pid}: {type(exc).__name__}: {exc}", file=sys.stderr)
