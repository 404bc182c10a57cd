"""Where the time of a cold start goes on the GPU: imports, context, weights, first run; in a fresh interpreter, and in a fork
of one that has imported everything and started no CUDA.

`python -m benchmarks.gpu_process benchmarks.gpu_coldstart:parts`
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection

from benchmarks.gpu_box import Box, ClientError, box, needs_torch, spawn
from benchmarks.gpu_sheet import Sheet
from hasfaas.devices import base
from hasfaas.devices.base import DeviceSlice
from hasfaas.executor import forking

PARTS = ("imports", "context", "weights", "first run", "second run")
"""From the start of the process to the first result; the second run is beside that, for comparison."""
# As the node agent starts a zygote: a library that made threads when it is imported could not be forked.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
MS = 1_000_000
RUNS = 2
WAIT_S = 60.0


def imported() -> None:
    """What a replica that runs torch needs; one thread, as in a zygote."""
    import cupy  # noqa: F401
    import torch

    from benchmarks import gpu_models  # noqa: F401

    torch.set_num_threads(1)


def measured(part: DeviceSlice, started_ns: int, line: Connection) -> None:
    """One start in this process: tells the ms of each of PARTS, or what went wrong."""
    try:
        line.send(_timed(part, started_ns))
    except BaseException as exc:
        traceback.print_exc()
        line.send(f"{type(exc).__name__}: {exc}")
    line.close()
    os._exit(0)


def _timed(part: DeviceSlice, started_ns: int) -> tuple[float, ...]:
    imported()
    instants = [started_ns, time.monotonic_ns()]
    stream = base.enter(part)
    import torch

    from benchmarks import gpu_models

    torch.zeros(1, device="cuda")
    stream.drain()
    instants.append(time.monotonic_ns())
    model, x = gpu_models.model("resnet50"), gpu_models.example("resnet50", 1)
    made_ns = time.monotonic_ns() - instants[-1]  # random weights: no part of a cold start
    model, x = model.cuda(), x.cuda()
    stream.drain()
    instants.append(time.monotonic_ns())
    with torch.inference_mode():
        for _ in range(2):
            model(x)
            stream.drain()
            instants.append(time.monotonic_ns())
    took_ns = [later - earlier for earlier, later in itertools.pairwise(instants)]
    took_ns[2] -= made_ns
    return tuple(ns / MS for ns in took_ns)


def forks(control: Connection) -> None:
    """A zygote: imports, tells how many threads there are, and forks a start for each part that it is sent."""
    imported()
    control.send(forking.thread_count())
    while True:
        part: DeviceSlice | None = control.recv()
        if part is None:
            return
        ours, theirs = spawn.Pipe(duplex=False)
        started_ns = time.monotonic_ns()
        pid = os.fork()
        if pid == 0:
            measured(part, started_ns, theirs)
        theirs.close()
        control.send((pid, ours.recv() if ours.poll(WAIT_S) else f"silent for {WAIT_S:g} s"))
        os.waitpid(pid, 0)


def parts(sheet: Sheet, runs: int = RUNS) -> None:
    """ResNet-50 from the start of a process to its first result, part by part."""
    needs_torch()
    os.environ.update(ONE_THREAD)
    with box(sheet) as home:
        fresh = [_fresh(home) for _ in range(runs)]
        _figures(sheet, "fresh interpreter", fresh)
        forked = _forked(sheet, home, runs)
    if forked:
        _figures(sheet, "fork of a zygote", forked)
        ratio = _total(forked) / _total(fresh)
        sheet.figure("a fork's first result, of a fresh interpreter's time", ratio, "x", most=1.0)


def _fresh(home: Box) -> tuple[float, ...]:
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=measured, args=(home.part(0), time.monotonic_ns(), theirs), daemon=True)
    process.start()
    theirs.close()
    found = ours.recv() if ours.poll(WAIT_S) else f"silent for {WAIT_S:g} s"
    home.keeper.before_kill(process.pid or 0)
    process.kill()
    process.join()
    return _found(found)


def _forked(sheet: Sheet, home: Box, runs: int) -> list[tuple[float, ...]]:
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=forks, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        threads = ours.recv() if ours.poll(WAIT_S) else 0
        if threads != 1:
            sheet.remark(f"no fork: {threads} threads after the imports, and a zygote has one")
            return []
        found = []
        for _ in range(runs):
            ours.send(home.part(0))
            _pid, result = ours.recv()
            found.append(_found(result))
        ours.send(None)
        return found
    finally:
        process.kill()
        process.join()


def _found(result: object) -> tuple[float, ...]:
    if isinstance(result, tuple):
        return result
    raise ClientError(str(result))


def _figures(sheet: Sheet, name: str, found: Sequence[tuple[float, ...]]) -> None:
    for place, part in enumerate(PARTS):
        sheet.figure(f"{name}: {part}", [each[place] for each in found], "ms")
    sheet.figure(f"{name}: first result", [sum(each[:4]) for each in found], "ms")


def _total(found: Sequence[tuple[float, ...]]) -> float:
    return statistics.median(sum(each[:4]) for each in found)
