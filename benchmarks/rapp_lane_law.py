"""Whether the lane law says what batches take under a quota: measured on a `sim` device with the real token table.

    python -m benchmarks.rapp_lane_law [--json out.json] [--runs 3] [--quick]

One replica process in one lane serves batches of a known hold as the product does: the lease is kept while work waits, and
released when none does. For each ratio of hold to lease and each quota: the response after a long idle time (median), and,
always busy, the mean and the worst response. What the law is given:

- idle: the hold at quota 1 after as long an idle time (a process that slept starts some 0.1 ms late), the mean overrun.
- mean: the hold that the token table debited; what a busy machine adds to a hold is in it. Beside it, "mean, hold at 1":
  the hold as measured at quota 1, as a prediction has it.
- worst: the debited hold again, and the 90th percentile of a lease's overrun. Measured: the median of those responses that
  meet the greatest number of waits, which by the length of a lease is a known share of all (a tenth of them for a hold of a
  tenth of a lease). The maximum stands beside it; on a shared machine that is the machine's.

Nothing here needs a GPU, and nothing here says anything about one.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import attrs

from hasfaas.devices import sim
from hasfaas.devices.base import DeviceSlice
from hasfaas.executor import quota
from hasfaas.executor.quota import PPM, Timing
from hasfaas.executor.tokens import SlotLease, TokenTable
from hasfaas.rapp import lane_law

RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)
QUOTAS = (0.1, 0.3, 0.5, 0.8)
COLUMNS = ("idle", "mean", "worst", "mean, hold at 1", "max")
OVERRUN_PERCENTILE = 0.9
_JITTER_MS = 0.02
spawn = multiprocessing.get_context("spawn")


@attrs.frozen
class Effort:
    """How much is measured: idle responses, seconds and least number of saturated holds a cell."""

    idles: int = 5
    seconds: float = 5.0
    holds: int = 24


@attrs.frozen
class Cell:
    """One run of one hold at one quota: responses in ms. `hold_ms` is the hold at quota 1, `woken_ms` the same after
    idling, `debited_ms` what the token table charged for one."""

    ratio: float
    quota: float
    hold_ms: float
    woken_ms: float
    debited_ms: float
    overrun_ms: float
    high_overrun_ms: float
    idle_ms: tuple[float, ...]
    saturated_ms: tuple[float, ...]

    def measured(self) -> dict[str, float]:
        """What stands against each law, in ms."""
        mean = statistics.fmean(self.saturated_ms)
        return {
            "idle": statistics.median(self.idle_ms),
            "mean": mean,
            "worst": _percentile(self.saturated_ms, 1.0 - self._share_of_worst() / 2.0),
            "mean, hold at 1": mean,
            "max": max(self.saturated_ms),
        }

    def _share_of_worst(self) -> float:
        """How many of back-to-back holds meet one lease more than the others do; 1 if all meet as many."""
        lease_ms = quota.run_ns(round(self.quota * PPM), Timing()) / 1e6 + self.high_overrun_ms
        part = (self.debited_ms - max(_JITTER_MS, 0.005 * self.debited_ms)) / lease_ms % 1.0
        return part if part < 0.99 else 1.0

    def law(self) -> dict[str, float]:
        """What the law says, in ms; for "max" the worst case again."""
        timing, share = Timing(), self.quota
        # A hold that varies by some microseconds, or by half a percent, is not one that needs a lease more.
        jitter_ms = max(_JITTER_MS, 0.005 * self.debited_ms)
        worst = float(lane_law.saturated_worst_ms(self.debited_ms - jitter_ms, share, timing, self.high_overrun_ms))
        idle = float(lane_law.idle_ms(self.woken_ms - _JITTER_MS, share, timing, self.overrun_ms))
        debited, alone = (float(lane_law.saturated_mean_ms(h, share)) for h in (self.debited_ms, self.hold_ms))
        return {"idle": idle, "mean": debited, "worst": worst, "mean, hold at 1": alone, "max": worst}

    def errors_pct(self) -> dict[str, float]:
        """100 (measured / law - 1) of each law."""
        law = self.law()
        return {name: 100.0 * (value / law[name] - 1.0) for name, value in self.measured().items()}


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


def serve(path: Path, slot: int, part: DeviceSlice, share: float, effort: Effort, answer: Connection) -> None:
    """A replica's process: measures all holds at one quota, and sends a Cell of each."""
    table = TokenTable.open(path)
    table.attach(slot)
    stream = sim.enter(part)
    assert isinstance(stream, sim.SimStream)
    lease = SlotLease(table, slot, stream)
    run_ms = quota.run_ns(round(share * PPM), table.timing) / 1e6

    def response_ms(name: str) -> float:
        began_ns = time.monotonic_ns()
        lease.acquire()
        stream.serve(name, 1, lease.gate)
        return (time.monotonic_ns() - began_ns) / 1e6

    def responses_after(idle_s: float, name: str) -> list[float]:
        found = []
        for _ in range(effort.idles):
            time.sleep(idle_s)
            found.append(response_ms(name))
            lease.release()
        return found

    for ratio in RATIOS:
        name = _function(ratio)
        table.resize(slot, PPM)
        holds_ms = [response_ms(name) for _ in range(30)][10:]
        lease.release()
        idle_s = 1.2 * quota.cap(round(share * PPM), table.timing) / share / 1e9 + 0.02
        woken_ms = responses_after(idle_s, name)
        table.resize(slot, round(share * PPM))
        idle_ms = responses_after(idle_s, name)
        saturated_ms: list[float] = []
        # What the account starts with is spent within the first holds.
        spent = math.ceil(2 * quota.cap(round(share * PPM), table.timing) / 1e6 / (ratio * run_ms)) + 1
        for _ in range(spent):
            response_ms(name)
        view, overruns_ms = table.view(slot), []
        first_ns, first_grants, used_ns = view.overrun_ns, view.grants, table.usage(slot).used_ns
        end_s = time.monotonic() + max(effort.seconds, effort.holds * ratio * run_ms / share / 1e3)
        while time.monotonic() < end_s:
            before_ns, before_grants = view.overrun_ns, view.grants
            saturated_ms.append(response_ms(name))
            if view.grants > before_grants:
                overruns_ms.append((view.overrun_ns - before_ns) / (view.grants - before_grants) / 1e6)
        overrun_ms = (view.overrun_ns - first_ns) / max(1, view.grants - first_grants) / 1e6
        debited_ms = (table.usage(slot).used_ns - used_ns) / len(saturated_ms) / 1e6
        lease.release()
        hold_ms, woken = statistics.median(holds_ms), statistics.median(woken_ms)
        late_ms = overrun_ms, _percentile(overruns_ms, OVERRUN_PERCENTILE)
        cell = Cell(ratio, share, hold_ms, woken, debited_ms, *late_ms, tuple(idle_ms), tuple(saturated_ms))
        answer.send(cell)
    answer.send(None)


