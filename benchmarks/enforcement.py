"""Whether a replica gets the share it was granted: quotas, re-sizing, a killed holder, asynchronous work, gate overhead.

    python -m benchmarks.enforcement [--json out.json] [--runs 5] [--seconds 8] [--quick]

Replicas are processes that saturate one lane of a `sim` device with kernels of 1 ms. A share is the settled hold of the lane
(grant to drained) over the wall time, and is held against the device's own count of the time it was busy. Nothing here needs
a GPU, and nothing here says anything about one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import attrs

from hasfaas.devices import sim
from hasfaas.devices.base import DeviceInfo, DeviceSlice, Stream
from hasfaas.executor.quota import SlotState
from hasfaas.executor.tokens import SlotLease, TokenTable

QUOTA_SETS = ((0.3,), (0.5, 0.5), (0.2, 0.3, 0.5), (0.1, 0.2, 0.3, 0.4))
PPM = 1_000_000
MS = 1_000_000
KERNEL_NS = 1 * MS
KERNELS_A_FORWARD = 40
LAUNCH_NS = 20_000
SETTLE_S = 1.0
spawn = multiprocessing.get_context("spawn")


@attrs.frozen
class World:
    """One device with one lane and its token table, in files of the benchmark's own."""

    table: TokenTable
    path: Path
    device: DeviceInfo

    def part(self) -> DeviceSlice:
        """The whole device as lane 0."""
        device = self.device
        return DeviceSlice(device.device_id, device.kind, 0, device.units, 100.0, device.options)


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A fresh one, removed at the end."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="hf-bench-") as folder:
        path = Path(folder) / "tokens"
        table = TokenTable.create(path)
        device = sim.device("bench", lanes_file=Path(folder) / "lanes")
        yield World(table, path, device)
        table.close()


def saturate(path: Path, slot: int, part: DeviceSlice, asynchronous: bool) -> None:
    """A replica that always has work: never ends by itself. Synchronous code waits for each kernel it launches, as eager
    code on a CPU does; asynchronous code launches a forward of 40 kernels and waits at its end."""
    table = TokenTable.open(path)
    table.attach(slot)
    stream: Any = sim.enter(part)
    lease = SlotLease(table, slot, stream)
    lease.acquire()
    while True:
        for _ in range(KERNELS_A_FORWARD):
            stream.launch(KERNEL_NS)
            if asynchronous:
                _spin(LAUNCH_NS)
            else:
                stream.drain()
            lease.gate()
        stream.drain()


def _spin(duration_ns: int) -> None:
    end_ns = time.monotonic_ns() + duration_ns
    while time.monotonic_ns() < end_ns:
        pass


