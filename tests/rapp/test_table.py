"""The shared table format: what is read, and how each flaw is worded."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.table import LatencyTable, read_table

HEAD = "model,batch,sm_pct,quota_pct,latency_ms"
ROWS = ["b,1,5,10,40.5", "b,8,100,100,12", "a,2,50,20,7.25"]


def write(folder: Path, *lines: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def refused(path: Path, reason: str, *words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_table(path)
    assert caught.value.reason == reason
    for word in words:
        assert word in caught.value.message


def test_reads_cells_and_models(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, HEAD, *ROWS))
    assert len(table) == 3
    assert table.models() == ("a", "b")
    assert table.latency_ms.tolist() == [40.5, 12.0, 7.25]
    assert table.batch.dtype == np.int64
    assert table.of("b").sm_percent.tolist() == [5.0, 100.0]
    assert table.without(["b"]).models() == ("a",)


def test_columns_in_any_order_and_packed(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    with gzip.open(path, "wt") as stream:
        stream.write("\ufefflatency_ms,quota_pct,model,sm_pct,batch\n7.25,20,a,50,2\n")
    table = read_table(path)
    assert (table.model[0], table.batch[0], table.sm_percent[0], table.quota_percent[0]) == ("a", 2, 50.0, 20.0)
    assert table.latency_ms[0] == 7.25


def test_further_columns_only_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + ",note", *(row + ",x" for row in ROWS))
    refused(path, "UNKNOWN_COLUMNS", "note", "ignore")
    assert len(read_table(path, ignore=("note",))) == 3


def test_missing_file_columns_and_rows(tmp_path: Path) -> None:
    refused(tmp_path / "none.csv", "TABLE_NOT_FOUND", "none.csv", HEAD)
    refused(tmp_path, "BAD_TABLE", "cannot be read")
    refused(write(tmp_path, "model,batch,latency_ms", "a,1,2"), "MISSING_COLUMNS", "sm_pct, quota_pct")
    refused(write(tmp_path), "MISSING_COLUMNS", "it has none")
    refused(write(tmp_path, HEAD), "EMPTY_TABLE")
    refused(write(tmp_path, HEAD + ",batch", "a,1,5,10,2,1"), "UNKNOWN_COLUMNS", "doubled columns batch")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a,1,5,10,nan", ("line 3", "latency_ms='nan'")),
        ("a,1,5,10,inf", ("line 3", "latency_ms='inf'")),
        ("a,1,5,10,fast", ("line 3", "latency_ms='fast'")),
        ("a,1,5,10,", ("line 3", "latency_ms=''")),
        ("a,1,5,10,0", ("line 3", "latency_ms=0", "not positive")),
        ("a,1,5,10,-3", ("line 3", "latency_ms=-3")),
        ("a,1.5,5,10,3", ("batch=1.5", "whole")),
        ("a,1,105,10,3", ("sm_pct=105", "above 100")),
        ("a,1,5,0,3", ("quota_pct=0",)),
        (",1,5,10,3", ("line 3", "model")),
        ("a,1,5,10", ("line 3", "few fields")),
        ("a,1,5,10,3,4", ("line 3", "many")),
    ],
)
def test_bad_cells_name_their_line(tmp_path: Path, row: str, words: tuple[str, ...]) -> None:
    refused(write(tmp_path, HEAD, ROWS[0], row), "BAD_CELL", *words)


def test_doubled_cells(tmp_path: Path) -> None:
    refused(write(tmp_path, HEAD, *ROWS, "b,1,5.0,10,41"), "DUPLICATE_CELL", "lines 2 and 5", "model=b")


def test_broken_packing(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(b"no gzip")
    refused(path, "BAD_TABLE")
    path.write_bytes(gzip.compress(f"{HEAD}\n{ROWS[0]}\n".encode() * 50)[:-20])
    refused(path, "BAD_TABLE")


def test_grid_holds_cells_in_place(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, HEAD, *ROWS))
    grid = table.grid("b")
    assert grid.shape == (4, 20, 10)
    assert np.isfinite(grid).sum() == 2
    assert (grid[0, 0, 0], grid[3, 19, 9]) == (40.5, 12.0)
    small = table.grid("a", batches=(4, 2), sm_percents=(50,), quota_percents=(10, 20))
    assert small[1, 0, 1] == 7.25


def test_grid_refuses_what_it_would_lose(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, HEAD, *ROWS, "c,3,5,10,2"))
    with pytest.raises(InvalidRequestError, match="batch=3 is not on the grid 1, 2, 4, 8"):
        table.grid("c")
    with pytest.raises(InvalidRequestError, match="model='d' is not in the table"):
        table.grid("d")


def test_shared_table(data: Path) -> None:
    table = read_table(data / "v100" / "v100_latency_sm_quota_batch.csv")
    assert len(table) == 44_528
    assert len(table.models()) == 56
    assert np.isfinite(table.grid("resnet50")).all()
    assert np.isnan(table.grid("regnet_y_128gf")[3]).all()
    # Every cell is in exactly one grid.
    total = sum(float(np.nansum(table.grid(name))) for name in table.models())
    assert total == pytest.approx(float(table.latency_ms.sum()))
    assert isinstance(table.of("resnet50"), LatencyTable)
