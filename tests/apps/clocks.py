"""A function that tells what its own clocks say."""

import time

from hasfaas import function


@function(slo_ms=200, memory="128MiB")
def told():
    return time.time(), time.monotonic()