class Replica:
    """A saturating process in its slot."""

    def __init__(self, world: World, quota: float, *, asynchronous: bool = False, lend: bool = False) -> None:
        self.world = world
        self.quota = quota
        self.slot = world.table.admit(0, round(quota * PPM), lend=lend)
        arguments = (world.path, self.slot, world.part(), asynchronous)
        self.process: BaseProcess = spawn.Process(target=saturate, args=arguments, daemon=True)
        self.process.start()

    def wait_running(self) -> None:
        """Until it has had its first grant."""
        give_up_s = time.monotonic() + 30.0
        while self.world.table.usage(self.slot).grants == 0:
            if not self.process.is_alive() or time.monotonic() > give_up_s:
                raise RuntimeError(f"the replica of quota {self.quota} did not start")
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL, and its slot is free again."""
        self.process.kill()
        self.process.join()
        self.world.table.free(self.slot)


@contextlib.contextmanager
def replicas(
    world: World, quotas: Sequence[float], *, asynchronous: bool = False, lend: bool = False
) -> Iterator[list[Replica]]:
    """Saturating replicas, all running and settled."""
    made = [Replica(world, quota, asynchronous=asynchronous, lend=lend) for quota in quotas]
    try:
        for replica in made:
            replica.wait_running()
        time.sleep(SETTLE_S)
        yield made
    finally:
        for replica in made:
            replica.kill()


@attrs.frozen
class Shares:
    """One run: what each replica held, and what the device says it was busy."""

    quotas: tuple[float, ...]
    used: tuple[float, ...]
    busy: float
    overrun_ms_a_grant: float

    @property
    def worst_error_pp(self) -> float:
        """The largest |used - quota| in percentage points."""
        return max(abs(used - quota) * 100.0 for used, quota in zip(self.used, self.quotas, strict=True))


def shares(quotas: Sequence[float], seconds: float, *, asynchronous: bool = False, lend: bool = False) -> Shares:
    """Runs a saturated set for so long."""
    with world() as here, replicas(here, quotas, asynchronous=asynchronous, lend=lend) as running:
        before = [here.table.usage(r.slot) for r in running]
        busy_before, began_ns = sim.lane_count(here.device, 0).busy_ns, time.monotonic_ns()
        time.sleep(seconds)
        after = [here.table.usage(r.slot) for r in running]
        busy_after, span_ns = sim.lane_count(here.device, 0).busy_ns, time.monotonic_ns() - began_ns
        grants = sum(b.grants - a.grants for a, b in zip(before, after, strict=True))
        overrun_ns = sum(b.overrun_ns - a.overrun_ns for a, b in zip(before, after, strict=True))
        used = tuple((b.used_ns - a.used_ns) / span_ns for a, b in zip(before, after, strict=True))
        return Shares(tuple(quotas), used, (busy_after - busy_before) / span_ns, overrun_ns / max(1, grants) / MS)


@attrs.frozen
class Resizes:
    """Flips of one replica's quota: when each took effect, and its share from two windows later on.

    A smaller quota has taken effect when the replica has decided by it, to run on or to wait; a larger one when it was
    granted the lane under it.
    """

    effect_ms: tuple[float, ...]
    late_error_pp: tuple[float, ...]


def resizes(low: float, high: float, neighbour: float | None, flips: int) -> Resizes:
    """Flips a saturated replica between two quotas, each for six windows."""
    others = [] if neighbour is None else [neighbour]
    effects: list[float] = []
    errors: list[float] = []
    with world() as here, replicas(here, [low, *others]) as running:
        slot, window_s = running[0].slot, here.table.timing.window_ns / 1e9
        for flip in range(flips):
            quota = high if flip % 2 == 0 else low
            began_ns = time.monotonic_ns()
            here.table.resize(slot, round(quota * PPM))
            view = here.table.view(slot)
            while not here.table.in_force(slot) or (quota == high and view.taken_ns < began_ns):
                time.sleep(0.0002)
            effect_ns = view.taken_ns if quota == high else view.acknowledged_ns
            effects.append((effect_ns - began_ns) / MS)
            time.sleep(max(0.0, 2 * window_s - (time.monotonic_ns() - began_ns) / 1e9))
            first, first_ns = here.table.usage(slot).used_ns, time.monotonic_ns()
            time.sleep(4 * window_s)
            last, last_ns = here.table.usage(slot).used_ns, time.monotonic_ns()
            errors.append(100.0 * abs((last - first) / (last_ns - first_ns) - quota))
    return Resizes(tuple(effects), tuple(errors))


def holder_kills(kills: int) -> list[float]:
    """Milliseconds from the SIGKILL of the lane's holder until another replica holds the lane."""
    found: list[float] = []
    for _ in range(kills):
        with world() as here:
            victim, other = Replica(here, 0.5), Replica(here, 0.5)
            try:
                victim.wait_running()
                other.wait_running()
                time.sleep(0.3)
                while here.table.view(victim.slot).state != SlotState.RUN:
                    time.sleep(0.0002)
                grants = here.table.usage(other.slot).grants
                assert victim.process.pid is not None
                os.kill(victim.process.pid, signal.SIGKILL)
                killed_ns = time.monotonic_ns()
                while here.table.usage(other.slot).grants == grants:
                    time.sleep(0.0005)
                found.append((time.monotonic_ns() - killed_ns) / MS)
            finally:
                other.kill()
                victim.kill()
    return found


