"""`hasfaas profile`: measures a function in a replica of its own, under real quotas, and keeps what is fitted to that."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import click

from hasfaas.sdk import cli_arguments as arguments
from hasfaas.sdk.cli_app import Reference
from hasfaas.sdk.cli_invoke import InvokeCommand
from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import print_json, print_table, waiting

if TYPE_CHECKING:
    from hasfaas.rapp.profile import Profile
    from hasfaas.wire.payload import Payload
    from hasfaas.wire.v1 import functions_pb2 as pb

# Where the surface is shown: batch sizes and SM shares, from its ends.
SHOWN_BATCHES, SHOWN_SHARES = 4, 3
SURE = 0.95


@click.command(cls=InvokeCommand)
@click.argument("target", metavar="NAME|APP.py::NAME")
@click.argument("args", nargs=-1)
@click.option("--device", default="", metavar="DEVICE", help="A device by name or kind; else where its replicas are.")
@click.option(
    "--points", type=click.IntRange(min=4, max=256), default=16, show_default=True, help="How many to measure."
)
@json_option
@pass_shell
def profile(shell: Shell, target: str, args: tuple[str, ...], device: str, points: int, as_json: bool) -> None:
    """Measures how long a function holds a device, by batch size and SM share, and keeps the profile with its version.

    It runs in a replica of its own, which takes no calls and goes away with the measurement. Its arguments are those that
    example= of the function makes, else those of a call that it has answered, or ARGS, written as for `invoke`.

    NAME is what has been deployed. APP.py::NAME imports the file and deploys the function first.
    """
    from hasfaas.rapp.profile import Profile

    given = arguments.parse(args, lambda: sys.stdin.buffer.read()) if args else None
    name, payload = _prepared(shell, target, given)
    data: dict[str, Any] = {}
    with _bar(points) as bar:
        for each in _news(shell, shell.client.profile(name, device=device, points=points, arguments=payload)):
            match each.WhichOneof("news"):
                case "plan":
                    bar.planned(len(each.plan.points))
                case "measured":
                    bar.measured(each.measured)
                case "note":
                    bar.note(each.note)
                case "profile_json":
                    data = json.loads(each.profile_json)
    if as_json:
        print_json(data)
    else:
        _show(Profile.from_dict(data))


def _prepared(shell: Shell, target: str, given: arguments.Given | None) -> tuple[str, Payload | None]:
    """The deployed function's name, and the payload of the arguments where some were given."""
    from hasfaas.wire.payload import encode_arguments

    reference = Reference.parse(target)
    client = shell.client
    if reference is None:
        return target, encode_arguments(given.args, given.kwargs) if given is not None else None
    function = reference.function()
    payload = function.encode(given.args, given.kwargs) if given is not None else None
    with waiting(f"deploying {function.name}"):
        client.run(client.deploy(function.deployable(), warm=False))
    return function.name, payload


def _news(shell: Shell, news: AsyncGenerator[pb.ProfileResponse, None]) -> Iterator[pb.ProfileResponse]:
    """What the gateway says, as it comes. Leaving early takes the measurement back."""

    async def following() -> pb.ProfileResponse | None:
        return await anext(news, None)

    try:
        while (each := shell.client.run(following())) is not None:
            yield each
    finally:
        shell.client.run(news.aclose())


# -- what is shown ---------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Quiet:
    """Notes alone, for programs and files."""

    def planned(self, count: int) -> None:
        return None

    def measured(self, found: pb.ProfileResponse.Measured) -> None:
        return None

    def note(self, text: str) -> None:
        click.echo(text, err=True)


class _Progress(_Quiet):
    """A bar on a terminal: the point, its hold, and the spread from run to run."""

    def __init__(self, progress: Any, points: int) -> None:
        self._progress = progress
        self._task = progress.add_task("starting a replica", total=points)

    def planned(self, count: int) -> None:
        self._progress.update(self._task, total=count)

    def measured(self, found: pb.ProfileResponse.Measured) -> None:
        point = found.point
        text = (
            f"batch {point.batch}, SM {point.sm_percent:g} %, quota {point.quota_percent:g} %: "
            f"hold {found.hold_ms:.4g} ms +- {100.0 * found.log_spread:.1f} % ({found.runs} runs)"
        )
        self._progress.update(self._task, advance=1, description=text)

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)


@contextmanager
def _bar(points: int) -> Iterator[_Quiet]:
    if not sys.stderr.isatty():
        yield _Quiet()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Progress(progress, points)


def _show(made: Profile) -> None:
    """Probes, the surface at a few places, and how far to trust it."""
    click.echo(f"{made.function} (version {made.version}) on {made.device.device_id}: {made.state} profile kept")
    click.echo()
    print_table(
        (">batch", ">SM %", ">quota %", ">hold ms", ">spread %", ">response ms", ">t/q ms", ">runs"),
        [_probe_cells(probe) for probe in made.probes],
    )
    click.echo()
    print_table((">hold ms at batch", *(f">SM {share:g} %" for share in _shares(made))), _surface_rows(made))
    click.echo()
    error = made.law_error_percent
    law = "not measured (no probe below 100 %)" if error is None else f"off by {error:.1f} % at the probes"
    surface = made.surface
    doubt = 100.0 * (surface.quantile_ms(SURE) / surface.hold_ms - 1.0)
    click.echo(f"response = hold / quota: {law}")
    click.echo(f"one run in twenty takes longer than +{doubt.min():.1f} .. +{doubt.max():.1f} % of its hold, by place")


def _probe_cells(probe: Any) -> tuple[str, ...]:
    point = probe.point
    response = "-" if probe.response_ms is None else f"{probe.response_ms:.4g}"
    return (
        str(point.batch),
        f"{point.sm_percent:g}",
        f"{point.quota_percent:g}",
        f"{probe.hold_ms:.4g}",
        f"{100.0 * probe.log_spread:.1f}",
        response,
        f"{100.0 * probe.hold_ms / point.quota_percent:.4g}",
        str(probe.runs),
    )


def _shares(made: Profile) -> list[float]:
    return _some(made.surface.sm_percents, SHOWN_SHARES)


def _surface_rows(made: Profile) -> list[tuple[str, ...]]:
    surface = made.surface
    return [
        (str(batch), *(_cell(surface.hold(batch, share), surface.hold(batch, share, SURE)) for share in _shares(made)))
        for batch in _some(surface.batches, SHOWN_BATCHES)
    ]


def _cell(middle_ms: float, high_ms: float) -> str:
    return f"{middle_ms:.4g} (< {high_ms:.4g})"


def _some(axis: Any, most: int) -> list[Any]:
    """A few values of an axis, both ends among them."""
    count = min(most, len(axis))
    return [axis[round(i * (len(axis) - 1) / max(count - 1, 1))] for i in range(count)]
