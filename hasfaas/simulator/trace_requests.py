"""A trace with a line a request: a column of times, and perhaps one of functions."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from hasfaas.simulator.trace import Trace, bad_trace
from hasfaas.simulator.trace_lines import at, check_head, rows_of

# The unit of a time column in ns; None: seconds, or an ISO 8601 stamp.
TIME_COLUMNS: Mapping[str, int | None] = {
    "TIMESTAMP": None,
    "timestamp": None,
    "time_s": 1_000_000_000,
    "timestamp_ms": 1_000_000,
}
# What the public traces say of a request besides: it is not needed here.
KNOWN_EXTRAS = frozenset({"ContextTokens", "GeneratedTokens", "input_length", "output_length"})
# A century or so, in what an int64 holds of ns; NaN and infinity are beyond it as well.
MOST_NS = 2**62
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?")


def requests(path: Path, text: str, ignore: Collection[str]) -> Trace:
    """The trace of a CSV file. Second 0 is the first request. Raises InvalidRequestError (BAD_TRACE)."""
    (_, head), *rows = rows_of(path, text)
    check_head(path, head)
    found = [name for name in TIME_COLUMNS if name in head]
    if len(found) != 1:
        raise at(path, 1, f"has the columns {', '.join(head)}: exactly one shall be {', '.join(TIME_COLUMNS)}")
    unknown = [name for name in head if name not in {found[0], "function", *KNOWN_EXTRAS, *ignore}]
    if unknown:
        raise at(path, 1, f"has the unknown columns {', '.join(unknown)}: remove them, or name them as to be ignored")
    if not rows:
        raise bad_trace(f"trace={str(path)!r} holds no requests below its first line")
    times_ns = _times_ns(path, rows, head.index(found[0]), found[0])
    names = [row[head.index("function")] for _, row in rows] if "function" in head else ["trace"] * len(rows)
    by_function: dict[str, list[int]] = {}
    for (line, _), name, time_ns in zip(rows, names, times_ns, strict=True):
        if not name:
            raise at(path, line, "function is empty: name the function")
        by_function.setdefault(name, []).append(time_ns - times_ns[0])
    return Trace.of_requests(tuple(np.array(times) * 1e-9 for times in by_function.values()), tuple(by_function))


def _times_ns(path: Path, rows: Sequence[tuple[int, list[str]]], column: int, name: str) -> list[int]:
    unit_ns = TIME_COLUMNS[name]
    stamps = unit_ns is None and _STAMP.fullmatch(rows[0][1][column]) is not None
    times: list[int] = []
    for line, row in rows:
        try:
            times.append(_stamp(row[column]) if stamps else _number(row[column], unit_ns or 1_000_000_000))
        except ValueError as exc:
            raise at(path, line, f"{name}={row[column]!r} is no time: {exc}") from exc
        if len(times) > 1 and times[-1] < times[-2]:
            raise at(path, line, f"{name}={row[column]} lies before the line above: sort the trace by time")
    return times


def _number(cell: str, unit_ns: int) -> int:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not abs(value) * unit_ns < MOST_NS:
        raise ValueError("give a finite number, or an ISO stamp such as 2023-11-16 18:17:03.97, the same in all lines")
    return round(value * unit_ns)


def _stamp(cell: str) -> int:
    """ns since 1970 of an ISO 8601 stamp with up to nine digits of fraction (Azure writes seven). UTC if none is said."""
    match = _STAMP.fullmatch(cell)
    if match is None:
        raise ValueError("give an ISO stamp such as 2023-11-16 18:17:03.97, as in the first line")
    day, clock, fraction, zone = match.groups()
    moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in (None, 'Z') else zone}")
    seconds = round(moment.timestamp())
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))
