"""Waits until something is so, and for no fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T], *, timeout_s: float = 20.0, every_s: float = 0.02) -> T:
    """What `look` gives once it gives something true. Raises AssertionError, with its last answer, when it never does."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not so after {timeout_s:g} s; at last it was {found!r}")
        time.sleep(every_s)
    return found
