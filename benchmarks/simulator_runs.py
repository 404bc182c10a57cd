"""The simulator against the runs that were published with HAS-GPU: the launch-gated table, the closed-loop client.

    python -m benchmarks.simulator_runs --data ../shared/data [--json out.json]

Pods are replayed as logged (number, SM share, quota, over time); the load is the published list of rates, or, under stress,
the list that the sending times of a run show. Fitted are, on half of the runs, one overhead a model outside the pod and one
spread for all; the other half is judged. Runs without a log are listed too: KServe's with whole GPUs as their names say.
Nothing is timed here: a machine's speed has no part in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from benchmarks import simulator_fit, simulator_published
from benchmarks.simulator_fit import Figures, Fit, Sample
from benchmarks.simulator_published import MODELS, PublishedRun, Slices
from benchmarks.simulator_replay import replay
from hasfaas.core.errors import HasFaasError
from hasfaas.simulator import models

TARGET = 0.60
# The batch of a pod: HAS-GPU's default (reference has-gpu.md, section 5.3), FaST-GShare's yaml, KServe's for resnet.
BATCH = {"HAS": 4, "fast-gshare": 1, "kserve": 4}
Role = Literal["fitted", "judged", "other", "no log"]


@attrs.frozen
class Row:
    """One run: what was measured, and what the simulator says (None without slices to replay)."""

    run: PublishedRun
    role: Role
    measured: Figures
    simulated: Figures | None

    @property
    def passed(self) -> bool | None:
        """Whether all three figures are within the bounds."""
        return None if self.simulated is None else all(simulator_fit.passes(self.simulated, self.measured))


def rows_of(data: Path) -> tuple[tuple[Row, ...], Fit, tuple[Row, ...]]:
    """(every run; what was fitted; the fitted half judged by a fit on the other half: the same question turned round)."""
    runs = simulator_published.published(data)
    rps = {False: simulator_published.base_rps(data), True: simulator_published.stress_rps(data)}
    known = {model.name: model for model in models.named(tuple(MODELS.values()), data)}
    samples = {
        run.file: Sample(
            run.file,
            run.model,
            simulator_fit.figures(run.latency_ms, run.failed),
            replay(known[run.model], _slices(run), rps[run.stress], BATCH[run.system]),
        )
        for run in runs
        if _slices(run)
    }
    first, second = simulator_fit.halves(samples[run.file] for run in runs if run.slices)
    fit = simulator_fit.fitted(first)
    roles: dict[str, Role] = dict.fromkeys((s.name for s in first), "fitted")
    roles.update(dict.fromkeys((s.name for s in second), "judged"))
    rows = tuple(_row(run, samples.get(run.file), fit, roles.get(run.file, "other")) for run in runs)
    back = simulator_fit.fitted(second)
    turned = tuple(_row(r.run, samples[r.run.file], back, "judged") for r in rows if r.role == "fitted")
    return rows, fit, turned


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status, 1 where the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator_runs", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds v100/ and traces/")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    try:
        rows, fit, turned = rows_of(args.data)
    except HasFaasError as error:
        print(f"simulator_runs: {error}", file=sys.stderr)
        return 2
    names = Counter((row.run.system, row.run.run) for row in rows)
    print(_HEAD)
    for row in rows:
        alone = names[row.run.system, row.run.run] == 1
        print(_line(row, row.run.run if alone else _last_part(row.run)))
    shares = _shares(rows, turned)
    overheads = ", ".join(f"{model} {ms:.0f} ms" for model, ms in fit.overhead_ms.items())
    print(f"\nfitted: overhead {overheads}; spread {fit.spread:g} for all")
    for name, (passed, judged) in shares.items():
        print(f"{name}: {passed} of {judged}" + (f" = {100.0 * passed / judged:.0f} %" if judged else ""))
    if args.json is not None:
        args.json.write_text(json.dumps(_json(rows, fit, shares), indent=1) + "\n")
    passed, judged = shares[_PRIMARY]
    return 0 if passed >= TARGET * judged else 1


# -- leaves -------------------------------------------------------------------------------------------------------------

_PRIMARY = "judged, one slice"
_HEAD = (
    f"{'system':12}{'run':28}{'model':20}{'load':7}{'pods and slice':24}{'role':7}"
    f"{'p50 ms':>13}{'p95 ms':>13}{'over 200 %':>13}  within bounds"
)


def _slices(run: PublishedRun) -> tuple[Slices, ...]:
    """As logged. Of KServe's runs it is known only that pods have whole GPUs: as many as the name says, else one."""
    if run.slices or run.system != "kserve":
        return run.slices
    return (Slices(0.0, 2 if "2-gpu" in run.run else 1, 100.0, 100.0),)


