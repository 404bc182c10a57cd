"""User code that goes wrong in every way it can."""

import ctypes
import os
import sys
import threading
import time

from hasfaas import function


class Halt(BaseException):
    """Not even an Exception."""


class Stubborn(Exception):
    """An exception that refuses to be rebuilt anywhere."""

    def __new__(cls, *args):
        if args != ("first",):
            raise TypeError("Stubborn is made once")
        return super().__new__(cls, *args)

    def __init__(self, word):
        super().__init__("second")


class Holding(Exception):
    """An exception that carries what cannot be pickled."""

    def __init__(self, word, lock):
        super().__init__(word)
        self.lock = lock


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words for it")


@function(slo_ms=200, memory="256MiB", timeout_s=20.0)
def wrong(how):
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt("as if by hand")
    if how == "halt":
        raise Halt("stop everything")
    if how == "generator_exit":
        raise GeneratorExit
    if how == "stop":
        return next(iter(()))
    if how == "cancelled":
        import asyncio

        raise asyncio.CancelledError
    if how == "stubborn":
        raise Stubborn("first")
    if how == "holding":
        raise Holding("held", threading.Lock())
    if how == "local":

        class Inner(Exception):
            pass

        raise Inner("from inside")
    if how == "mute":
        raise Mute
    if how == "deep":
        return wrong.target("deep")
    if how == "lock":
        return {"deep": [1, {"er": threading.Lock()}]}
    if how == "generator":
        return (i for i in range(3))
    if how == "print":
        for i in range(4_000):
            print("a line that says little", i)
        sys.stderr.write("an error line\n")
        os.write(1, b"straight to the descriptor\n")
        return "printed"
    if how == "closed":
        sys.stdout.close()
        os.close(1)
        return "closed"
    return how


@function(slo_ms=200, memory="256MiB", timeout_s=20.0)
def dies(how):
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        ctypes.string_at(0)
    return how


@function(slo_ms=200, memory="256MiB", timeout_s=20.0)
def dies_in_a_stream(n):
    yield from range(n)
    os._exit(7)


@function(slo_ms=200, memory="128MiB", timeout_s=20.0)
def hungry(mib, how="numpy"):
    if how == "numpy":
        import numpy as np

        return int(np.ones(mib << 17).sum())
    import torch

    return int(torch.ones(mib << 18).sum())


@function(slo_ms=200, memory="128MiB", timeout_s=20.0)
def takes(array):
    return array.nbytes


@function(slo_ms=200, memory="256MiB", timeout_s=20.0)
class Unborn:
    def __init__(self):
        raise LookupError("no weights here")

    def __call__(self, x):
        return x


@function(slo_ms=200, memory="256MiB", timeout_s=20.0)
class Quitter:
    def __init__(self):
        sys.exit("cannot begin")

    def __call__(self, x):
        return x


@function(slo_ms=200, memory="256MiB", timeout_s=20.0)
class Crasher:
    def __init__(self):
        print("about to crash", flush=True)
        os._exit(9)

    def __call__(self, x):
        return x


@function(slo_ms=200, memory="256MiB", timeout_s=20.0)
class BadHooks:
    def decode(self, x):
        if x == "decode":
            raise ValueError("cannot decode")
        if x == "decode exit":
            sys.exit(1)
        return x

    def __call__(self, x):
        return x

    def encode(self, x):
        if x == "encode":
            raise ValueError("cannot encode")
        if x == "encode exit":
            sys.exit(1)
        return x


@function(slo_ms=200, memory="256MiB", timeout_s=20.0)
class BadStreamHooks:
    def __call__(self, x):
        try:
            yield 1
            yield x
        finally:
            if x == "finally":
                raise ValueError("cannot finish")

    def encode(self, x):
        if x == "encode":
            raise ValueError("cannot encode")
        if x == "exit":
            sys.exit(1)
        return x


@function(slo_ms=200, memory="256MiB", timeout_s=0.4)
def brief(path, word, wait_s):
    with open(path, "a") as file:
        file.write(f"{word}\n")
    time.sleep(wait_s)
    return word
