"""The file of trained numbers: written the same, read whole, told when it is broken; and what ships in the package."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp import coefficients, train_sm_law
from hasfaas.rapp.dense import GridSmoother
from hasfaas.rapp.launch_gated import LaunchGatedModel
from hasfaas.rapp.operator_law import OperatorLaw
from hasfaas.rapp.sm_law import SmPrior
from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS
from hasfaas.rapp.train import FILES, SOURCES, train

ARRAYS = {"a/x": np.arange(6.0).reshape(2, 3), "a/y": np.array(3.5), "b/names": np.array(["one", "two"])}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    coefficients.write(path, ARRAYS, {"version": "1"})
    arrays, meta = coefficients.read(path)
    assert (meta["version"], meta["form"]) == ("1", coefficients.FORM)
    assert arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].shape == value.shape
    assert coefficients.part(arrays, "a").keys() == {"x", "y"}


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "1.npz", tmp_path / "2.npz"
    coefficients.write(first, ARRAYS, {"version": "1"})
    coefficients.write(second, dict(reversed(ARRAYS.items())), {"version": "1"})
    assert first.read_bytes() == second.read_bytes()


def test_broken_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"missing\.npz"):
        coefficients.read(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        coefficients.read(tmp_path / "text.npz")
    with zipfile.ZipFile(tmp_path / "old.npz", "w") as archive:
        archive.writestr("meta.json", '{"form": 0}')
    with pytest.raises(InvalidRequestError, match="rapp train"):
        coefficients.read(tmp_path / "old.npz")


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "o.npz", "w") as archive:
        archive.writestr("meta.json", f'{{"form": {coefficients.FORM}}}')
        archive.writestr("a/x.npy", buffer.getvalue())
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        coefficients.read(tmp_path / "o.npz")


def test_the_package_ships_every_part_and_names_its_sources() -> None:
    arrays, meta = coefficients.shipped()
    LaunchGatedModel.from_arrays(coefficients.part(arrays, "launch_gated"))
    GridSmoother.from_arrays(coefficients.part(arrays, "dense"), BATCHES, SM_PERCENTS, QUOTA_PERCENTS)
    SmPrior.from_arrays(coefficients.part(arrays, "sm_law"))
    OperatorLaw.from_arrays(coefficients.part(arrays, "operators"))
    assert meta["sources"] == SOURCES
    assert set(meta["sha256"]) == set(FILES)
    assert coefficients.SHIPPED.stat().st_size < 1_000_000


def test_a_part_trained_anew_is_the_shipped_one(data: Path) -> None:
    shipped = coefficients.part(coefficients.shipped()[0], "sm_law")
    for name, value in train_sm_law.fit(data).items():
        np.testing.assert_allclose(value, shipped[name], rtol=1e-6, atol=1e-9)


def test_a_missing_file_of_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="v100_latency_sm_quota_batch"):
        train(tmp_path, tmp_path / "out.npz")


def test_importing_the_predictor_is_light() -> None:
    modules = "online, profile, few_shot, launch_gated, evaluate, zero_shot, operator_law, dense, sm_law, export"
    code = (
        f"import sys; from hasfaas.rapp import {modules}; "
        "print(sorted({'torch', 'statsmodels', 'pandas', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
