"""A user's generators."""

import asyncio

from hasfaas import function


@function(slo_ms=100, memory="256MiB")
def count(n, path=None):
    made = 0
    try:
        for i in range(n):
            made += 1
            yield i
    finally:
        if path is not None:
            with open(path, "a") as file:
                file.write(f"closed after {made}\n")


@function(slo_ms=100, memory="256MiB")
async def acount(n, path=None):
    made = 0
    try:
        for i in range(n):
            await asyncio.sleep(0)
            made += 1
            yield i
    finally:
        if path is not None:
            with open(path, "a") as file:  # noqa: ASYNC230 - a line of a test
                file.write(f"closed after {made}\n")


@function(slo_ms=100, memory="256MiB")
class Words:
    def __init__(self):
        self.glue = "-"

    def decode(self, text):
        return text.split()

    def __call__(self, words):
        for word in words:
            yield word + self.glue

    def encode(self, word):
        return word.upper()


@function(slo_ms=100, memory="256MiB")
def fails_at(n):
    yield from range(n)
    raise RuntimeError(f"no more than {n}")


@function(slo_ms=100, memory="256MiB", timeout_s=0.6)
def endless(path):
    import time

    try:
        while True:
            time.sleep(0.02)
            yield "again"
    finally:
        with open(path, "w") as file:
            file.write("closed")


@function(slo_ms=100, memory="256MiB")
def rows(n, kib):
    import numpy as np

    for i in range(n):
        yield np.full(kib * 128, float(i))
