"""Models to simulate: what their batches hold a device for, and the memory of a replica.

Four are built in (`models.json`, its source in it): the hold of a V100 at quota 100 %, derived from the public table of
HAS-GPU and RaPP (Gu et al., arXiv 2505.01968). Any other comes from a table of that form.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.surface import Surface, monotone
from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS, LatencyTable, read_table
from hasfaas.simulator.grid import LatencyGrid

BUILT_IN = Path(__file__).with_name("models.json")
BUILT_IN_GPU = "v100"
TABLE_IN_DATA = Path("v100") / "v100_latency_sm_quota_batch.csv"
# A process's context, its libraries and its working space, beside fp32 weights.
CONTEXT_BYTES = 1_200_000_000
WEIGHT_BYTES = 4
# Of a model whose size nobody has told: that of a mid-sized network.
UNKNOWN_PARAMETERS = 100_000_000
# How far the scaler's predictions are meant to be off: runs of one batch differ by about so much.
LOG_SIGMA = 0.03


@attrs.frozen(eq=False)
class Model:
    """A model on one kind of GPU, `gpu` ("" if nobody said). `grid` is its table as published, for the law "table" only."""

    name: str
    surface: Surface
    memory_bytes: int
    grid: LatencyGrid | None = None
    gpu: str = ""

    @property
    def base_ms(self) -> float:
        """One call on a whole device: what an SLO factor multiplies."""
        return float(self.surface.hold_ms[0, -1])


def named(names: Sequence[str], table: Path | None = None) -> tuple[Model, ...]:
    """Models by name: of the table if one is given, else built in, else of the table in the folder HASFAAS_DATA.

    `table` may be a CSV file, or a folder that holds v100/. Raises InvalidRequestError (UNKNOWN_MODEL) that lists the known.
    """
    if table is not None:
        return _of_file(names, _file(table))
    built_in = _built_in()
    if all(name in built_in["models"] for name in names):
        return tuple(_of_json(name, built_in) for name in names)
    folder = os.environ.get("HASFAAS_DATA")
    if folder is not None:
        return _of_file(names, _file(Path(folder)))
    unknown = next(name for name in names if name not in built_in["models"])
    raise InvalidRequestError(
        f"model={unknown!r} is not built in; built in are {', '.join(built_in['models'])}. For others give --table, a CSV "
        "of model,batch,sm_pct,quota_pct,latency_ms, or HASFAAS_DATA with the folder that holds v100/",
        reason="UNKNOWN_MODEL",
    )


def built_in_names() -> tuple[str, ...]:
    """The models that need no table."""
    return tuple(_built_in()["models"])


# -- leaves -------------------------------------------------------------------------------------------------------------


@functools.cache
def _built_in() -> Any:
    return json.loads(BUILT_IN.read_text())


def _file(path: Path) -> Path:
    return path / TABLE_IN_DATA if path.is_dir() else path


def _of_json(name: str, data: Any) -> Model:
    hold_ms = np.array(data["models"][name]["hold_ms"])
    surface = Surface(data["batches"], data["sm_percents"], hold_ms, np.full(hold_ms.shape, LOG_SIGMA))
    return Model(name, surface, _memory_bytes(name), gpu=BUILT_IN_GPU)


def _of_file(names: Sequence[str], file: Path) -> tuple[Model, ...]:
    # Only the published table says by its name on what it was measured.
    gpu = BUILT_IN_GPU if file.name == TABLE_IN_DATA.name else ""
    return _of_table(names, read_table(file), gpu)


def _of_table(names: Sequence[str], table: LatencyTable, gpu: str = "") -> tuple[Model, ...]:
    return tuple(_of_grid(name, table.grid(name), gpu) for name in names)


def _of_grid(name: str, latency_ms: np.ndarray[Any, Any], gpu: str) -> Model:
    """From [batch, sm, quota]; a batch that lacks a cell at quota 100 % is left out."""
    whole = latency_ms[:, :, -1]
    known = ~np.isnan(whole).any(axis=1)
    batches = tuple(batch for batch, there in zip(BATCHES, known, strict=True) if there)
    if not batches or batches[0] != 1:
        raise InvalidRequestError(
            f"model={name!r} lacks cells of batch 1 at quota 100 %: measure them at every SM share", reason="BAD_TABLE"
        )
    hold_ms = monotone(whole[known])
    surface = Surface(batches, SM_PERCENTS, hold_ms, np.full(hold_ms.shape, LOG_SIGMA))
    cells = latency_ms[known]
    # The published law asks for every cell; one that lacks some runs by the lane law alone.
    grid = None if np.isnan(cells).any() else LatencyGrid(batches, SM_PERCENTS, QUOTA_PERCENTS, _ordered(cells))
    return Model(name, surface, _memory_bytes(name), grid, gpu)


def _ordered(latency_ms: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Monotone in quota as well: more of anything is never slower. Each pass may undo a little of the one before."""
    for _ in range(20):
        by_quota = monotone(np.moveaxis(latency_ms, 1, 0))
        latency_ms = monotone(np.moveaxis(np.moveaxis(by_quota, 0, 1), 2, 0)).transpose(1, 2, 0)
    return latency_ms


def _memory_bytes(name: str) -> int:
    return CONTEXT_BYTES + WEIGHT_BYTES * int(_built_in()["parameters"].get(name, UNKNOWN_PARAMETERS))
