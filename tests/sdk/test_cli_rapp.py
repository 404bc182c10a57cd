"""`hasfaas rapp`: scoring a table, and what is told when the input is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hasfaas.rapp.table import BATCHES, QUOTA_PERCENTS, SM_PERCENTS
from hasfaas.sdk.cli import cli


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """One model that obeys max(G, H), the work of a mid-sized network."""
    lines = ["model,batch,sm_pct,quota_pct,latency_ms"]
    for batch in BATCHES:
        for sm in SM_PERCENTS:
            for quota in QUOTA_PERCENTS:
                value = max(3.0 * batch * 100.0 / sm, 15.0 * (100.0 / quota) ** 1.15)
                lines.append(f"made_up,{batch},{sm},{quota},{value:.4f}")
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["rapp", *map(str, arguments)])


def test_a_table_is_scored(table: Path) -> None:
    result = run("evaluate", "--table", table, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["probes"]
    assert list(found) == ["16", "11"]
    assert found["16"]["n"] == 800 - 16
    assert 0.0 < found["16"]["models"]["made_up"]["mape"] < 30.0


def test_people_get_a_table_and_a_sentence(table: Path) -> None:
    result = run("evaluate", "--table", table, "--points", "8")
    assert result.exit_code == 0, result.output
    assert "made_up" in result.stdout
    assert "8 probes: MAPE" in result.stdout


def test_features_are_optional_and_checked(table: Path, tmp_path: Path) -> None:
    features = tmp_path / "f.npz"
    np.savez(features, made_up__graph=np.zeros(10))
    assert (
        "features of 1 of 1 models" in run("evaluate", "--table", table, "--points", "8", "--features", features).stdout
    )
    features.write_text("nothing")
    result = run("evaluate", "--table", table, "--features", features)
    assert result.exit_code == 2
    assert "cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda text: text.replace("latency_ms", "ms"), "lacks the columns latency_ms"),
        (lambda text: text.replace("15.0000", "nan", 1), "no finite number"),
        (lambda text: text.splitlines()[0], "no rows"),
        (lambda text: "\n".join(text.splitlines()[:10]), "leave none to score"),
    ],
)
def test_a_bad_table_is_told(table: Path, edit: object, complaint: str) -> None:
    assert callable(edit)
    table.write_text(edit(table.read_text()))
    result = run("evaluate", "--table", table)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_bad_points_are_told(table: Path) -> None:
    assert "whole numbers" in run("evaluate", "--table", table, "--points", "many").output
    assert "k=3" in run("evaluate", "--table", table, "--points", "3").output


def test_training_without_its_data_is_told(tmp_path: Path) -> None:
    result = run("train", "--data", tmp_path, "--out", tmp_path / "out.npz")
    assert result.exit_code == 2
    assert "has no v100/" in result.stderr
