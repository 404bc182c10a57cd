"""Trains every part of RaPP on the public measurements and joins the coefficients in one file.

The parts are independent: each reads its own folder and returns plain arrays. The same data on the same machine give
the same bytes; on another machine the numbers agree within 1e-6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.version import VERSION
from hasfaas.rapp import coefficients

Part = dict[str, np.ndarray[Any, Any]]

# What the coefficients are derived from, and under which terms; see docs/rapp.md.
SOURCES = {
    "v100": "KontonGu/RaPP 600348c1, Apache-2.0 by README, Copyright 2025 HAS-GPU Authors; arXiv 2505.01968",
    "neusight": "sitar-lab/NeuSight 6945927d, MIT, (c) 2025 Georgia Institute of Technology and Microsoft; ASPLOS 2025",
    "aiconfigurator": "aiconfigurator-core 0.12.0, Apache-2.0, NVIDIA",
}
FILES = (
    "v100/v100_latency_sm_quota_batch.csv",
    "gpu/neusight/bmm.csv.gz",
    "gpu/neusight/linear.csv.gz",
    "gpu/neusight/vec.csv.gz",
    "gpu/neusight/conv.csv.gz",
    "gpu/neusight/devices.csv",
    "gpu/aiconfigurator/gemm_bf16_vllm.csv.gz",
    "gpu/aiconfigurator/devices.csv",
)


def train(data: Path, out: Path, report: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Trains on the files below `data`, writes `out`, and returns the file's meta; `report` is told each part's name.

    Raises InvalidRequestError that names the missing file, or the folder that cannot be written.
    """
    for name in FILES:
        if not (data / name).is_file():
            raise InvalidRequestError(
                f"data={str(data)!r} has no {name}: give the folder that holds v100/ and gpu/, see docs/rapp.md",
                reason="NO_TRAINING_DATA",
            )
    arrays: Part = {}
    for name, fit in _parts():
        report(name)
        arrays |= {f"{name}/{key}": value for key, value in fit(data).items()}
    meta = {
        "version": VERSION,
        "sources": SOURCES,
        "sha256": {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in FILES},
    }
    try:
        coefficients.write(out, arrays, meta)
    except OSError as exc:
        raise InvalidRequestError(f"out={str(out)!r} cannot be written: {exc}", reason="BAD_PATH") from exc
    return {**meta, "arrays": {key: list(value.shape) for key, value in sorted(arrays.items())}}


def _parts() -> Iterator[tuple[str, Callable[[Path], Part]]]:
    # Imported here: statsmodels, which they need, is an extra.
    from hasfaas.rapp import train_dense, train_launch_gated, train_operators, train_sm_law

    yield "launch_gated", train_launch_gated.fit
    yield "dense", train_dense.fit
    yield "sm_law", train_sm_law.fit
    yield "operators", train_operators.fit
