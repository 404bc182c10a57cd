"""Lines of a trace in CSV, and what is said where one is wrong: the file and the line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.simulator.trace import Array, bad_trace

# Of one count: more is an error of the file, and sums of less fit an int64.
MOST = 2.0**40

Rows = Iterator[tuple[int, list[str]]]


def at(path: Path, line: int, message: str) -> InvalidRequestError:
    """The error of something wrong in a line, counted from 1."""
    return bad_trace(f"trace={str(path)!r}, line {line}: {message}")


def rows_of(path: Path, text: str) -> Rows:
    """(line, cells); raises for an empty line in the middle and for one of another length than the first."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    width, empty = 0, 0
    try:
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                empty = empty or reader.line_num
                continue
            if empty:
                raise at(
                    path, empty, "is empty: a trace has no gaps; write 0 where nothing came, or leave the line out"
                )
            width = width or len(row)
            if len(row) != width:
                raise at(path, reader.line_num, f"has {len(row)} fields, the first line has {width}: one per column")
            yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as exc:
        raise at(path, reader.line_num, f"is no CSV: {exc}") from exc


def check_head(path: Path, head: Sequence[str]) -> None:
    """Raises for a column without a name, and for one that is there twice."""
    wrong = next((name for name in head if not name or head.count(name) > 1), None)
    if wrong is not None:
        raise at(path, 1, f"has the column {wrong!r} twice, or without a name: give each column a name of its own")


def is_number(cell: str) -> bool:
    """Whether a cell reads as a number; NaN and infinity do."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def whole_counts(path: Path, line: int, cells: Sequence[str], names: Sequence[str]) -> Array:
    """A line of counts. Raises, naming the column, for one that is not 0, 1, 2, ..."""
    try:
        values = np.array(cells, np.str_).astype(np.float64)
        if np.all((values >= 0.0) & (values < MOST) & (values == np.floor(values))):
            return values.astype(np.int64)
    except ValueError:
        pass
    for cell, name in zip(cells, names, strict=True):
        if not is_number(cell):
            raise at(path, line, f"{name}={cell!r} is no number: write 0 where nothing came")
        value = float(cell)
        if not (value >= 0.0 and value < MOST and value == math.floor(value)):
            problem = "is negative" if value < 0.0 else "is no whole number"
            raise at(path, line, f"{name}={cell} {problem}: a count is 0, 1, 2, ...")
    raise AssertionError("a line of good cells is a good line")
