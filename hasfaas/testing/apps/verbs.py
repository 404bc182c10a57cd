"""A user's one-file app: every kind of function, with every verb."""

import asyncio
import os
import time

import numpy as np

from hasfaas import function


@function(slo_ms=100, memory="512MiB")
def add(x, y=1, *, scale=1):
    return (x + y) * scale


@function(slo_ms=100, memory="512MiB")
async def slowly(x):
    await asyncio.sleep(0.001)
    return x + 1


@function(slo_ms=100, memory="512MiB")
def echo(*args, **kwargs):
    return args, kwargs


@function(slo_ms=100, memory="256MiB")
def touch(path, word, wait_s=0.0):
    """Leaves a trace of having run."""
    with open(path, "a") as file:
        file.write(f"{word}\n")
    time.sleep(wait_s)
    return word


@function(slo_ms=100, memory="256MiB")
def odd_only(x):
    if x % 2 == 0:
        raise ValueError(f"{x} is even")
    return x


@function(slo_ms=100, memory="256MiB")
class Scaler:
    def __init__(self):
        self.factor = 3
        self.calls = 0

    def decode(self, text):
        return np.array([float(part) for part in text.split(",")])

    def __call__(self, values):
        self.calls += 1
        return values * self.factor

    def encode(self, values):
        return {"pid": os.getpid(), "calls": self.calls, "text": ",".join(f"{value:g}" for value in values)}


@function(slo_ms=100, memory="256MiB")
class Asking:
    def __init__(self, start=10):
        self.start = start

    async def __call__(self, x):
        await asyncio.sleep(0)
        return self.start + x


@function(slo_ms=100, memory="256MiB")
def boom(kind="key"):
    if kind == "key":
        return {}["absent"]
    raise Unlucky(13, why="so it is")


class Unlucky(Exception):
    """An exception whose __init__ cannot be called with its args alone."""

    def __init__(self, number, *, why):
        super().__init__(f"number {number}: {why}")
        self.number = number
        self.why = why


@function(slo_ms=100, memory="256MiB")
def returns_error(x):
    """An exception as a value, not raised."""
    return [ValueError(x)][0]


@function(slo_ms=100, memory="256MiB")
def noted():
    error = ValueError("one \udcff byte")
    error.add_note("look at the file")
    raise error


@function(slo_ms=100, memory="256MiB", replicas=(2, 3))
def kept(x):
    return os.getpid()


@function(slo_ms=100, memory="256MiB", example=lambda batch: batch)
class Warmed:
    def __init__(self):
        self.seen = []

    def __call__(self, x):
        self.seen.append(x)
        return list(self.seen)
