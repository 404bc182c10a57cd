"""Functions that call functions."""

import asyncio

from hasfaas import function


@function(slo_ms=100, memory="256MiB", timeout_s=15)
def inner(x):
    if x < 0:
        raise ValueError(f"{x} is negative")
    return x + 1


@function(slo_ms=100, memory="256MiB", timeout_s=15)
def outer(x):
    return 2 * inner.remote(x)


@function(slo_ms=100, memory="256MiB", timeout_s=15)
async def gathered(n):
    return sum(await asyncio.gather(*(inner.aio(i) for i in range(n))))


@function(slo_ms=100, memory="256MiB", timeout_s=15)
def mapped(n):
    return sum(inner.map(range(n)))


@function(slo_ms=100, memory="256MiB", timeout_s=15)
def spawned(x):
    return inner.spawn(x).result(timeout_s=10)
