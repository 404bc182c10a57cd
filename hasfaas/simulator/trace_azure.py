"""The trace of Azure Functions 2019: a line a function, a column a minute (Shahrad et al., USENIX ATC 2020)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from hasfaas.simulator.trace import Array, Trace, bad_trace
from hasfaas.simulator.trace_lines import at, check_head, rows_of, whole_counts

AZURE_COLUMNS = ("HashOwner", "HashApp", "HashFunction", "Trigger")


def azure_functions(path: Path, text: str, ranks: Collection[int], top: int | None) -> Trace:
    """The trace of a CSV file, or the functions of some ranks, busiest first. Raises InvalidRequestError (BAD_TRACE)."""
    rows = rows_of(path, text)
    _, head = next(rows)
    check_head(path, head)
    minutes = [name for name in head if name.isdigit()]
    unknown = [name for name in head if name not in AZURE_COLUMNS and not name.isdigit()]
    if unknown or "HashFunction" not in head or not minutes:
        problem = f"the unknown columns {', '.join(unknown)}" if unknown else "no column HashFunction, or no minutes"
        raise at(path, 1, f"has {problem}: the first line shall be {','.join(AZURE_COLUMNS)},1,2,3,...")
    where = head.index(minutes[0])
    if head[where:] != minutes or any(int(b) != int(a) + 1 for a, b in itertools.pairwise(minutes)):
        raise at(path, 1, "the minutes must be the last columns and rise by one: a trace has no gaps")
    key, identity = head.index("HashFunction"), [head.index(n) for n in AZURE_COLUMNS[:3] if n in head]
    lines: dict[tuple[str, ...], int] = {}
    names, counts = [], []
    for line, row in rows:
        before = lines.setdefault(tuple(row[column] for column in identity), line)
        if before != line or not row[key]:
            raise at(
                path, line, f"HashFunction={row[key]!r} is empty or stands in line {before} already: one line each"
            )
        names.append(row[key])
        counts.append(whole_counts(path, line, row[where:], [f"minute {minute}" for minute in minutes]))
    if not names:
        raise bad_trace(f"trace={str(path)!r} holds no functions below its first line")
    return _ranked(path, names, np.array(counts), ranks, top)


def _ranked(path: Path, names: Sequence[str], counts: Array, ranks: Collection[int], top: int | None) -> Trace:
    """Busiest first, and named by their rank."""
    chosen = sorted(ranks) if ranks else range(1, min(top if top is not None else len(names), len(names)) + 1)
    if not chosen or not 1 <= chosen[0] <= chosen[-1] <= len(names):
        raise bad_trace(
            f"trace={str(path)!r} holds functions of rank 1 to {len(names)}, asked are {list(chosen) or top}"
        )
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    rows = [order[rank - 1] for rank in chosen]
    labels = tuple(f"rank{rank}-{names[row][:8]}" for rank, row in zip(chosen, rows, strict=True))
    return Trace.of_counts(counts[rows], 60.0, labels)
