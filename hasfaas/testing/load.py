"""Calls that are always under way, and what their replicas use meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from hasfaas.testing.running import RunningBackend


class Load:
    """Keeps calls under way, `width` at a time, until told to stop; `errors` is what failed."""

    def __init__(self, call: Callable[[], Any], width: int) -> None:
        self.done = 0
        self.errors: list[BaseException] = []
        self._call = call
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(width)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._call()
                self.done += 1
            except Exception as exc:
                self.errors.append(exc)


def used_share(backend: RunningBackend, names: list[str], seconds: float) -> list[float]:
    """The share of the time from now on that the one replica of each function holds its lane."""

    def look() -> tuple[int, list[int]]:
        status = backend.status()
        by_name = {one.name: one for one in status.functions}
        return status.at_ns, [sum(r.usage.used_ns for r in by_name[name].replicas) for name in names]

    began_ns, before = look()
    time.sleep(seconds)
    ended_ns, after = look()
    return [(b - a) / (ended_ns - began_ns) for a, b in zip(before, after, strict=True)]
