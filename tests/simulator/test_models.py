"""Models to simulate: those built in are what the public table says, and others come from one."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS
from hasfaas.simulator import models


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HASFAAS_DATA", raising=False)


def write_table(path: Path, *, without: tuple[int, int, int] | None = None) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["model", "batch", "sm_pct", "quota_pct", "latency_ms"])
        for batch in BATCHES:
            for sm in SM_PERCENTS:
                for quota in QUOTA_PERCENTS:
                    if (batch, sm, quota) != without:
                        writer.writerow(["made_up", batch, sm, quota, max(2.0 * batch * 100 / sm, 900 / quota)])
    return path


def test_four_models_need_no_table() -> None:
    names = ("mobilenet_v3_large", "resnet50", "convnext_large", "vgg16")
    assert models.built_in_names() == names
    found = models.named(names)
    assert [model.name for model in found] == list(names)
    # Weights of 138 M numbers of four bytes, and what every process needs.
    assert found[3].memory_bytes == pytest.approx(1.2e9 + 4 * 138.36e6, rel=1e-3)
    assert all(model.base_ms == model.surface.hold_ms.min() for model in found)


def test_the_built_in_are_the_public_table(data: Path) -> None:
    names = models.built_in_names()
    for built_in, read in zip(models.named(names), models.named(names, data), strict=True):
        assert np.allclose(built_in.surface.hold_ms, read.surface.hold_ms, rtol=1e-3, atol=1e-3)
        assert built_in.memory_bytes == read.memory_bytes
        assert read.grid is not None
        for axis, sign in ((0, 1.0), (1, -1.0), (2, -1.0)):
            assert np.all(sign * np.diff(read.grid.latency_ms, axis=axis) >= -1e-9)


def test_a_table_brings_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path / "t.csv")
    (model,) = models.named(["made_up"], table)
    assert model.base_ms == pytest.approx(9.0)
    assert model.surface.hold(8, 20.0) == pytest.approx(80.0)
    assert model.grid is not None
    assert model.grid.latency(1, 100, 10) == pytest.approx(90.0, rel=0.05)
    folder = tmp_path / "data"
    (folder / "v100").mkdir(parents=True)
    write_table(folder / models.TABLE_IN_DATA)
    monkeypatch.setenv("HASFAAS_DATA", str(folder))
    assert models.named(["made_up"])[0].base_ms == model.base_ms


def test_a_batch_that_was_not_measured_everywhere_is_left_out(tmp_path: Path) -> None:
    (model,) = models.named(["made_up"], write_table(tmp_path / "t.csv", without=(8, 50, 100)))
    assert model.surface.batches == (1, 2, 4)
    (model,) = models.named(["made_up"], write_table(tmp_path / "t.csv", without=(8, 50, 20)))
    assert model.surface.batches == (1, 2, 4, 8)
    assert model.grid is None
    with pytest.raises(InvalidRequestError, match="lacks cells of batch 1"):
        models.named(["made_up"], write_table(tmp_path / "t.csv", without=(1, 50, 100)))


def test_an_unknown_model_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="mobilenet_v3_large, resnet50, convnext_large, vgg16") as caught:
        models.named(["resnet50", "bert"])
    assert caught.value.reason == "UNKNOWN_MODEL"
    with pytest.raises(InvalidRequestError, match="made_up"):
        models.named(["bert"], write_table(tmp_path / "t.csv"))