def _function(ratio: float) -> str:
    return f"hold-{ratio:g}"


def measure(shares: Sequence[float], effort: Effort) -> list[Cell]:
    """All holds at each quota; each quota has a device, a table and a process of its own, all at once."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="hf-bench-") as folder:
        running = []
        for index, share in enumerate(shares):
            table = TokenTable.create(Path(folder) / f"tokens-{index}")
            slot = table.admit(0, PPM)
            run_ms = quota.run_ns(round(share * PPM), table.timing) / 1e6
            profiles = {_function(r): sim.SimProfile((1,), (100.0,), ((r * run_ms,),)) for r in RATIOS}
            device = sim.device("bench", profiles=profiles, lanes_file=Path(folder) / f"lanes-{index}")
            part = DeviceSlice(device.device_id, device.kind, 0, device.units, 100.0, device.options)
            ours, theirs = spawn.Pipe()
            arguments = (table.path, slot, part, share, effort, theirs)
            process = spawn.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            running.append((ours, process, table))
        cells = []
        for ours, process, table in running:
            while (found := ours.recv()) is not None:
                cells.append(found)
            process.join()
            table.close()
        return cells


def main() -> int:
    """Prints the table; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short run")
    given = parser.parse_args()
    runs, effort = (1, Effort(3, 1.0, 5)) if given.quick else (given.runs, Effort())
    cells: list[Cell] = []
    for run in range(runs):
        print(f"run {run + 1} of {runs}", file=sys.stderr, flush=True)
        cells += measure(QUOTAS, effort)
    figures = report(cells)
    if given.json is not None:
        rows = [{**attrs.asdict(c), "errors_pct": c.errors_pct()} for c in cells]
        given.json.write_text(json.dumps({**figures, "cells": rows}, indent=1))
    return 0


def report(cells: Sequence[Cell]) -> dict[str, float]:
    """Prints each cell's median over the runs (least .. most), and returns the worst medians."""
    print("measured against the law, error in %: median (least .. most) over the runs")
    head = "".join(f"{name:>26}" for name in (*COLUMNS[:-1], "max against worst"))
    print(f"{'hold/lease':>10} {'quota':>6} {'hold, ms':>9} {'overrun':>8}{head}")
    worst = dict.fromkeys(COLUMNS, 0.0)
    above = 0.0
    for ratio in RATIOS:
        for share in QUOTAS:
            runs = [c for c in cells if (c.ratio, c.quota) == (ratio, share)]
            hold_ms = statistics.median(c.hold_ms for c in runs)
            overrun_ms = statistics.median(c.overrun_ms for c in runs)
            columns = []
            for name in worst:
                errors = [c.errors_pct()[name] for c in runs]
                median = statistics.median(errors)
                worst[name] = max(worst[name], abs(median))
                above = max(above, median if name == "worst" else 0.0)
                columns.append(f"{median:+.2f} ({min(errors):+.2f} .. {max(errors):+.2f})".rjust(26))
            print(f"{ratio:>10g} {share:>6g} {hold_ms:>9.3f} {overrun_ms:>8.3f}{''.join(columns)}")
    figures = {f"lane_{name.replace(', ', '_').replace(' ', '_')}_error_pct": value for name, value in worst.items()}
    figures["lane_worst_above_pct"] = above
    for key, value in figures.items():
        print(f"{key}: {value:.2f}")
    return figures


if __name__ == "__main__":
    sys.exit(main())
