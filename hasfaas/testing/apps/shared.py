"""Classes whose replicas fork from a process that has run __init__."""

import os
import threading

import numpy as np

from hasfaas import function


@function(slo_ms=200, memory="256MiB", share_init=True, replicas=(0, 4))
class Weights:
    def __init__(self):
        self.table = np.arange(1_000_000)
        self.parent = os.getpid()

    def __call__(self, i):
        return int(self.table[i]), self.parent, os.getpid()


@function(slo_ms=200, memory="256MiB", share_init=True)
class Threaded:
    def __init__(self):
        threading.Thread(target=threading.Event().wait, daemon=True).start()

    def __call__(self, x):
        return x


@function(slo_ms=200, memory="256MiB", share_init=True)
class Unborn:
    def __init__(self):
        raise LookupError("no weights here")

    def __call__(self, x):
        return x
