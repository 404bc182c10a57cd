"""The loads of the scaling benchmarks: real traces and one synthetic series, each at any mean rate, in windows of its own."""

from __future__ import annotations

import functools
from pathlib import Path

import attrs

from hasfaas.simulator import synthetic
from hasfaas.simulator.trace import Trace
from hasfaas.simulator.trace_file import read_trace

# A quarter of each hour-long trace, so that the grid fits into 25 minutes on two cores; almost all of it with --full.
WINDOW_S, FULL_S = 900.0, 3400.0
NAMES = (
    *("has-rps", "has-stress", "diurnal-rise", "diurnal-spike", "llm-conv", "llm-code"),
    *("azure-2", "azure-4", "azure-9"),
)
# Another draw for each part, so that no two loads share a series; 7 and 8 were those that the scaler was tuned on.
DIURNAL_SEEDS = {"rise": 17, "spike": 18}
DIURNAL_RPS = 20.0
AZURE = Path("traces") / "azure_functions_2019_dirigent500" / "invocations_500.csv"
# Where the windows of the LLM and Azure traces begin: the scaler was tuned on seconds 600 to 1800 of them (seed 0).
LATER_S = 1800.0


@attrs.frozen(eq=False)
class Load:
    """A trace of one series, and the window that is used."""

    name: str
    trace: Trace
    start_s: float
    duration_s: float


@functools.lru_cache(maxsize=32)
def load(name: str, data: Path, window_s: float = WINDOW_S) -> Load:
    """One of NAMES, from the folder that holds traces/. Shorter traces than `window_s` are used whole (HAS's last 250 s).

    Of the diurnal series it is the steepest rise or the greatest spike of three days. Raises KeyError for another name, and
    InvalidRequestError (BAD_TRACE) where the folder lacks the trace.
    """
    family, _, part = name.partition("-")
    if name not in NAMES:
        raise KeyError(name)
    if family == "has":
        return _from(name, read_trace(data / "traces" / "hasgpu_workload" / f"{part}.json", "counts"), 0.0, window_s)
    if family == "diurnal":
        series = synthetic.diurnal(DIURNAL_RPS, window_s, DIURNAL_SEEDS[part], part=part)
        return _from(name, series, 0.0, window_s)
    if family == "llm":
        path = data / "traces" / "azure_llm_2023" / f"AzureLLMInferenceTrace_{part}.csv"
        return _from(name, read_trace(path, "requests", ignore=("ContextTokens", "GeneratedTokens")), LATER_S, window_s)
    return _from(name, read_trace(data / AZURE, "azure-functions", ranks=(int(part),)), LATER_S, window_s)


def _from(name: str, trace: Trace, start_s: float, window_s: float) -> Load:
    """The window from `start_s` on, or from as much earlier as a short trace makes it."""
    length_s = min(window_s, trace.duration_s)
    return Load(name, trace, min(start_s, trace.duration_s - length_s), length_s)
