"""User code with a known use of the device."""

import os
import time

import hasfaas
from hasfaas import function


def busy(ms):
    end_s = time.perf_counter() + ms / 1000
    while time.perf_counter() < end_s:
        hasfaas.gate()


@function(slo_ms=100, memory="128MiB")
def spin(ms=4):
    busy(ms)
    return os.getpid()


@function(slo_ms=100, memory="128MiB")
def spin_two(ms=4):
    busy(ms)
    return os.getpid()


@function(slo_ms=100, memory="128MiB")
def spin_three(ms=4):
    busy(ms)
    return os.getpid()


@function(slo_ms=100, memory="128MiB")
class Decoding:
    """30 ms of work on the host, 4 ms on the device."""

    def decode(self, x):
        time.sleep(0.03)
        return x

    def __call__(self, x):
        busy(4)
        return x


@function(slo_ms=100, memory="128MiB")
def decoding(x):
    with hasfaas.host():
        time.sleep(0.03)
    busy(4)
    return x
