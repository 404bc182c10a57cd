"""An app of several files, in a folder of its own."""

import json
import sys

import helper
from parts import shapes

from hasfaas import function


@function(slo_ms=100, memory="128MiB")
def described(x):
    from parts.words import shout

    return shout(helper.describe(shapes.square(x)))


if __name__ == "__main__":
    json.dump({"plain": described(3), "remote": described.remote(3), "version": described.version}, sys.stdout)