def _row(run: PublishedRun, sample: Sample | None, fit: Fit, role: Role) -> Row:
    if sample is None:
        return Row(run, "no log", simulator_fit.figures(run.latency_ms, run.failed), None)
    return Row(run, role, sample.measured, simulator_fit.simulated(sample, fit))


def _shares(rows: Sequence[Row], turned: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """(passed, runs) of each set, by its name."""
    judged = [row for row in rows if row.role == "judged"]
    both = [*judged, *turned]
    sets = {
        _PRIMARY: [row for row in judged if row.run.one_slice],
        "judged, slices as logged": judged,
        "judged, one pod": [row for row in judged if _one_pod(row.run)],
        "each run judged by the other half's fit, one slice": [row for row in both if row.run.one_slice],
        "each run judged by the other half's fit, slices as logged": both,
        "each run judged by the other half's fit, one pod": [row for row in both if _one_pod(row.run)],
    }
    return {name: (sum(bool(row.passed) for row in found), len(found)) for name, found in sets.items()}


def _one_pod(run: PublishedRun) -> bool:
    return all(s.pods == 1 for s in run.during_load)


def _path(run: PublishedRun) -> str:
    """Like `1 30/30>100` or `1..5 30/50`, and whether it was logged."""
    slices = run.during_load if run.slices else _slices(run)
    if not slices:
        return "not logged"
    pods = sorted({s.pods for s in slices})
    count = f"{pods[0]}" if len(pods) == 1 else f"{pods[0]}..{pods[-1]}"
    quotas = [f"{s.quota_percent:g}" for i, s in enumerate(slices) if i in (0, len(slices) - 1)]
    path = ">".join(dict.fromkeys(quotas))
    return f"{count} {slices[0].sm_percent:g}/{path}" + ("" if run.slices else " assumed")


def _last_part(run: PublishedRun) -> str:
    """What tells runs of one folder apart."""
    return run.file.removesuffix(".csv.gz").split("__")[-1]


def _line(row: Row, name: str) -> str:
    run, measured, found = row.run, row.measured, row.simulated
    text = f"{run.system:12}{name:28}{run.model:20}{'stress' if run.stress else 'base':7}{_path(run):24}{row.role:7}"
    pairs = ((name, getattr(measured, name), found and getattr(found, name)) for name in _FIGURES)
    for name, a, b in pairs:
        digits = 1 if name == "over_percent" else 0
        text += f"{a:.{digits}f} {'-' if b is None else format(b, f'.{digits}f')}".rjust(13)
    if found is None:
        return text + "  -"
    misses = [
        what for what, ok in zip(("p50", "p95", "over"), simulator_fit.passes(found, measured), strict=True) if not ok
    ]
    return text + ("  yes" if not misses else f"  no: {', '.join(misses)}")


_FIGURES = ("p50_ms", "p95_ms", "over_percent")


def _json(rows: Sequence[Row], fit: Fit, shares: dict[str, tuple[int, int]]) -> dict[str, Any]:
    passed, judged = shares[_PRIMARY]
    return {
        "published_share": passed / judged if judged else None,
        "target": TARGET,
        "overhead_ms": dict(fit.overhead_ms),
        "spread": fit.spread,
        "shares": {name: {"passed": passed, "runs": count} for name, (passed, count) in shares.items()},
        "runs": [
            {
                "file": row.run.file,
                "system": row.run.system,
                "model": row.run.model,
                "load": "stress" if row.run.stress else "base",
                "slices": _path(row.run),
                "one_slice": row.run.one_slice,
                "failed": int(row.run.failed.sum()),
                "role": row.role,
                "measured": attrs.asdict(row.measured),
                "simulated": None if row.simulated is None else attrs.asdict(row.simulated),
                "passed": row.passed,
            }
            for row in rows
        ],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
