"""Functions to kill things under."""

import os
import re
import subprocess
import time

from hasfaas import function


@function(slo_ms=100, memory="128MiB", idempotent=True, timeout_s=30)
def again(x, ms=2):
    time.sleep(ms / 1000)
    return x, os.getpid()


@function(slo_ms=100, memory="128MiB", timeout_s=30)
def once(x, ms=2):
    time.sleep(ms / 1000)
    return x, os.getpid()


@function(slo_ms=100, memory="128MiB", timeout_s=30)
def helped():
    """Starts a process of its own, and leaves it running."""
    return subprocess.Popen(["sleep", "1000"]).pid


@function(slo_ms=100, memory="128MiB", timeout_s=60)
def stuck(path):
    """Never lets go of the interpreter's lock: a search that backtracks for ages."""
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    return re.match(r"(a+)+$", "a" * 40 + "b")


@function(slo_ms=100, memory="128MiB")
def fails_on(x):
    raise RuntimeError("not today")
