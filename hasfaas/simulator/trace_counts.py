"""A trace with a line an interval: a column of counts for each function; or the stages of a load generator, in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasfaas.simulator.trace import Array, Trace, bad_trace
from hasfaas.simulator.trace_lines import at, check_head, is_number, rows_of, whole_counts

INTERVAL_COLUMNS = {"second": 1.0, "time_s": 1.0, "minute": 60.0}
# HAS-GPU's load generator: stages of 5 s, each with its requests per second.
HAS_STAGE_S = 5.0


def counts(path: Path, text: str) -> Trace:
    """The trace of a CSV file. Raises InvalidRequestError (BAD_TRACE)."""
    rows = list(rows_of(path, text))
    head = rows[0][1]
    if is_number(head[0]):
        if len(head) > 1:
            raise at(path, 1, "has several columns and no names: the first line shall be second,count")
        head, body = ["count"], rows
    else:
        body = rows[1:]
    check_head(path, head)
    timed = head[0] in INTERVAL_COLUMNS
    if not timed and head != ["count"]:
        raise at(
            path,
            1,
            f"has the columns {', '.join(head)}: the first shall be {', '.join(INTERVAL_COLUMNS)}, "
            "then one for each function; or one column, count",
        )
    names = tuple(head[1:] if timed else head)
    if not names or not body:
        raise bad_trace(f"trace={str(path)!r} holds no counts: write one line for each second")
    found = np.array([whole_counts(path, line, row[timed:], names) for line, row in body], np.int64).T
    return Trace.of_counts(found, _interval_s(path, head[0], body) if timed else 1.0, names)


def _interval_s(path: Path, column: str, body: Sequence[tuple[int, list[str]]]) -> float:
    """How far apart the lines are. Raises for one that is out of step."""
    times = []
    for line, row in body:
        if not is_number(row[0]) or not math.isfinite(float(row[0])):
            raise at(path, line, f"{column}={row[0]!r} is no finite number")
        times.append(float(row[0]))
    step = times[1] - times[0] if len(times) > 1 else 1.0
    for index, (line, row) in enumerate(body):
        if index and times[index] <= times[index - 1]:
            raise at(path, line, f"{column}={row[0]} does not come after {times[index - 1]:g}: sort the trace by time")
        if index and abs(times[index] - times[index - 1] - step) > 1e-6 * step:
            raise at(
                path,
                line,
                f"{column}={row[0]} comes {times[index] - times[index - 1]:g} after the line above, "
                f"others {step:g}: a trace has no gaps; write 0 where nothing came",
            )
    return step * INTERVAL_COLUMNS[column]


def stages(path: Path, text: str) -> Trace:
    """HAS-GPU's load: requests per second of each stage of 5 s; or k6's, which ramps to the target of each stage."""
    try:
        data = json.loads(text)
    except ValueError as exc:
        line = getattr(exc, "lineno", 1)
        raise at(path, line, f"is no JSON: {exc}") from exc
    key = next((key for key in ("processed_request_counts", "targets_rps") if key in data), None)
    if key is None:
        raise at(path, 1, f"holds {', '.join(data) or 'nothing'}: it needs processed_request_counts, or targets_rps")
    rates = data[key]
    if not isinstance(rates, list) or not rates:
        raise bad_trace(f"trace={str(path)!r}: {key} must be a list of requests per second")
    for index, rate in enumerate(rates):
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
            raise bad_trace(
                f"trace={str(path)!r}, {key}[{index}]: {rate!r} is no rate: write requests per second from 0 on"
            )
    if key == "targets_rps":
        return Trace.of_counts(_ramped(rates, _stage_s(path, data.get("stage_s", HAS_STAGE_S))), 1.0, ("trace",))
    stage_s = _stage_s(path, _said_s(data))
    found = np.round(np.array([rates], np.float64) * stage_s).astype(np.int64)
    return Trace.of_counts(found, stage_s, ("trace",))


def _said_s(data: Mapping[str, Any]) -> str:
    parameters = data.get("parameters")
    said = parameters.get("duration", HAS_STAGE_S) if isinstance(parameters, Mapping) else HAS_STAGE_S
    return str(said).removesuffix("s")


def _stage_s(path: Path, value: Any) -> float:
    if not is_number(str(value)) or not 1.0 <= float(value) < math.inf or float(value) % 1.0:
        raise bad_trace(f"trace={str(path)!r}: a stage of {value!r} s: give whole seconds")
    return float(value)


def _ramped(targets: Sequence[float], stage_s: float) -> Array:
    """Whole requests of each second while the rate goes in straight lines from 0 to each target."""
    ends = np.arange(len(targets) + 1) * stage_s
    # Ten steps a second make the area of a straight line exact enough to round.
    fine = np.interp((np.arange(round(10 * ends[-1])) + 0.5) / 10.0, ends, [0.0, *targets])
    total = np.concatenate([[0.0], np.cumsum(fine) / 10.0])[::10]
    return np.diff(np.round(total)).astype(np.int64)[None, :]
