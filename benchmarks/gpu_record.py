"""The record of one run of all checks on one GPU, as JSON and as a page for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.gpu_machine import Machine
from benchmarks.gpu_run import Check, Outcome, Status
from benchmarks.gpu_sheet import Figure

FORM = 1
PENDING = "not come to yet"


@attrs.frozen
class Record:
    """The machine, and each check with its outcome; one that was not come to has none yet."""

    machine: Machine
    checks: tuple[Check, ...]
    outcomes: tuple[Outcome, ...] = ()

    def all(self) -> tuple[Outcome, ...]:
        """One for each check, in their order."""
        known = {outcome.check.name: outcome for outcome in self.outcomes}
        return tuple(known.get(check.name) or Outcome(check, Status.NOT_RUN, why=PENDING) for check in self.checks)

    def count(self, *statuses: Status) -> int:
        """How many checks ended so."""
        return sum(outcome.status in statuses for outcome in self.all())

    def with_outcome(self, outcome: Outcome) -> Record:
        """One more."""
        return attrs.evolve(self, outcomes=(*self.outcomes, outcome))

    def stem(self) -> str:
        """The file name without its ending: RECORD-<gpu>."""
        kept = (letter if letter.isalnum() else "-" for letter in self.machine.gpu)
        return "RECORD-" + "-".join(part for part in "".join(kept).split("-") if part)

    def write(self, folder: Path) -> Path:
        """Writes both files, each whole or not at all; returns the page's path."""
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / f"{self.stem()}.md"
        _replace(page, self.page())
        _replace(page.with_suffix(".json"), json.dumps(self.document(), indent=1) + "\n")
        return page

    def document(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "form": FORM,
            "machine": attrs.asdict(self.machine),
            "checks": [_document(outcome) for outcome in self.all()],
        }

    def page(self) -> str:
        """As Markdown."""
        return "\n".join([*_head(self), *_summary(self.all()), *_details(self.all())]) + "\n"


def spread(values: Sequence[float]) -> str:
    """Least and most, where there are several."""
    return "" if len(values) == 1 else f"{number(min(values))} .. {number(max(values))}"


def number(value: float) -> str:
    """Four digits, no exponent for everyday sizes."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def bounds(figure: Figure) -> str:
    """For people."""
    parts = [] if figure.least is None else [f"at least {number(figure.least)}"]
    parts += [] if figure.most is None else [f"at most {number(figure.most)}"]
    return ", ".join(parts) or "reported only"


def _head(record: Record) -> Iterator[str]:
    m = record.machine
    yield f"# {m.gpu}: what `make gpu-check` found"
    yield ""
    passed, failed = record.count(Status.PASSED), record.count(Status.FAILED, Status.ERROR, Status.OVER_TIME)
    yield f"{m.date}. {passed} checks passed, {failed} failed, {record.count(Status.NOT_RUN)} not run."
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    yield f"| GPU | {m.gpu}, {m.memory_gib:g} GiB, compute capability {m.capability}{', a MIG slice' if m.mig else ''} |"
    yield f"| driver | {m.driver}, CUDA {m.cuda}, compute mode {m.compute_mode} |"
    yield f"| beside it | {m.processes} other processes on the GPU, load {m.load:g} on {m.cores} cores |"
    yield f"| software | {m.system}, Python {m.python}, hasfaas {m.hasfaas} {m.commit} |"
    yield f"| packages | {', '.join(f'{name} {version}' for name, version in m.versions.items())} |"
    yield ""


def _summary(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "| check | claim | result | s |"
    yield "| --- | --- | --- | --- |"
    for outcome in outcomes:
        result = f"{outcome.status.value}{': ' if outcome.why else ''}{_cell(outcome.why)}"
        yield f"| {outcome.check.name} | {_cell(outcome.check.claim)} | {result} | {outcome.seconds:.0f} |"


def _details(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield ""
    yield "Median of each figure, with least and most where it was measured more than once; the bound is for the median."
    for outcome in outcomes:
        if not outcome.figures and not outcome.remarks:
            continue
        yield from ("", f"## {outcome.check.name}", "")
        if outcome.figures:
            yield "| figure | median | least .. most | unit | bound | |"
            yield "| --- | --- | --- | --- | --- | --- |"
            yield from map(_row, outcome.figures)
        if outcome.remarks:
            yield from ("", *(f"- {remark}" for remark in outcome.remarks))


def _row(figure: Figure) -> str:
    verdict = {None: "", True: "kept", False: "**missed**"}[figure.met]
    name = _cell(f"{figure.name} ({figure.note})" if figure.note else figure.name)
    return (
        f"| {name} | {number(figure.median)} | {spread(figure.values)} | {figure.unit} | {bounds(figure)} | {verdict} |"
    )


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.check.name,
        "claim": outcome.check.claim,
        "status": outcome.status.value,
        "why": outcome.why,
        "seconds": round(outcome.seconds, 1),
        "figures": [figure.to_dict() for figure in outcome.figures],
        "remarks": list(outcome.remarks),
    }


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)
