"""`hasfaas simulate`: scalers on the same load in virtual time, as a table, JSON and one HTML file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.cli_table import print_json, print_table

if TYPE_CHECKING:
    from hasfaas.simulator.models import Model
    from hasfaas.simulator.report import Comparison
    from hasfaas.simulator.trace import Trace

POLICIES = "hybrid,kpa,fast,has"
# Of made-up load, where nothing is said.
LOAD, RPS, DURATION_S = "diurnal", 20.0, 900.0
# What a V100 cost per hour on GCP's list, the price of the published comparisons.
PRICE_USD_H = 2.48


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _ranks(ctx: click.Context, param: click.Parameter, given: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _listed(given or ""))
    except ValueError:
        raise click.BadParameter(
            f"{given!r} is not a list of whole numbers such as 2,4,9", ctx=ctx, param=param
        ) from None


def _percents(ctx: click.Context, param: click.Parameter, given: str | None) -> tuple[float, ...] | None:
    try:
        return None if given is None else tuple(float(part) for part in _listed(given))
    except ValueError:
        raise click.BadParameter(f"{given!r} is not a list of numbers such as 50,25,25", ctx=ctx, param=param) from None


@click.command()
@click.option("--trace", type=click.Path(path_type=Path), help="A file of arrivals.  [default: made-up load]")
@click.option(
    "--trace-format", metavar="F", help="requests (a line a request), counts (a line a second) or azure-functions."
)
@click.option("--ranks", metavar="N,N", callback=_ranks, help="Of azure-functions: these, 1 is the busiest.")
@click.option("--top", type=click.IntRange(1), help="Of azure-functions: so many of the busiest.")
@click.option("--ignore", metavar="COLUMN", multiple=True, help="Of requests: a column to pass over; repeatable.")
@click.option(
    "--smear", type=float, default=0.0, help="Of requests: spread lumps that their recording made over so many s."
)
@click.option("--load", help="Made up: steady, step, bursts, diurnal or spike.  [default: diurnal; not with --trace]")
@click.option(
    "--spread", default="poisson", show_default=True, help="Within an interval: poisson, gamma (CV 4) or even."
)
@click.option("--rps", type=float, help="Mean per function, by thinning or copies.  [default: as traced; made up 20]")
@click.option("--start", type=float, default=0.0, help="Second of the trace to begin at.")
@click.option("--duration", type=float, help="Seconds to simulate.  [default: the whole trace; made up 900]")
@click.option(
    "--functions",
    type=click.IntRange(1),
    metavar="N",
    help="So many: those of the load again, each copy from another part of it.  [default: those there are]",
)
@click.option("--models", default="resnet50", show_default=True, help="One for each function, in turn, with commas.")
@click.option("--table", type=click.Path(path_type=Path), help="Measured models: a CSV, or a folder with v100/.")
@click.option("--slo-factor", type=float, default=5.0, show_default=True, help="SLO = so many calls on a whole GPU.")
@click.option("--gpus", type=int, default=10, show_default=True, help="How many there are.")
@click.option("--gpu", default="v100", show_default=True, help="Which kind: its SMs and memory, not its speed.")
@click.option(
    "--lanes", metavar="P,P", callback=_percents, help="Cut each GPU in advance: 50,25,25.  [default: as needed]"
)
@click.option(
    "--policies", default=POLICIES, show_default=True, help="Scalers; with options as in fixed:f=0.6:rho=0.7."
)
@click.option("--cold-start", type=float, default=10.0, show_default=True, help="Seconds until a new replica serves.")
@click.option("--warmup", type=float, help="Seconds that count in no figure.  [default: 60, a fifth of a short run]")
@click.option("--predictor-error", type=float, default=0.0, help="How far off scalers are told holds: 0 to 100 %.")
@click.option("--interference", type=float, default=1.0, help="Factor on a batch beside a busy lane.  [default: 1]")
@click.option("--lend/--no-lend", default=False, show_default=True, help="Whether idle lane time is lent.")
@click.option(
    "--law", default="lane", show_default=True, help="lane: ours; table: as published for HAS-GPU, needs --table."
)
@click.option(
    "--gateway-rps",
    type=float,
    metavar="N",
    help="Calls per second that a gateway carries.  [default: 8309, as measured]",
)
@click.option(
    "--scale", is_flag=True, help="Tell decision times, GPUs against the packing bound, and gateways as well."
)
@click.option("--price", type=float, default=PRICE_USD_H, show_default=True, help="USD per GPU-hour.")
@click.option("--seed", type=int, default=0, show_default=True, help="Everything random comes from it.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write one HTML file with pictures.")
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the pictures here, as SVG files; made if missing.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write JSON; - prints it instead of the table.")
def simulate(**given: Any) -> None:
    """Compares scalers on the same load, in virtual time, on slices of GPUs.

    Without --trace the load is made up. Built in are the models mobilenet_v3_large, resnet50, convnext_large and vgg16 on a
    V100; --table brings others, and --law table needs it: the V100 CSV of HAS-GPU, or the folder that holds v100/.
    The policies hybrid (hasfaas's own), kpa (Knative), ray, fast (FaST-GShare), has, has-repaired (HAS-GPU) decide by what
    they observe; fixed and oracle are told the load beforehand.

    Example: hasfaas simulate --models resnet50,vgg16 --policies hybrid,kpa --report out.html
    """
    from hasfaas.simulator import report, report_html

    _check_files(given["report"], given["json_file"], given["pictures"])
    comparison = _compared(given)
    svgs = report_html.drawn(comparison) if given["report"] is not None or given["pictures"] is not None else {}
    if given["report"] is not None:
        _write(given["report"], report_html.page(comparison, svgs))
    if given["pictures"] is not None:
        _make(given["pictures"])
        for name, svg in svgs.items():
            _write(given["pictures"] / f"{name.replace(':', '-')}.svg", svg)
    as_json = report.as_json(comparison)
    if given["json_file"] == "-":
        print_json(as_json)
        return
    if given["json_file"] is not None:
        _write(Path(given["json_file"]), json.dumps(as_json, indent=2) + "\n")
    _print(comparison)
    if given["scale"]:
        for line in ("", *report.scale(comparison)):
            click.echo(line)


def _compared(given: dict[str, Any]) -> Comparison:
    """Reads, draws and runs. Raises InvalidRequestError that names what is wrong and what is known."""
    from hasfaas.rapp.description import describe
    from hasfaas.simulator import models, run
    from hasfaas.simulator.report import GATEWAY_RPS, Comparison

    policies = run.chosen(given["policies"])
    names = _listed(given["models"])
    found = models.named(names, given["table"])
    _check_numbers(given)
    trace, load = _load(given, found)
    if given["functions"] is not None:
        trace = trace.repeated(given["functions"])
    scenario = run.scenario(
        found,
        trace,
        seed=given["seed"],
        # Made-up load has its rate and length already.
        rps=given["rps"] if given["trace"] else None,
        spread=given["spread"],
        start_s=given["start"],
        duration_s=given["duration"],
        smear_s=given["smear"],
        slo_factor=given["slo_factor"],
        gpus=given["gpus"],
        gpu=given["gpu"],
        lanes=given["lanes"],
        cold_start_s=given["cold_start"],
        warmup_s=given["warmup"],
        predictor_error=given["predictor_error"] / 100.0,
        interference=given["interference"],
        lend=given["lend"],
        law=given["law"],
    )
    with _bar(len(policies)) as told:
        outcomes = run.compare(scenario, policies, told=told, clock_s=time.perf_counter)
    of = tuple(names[row % len(names)] for row in range(len(scenario.functions)))
    measured_on = ({model.gpu for model in found} or {""}).pop()  # one table, so one kind
    kinds = [describe(gpu).name if gpu else "" for gpu in (given["gpu"], measured_on)]
    gateway_rps = GATEWAY_RPS if given["gateway_rps"] is None else given["gateway_rps"]
    return Comparison(scenario, outcomes, given["price"], of, load, kinds[0], kinds[1], gateway_rps)


def _load(given: dict[str, Any], found: tuple[Model, ...]) -> tuple[Trace, str]:
    """The trace, and what to call it."""
    from hasfaas.simulator import run
    from hasfaas.simulator.trace_file import FORMATS, read_trace

    path, form = given["trace"], given["trace_format"]
    if path is not None:
        if form is None:
            raise click.UsageError(f"--trace needs --trace-format: {', '.join(FORMATS)}")
        if given["load"] is not None:
            raise click.UsageError("--load is about made-up load: leave it out, or --trace")
        trace = read_trace(path, form, ranks=given["ranks"], top=given["top"], ignore=given["ignore"])
        return trace, f"Trace {path.name}"
    for option in ("trace_format", "top", "ranks", "ignore", "smear", "start"):
        if given[option]:
            raise click.UsageError(f"--{option.replace('_', '-')} is about a trace: give --trace as well")
    rps = RPS if given["rps"] is None else given["rps"]
    duration_s = DURATION_S if given["duration"] is None else given["duration"]
    kind = LOAD if given["load"] is None else given["load"]
    trace = run.made_up(found, kind, rps=rps, duration_s=duration_s, seed=given["seed"])
    return trace, f"Made-up load ({kind})"


def _check_numbers(given: dict[str, Any]) -> None:
    if given["gateway_rps"] is not None and not 0.0 < given["gateway_rps"] < float("inf"):
        raise InvalidRequestError(
            f"gateway-rps={given['gateway_rps']:g} must be positive: the calls per second that one gateway carries",
            reason="BAD_SCENARIO",
        )
    if not 0.0 <= given["predictor_error"] <= 100.0:
        raise InvalidRequestError(
            f"predictor-error={given['predictor_error']:g} must be from 0 to 100, in %: 10 is 10 %",
            reason="BAD_SCENARIO",
        )
    for name, least in (("price", 0.0), ("seed", 0), ("cold_start", 0.0)):
        if not least <= given[name] < float("inf"):
            raise InvalidRequestError(
                f"{name.replace('_', '-')}={given[name]} must be finite and not below 0", reason="BAD_SCENARIO"
            )


# -- showing ----------------------------------------------------------------------------------------------------------


def _print(comparison: Comparison) -> None:
    from hasfaas.simulator import report

    columns = [heading.name for heading in report.HEADINGS]
    print_table(
        [columns[0], *(f">{name}" for name in columns[1:])],
        [report.row(outcome, comparison.price_usd_h) for outcome in comparison.outcomes],
    )
    click.echo()
    click.echo(f"{report.setting(comparison)}.")
    click.echo(report.verdict(comparison))
    click.echo(
        "late: after the SLO, dropped or never answered. USD/1k: per 1,000 requests at "
        f"{comparison.price_usd_h:g} USD per GPU-hour, for the slices reserved; GPUs: for whole devices in use; used: for "
        "time in which something ran. Less is better."
    )
    for note in report.notes(comparison):
        click.echo(f"hasfaas: {note}", err=True)


@contextlib.contextmanager
def _bar(policies: int) -> Iterator[Callable[[str, float], None]]:
    """A progress bar on standard error, where that is a terminal; hears a policy's name and how much of it is done."""
    if not sys.stderr.isatty():
        yield lambda name, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    seen: list[str] = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=policies)

        def told(name: str, done: float) -> None:
            if name not in seen:
                seen.append(name)
            progress.update(task, description=name, completed=len(seen) - 1 + done)

        yield told


def _check_files(page: Path | None, json_file: str | None, folder: Path | None) -> None:
    """What cannot be written is told before the run, not after it."""
    from hasfaas.simulator import pictures

    if page is not None or folder is not None:
        pictures.check_available()
    if folder is not None:
        _check_makeable(folder)
    places = [Path(file).absolute().parent for file in (page, json_file) if file is not None and file != "-"]
    for place in places:
        if not place.is_dir():
            raise InvalidRequestError(f"folder={str(place)!r} does not exist; make it first", reason="BAD_REPORT")


def _check_makeable(folder: Path) -> None:
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InvalidRequestError(
            f"pictures={str(folder)!r} cannot be made: {str(there)!r} is no folder that may be written to",
            reason="BAD_REPORT",
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InvalidRequestError(
            f"pictures={str(folder)!r} cannot be made: {exc.strerror or exc}", reason="BAD_REPORT"
        ) from exc


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise InvalidRequestError(
            f"file={str(file)!r} cannot be written: {exc.strerror or exc}", reason="BAD_REPORT"
        ) from exc
    click.echo(f"hasfaas: wrote {file}", err=True)
