"""Runs tasks in processes of their own, and says how far they are."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def spread(function: Callable[[T], R], tasks: Sequence[T], jobs: int, what: str) -> Iterator[R]:
    """What the function makes of each task, as they are done, in any order. `function` is one of a module; with one job it
    runs here. Each process has one thread."""
    began_s = time.monotonic()
    for done, found in enumerate(_found(function, tasks, jobs), start=1):
        spent_s = time.monotonic() - began_s
        left_s = spent_s / done * (len(tasks) - done)
        print(
            f"\r{what}: {done} of {len(tasks)}, {spent_s:.0f} s, about {left_s:.0f} s left   ", end="", file=sys.stderr
        )
        sys.stderr.flush()
        yield found
    print(file=sys.stderr)


def _found(function: Callable[[T], R], tasks: Sequence[T], jobs: int) -> Iterator[R]:
    if jobs == 1:
        yield from map(function, tasks)
        return
    # Read by the numeric libraries as a process begins.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))
    context: Any = multiprocessing.get_context("spawn")
    with context.Pool(jobs) as pool:
        yield from pool.imap_unordered(function, tasks)
