"""What a test says to the stand-in, and asks it. CuPy has nothing like it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ._core import Effect, kernels
from ._machine import _mps, machine
from .cuda import get_current_stream


def started() -> bool:
    """Whether CUDA was started in this process."""
    return machine.started


def launch(duration_ms: float, effect: Effect | None = None) -> None:
    """Queues device time on the current stream and returns at once."""
    machine.launches += 1
    machine.queue(get_current_stream().ptr).put(round(duration_ms * 1e6), effect)


def launches() -> int:
    """How many kernels were launched."""
    return machine.launches


def busy_ns() -> int:
    """How long streams of this process were at work in all."""
    return sum(queue.busy_ns for queue in machine.queues.values())


def sms() -> int:
    """What MPS granted."""
    return machine.sms


def allocate(size_bytes: int) -> int:
    """Device memory past every pool, as libraries take it for themselves: MPS alone limits it. Its address."""
    return machine.allocate(size_bytes)


def fault(status: int = 700) -> None:
    """A kernel did what it must not: every later call fails, and MPS hits whoever shares the blast radius."""
    machine.start()
    if "CUDA_MPS_PIPE_DIRECTORY" in os.environ and "FAKE_MPS" in os.environ:
        # First: a process that fails may be gone before it could tell.
        _mps().fault(os.environ, os.getpid())
    machine.fail(status)


def define(name: str, duration_ms: float, effect: Callable[..., None] | None = None) -> None:
    """A raw kernel of this name takes so long; `effect` is called with its arguments at its end."""

    def made(_grid: Any, _block: Any, args: Any) -> tuple[int, Effect | None]:
        return round(duration_ms * 1e6), None if effect is None else lambda: effect(*args)

    kernels[name] = made