def gate_overhead(name: str, pairs: int) -> tuple[list[float], int]:
    """Percent of extra time with gates, per pair of interleaved forwards, lease kept at quota 1.0; and the gates placed.

    Two copies of a model differ by a percent or two by where their weights lie, so each copy has the gates in turn.
    """
    import torch

    from benchmarks import models
    from hasfaas.devices.cpu import SynchronousStream
    from hasfaas.executor.gates import Calibration, calibrate

    torch.set_num_threads(1)
    (one, x), (two, _) = getattr(models, name)(), getattr(models, name)()
    stream: Stream = SynchronousStream()
    percents: list[float] = []
    gates = 0

    def times_ms(model: torch.nn.Module) -> float:
        began_s = time.thread_time()
        model(x)
        return (time.thread_time() - began_s) * 1000.0

    with world() as here, torch.inference_mode():
        slot = here.table.admit(0, PPM)
        here.table.attach(slot)
        lease = SlotLease(here.table, slot, stream)
        lease.acquire()
        for gated, plain in ((one, two), (two, one)) * 2:
            calibration: Calibration = calibrate({name: gated}, partial(gated, x), lease.gate)
            gates = max(gates, calibration.gates)
            for pair in range(pairs // 4):
                if pair % 2:
                    with_gates, without = times_ms(gated), times_ms(plain)
                else:
                    without, with_gates = times_ms(plain), times_ms(gated)
                percents.append(100.0 * (with_gates / without - 1.0))
            calibration.uninstall()
        lease.release()
        here.table.free(slot)
    return percents, gates


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, with least and most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def measure_shares(runs: int, seconds: float) -> tuple[dict[str, float], list[dict[str, object]]]:
    """All quota sets. The error and the sums of a set are medians over its runs; the worst and the least set count."""
    rows: list[dict[str, object]] = []
    errors: list[float] = []
    sums: list[float] = []
    busy_sums: list[float] = []
    print("quotas                    used, median (least .. most), each replica            worst error, pp      sum")
    for quotas in QUOTA_SETS:
        say(f"shares {quotas}: {runs} runs of {seconds:g} s")
        found = [shares(quotas, seconds) for _ in range(runs)]
        columns = list(zip(*(f.used for f in found), strict=True))
        medians = [statistics.median(column) for column in columns]
        error = max(abs(m - q) * 100.0 for m, q in zip(medians, quotas, strict=True))
        total = statistics.median(sum(f.used) for f in found)
        errors.append(error)
        if sum(quotas) > 0.999:
            sums.append(total)
            busy_sums.append(statistics.median(f.busy for f in found))
        used = ", ".join(spread(column, 3) for column in columns)
        worst = spread([f.worst_error_pp for f in found])
        device = spread([f.busy for f in found], 3)
        print(f"{quotas!s:<25} {used}   {worst}   {total:.3f}   device busy {device}")
        rows.append({"quotas": quotas, "runs": [attrs.asdict(f) for f in found]})
    figures = {
        "worst_error_pp": max(errors),
        "delivered_sum_min": min(sums),
        # The device's own count: less than the holds by what the launching code leaves idle between two kernels.
        "device_busy_sum_min": min(busy_sums),
    }
    return figures, rows


def main() -> int:
    """Prints the table; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true", help="one short run of each row")
    given = parser.parse_args()
    runs, seconds, flips, kills, pairs = given.runs, given.seconds, 40, 20, 200
    if given.quick:
        runs, seconds, flips, kills, pairs = 1, 2.0, 8, 3, 40
    delivered, rows = measure_shares(runs, seconds)
    say(f"re-size: {flips} flips in each of two lanes")
    flipped = {
        "alone 0.8 <-> 0.2": resizes(0.2, 0.8, None, flips),
        "0.6 <-> 0.2 beside 0.3": resizes(0.2, 0.6, 0.3, flips),
    }
    for name, r in flipped.items():
        print(
            f"re-size {name}: in force after {spread(r.effect_ms)} ms, p99 {percentile(r.effect_ms, 0.99):.2f} ms; "
            f"share from two windows on, error {spread(r.late_error_pp)} pp"
        )
    say(f"holder killed: {kills} times")
    recoveries = holder_kills(kills)
    print(f"holder killed: another replica holds the lane after {spread(recoveries)} ms")
    say("asynchronous device at quota 0.3")
    asynchronous = [shares((0.3,), seconds, asynchronous=True) for _ in range(runs)]
    busy = [a.busy for a in asynchronous]
    overruns = [a.overrun_ms_a_grant for a in asynchronous]
    print(f"asynchronous, quota 0.3: device share {spread(busy, 3)}, overrun per grant {spread(overruns)} ms")
    say("lending between 0.2 and 0.3")
    lent = [sum(shares((0.2, 0.3), seconds, lend=True).used) for _ in range(runs)]
    kept = [sum(shares((0.2, 0.3), seconds).used) for _ in range(runs)]
    print(f"quotas 0.2 + 0.3: both lend, sum {spread(lent, 3)}; neither lends, sum {spread(kept, 3)}")
    overheads: dict[str, float] = {}
    for name in ("resnet_like", "encoder"):
        say(f"gate overhead: {name}")
        percents, gates = gate_overhead(name, pairs)
        overheads[name] = statistics.median(percents)
        quartiles = statistics.quantiles(percents, n=4)
        print(
            f"gate overhead {name}: median {overheads[name]:+.2f} % "
            f"(quartiles {quartiles[0]:+.2f} .. {quartiles[2]:+.2f}), {gates} gates"
        )
    figures: dict[str, object] = {
        **delivered,
        "resize_p99_ms": max(percentile(r.effect_ms, 0.99) for r in flipped.values()),
        "window_ms": 100.0,
        "holder_kill_recovery_ms": max(recoveries),
        "async_share": statistics.median(busy),
        "async_overrun_ms": statistics.median(overruns),
        "lending_sum": statistics.median(lent),
        "gate_overhead_pct": max(overheads.values()),
    }
    for key, value in figures.items():
        print(f"{key}: {value:.3f}")
    if given.json is not None:
        given.json.write_text(json.dumps({**figures, "gate_overhead": overheads, "shares": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
