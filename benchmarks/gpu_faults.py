"""What happens on the GPU when a replica dies or faults: who goes on, who has to go, and when it serves again.

Each check is `python -m benchmarks.gpu_process benchmarks.gpu_faults:NAME`.
"""

from __future__ import annotations

import time

from benchmarks import gpu_kernels
from benchmarks.gpu_box import Box, Client, ClientError, box, clients
from benchmarks.gpu_client import Seat
from benchmarks.gpu_lanes import NEARLY_HALF
from benchmarks.gpu_share import saturate
from benchmarks.gpu_sheet import NotRunError, Sheet
from hasfaas.executor.config import EXIT_DEVICE_FAILED

MS = 1_000_000
HELD_AGAIN_MS = 100.0
TOLD_MS = 1_000.0
SERVES_AGAIN_MS = 30_000.0
WATCH_S = 3.0


def illegal(seat: Seat) -> None:
    """Writes to an illegal address as soon as it is told to."""
    launch = gpu_kernels.illegal()
    seat.say("ready")
    seat.hear()
    launch()
    seat.stream.drain()
    seat.say("nothing happened")


def idle(seat: Seat) -> None:
    """Has used the GPU, and uses it again when it is told to: meanwhile it cannot know of a fault."""
    spin = gpu_kernels.spin()
    spin(MS)
    seat.stream.drain()
    seat.say("ready")
    seat.hear()
    spin(MS)
    seat.stream.drain()
    seat.say("still here")


def kill(sheet: Sheet, kills: int = 2) -> None:
    """SIGKILL of the replica that holds the lane: the other one holds it at once, and goes on. As the agent does it, which
    ends its work first; and bare, as the kernel does it to a process when memory runs out."""
    with box(sheet) as home:
        other = Client(home, saturate, quota=0.5)
        with clients(other):
            for as_agent in (True, False):
                told_ms, gaps_ms = zip(*(killed(home, other, as_agent) for _ in range(kills)), strict=True)
                name = "ended as the agent does" if as_agent else "bare SIGKILL"
                sheet.figure(f"{name}: the other holds the lane after", gaps_ms, "ms", most=HELD_AGAIN_MS)
                if as_agent:
                    sheet.figure("telling the GPU before takes", told_ms, "ms", most=TOLD_MS)


def killed(home: Box, other: Client, as_agent: bool) -> tuple[float, float]:
    """Ms that it took to tell the GPU, and from the kill of a holder until `other` is granted the lane. Raises ClientError if
    it is not, or does no more."""
    victim = Client(home, saturate, quota=0.5)
    with clients(victim):
        victim.running()
        other.running()
        time.sleep(0.3)
        while not victim.holds:
            time.sleep(0.0002)
        grants, began_ns = other.usage.grants, time.monotonic_ns()
        if as_agent:
            home.keeper.before_kill(victim.pid)
            grants = other.usage.grants
        killed_ns = time.monotonic_ns()
        victim.process.kill()
        while other.usage.grants == grants:
            if time.monotonic_ns() - killed_ns > 5_000 * MS:
                raise ClientError("the lane of a killed holder was not granted again for 5 s")
            time.sleep(0.0005)
        gap_ms = (time.monotonic_ns() - killed_ns) / MS
    done = other.units
    time.sleep(0.3)
    if other.units == done:
        raise ClientError("the replica beside the one that was killed does no more work")
    return (killed_ns - began_ns) / MS, gap_ms


def fault(sheet: Sheet) -> None:
    """An illegal address in one replica: it ends with the device's error; those beside it, in its lane and in another, go
    on or end by the rule of the partitions; the keeper says which, and a new replica serves again."""
    try:
        with box(sheet, (NEARLY_HALF, NEARLY_HALF)) as home:
            faulted(sheet, home, other_lane=1)
    except NotRunError:
        with box(sheet) as home:
            faulted(sheet, home, other_lane=0)


def faulted(sheet: Sheet, home: Box, other_lane: int) -> None:
    """The same in an open box: the culprit in lane 0, an idle replica in `other_lane`."""
    culprit, sleeper = Client(home, illegal, quota=0.2), Client(home, idle, lane=other_lane, quota=0.2)
    busy = Client(home, saturate, quota=0.2)
    with clients(culprit, busy, sleeper):
        culprit.heard()
        sleeper.heard()
        busy.running()
        culprit.say("now")
        lanes = _lanes_lost(home)
        code = culprit.ended(0.0)
        sheet.claim("the culprit ends with the device's error", code == EXIT_DEVICE_FAILED, note=f"exit code {code}")
        busy_lives, idle_lives = _goes_on(busy), _answers(sleeper)
    sheet.remark(f"the keeper says that replicas of lanes {sorted(lanes)} must go")
    sheet.figure("a busy replica in its lane went on", float(busy_lives), "yes = 1")
    where = "in another lane" if other_lane else "in its lane"
    sheet.figure(f"an idle replica {where} went on", float(idle_lives), "yes = 1")
    # A busy one that was hit has ended; an idle one cannot know, and only the keeper can send it away.
    sheet.claim("an idle replica that was hit is sent away", idle_lives or other_lane in lanes)
    sheet.figure("serves again after all have left", _serves_again_ms(home, other_lane), "ms", most=SERVES_AGAIN_MS)


def _lanes_lost(home: Box) -> set[int]:
    """Lanes whose replicas must go, as the keeper says over WATCH_S."""
    lanes: set[int] = set()
    end_s = time.monotonic() + WATCH_S
    while time.monotonic() < end_s:
        condition = home.keeper.check()
        lanes |= set(range(len(home.lanes)) if condition.lanes is None else condition.lanes)
        time.sleep(0.2)
    return lanes


def _goes_on(client: Client) -> bool:
    """Whether a busy one still works; raises ClientError for one that neither ended nor does any work."""
    done = client.units
    if client.ended(1.0) is not None:
        return False
    if client.units == done:
        raise ClientError("a busy replica beside the fault neither ended nor does any work")
    return True


def _answers(client: Client) -> bool:
    """Whether an idle one can use the GPU again."""
    try:
        client.say("now")
        client.heard(5.0)
    except (ClientError, BrokenPipeError):
        return False
    return True


def _serves_again_ms(home: Box, lane: int) -> float:
    """Until a new replica has had a kernel done. One that is refused is started again."""
    began_s = time.monotonic()
    while True:
        why = home.keeper.check().why
        client = Client(home, saturate, lane=lane, quota=0.2)
        with clients(client):
            try:
                client.running()
                return (time.monotonic() - began_s) * 1e3
            except ClientError as exc:
                why = f"{why} {exc}"
        if (time.monotonic() - began_s) * 1e3 > SERVES_AGAIN_MS:
            raise ClientError(f"no replica serves {SERVES_AGAIN_MS / 1e3:g} s after the fault: {why}")
        time.sleep(0.2)
