"""Large arguments and results, and what user code may do to them."""

import os

import numpy as np

from hasfaas import function


@function(slo_ms=500, memory="256MiB", idempotent=True, timeout_s=30)
def bumped(x, trace):
    """Changes its argument in place, and dies the first time."""
    x += 1
    if not os.path.exists(trace):
        open(trace, "w").close()
        os._exit(1)
    return float(x[0]), float(x[-1])


@function(slo_ms=500, memory="256MiB", timeout_s=30)
def filled(n, value):
    return np.full(n, value)


@function(slo_ms=500, memory="256MiB", timeout_s=30)
class Keeper:
    """Remembers what it was given."""

    def __init__(self):
        self.kept = []

    def __call__(self, x):
        self.kept.append(x)
        return [float(one.sum()) for one in self.kept]


@function(slo_ms=500, memory="256MiB", idempotent=True, timeout_s=30)
def filled_again(n, value):
    return np.full(n, value)
