"""A user's script: the same call as plain Python and on the backend, and what it has for a version."""

import json
import sys

import numpy as np

from hasfaas import function

SCALE = {"by": 3, "names": {"b", "a", "c"}}


@function(slo_ms=100, memory="128MiB")
def scaled(x):
    return SCALE["by"] * x + len(SCALE["names"])


if __name__ == "__main__":
    x = np.arange(4)
    answers = {"plain": scaled(x).tolist(), "remote": scaled.remote(x).tolist(), "version": scaled.version}
    json.dump(answers, sys.stdout)
