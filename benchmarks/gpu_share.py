"""Time shares on the GPU: what a lane's holder gets of it by the device's own events, what it overruns, how fast it re-sizes.

Each check is `python -m benchmarks.gpu_process benchmarks.gpu_share:NAME`. Replicas are processes that saturate one lane of
the whole GPU with kernels of 1 ms, launched 40 at a time without waiting for any.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import attrs

from benchmarks import gpu_kernels
from benchmarks.gpu_box import Box, Client, box, clients
from benchmarks.gpu_client import BUSY_NS, UNITS, Job, Seat
from benchmarks.gpu_sheet import Sheet
from hasfaas.executor.quota import PPM

QUOTA_SETS = ((0.3,), (0.5, 0.5), (0.2, 0.3, 0.5))
MS = 1_000_000
KERNEL_NS = 1 * MS
KERNELS_A_FORWARD = 40
SETTLE_S = 1.0
# The gate lets one burst run ahead: the pair of events before that is done, and reading it does not wait.
_UNREAD = 3
# The error that the design promises for windows after the first, in percentage points of the lane's time.
ERROR_PP = 2.0
# What the device idles between two kernels of a holder and at each drain counts against its events, not against its hold.
BUBBLES_PP = 2.0


def saturate(seat: Seat) -> None:
    """A job that always has work. Each kernel's time is taken by events around it."""
    spin, timer = gpu_kernels.spin(), seat.stream.timer
    unread: deque[tuple[object, object]] = deque()
    seat.lease.acquire()
    while True:
        for _ in range(KERNELS_A_FORWARD):
            start = timer.mark()
            spin(KERNEL_NS)
            unread.append((start, timer.mark()))
            seat.lease.gate()
            if len(unread) > _UNREAD:
                seat.counters[BUSY_NS] += timer.elapsed_ns(*unread.popleft())
                seat.counters[UNITS] += 1
        seat.stream.drain()


def unguarded(seat: Seat) -> None:
    """The same work as code that knows of no gate: hasfaas stands before the launches of CuPy's kernels itself."""
    seat.stream.gated(seat.lease.gate)
    spin = gpu_kernels.spin()
    seat.lease.acquire()
    while True:
        for _ in range(KERNELS_A_FORWARD):
            spin(KERNEL_NS)
        seat.stream.drain()
        seat.counters[UNITS] += KERNELS_A_FORWARD


@attrs.frozen
class Span:
    """What one client did over a span: `held` by its account and `busy` by device events, as parts of the wall time."""

    held: float
    busy: float
    grants: int
    overrun_ms: float


def spans(running: Sequence[Client], seconds: float, count: int) -> list[list[Span]]:
    """`count` spans in a row, of each client."""
    found: list[list[Span]] = [[] for _ in running]
    before, began_ns = [(c.usage, c.busy_ns) for c in running], time.monotonic_ns()
    for _ in range(count):
        time.sleep(seconds)
        after, ended_ns = [(c.usage, c.busy_ns) for c in running], time.monotonic_ns()
        for mine, (old, old_busy), (new, new_busy) in zip(found, before, after, strict=True):
            wall_ns = ended_ns - began_ns
            grants, overrun_ns = new.grants - old.grants, new.overrun_ns - old.overrun_ns
            mine.append(
                Span(
                    held=(new.used_ns - old.used_ns) / wall_ns,
                    busy=(new_busy - old_busy) / wall_ns,
                    grants=grants,
                    overrun_ms=overrun_ns / max(1, grants) / MS,
                )
            )
        before, began_ns = after, ended_ns
    for client in running:
        client.must_live()
    return found


def saturated(home: Box, quotas: Sequence[float], seconds: float, count: int, job: Job = saturate) -> list[list[Span]]:
    """The spans of a saturated set of replicas in lane 0, after it has settled."""
    running = [Client(home, job, quota=quota) for quota in quotas]
    with clients(*running):
        for client in running:
            client.running()
        time.sleep(SETTLE_S)
        return spans(running, seconds, count)


def shares(
    sheet: Sheet, quota_sets: Sequence[Sequence[float]] = QUOTA_SETS, seconds: float = 2.0, count: int = 3
) -> None:
    """Each replica's share of the device, by device events and by its account, against its quota."""
    with box(sheet) as home:
        for quotas in quota_sets:
            names = "{" + ", ".join(f"{quota:g}" for quota in quotas) + "}"
            for quota, seen in zip(quotas, saturated(home, quotas, seconds, count), strict=True):
                held, busy = [100 * (s.held - quota) for s in seen], [100 * (s.busy - quota) for s in seen]
                note = f"share {sum(s.busy for s in seen) / len(seen):.4f} by events"
                most = ERROR_PP + BUBBLES_PP
                sheet.figure(f"{names}: {quota:g} by events, error", busy, "pp", least=-most, most=ERROR_PP, note=note)
                sheet.figure(f"{names}: {quota:g} by account, error", held, "pp", least=-ERROR_PP, most=ERROR_PP)


def overrun(sheet: Sheet, seconds: float = 2.0, count: int = 3) -> None:
    """How much longer than granted the lane is held: about one gate, since one burst may run ahead of it."""
    with box(sheet) as home:
        for name, job in (("gates in the code", saturate), ("CuPy kernels gated by hasfaas", unguarded)):
            (seen,) = saturated(home, (0.3,), seconds, count, job)
            sheet.figure(f"{name}: overrun per grant", [s.overrun_ms for s in seen], "ms", most=2.0 * KERNEL_NS / MS)
            sheet.figure(f"{name}: grants", [s.grants / seconds for s in seen], "1/s")


def resize(sheet: Sheet, flips: int = 10) -> None:
    """From the call until the new quota is in force, of a saturated replica beside another one."""
    with box(sheet) as home:
        effect_ms, error_pp = resizes(home, 0.2, 0.6, 0.3, flips)
        window_ms = home.table.timing.window_ns / MS
        sheet.figure("in force after", effect_ms, "ms", most=window_ms)
        sheet.figure("in force after, the slowest", max(effect_ms), "ms", most=window_ms)
        sheet.figure("share from two windows on, error", error_pp, "pp", most=ERROR_PP)


def resizes(home: Box, low: float, high: float, beside: float, flips: int) -> tuple[list[float], list[float]]:
    """Flips a replica's quota, each for six windows: ms until each was in force, and the error of the share (pp) from two
    windows on. A smaller quota is in force when the replica has decided by it, a larger one when it was granted by it."""
    effects: list[float] = []
    errors: list[float] = []
    table, window_s = home.table, home.table.timing.window_ns / 1e9
    mine, other = (Client(home, saturate, quota=quota) for quota in (low, beside))
    with clients(mine, other):
        mine.running()
        other.running()
        time.sleep(SETTLE_S)
        for flip in range(flips):
            quota = low if flip % 2 else high
            began_ns = time.monotonic_ns()
            table.resize(mine.slot, round(quota * PPM))
            view = table.view(mine.slot)
            while not table.in_force(mine.slot) or (quota == high and view.taken_ns < began_ns):
                if time.monotonic_ns() - began_ns > 5_000 * MS:
                    raise RuntimeError(f"quota {quota} was not in force after 5 s")
                time.sleep(0.0002)
            effect_ns = view.taken_ns if quota == high else view.acknowledged_ns
            effects.append((effect_ns - began_ns) / MS)
            time.sleep(max(0.0, 2 * window_s - (time.monotonic_ns() - began_ns) / 1e9))
            (seen,) = spans([mine], 4 * window_s, 1)[0]
            errors.append(100.0 * abs(seen.held - quota))
    return effects, errors
