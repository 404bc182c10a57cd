"""What replicas cost: the share of devices that they reserve, what they use of it, and what is billed. Compiled.

All in GPU-seconds, and only between `from_ns` and `to_ns` of the clock. A replica reserves sm x quota from when it was asked
for until it is gone; it uses sm x the time that it holds its lane. Billed is, interval by interval, the greater of the two,
so that lent time is paid for.
"""

from __future__ import annotations

from typing import Any

from hasfaas.executor.quota import PPM

_S_OF_NS = 1e-9


def accrue(slot: Any, clock: Any, now_ns: int) -> None:
    """Reserves at the present quota until now: to be called before a quota changes."""
    begin_ns, end_ns = max(slot.charged_ns, clock.from_ns), min(now_ns, clock.to_ns)
    if end_ns > begin_ns:
        slot.reserved += (end_ns - begin_ns) * _S_OF_NS * slot.share * slot.quota_ppm / PPM
    slot.charged_ns = now_ns


def close(slot: Any, function: Any, clock: Any, now_ns: int) -> None:
    """An interval of a (settled) replica ends."""
    accrue(slot, clock, now_ns)
    used = (slot.used_ns - slot.billed_ns) * _S_OF_NS * slot.share
    if clock.from_ns < now_ns <= clock.to_ns:
        function.reserved += slot.reserved
        function.used += used
        function.billed += max(slot.reserved, used)
    slot.billed_ns = slot.used_ns
    slot.reserved = 0.0


STEPS = (accrue, close)
