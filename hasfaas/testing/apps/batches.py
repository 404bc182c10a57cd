"""A user's batched functions."""

import numpy as np

import hasfaas
from hasfaas import function

BATCH = hasfaas.Batch(max_size=8, max_wait_ms=40)


@function(slo_ms=200, memory="256MiB", batch=BATCH)
def sums(x, scale=1):
    """Each row's sum, and how many rows there were."""
    if x.shape[1:] != (3,):
        raise ValueError(f"rows of 3 are wanted, not of shape {x.shape[1:]}")
    if (x == 666).any():
        raise KeyError("a thirteen")
    return {"sum": scale * x.sum(axis=1), "rows": [len(x)] * len(x)}


@function(slo_ms=200, memory="256MiB", batch=BATCH)
def short(x):
    return np.zeros(3)


@function(slo_ms=200, memory="256MiB", batch=BATCH)
def scalar(x):
    return 7


@function(slo_ms=200, memory="256MiB", batch=BATCH)
class Lookup:
    def decode(self, word):
        if word == "undecodable":
            raise ValueError(word)
        return np.array([len(word), ord(word[0])])

    def __call__(self, x):
        return x * 2

    def encode(self, row):
        if row[0] == 2 * len("unencodable"):
            raise ValueError("unencodable")
        return row.tolist()
