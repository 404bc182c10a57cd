"""Real processes that compete for one lane: the token table, its leases and a device, without functions or
gateways.

`Lane` is the parent's side; `main` is what each replica process runs (`python -m
tests.fakes.replica_processes`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Any

import attrs

from hasfaas.core.allocation import Usage
from hasfaas.devices import sim
from hasfaas.devices.base import DeviceSlice
from hasfaas.devices.sim import SimStream
from hasfaas.executor.shm import LaneView, Segment, tighten_timers
from hasfaas.executor.tokens import SlotLease, TokenTable
from tests.fakes.async_stream import AsyncStream, HiddenStream

ROOT = Path(__file__).parents[2]
MS = 1_000_000
# Words that parent and replicas share: the stop flag, then the device time that each slot has launched.
_STOP, _BUSY, _WORDS = 0, 1, 64


LaunchStream = AsyncStream | SimStream


@attrs.frozen
class Snapshot:
    """What every slot had used, and its device had been busy for, at one instant."""

    now_ns: int
    usage: dict[int, Usage]
    busy_ns: dict[int, int]

    def hold_shares(self, before: Snapshot) -> dict[int, float]:
        """Hold of the lane since `before`, as a share of the time that passed."""
        wall = self.now_ns - before.now_ns
        return {slot: (u.used_ns - before.usage[slot].used_ns) / wall for slot, u in self.usage.items()}

    def device_shares(self, before: Snapshot) -> dict[int, float]:
        """Device time since `before`, by the device's own count."""
        wall = self.now_ns - before.now_ns
        return {slot: (busy - before.busy_ns[slot]) / wall for slot, busy in self.busy_ns.items()}

    def overrun_ms_per_grant(self, before: Snapshot) -> float:
        """Mean time by which leases were exceeded."""
        late = sum(u.overrun_ns - before.usage[slot].overrun_ns for slot, u in self.usage.items())
        grants = sum(u.grants - before.usage[slot].grants for slot, u in self.usage.items())
        return late / MS / max(grants, 1)


class Lane:
    """One lane of one simulated device. Use as a context manager: it ends its processes and removes its
    files.
    """

    def __init__(self, *, window_ns: int = 100 * MS, quantum_ns: int = 10 * MS) -> None:
        name = f"/dev/shm/hasfaas-test-{os.getpid()}-{secrets.token_hex(4)}"
        self.info = sim.device(lanes_file=f"{name}.lanes")
        self.path = f"{name}.tokens"
        self.table = TokenTable.create(self.path, window_ns=window_ns, quantum_ns=quantum_ns)
        self._shared = Segment.create(Path(f"{name}.words"), _WORDS)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.words[_STOP] = 1
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            process.kill()
            process.wait()
        self.table.close()
        self.table.unlink()
        self._shared.path.unlink()
        self._shared.close()
        sim.remove(self.info)

    def add(self, quota: float, **options: Any) -> int:
        """Admits a replica and starts its process; `options` as in `main`. Returns its slot."""
        slot = self.table.admit(0, round(quota * 1e6), lend=bool(options.get("lend", False)))
        self.start(slot, **options)
        return slot

    def start(self, slot: int, **options: Any) -> None:
        """Starts a process for a slot that is admitted."""
        spec = {
            "table": self.path,
            "words": str(self._shared.path),
            "slot": slot,
            "device": dict(self.info.options),
            **options,
        }
        command = [sys.executable, "-m", "tests.fakes.replica_processes", json.dumps(spec)]
        self.processes[slot] = subprocess.Popen(command, cwd=ROOT)

    def wait_until(self, met: Callable[[], bool], limit_s: float = 20.0) -> None:
        """Polls; fails if it is not met in time or a process ended on its own account."""
        end = time.monotonic() + limit_s
        while not met():
            assert time.monotonic() < end, "nothing happened in time"
            time.sleep(0.002)

    def wait_running(self) -> None:
        """Until every replica has been granted a lease."""
        self.wait_until(lambda: all(self.table.view(slot).grants > 0 for slot in self.processes))

    def kill(self, slot: int) -> None:
        """SIGKILL; the process stays a zombie, as one whose parent is slow to look."""
        self.processes[slot].send_signal(signal.SIGKILL)

    def snapshot(self) -> Snapshot:
        """Reads all accounts."""
        usage = {slot: self.table.usage(slot) for slot in self.processes}
        return Snapshot(monotonic_ns(), usage, {slot: self._shared.words[_BUSY + slot] for slot in self.processes})

    def measure(self, seconds: float) -> tuple[Snapshot, Snapshot]:
        """Two snapshots, so far apart."""
        before = self.snapshot()
        time.sleep(seconds)
        return before, self.snapshot()


def main(spec: dict[str, Any]) -> None:
    """One replica that always has work, in pieces of `work` kernels of `kernel_ns` with a gate after each.

    `stream`: "sim", "thread", or "hidden" (a thread whose kernels the lease does not see; the result of a
    piece is then read outside the lease). `die`: see `_die_later`.
    """
    shared = Segment.open(Path(spec["words"]))
    table = TokenTable.open(spec["table"])
    slot: int = spec["slot"]
    stream = _stream(spec)
    table.attach(slot)
    lease = SlotLease(table, slot, stream, should_stop=lambda: shared.words[_STOP] != 0)
    with _stops_quietly():
        _die_later(spec)
        while not shared.words[_STOP]:
            _work(spec, stream, lease, shared)
            if isinstance(stream, HiddenStream):
                lease.release()
                AsyncStream.drain(stream)
        lease.release()


def _work(spec: dict[str, Any], stream: LaunchStream, lease: SlotLease, shared: Segment) -> None:
    lease.acquire()
    for _ in range(spec.get("work", 10)):
        stream.launch(spec.get("kernel_ns", MS))
        shared.words[_BUSY + spec["slot"]] = stream.busy_ns
        lease.gate()


def _stream(spec: dict[str, Any]) -> LaunchStream:
    kind = spec.get("stream", "sim")
    if kind != "sim":
        tighten_timers()  # inherited by the worker thread
        return HiddenStream() if kind == "hidden" else AsyncStream()
    stream = sim.enter(DeviceSlice("sim", "sim", 0, (0,), 100.0, spec["device"]))
    assert isinstance(stream, sim.SimStream)
    return stream


@contextlib.contextmanager
def _stops_quietly() -> Iterator[None]:
    from hasfaas.core.errors import CancelledError

    try:
        yield
    except CancelledError:
        return


def _die_later(spec: dict[str, Any]) -> None:
    """`die`: n kills this process half-way through its n-th taking of the lane: in RUN already, not yet its
    holder.
    """
    if "die" not in spec:
        return
    left = [int(spec["die"])]
    plain = LaneView.__dict__["holder"]

    def store(view: LaneView, value: int) -> None:
        if value:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        plain.fset(view, value)

    setattr(LaneView, "holder", property(plain.fget, store))  # noqa: B010


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
