"""Functions that ask for variables of their environment; of a secret they tell the hash alone."""

import hashlib
import os
import subprocess
import sys

from hasfaas import function

ENV = {"APP_MODE": "plain-value-of-mode"}


def seen():
    return os.environ["APP_MODE"], hashlib.sha256(os.environb[b"APP_TOKEN"]).hexdigest()


@function(slo_ms=500, memory="256MiB", env=ENV, secrets=("APP_TOKEN",))
class Built:
    def __init__(self):
        self.found = seen()

    def __call__(self):
        return self.found


@function(slo_ms=500, memory="256MiB", env=ENV, secrets=("APP_TOKEN",), share_init=True, replicas=(0, 2))
class Shared:
    def __init__(self):
        self.found = seen()

    def __call__(self):
        return self.found, seen()


@function(slo_ms=500, memory="256MiB")
def bystander():
    return sorted(name for name in os.environ if name.startswith("APP_"))


@function(slo_ms=500, memory="256MiB", env=ENV, secrets=("APP_TOKEN",))
def child():
    """What a process that the function starts has."""
    code = "import hashlib, os; print(hashlib.sha256(os.environb[b'APP_TOKEN']).hexdigest())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@function(slo_ms=500, memory="256MiB", secrets=("APP_ABSENT",))
def lacking():
    return len(os.environ["APP_ABSENT"])


@function(slo_ms=500, memory="256MiB", secrets=("APP_OPEN",))
def careless():
    return 1
