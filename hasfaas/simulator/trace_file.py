"""Reads traces: `requests` (a line a request), `counts` (a line an interval), `azure-functions` (a line a function).

Whatever is wrong is told with the file and the line: InvalidRequestError with the reason BAD_TRACE. A name that ends in
.gz is unpacked.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection
from pathlib import Path

from hasfaas.simulator.trace import Trace, bad_trace
from hasfaas.simulator.trace_azure import azure_functions
from hasfaas.simulator.trace_counts import counts, stages
from hasfaas.simulator.trace_requests import requests

FORMATS = ("requests", "counts", "azure-functions")


def read_trace(
    path: str | Path,
    format: str,
    *,
    ranks: Collection[int] = (),
    top: int | None = None,
    ignore: Collection[str] = (),
) -> Trace:
    """The trace in a file of one of `FORMATS`.

    `ranks` (1 is the busiest) or `top` choose functions of an azure-functions file; `ignore` names further columns of a
    requests file. Raises InvalidRequestError (BAD_TRACE) with the file and the line.
    """
    where = Path(path)
    if format not in FORMATS:
        raise bad_trace(f"trace format {format!r} is not known; known are {', '.join(FORMATS)}")
    if (ranks or top is not None) and format != "azure-functions":
        raise bad_trace(f"ranks and top choose functions of azure-functions, the format is {format!r}: leave them out")
    if ignore and format != "requests":
        raise bad_trace(f"columns to ignore are for the format requests, the format is {format!r}: leave them out")
    try:
        text = _text(where)
    except FileNotFoundError as exc:
        raise bad_trace(f"trace={str(where)!r} does not exist") from exc
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as exc:
        raise bad_trace(f"trace={str(where)!r} cannot be read: {exc}") from exc
    if not text.strip():
        raise bad_trace(f"trace={str(where)!r} is empty")
    if format == "azure-functions":
        return azure_functions(where, text, ranks, top)
    if format == "requests":
        return requests(where, text, ignore)
    return stages(where, text) if text.lstrip()[0] == "{" else counts(where, text)


def _text(path: Path) -> str:
    # utf-8-sig: a file saved by a spreadsheet may begin with a byte order mark.
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    return path.read_text(encoding="utf-8-sig")
