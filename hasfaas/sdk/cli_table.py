"""How the shell shows things to people: tables, amounts, and a spinner on a terminal. JSON is for programs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence

import click

# Wider than any table of ours: a cell is never cut, neither for a narrow terminal nor for grep.
UNCUT_COLUMNS = 10_000
DURATIONS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table, one line a row. A column whose name starts with ">" is right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, width=UNCUT_COLUMNS)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        right = name.startswith(">")
        table.add_column(Text(name.removeprefix(">")), justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on standard error while the block runs, where that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def percent(value: float | None) -> str:
    """A share in percent, to a tenth; "-" for one that is not known."""
    return "-" if value is None else f"{round(value, 1):g}"


def figure(value: float | None) -> str:
    """Three significant digits, never an exponent for a large one; "-" for one that is not known."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100.0 else f"{value:.3g}"


def size(size_bytes: int) -> str:
    """About how many bytes, in binary units."""
    factor, unit = next(((f, u) for f, u in SIZES if size_bytes >= f), (1, "B"))
    return f"{round(size_bytes / factor, 1):g} {unit}"


def duration(seconds: float) -> str:
    """About how long, in the unit that fits."""
    factor, unit = next(((f, u) for f, u in DURATIONS if seconds >= f), (1.0, "s"))
    return f"{round(seconds / factor, 1):g} {unit}"
