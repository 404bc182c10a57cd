"""Time as a value: whoever decides is handed a clock or an instant, and never reads one."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Seconds on a monotonic axis. The live one wraps `time.monotonic`, tests and simulators turn theirs by hand."""

    def now_s(self) -> float:
        """Seconds since an arbitrary, fixed instant of this host."""
        ...
