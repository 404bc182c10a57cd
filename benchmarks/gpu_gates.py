"""Gates in real models on the GPU: what they cost, where they lie, and graphs that are cut at them.

Each check is `python -m benchmarks.gpu_process benchmarks.gpu_gates:NAME`. Models are those of gpu_models, in fp32.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_box import Client, box, clients, needs_torch
from benchmarks.gpu_client import UNITS, Seat
from benchmarks.gpu_share import SETTLE_S, spans
from benchmarks.gpu_sheet import Sheet
from hasfaas.devices.base import HostTimer, Timer
from hasfaas.executor.gates import PROFILED_CALLS, Calibration

LARGE = 16
BATCHES = {"resnet50": (1, LARGE), "bert_base": (1, LARGE)}
MS = 1_000_000
WARM_UP = 5
MOST_PAIRS, FEWEST_PAIRS = 60, 8
PAIRS_S = 1.5
"""For the pairs of one arrangement; a slow GPU makes fewer."""
MOST_OVERHEAD_PERCENT = 2.0
UNIT_MS = 1.0
GRAPH_UNITS = 40


def forwards(seat: Seat, name: str, batches: Sequence[int]) -> None:
    """For each batch size tells, in percent, what gates add to a forward for each pair of interleaved ones, how many gates
    there are, and the ms of each forward without them. The lease is kept, at quota 1."""
    import torch

    from benchmarks import gpu_models

    one, two = (gpu_models.model(name).cuda() for _ in range(2))
    for batch in batches:
        x = gpu_models.example(name, batch).cuda()
        with torch.inference_mode(), seat.lease:
            seat.say(pairs(seat, one, two, x))


def pairs(seat: Seat, one: Any, two: Any, x: Any) -> tuple[list[float], int, list[float]]:
    """What `forwards` tells of one batch size; `one` and `two` are copies of a model."""

    def took_ms(model: Any) -> float:
        began_ns = time.perf_counter_ns()
        model(x)
        seat.stream.drain()
        return (time.perf_counter_ns() - began_ns) / MS

    percents, plain_ms, gates = list[float](), list[float](), 0
    for _ in range(WARM_UP):
        took_ms(one)
        took_ms(two)
    # Each copy has the gates in turn: where weights lie makes a difference of its own.
    for gated, plain in ((one, two), (two, one)):
        calibration, began_s = _calibrated(gated, x, seat.lease.gate, seat.stream.timer), time.monotonic()
        gates = max(gates, calibration.gates)
        for pair in range(MOST_PAIRS // 2):
            order = (gated, plain) if pair % 2 else (plain, gated)
            found = {id(model): took_ms(model) for model in order}
            percents.append(100.0 * (found[id(gated)] / found[id(plain)] - 1.0))
            plain_ms.append(found[id(plain)])
            if pair >= FEWEST_PAIRS // 2 and time.monotonic() - began_s > PAIRS_S:
                break
        calibration.uninstall()
    return percents, gates, plain_ms


def distances(seat: Seat, name: str, batch: int) -> None:
    """With gates placed by events, then by the host's clock, tells the ms of the device between gates in one forward (the
    least of several, place by place), what the plan said the longest is, and the ms of a forward."""
    import torch

    from benchmarks import gpu_models

    model, x = gpu_models.model(name).cuda(), gpu_models.example(name, batch).cuda()
    with torch.inference_mode(), seat.lease:
        for _ in range(WARM_UP):
            model(x)
        seat.stream.drain()
        for timer in (seat.stream.timer, HostTimer()):
            seat.say(stretches(seat, model, x, timer))


def stretches(seat: Seat, model: Any, x: Any, placed_by: Timer) -> tuple[list[float], float, float]:
    """What `distances` tells of gates that are placed by a timer."""
    timer, marks, found = seat.stream.timer, list[object](), []

    def gate() -> None:
        marks.append(timer.mark())
        seat.lease.gate()

    calibration = _calibrated(model, x, gate, placed_by)
    for _ in range(WARM_UP):
        marks.clear()
        marks.append(timer.mark())
        model(x)
        marks.append(timer.mark())
        found.append([timer.elapsed_ns(a, b) / MS for a, b in itertools.pairwise(marks)])
    (report,) = calibration.reports
    calibration.uninstall()
    shortest = [min(place) for place in zip(*found, strict=True)]
    return shortest, report.max_distance_ms, min(sum(each) for each in found)


def _calibrated(model: Any, x: Any, gate: Callable[[], None], timer: Timer) -> Calibration:
    calibration = Calibration(gate, timer=timer)
    calibration.watch({"model": model})
    for _ in range(PROFILED_CALLS):
        calibration.begin()
        model(x)
    return calibration


def overhead(sheet: Sheet) -> None:
    """What calibrated gates add to a forward when nothing waits: 1 ms between gates, renewals every 10 ms."""
    needs_torch()
    with box(sheet) as home:
        for name, batches in BATCHES.items():
            client = Client(home, forwards, name, batches)
            with clients(client):
                for batch in batches:
                    percents, gates, plain_ms = client.heard()
                    note = f"{gates} gates in {statistics.median(plain_ms):.2f} ms"
                    where = f"{name}, batch {batch}: gates add"
                    sheet.figure(where, percents, "%", most=MOST_OVERHEAD_PERCENT, note=note)


def calibrated(sheet: Sheet) -> None:
    """Gates placed by device events lie as far apart on the device as was planned; placed by the host's clock, which sees
    launches only, they are reported beside that."""
    needs_torch()
    with box(sheet) as home:
        for name in BATCHES:
            client = Client(home, distances, name, LARGE)
            with clients(client):
                for by in ("events", "the host's clock"):
                    apart_ms, planned_ms, forward_ms = client.heard()
                    note = f"{len(apart_ms) - 1} gates in a forward of {forward_ms:.2f} ms"
                    sheet.figure(f"{name}, placed by {by}: ms between gates", apart_ms, "ms", note=note)
                    if by == "events":
                        most = max(apart_ms) / max(planned_ms, 1e-3)
                        sheet.figure(f"{name}: the longest against the planned", most, "x", least=0.5, most=1.5)


# -- graphs -----------------------------------------------------------------------------------------------------------


def replayed(seat: Seat, gated: bool) -> None:
    """Captures GRAPH_UNITS pieces of work of about 1 ms in one graph, with gates between them or without, tells whether a
    replay gives what the code gave, and replays it for ever."""
    import torch

    seat.stream.gated(seat.lease.gate)
    matrix = torch.randn(1024, 1024, device="cuda") / 32.0
    x = torch.randn(1024, 1024, device="cuda")

    def unit(value: Any, products: int) -> Any:
        for _ in range(products):
            value = matrix @ value
        return value / value.abs().max()

    def forward() -> Any:
        value = x
        for _ in range(GRAPH_UNITS):
            value = unit(value, products)
            if gated:
                seat.lease.gate()
        return value

    with torch.inference_mode(), seat.lease:
        products = _products(seat, unit, x)
        eager = forward()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = forward()
        graph.replay()
        seat.stream.drain()
        seat.say(bool(torch.allclose(eager, captured, rtol=1e-3, atol=1e-5)))
        while True:
            graph.replay()
            seat.counters[UNITS] += 1


def _products(seat: Seat, unit: Callable[[Any, int], Any], x: Any) -> int:
    timer = seat.stream.timer
    unit(x, 8)
    start = timer.mark()
    unit(x, 8)
    return max(1, round(8 * UNIT_MS * MS / timer.elapsed_ns(start, timer.mark())))


def graphs(sheet: Sheet, seconds: float = 2.0) -> None:
    """A graph of 40 ms with gates is cut at them, gives the same result, and overruns a grant by about one gate. Without
    gates it is one unit: the whole of it is overrun, and repaid."""
    needs_torch()
    with box(sheet) as home:
        for gated in (True, False):
            client = Client(home, replayed, gated, quota=0.3)
            with clients(client):
                same = client.heard()
                client.running()
                time.sleep(SETTLE_S)
                (seen,) = spans([client], seconds, 2)
            name = "with gates" if gated else "without gates"
            sheet.claim(f"{name}: a replay gives the result of the code", same)
            most = 2.0 * UNIT_MS + 1.0 if gated else None
            sheet.figure(f"{name}: overrun per grant", [s.overrun_ms for s in seen], "ms", most=most)
            off = [100.0 * (s.held - 0.3) for s in seen]
            # One whole replay more or less in the span, where a replay is one unit.
            slack = 2.0 if gated else 100.0 * GRAPH_UNITS * UNIT_MS / 1e3 / seconds + 2.0
            sheet.figure(f"{name}: held at quota 0.3, error", off, "pp", least=-slack, most=slack)
