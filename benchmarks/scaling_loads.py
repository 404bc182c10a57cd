"""The loads of the scaling benchmarks: real traces and one synthetic series, each at any mean rate, in windows of its own."""

from __future__ import annotations

from pathlib import Path

import attrs

from hasfaas.simulator import synthetic
from hasfaas.simulator.trace import Trace
from hasfaas.simulator.trace_file import read_trace

# Twenty minutes of each hour-long trace, so that the grid fits into 25 minutes on two cores; whole hours with --full.
WINDOW_S, FULL_S = 1200.0, 3400.0


@attrs.frozen(eq=False)
class Load:
    """A trace and the window that is used. `spread` is how counts are spread within their interval."""

    name: str
    trace: Trace
    start_s: float
    duration_s: float
    smear_s: float = 0.0


def loads(data: Path, *, full: bool = False) -> tuple[Load, ...]:
    """All of the primary grid. Whole minutes of the diurnal series: its steepest rise and its largest spike.

    The windows of the LLM and Azure traces begin 10 minutes in, where the seed of no tuning has looked.
    """
    traces = data / "traces"
    length_s = FULL_S if full else WINDOW_S
    has = traces / "hasgpu_workload"
    llm = traces / "azure_llm_2023"
    functions = traces / "azure_functions_2019_dirigent500" / "invocations_500.csv"
    found = [_whole(f"has-{name}", read_trace(has / f"{name}.json", "counts")) for name in ("rps", "stress")]
    found += [
        _whole(f"diurnal-{part}", synthetic.diurnal(20.0, length_s, seed, part=part))
        for seed, part in ((7, "rise"), (8, "spike"))
    ]
    for name in ("conv", "code"):
        trace = read_trace(
            llm / f"AzureLLMInferenceTrace_{name}.csv", "requests", ignore=("ContextTokens", "GeneratedTokens")
        )
        found.append(Load(f"llm-{name}", trace, 0.0 if full else 600.0, min(length_s, trace.duration_s)))
    for rank in (2, 4, 9):
        trace = read_trace(functions, "azure-functions", ranks=(rank,))
        found.append(Load(f"azure-{rank}", trace, 600.0, length_s))
    return tuple(found)


def _whole(name: str, trace: Trace) -> Load:
    return Load(name, trace, 0.0, trace.duration_s)
