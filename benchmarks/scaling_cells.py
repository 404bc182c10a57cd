"""The cells of the scaling benchmark: a load at a rate for a model, under a setting; and how they compare with whole GPUs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np

from benchmarks import scaling_loads
from hasfaas.executor.quota import Timing
from hasfaas.scaling.frontier import REPLICAS, Frontier, FrontierSettings
from hasfaas.simulator import models
from hasfaas.simulator.models import Model
from hasfaas.simulator.run import BATCH_MAX, scenario
from hasfaas.simulator.scenario import Law, Scenario

MODELS = ("mobilenet_v3_large", "resnet50", "convnext_large", "vgg16")
RATES_RPS = (5.0, 20.0, 100.0)
LATE_SHARE = 0.01
# The scenario of the cells at one whole GPU of load: long enough, and with a rhythm.
FULL_LOAD = "diurnal-rise"


@attrs.frozen
class Setting:
    """What is the same for all cells of a part. `window_s` is how much of each trace is replayed."""

    name: str = "primary"
    slo_factor: float = 5.0
    cold_start_s: float = 10.0
    spread: str = "poisson"
    predictor_error: float = 0.0
    interference: float = 1.0
    law: Law = "lane"
    window_s: float = scaling_loads.WINDOW_S


@attrs.frozen
class Cell:
    """`extra` cells are at one whole GPU of load, for one figure only."""

    load: str
    rps: float
    model: str
    setting: Setting = attrs.field(factory=Setting)
    extra: bool = False

    @property
    def name(self) -> str:
        """Unique within a setting."""
        return f"{self.load} {self.rps:.4g} rps {self.model}" + (" (one GPU)" if self.extra else "")

    def scenario(self, data: Path, seed: int) -> Scenario:
        """Ten V100 of 16 GB for one function, nothing lent."""
        load = scaling_loads.load(self.load, data, self.setting.window_s)
        setting = self.setting
        return scenario(
            [_model(self.model, data if setting.law == "table" else None)],
            load.trace,
            seed=seed,
            rps=self.rps,
            spread=setting.spread,
            start_s=load.start_s,
            duration_s=load.duration_s,
            slo_factor=setting.slo_factor,
            cold_start_s=setting.cold_start_s,
            predictor_error=setting.predictor_error,
            interference=setting.interference,
            law=setting.law,
        )


@attrs.frozen
class Whole:
    """A cell against whole GPUs, by the capacity rule at the promised late share and at the cell's mean load.

    `rps` is what one whole GPU with its best batch carries, `load_gpus` the mean load over it; `area` the devices that the
    cheapest slices occupy, `bound` the least number of whole GPUs over it: the most that slices alone can save (NaN where
    nothing carries the load).
    """

    slo_ms: float
    rps: float
    load_gpus: float
    area: float
    bound: float


def whole(cell: Cell) -> Whole:
    """How a cell compares with whole GPUs."""
    model = _model(cell.model)
    slo_ms = cell.setting.slo_factor * model.base_ms
    frontier = _frontier(cell.model, cell.setting.slo_factor)
    gpus = frontier.rps[:, int(np.argmax(frontier.sm_percents)), -1]
    shape = frontier.cheapest(cell.rps)
    if gpus[-1] < cell.rps or shape is None:
        return Whole(slo_ms, float(gpus[0]), _over(cell.rps, gpus[0]), float("nan"), float("nan"))
    least = REPLICAS[int(np.argmax(gpus >= cell.rps))]
    return Whole(slo_ms, float(gpus[0]), _over(cell.rps, gpus[0]), shape.area, least / shape.area)


def grid(
    setting: Setting | None = None,
    *,
    loads: Sequence[str] = scaling_loads.NAMES,
    rates_rps: Sequence[float] = RATES_RPS,
    names: Sequence[str] = MODELS,
    one_gpu: bool = True,
) -> tuple[Cell, ...]:
    """All cells, the longest first; with `one_gpu` also those at one whole GPU of load, one a model."""
    setting = setting or Setting()
    cells = [Cell(load, rps, name, setting) for rps in rates_rps for load in loads for name in names]
    if one_gpu:
        at_one = (Cell(FULL_LOAD, 1.0, name, setting, extra=True) for name in names)
        cells += [attrs.evolve(cell, rps=rps) for cell in at_one if (rps := whole(cell).rps) > 0.0]
    return tuple(sorted(cells, key=lambda cell: (cell.load.startswith("has-"), -cell.rps)))


@functools.lru_cache(maxsize=64)
def _model(name: str, data: Path | None = None) -> Model:
    return models.named([name], data)[0]


@functools.lru_cache(maxsize=64)
def _frontier(name: str, slo_factor: float) -> Frontier:
    model = _model(name)
    return Frontier.of(
        model.surface,
        slo_factor * model.base_ms,
        LATE_SHARE,
        Timing(),
        batch_max=min(BATCH_MAX, model.surface.batches[-1]),
        settings=FrontierSettings(late_factor=1.0),
    )


def _over(rps: float, capacity_rps: float) -> float:
    return rps / capacity_rps if capacity_rps > 0.0 else float("inf")
