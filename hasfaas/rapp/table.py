"""A table of measured latencies: model, batch, SM share, quota, and the milliseconds that one run took."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError

COLUMNS = ("model", "batch", "sm_pct", "quota_pct", "latency_ms")

# The grid of the shared V100 table: 4 batches x 20 SM shares x 10 quotas.
BATCHES = (1, 2, 4, 8)
SM_PERCENTS = tuple(range(5, 101, 5))
QUOTA_PERCENTS = tuple(range(10, 101, 10))

Array = np.ndarray[Any, Any]


@attrs.frozen(eq=False)
class LatencyTable:
    """Measured cells, one entry of each array per cell.

    `model` [n] text, `batch` [n] whole numbers, `sm_percent` and `quota_percent` [n] in (0, 100], `latency_ms` [n] > 0.
    """

    model: Array
    batch: Array
    sm_percent: Array
    quota_percent: Array
    latency_ms: Array

    def __len__(self) -> int:
        return len(self.latency_ms)

    def models(self) -> tuple[str, ...]:
        """The names of the models, in alphabetical order."""
        return tuple(str(name) for name in np.unique(self.model))

    def where(self, mask: Array) -> LatencyTable:
        """The cells chosen by `mask`: truth values [n] or row numbers."""
        return LatencyTable(
            self.model[mask],
            self.batch[mask],
            self.sm_percent[mask],
            self.quota_percent[mask],
            self.latency_ms[mask],
        )

    def without(self, models: Collection[str]) -> LatencyTable:
        """All cells but those of the named models. A name that does not occur is no error."""
        return self.where(~np.isin(self.model, list(models)))

    def of(self, model: str) -> LatencyTable:
        """The cells of one model, in the order of the table. Raises InvalidRequestError if there is none."""
        mask = self.model == model
        if not mask.any():
            raise InvalidRequestError(
                f"model={model!r} is not in the table; it holds {', '.join(self.models())}", reason="UNKNOWN_MODEL"
            )
        return self.where(mask)

    def grid(
        self,
        model: str,
        batches: Sequence[int] = BATCHES,
        sm_percents: Sequence[float] = SM_PERCENTS,
        quota_percents: Sequence[float] = QUOTA_PERCENTS,
    ) -> Array:
        """One model's latencies in ms as [batches, SM shares, quotas]; NaN where a cell was not measured.

        Raises InvalidRequestError if the model is not in the table or has cells that lie on no point of the grid.
        """
        cells = self.of(model)
        index = (
            _places(cells.batch, batches, "batch"),
            _places(cells.sm_percent, sm_percents, "sm_pct"),
            _places(cells.quota_percent, quota_percents, "quota_pct"),
        )
        dense = np.full((len(batches), len(sm_percents), len(quota_percents)), np.nan)
        dense[index] = cells.latency_ms
        return dense


def _places(values: Array, axis: Sequence[float], name: str) -> Array:
    """The position of each value on the axis, which need not be sorted."""
    points = np.asarray(axis, float)
    order = np.argsort(points)
    found = order[np.clip(np.searchsorted(points[order], values), 0, len(points) - 1)]
    off = points[found] != values
    if off.any():
        raise InvalidRequestError(
            f"{name}={values[off][0]:g} is not on the grid {', '.join(f'{point:g}' for point in points)}: "
            "measure on the grid, or hand in its points",
            reason="OFF_GRID",
        )
    return found


def read_table(path: str | Path, ignore: Collection[str] = ()) -> LatencyTable:
    """Reads the shared V100 format: CSV with a head line `model,batch,sm_pct,quota_pct,latency_ms`.

    The columns may stand in any order; a name that ends in .gz is unpacked. A further column is an error unless
    `ignore` names it: a table with, say, a second latency must not be scored by the wrong one. Raises
    InvalidRequestError for a missing or unreadable file, missing, doubled or unknown columns, an empty table, a cell
    that is not a number or out of range (with its line), and two lines for one cell.
    """
    where = Path(path)
    try:
        with _open(where) as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_head(reader.fieldnames, ignore, where)
            rows = [_row(row, reader.line_num, where) for row in reader]
    except FileNotFoundError as exc:
        raise InvalidRequestError(
            f"table={str(where)!r} does not exist: name a CSV file with {','.join(COLUMNS)}", reason="TABLE_NOT_FOUND"
        ) from exc
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as exc:
        raise InvalidRequestError(f"table={str(where)!r} cannot be read: {exc}", reason="BAD_TABLE") from exc
    if not rows:
        raise InvalidRequestError(f"table={str(where)!r} holds no rows below its head line", reason="EMPTY_TABLE")
    _check_doubles(rows, where)
    columns = list(zip(*(row[1:] for row in rows), strict=True))
    return LatencyTable(
        np.array(columns[0], dtype=np.str_),
        np.array(columns[1], dtype=np.int64),
        *(np.array(column, dtype=np.float64) for column in columns[2:]),
    )


def _open(path: Path) -> TextIO:
    # utf-8-sig: a table saved by a spreadsheet may begin with a byte order mark.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _check_head(names: Iterable[str] | None, ignore: Collection[str], path: Path) -> None:
    found = list(names or ())
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise InvalidRequestError(
            f"table={str(path)!r} lacks the columns {', '.join(missing)} (it has {', '.join(found) or 'none'}): "
            f"its first line shall be {','.join(COLUMNS)}",
            reason="MISSING_COLUMNS",
        )
    doubled = sorted({name for name in found if found.count(name) > 1})
    unknown = [name for name in found if name not in COLUMNS and name not in ignore]
    if doubled or unknown:
        raise InvalidRequestError(
            f"table={str(path)!r} has {'doubled' if doubled else 'unknown'} columns {', '.join(doubled or unknown)}: "
            "remove them, or name further columns in `ignore`",
            reason="UNKNOWN_COLUMNS",
        )


def _row(row: Mapping[str, Any], line: int, path: Path) -> tuple[int, str, int, float, float, float]:
    if None in row or None in row.values():
        raise _bad(path, line, "the line", "has too many or too few fields", "write one field per column")
    if not row["model"].strip():
        raise _bad(path, line, "model=''", "is empty", "name the model")
    numbers = {name: _number(row[name], name, line, path) for name in COLUMNS[1:]}
    if not numbers["batch"].is_integer():
        raise _bad(path, line, f"batch={row['batch']}", "is no whole number", "give the number of items in one run")
    for name in ("sm_pct", "quota_pct"):
        if numbers[name] > 100:
            raise _bad(path, line, f"{name}={row[name]}", "is above 100", "give a percentage of the device")
    return (line, row["model"].strip(), int(numbers["batch"]), *(numbers[name] for name in COLUMNS[2:]))


def _number(text: str, name: str, line: int, path: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _bad(path, line, f"{name}={text!r}", "is no finite number", "measure the cell, or leave its line out")
    if value <= 0:
        raise _bad(path, line, f"{name}={text}", "is not positive", "measure the cell, or leave its line out")
    return value


def _check_doubles(rows: Sequence[tuple[int, str, int, float, float, float]], path: Path) -> None:
    first: dict[tuple[str, int, float, float], int] = {}
    for line, model, batch, sm, quota, _ in rows:
        before = first.setdefault((model, batch, sm, quota), line)
        if before != line:
            raise InvalidRequestError(
                f"table={str(path)!r} holds the cell model={model}, batch={batch}, sm_pct={sm:g}, quota_pct={quota:g} "
                f"twice, in lines {before} and {line}: keep one, or their mean",
                reason="DUPLICATE_CELL",
            )


def _bad(path: Path, line: int, what: str, problem: str, cure: str) -> InvalidRequestError:
    return InvalidRequestError(f"table={str(path)!r}, line {line}: {what} {problem}: {cure}", reason="BAD_CELL")
