"""How far RaPP's predictions are off on this GPU: from the graph and probes of the GPU alone, and from six measured holds.

`python -m benchmarks.gpu_process benchmarks.gpu_rapp:predictions`
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu_box import Client, box, clients, needs_torch
from benchmarks.gpu_client import Seat
from benchmarks.gpu_lanes import NEARLY_HALF
from benchmarks.gpu_sheet import NotRunError, Sheet
from hasfaas.executor.measuring import log_spread
from hasfaas.rapp import export, few_shot, zero_shot
from hasfaas.rapp.description import DeviceDescription
from hasfaas.rapp.gpu_description import MeasuredGpu, MeasuredShare, describe_measured
from hasfaas.rapp.probe import Point, Probe, choose, rising
from hasfaas.rapp.surface import Surface

MODELS = ("resnet50", "bert_base", "perceptron")
BATCHES = (1, 4, 16, 32)
LANES = ((100.0,), (NEARLY_HALF, 25.0))
"""SM percents: the whole first."""
PROBES = 6
WARM_UP = 4
RUNS, LEAST_S = 12, 0.15
FEW_SHOT_PERCENT = 8.0
"""The bound that RaPP keeps in the median of functions on CPU devices, docs/rapp.md."""
Z_90 = 1.645
Holds = Mapping[tuple[str, int], Sequence[float]]


def holds(seat: Seat, models: Sequence[str], batches: Sequence[int]) -> None:
    """Tells what the probes of this share of the GPU found; then, by model and batch, the ms that each of several forwards
    held the lane."""
    from hasfaas.devices import probes

    seat.say(probes.everything())
    seat.say(dict(_measured(seat, models, batches)))


def _measured(
    seat: Seat, models: Sequence[str], batches: Sequence[int]
) -> Iterator[tuple[tuple[str, int], list[float]]]:
    import torch

    from benchmarks import gpu_models

    for name in models:
        model = gpu_models.model(name).cuda()
        for batch in batches:
            x, found, began_s = gpu_models.example(name, batch).cuda(), list[float](), time.monotonic()
            with torch.inference_mode():
                while len(found) < WARM_UP + RUNS or time.monotonic() - began_s < LEAST_S:
                    held_ns = seat.lease.held_ns
                    with seat.lease:
                        model(x)
                    found.append((seat.lease.held_ns - held_ns) / 1e6)
            yield (name, batch), found[WARM_UP:]


def predictions(sheet: Sheet) -> None:
    """Absolute errors of the hold, in percent, over models, batches and SM shares."""
    needs_torch()
    measured: dict[float, Holds] = {}
    probed: list[tuple[float, Mapping[str, Any]]] = []
    facts: Mapping[str, object] = {}
    for percents in LANES:
        try:
            with box(sheet, percents) as home:
                facts = home.info.facts
                for lane in range(len(percents)):
                    share, client = 100.0 * home.share(lane), Client(home, holds, MODELS, BATCHES, lane=lane)
                    with clients(client):
                        probed.append((share, client.heard()))
                        measured[share] = client.heard(90.0)
        except NotRunError as exc:
            sheet.remark(f"the whole GPU only: {exc}")
    shares = sorted(measured)
    description = describe_measured(_gpu(str(facts["name"]), probed))
    sheet.remark(
        f"calibrated: {description.fp32_flops_per_s / 1e12:.1f} TFLOP/s fp32, "
        f"{description.bandwidth_bytes_per_s / 1e9:.0f} GB/s, saturated from {100 * description.saturation:.0f} % of SMs, "
        f"shortest kernel {description.launch_s * 1e6:.1f} us"
    )
    for model in MODELS:
        truth = {(batch, share): list(found[(model, batch)]) for share, found in measured.items() for batch in BATCHES}
        score(sheet, model, truth, shares, description)


def _gpu(name: str, probed: Sequence[tuple[float, Mapping[str, Any]]]) -> MeasuredGpu:
    whole = probed[0][1]
    return MeasuredGpu(
        name=name,
        shares=tuple(
            MeasuredShare(share, each["sms"], each["triad_bytes_per_s"], each["fma_flops_per_s"])
            for share, each in probed
        ),
        launch_s=whole["launch_us"] * 1e-6,
        clock_hz=whole["clock_mhz"] * 1e6,
        l2_bytes=whole["l2_bytes"],
        memory_bytes=whole["memory_bytes"],
        note="gpu-check",
    )


def score(
    sheet: Sheet,
    model: str,
    truth: Mapping[tuple[int, float], Sequence[float]],
    shares: Sequence[float],
    description: DeviceDescription,
) -> None:
    """Writes the errors of one model, by the ms of each of its cells (batch, SM share)."""
    from benchmarks import gpu_models

    graphs = export.graphs(gpu_models.model(model), lambda batch: gpu_models.example(model, batch), BATCHES)
    forecast = zero_shot.forecast(graphs, zero_shot.law_of(description), shares)
    errors, covered = scored(forecast.surface, truth)
    note = f"{covered:.0%} of {len(errors)} cells in the 90 % interval"
    sheet.figure(f"{model}: {forecast.state}, error", errors, "%", note=note)
    points = choose(min(PROBES, len(truth) - 1), BATCHES, shares, (100.0,))
    taken = {(point.batch, point.sm_percent) for point in points}
    probes = rising([_probe(*cell, truth[cell]) for cell in sorted(taken)])
    rest = {cell: found for cell, found in truth.items() if cell not in taken}
    for how, prior in (("few-shot", None), ("few-shot on zero-shot", forecast.surface)):
        errors, covered = scored(few_shot.fit(probes, BATCHES, shares, prior), rest)
        note = f"{len(taken)} probes; {covered:.0%} of {len(errors)} other cells in the 90 % interval"
        most = None if prior else FEW_SHOT_PERCENT
        sheet.figure(f"{model}: {how}, error", errors, "%", most=most, note=note)


def scored(surface: Surface, truth: Mapping[tuple[int, float], Sequence[float]]) -> tuple[list[float], float]:
    """Absolute errors in percent of each cell's median, and the part of the cells inside the 90 % interval."""
    errors, inside = [], 0
    for (batch, share), found in truth.items():
        log_error = math.log(statistics.median(found) / surface.hold(batch, share))
        errors.append(100.0 * abs(1.0 - math.exp(-log_error)))
        inside += abs(log_error) <= Z_90 * surface.doubt(batch, share)
    return errors, inside / len(truth)


def _probe(batch: int, share: float, found: Sequence[float]) -> Probe:
    spread = log_spread([round(ms * 1e6) for ms in found])
    return Probe(Point(batch, share), statistics.median(found), runs=len(found), log_spread=spread)
