"""Lanes of the GPU: how many SMs each really has, and whether two run in parallel.

Each check is `python -m benchmarks.gpu_process benchmarks.gpu_lanes:NAME`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks import gpu_kernels
from benchmarks.gpu_box import Box, Client, box, clients
from benchmarks.gpu_client import UNITS, Seat
from benchmarks.gpu_sheet import Sheet

# Two lanes of one half each, rounded up to whole chunks, do not fit on a GPU with an odd number of them.
NEARLY_HALF = 48.0
CENSUS_PERCENTS = (NEARLY_HALF, 25.0, 10.0)
# MPS rounds a percentage to whole groups of SMs, whose size is not documented; 8 SMs are the largest chunk known.
ROUNDED_SMS = 8
WORK_MS = 2.0
TRIAL_ROUNDS = 1024
MS = 1_000_000


def counted(seat: Seat) -> None:
    """Tells the share of the SMs that this process found that it has, in percent."""
    seat.say(seat.stream.granted_percent)


def churn(seat: Seat, rounds: int) -> None:
    """A job of equal pieces of work, as many as the lane's SMs can do: as yet unknown, it first tells the rounds of a piece
    of WORK_MS."""
    work, timer = gpu_kernels.work(), seat.stream.timer
    seat.lease.acquire()
    if not rounds:
        work(TRIAL_ROUNDS)
        start = timer.mark()
        work(TRIAL_ROUNDS)
        rounds = max(1, round(TRIAL_ROUNDS * WORK_MS * MS / timer.elapsed_ns(start, timer.mark())))
        seat.say(rounds)
    while True:
        work(rounds)
        seat.lease.gate()
        seat.counters[UNITS] += 1


def census_percentage(sheet: Sheet, percents: Sequence[float] = CENSUS_PERCENTS) -> None:
    """SMs counted by a kernel in each replica, against the share that was asked for as a percentage."""
    _census(sheet, "percentage", percents)


def census_static(sheet: Sheet, percents: Sequence[float] = CENSUS_PERCENTS) -> None:
    """The same with static partitions, which are exclusive, and exact but for SMs that make no whole chunk."""
    _census(sheet, "static", percents)


def _census(sheet: Sheet, partitions: str, percents: Sequence[float]) -> None:
    with box(sheet, percents, partitions) as home:
        sms = int(str(home.info.facts["sms"]))
        off = slack_percent(home)
        for lane, percent in enumerate(percents):
            asked, client = 100.0 * home.share(lane), Client(home, counted, lane=lane)
            with clients(client):
                granted = client.heard()
            if granted is None:
                raise RuntimeError("the replica did not count its SMs")
            name = f"{percent:g} % asked, {asked:.2f} % in whole units: granted less asked"
            note = f"{round(granted * sms / 100)} of {sms} SMs"
            sheet.figure(name, granted - asked, "pp", least=-off, most=off, note=note)
        sheet.remark(f"a lane can be added while the GPU has clients: {home.info.facts['can_add_lane_live']}")


def slack_percent(home: Box) -> float:
    """How far a lane's part of all SMs may be from its part of the units: percentages are rounded, and of SMs that make no
    whole chunk a partition may have all or none."""
    facts = home.info.facts
    sms = int(str(facts["sms"]))
    if home.partitions == "static":
        return 100.0 * (sms - int(str(facts["chunk"])) * int(str(facts["chunks"]))) / sms + 0.01
    return 100.0 * ROUNDED_SMS / sms + 0.01


def parallel(sheet: Sheet, seconds: float = 1.0, count: int = 3) -> None:
    """The rate of equal pieces of compute in one lane of the whole GPU, in a lane of about half of it, and in two such at
    once: for compute, halves add up to the whole, and neither slows the other."""
    with box(sheet) as home:
        client = Client(home, churn, 0)
        with clients(client):
            rounds = client.heard()
            client.running()
            whole = rates([client], seconds, count)[0]
        of_whole = home.share(0)
    with box(sheet, (NEARLY_HALF, NEARLY_HALF)) as home:
        portion = [home.share(lane) / of_whole for lane in (0, 1)]
        one = Client(home, churn, rounds, lane=0)
        with clients(one):
            one.running()
            alone = rates([one], seconds, count)[0]
            other = Client(home, churn, rounds, lane=1)
            with clients(other):
                other.running()
                together = rates([one, other], seconds, count)
        sheet.remark(f"a lane has {100 * home.share(0):.1f} % of the SMs")
    rate = sum(whole) / count
    sheet.figure("pieces a second, one lane of the whole", whole, "1/s")
    alone_part = [r / rate / portion[0] for r in alone]
    sheet.figure("one half alone, its rate for its SMs", alone_part, "of the whole's", least=0.8, most=1.25)
    both = [(a + b) / rate / sum(portion) for a, b in zip(*together, strict=True)]
    sheet.figure("two halves at once, their rate for their SMs", both, "of the whole's", least=0.85, most=1.25)
    beside = [r * count / sum(alone) for r in together[0]]
    sheet.figure("one half beside the other, of its rate alone", beside, "", least=0.85)


def rates(running: Sequence[Client], seconds: float, count: int) -> list[list[float]]:
    """Units a second of each client, over `count` spans."""
    found: list[list[float]] = [[] for _ in running]
    before, began_s = [client.units for client in running], time.monotonic()
    for _ in range(count):
        time.sleep(seconds)
        after, ended_s = [client.units for client in running], time.monotonic()
        for mine, old, new in zip(found, before, after, strict=True):
            mine.append((new - old) / (ended_s - began_s))
        before, began_s = after, ended_s
    for client in running:
        client.must_live()
    return found
