"""`hasfaas predict`: what one batch of a function will take on a slice, as a table, JSON or a picture.

The numbers come from the function's stored profile (`hasfaas profile`), or, for a file and a described device, from
the graph alone. A function without a profile has none, and is told so.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import click

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk import cli_arguments as arguments
from hasfaas.sdk.cli_app import Reference
from hasfaas.sdk.cli_described import Described, described
from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import UNCUT_COLUMNS, percent, print_json

if TYPE_CHECKING:
    from hasfaas.executor.quota import Timing
    from hasfaas.rapp.profile import Profile
    from hasfaas.rapp.surface import Surface
    from hasfaas.sdk.function import Remote

LAWS = ("mean", "worst", "idle")
MEANINGS = {
    "mean": "mean time per batch of a replica that never idles",
    "worst": "most that one batch takes when no credit is left",
    "idle": "time of one batch after a long idle time",
}
SHARES = "10..100"
# Where a file's function is predicted and nothing is said.
BATCHES, SM_PERCENTS = (1, 4), tuple(range(10, 101, 10))
# Shades of the heat map, from quick to slow: dark enough for white text, and for readers who see no red or green.
SHADES = ("#08306b", "#2171b5", "#6baed6", "#c7b42c", "#d9741a", "#a50f15")
MOST_VALUES = 1_000


class Values(click.ParamType[Any]):
    """A list of numbers: `1,4`, `10..100` (in steps of `step`), `10..100/5`, or several of these with commas."""

    name = "values"

    def __init__(self, step: float, *, whole: bool = False, most: float = math.inf) -> None:
        self._step = step
        self._whole = whole
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers in rising order, each once."""
        if not isinstance(value, str):
            return tuple(value)
        try:
            found = sorted({number for part in value.split(",") for number in self._part(part.strip())})
        except ValueError as exc:
            self.fail(f"{value!r}: {exc}; write 1,4 or 10..100 or 10..100/5", param, ctx)
        for number in found:
            if not 0 < number <= self._most or (self._whole and number != int(number)):
                kind = "whole numbers" if self._whole else "numbers"
                most = "" if self._most == math.inf else f" up to {self._most:g}"
                self.fail(f"{value!r} holds {number:g}; give {kind} above 0{most}", param, ctx)
        return tuple(int(number) if self._whole else number for number in found)

    def _part(self, text: str) -> list[float]:
        first, dots, rest = text.partition("..")
        if not dots:
            return [_number(text)]
        last, slash, by = rest.partition("/")
        low, high, step = _number(first), _number(last), _number(by) if slash else self._step
        if high < low or step <= 0:
            raise ValueError(f"{text!r} is an empty range")
        count = math.floor((high - low) / step + 1e-9) + 1
        if count > MOST_VALUES:
            raise ValueError(f"{text!r} has {count} values, {MOST_VALUES} are the most")
        return [low + index * step for index in range(count)]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not finite")
    return value


@attrs.frozen(eq=False)
class Prediction:
    """What is shown: latency [batch, sm, quota] in ms and items per second, by one law and quantile."""

    profile: Profile
    surface: Surface
    quota_percents: tuple[float, ...]
    law: str
    quantile: float
    latency_ms: Any
    throughput_rps: Any

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; arrays are lists by batch, SM share, quota."""
        profile, correction = self.profile, self.profile.correction
        return {
            "function": profile.function,
            "version": profile.version,
            "state": profile.state,
            "device": attrs.asdict(profile.device),
            "law": self.law,
            "quantile": self.quantile,
            "law_error_percent": profile.law_error_percent,
            "drifted": correction is not None and correction.drifted,
            "reason": "" if correction is None else correction.reason,
            "live_batches": 0 if correction is None else correction.batches,
            "batches": list(self.surface.batches),
            "sm_percents": list(self.surface.sm_percents),
            "quota_percents": list(self.quota_percents),
            "hold_ms": self.surface.quantile_ms(self.quantile).tolist(),
            "latency_ms": self.latency_ms.tolist(),
            "throughput_rps": self.throughput_rps.tolist(),
        }


@click.command()
@click.argument("target", metavar="NAME|APP.py::NAME")
@click.option("--batch", type=Values(1, whole=True), help="Batch sizes, such as 1,4 or 1..8.  [default: as profiled]")
@click.option("--sm", type=Values(10, most=100), help="SM shares in %, such as 10..100.  [default: as profiled]")
@click.option("--quota", type=Values(10, most=100), default=SHARES, show_default=True, help="Quotas in %.")
@click.option("--law", type=click.Choice(LAWS), default="mean", show_default=True, help="Which latency (see above).")
@click.option("--quantile", type=float, default=0.5, show_default=True, help="0.9: what 9 of 10 batches keep within.")
@click.option(
    "--device",
    metavar="NAME",
    help="Of NAME: where it was profiled. Of APP.py::NAME: a described device, such as H100, or a GPU that was probed here, "
    "by its UUID, full name or device name.",
)
@click.option(
    "--example", metavar="ARG", multiple=True, help="Of APP.py::NAME: an argument, as for invoke; items along axis 0."
)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Also draw a heat map, such as p.png.")
@json_option
@pass_shell
def predict(
    shell: Shell,
    target: str,
    batch: tuple[int, ...] | None,
    sm: tuple[float, ...] | None,
    quota: tuple[float, ...],
    law: str,
    quantile: float,
    device: str | None,
    example: tuple[str, ...],
    picture: Path | None,
    as_json: bool,
) -> None:
    """Predicts what a batch takes, for each batch size, SM share and quota.

    The law says what kind of latency: `mean` time per batch of a replica that never idles, `worst` case when no credit
    is left, or `idle`: one batch after a long idle time. NAME needs a profile: `hasfaas profile NAME`.
    APP.py::NAME with --device predicts from the function's graph alone, with wide quantiles.
    """
    reference = Reference.parse(target)
    if reference is None:
        profile, timing = stored(shell, target, device or "")
    elif device is None:
        raise click.UsageError("APP.py::NAME needs --device, such as --device H100; a deployed function is a NAME")
    else:
        profile, timing = (
            unseen(reference.function(), described(shell, device), example, batch, sm),
            timing_of(shell.resolved.settings.local),
        )
    shown = prediction(profile, timing, batch, sm, quota, law, quantile)
    _point_out(shown, batch, sm)
    if picture is not None:
        draw(shown, picture)
    if as_json:
        print_json(shown.to_dict())
        return
    _print_tables(shown)


def stored(shell: Shell, name: str, device: str) -> tuple[Profile, Timing]:
    """The stored profile, and the timing of the gateway's lanes.

    Raises NotFoundError for an unknown function or device, and for a function that is unprofiled.
    """
    from hasfaas.rapp.profile import Profile

    client = shell.running()
    profile = Profile.from_dict(client.run(client.profile_of(name, device=device)))
    return profile, timing_of(client.run(client.gateway_status()))


def timing_of(source: Any) -> Timing:
    """Of settings or a gateway's status: both have `window_ms` and `quantum_ms`."""
    from hasfaas.executor.quota import Timing

    return Timing(round(source.window_ms * 1e6), round(source.quantum_ms * 1e6))


def unseen(
    function: Remote[Any],
    device: Described,
    example: Sequence[str],
    batches: Sequence[int] | None,
    sm_percents: Sequence[float] | None,
) -> Profile:
    """A profile from the graph of a local function alone, for a described device."""
    from hasfaas.rapp.profile import Profile, ProfiledDevice
    from hasfaas.rapp.zero_shot import zero_shot_surface

    given = arguments.parse(example, lambda: sys.stdin.buffer.read())
    shown = given.args or function.example
    if given.kwargs or not shown:
        raise InvalidRequestError(
            "--device needs --example for each argument of the function, without names: arrays with items along axis 0, "
            "such as --example @image.npy; or give the function example=callable(batch)",
            reason="NO_EXAMPLE",
        )
    forecast = zero_shot_surface(
        function.target,
        shown,
        device.description,
        batches or BATCHES,
        sm_percents or SM_PERCENTS,
    )
    for note in forecast.notes:
        click.echo(f"hasfaas: {note}", err=True)
    made = ProfiledDevice("described", device.label, device.label)
    return Profile(function.name, "", made, cast("Any", forecast.state), forecast.surface)


def prediction(
    profile: Profile,
    timing: Timing,
    batches: Sequence[int] | None,
    sm_percents: Sequence[float] | None,
    quota_percents: Sequence[float],
    law: Any,
    quantile: float,
) -> Prediction:
    """Reads the profile's current surface; axes that are None are the profile's own."""
    surface = profile.current()
    surface = surface.over(batches or surface.batches, sm_percents or surface.sm_percents)
    quotas = [share / 100.0 for share in quota_percents]
    return Prediction(
        profile=profile,
        surface=surface,
        quota_percents=tuple(quota_percents),
        law=law,
        quantile=quantile,
        latency_ms=surface.latency_ms(quotas, timing, law, quantile),
        throughput_rps=surface.throughput(quotas, quantile),
    )


def _point_out(shown: Prediction, batches: Sequence[int] | None, sm_percents: Sequence[float] | None) -> None:
    """On standard error: what of this was never measured, and whether the function has changed since."""
    axes, correction = shown.profile.surface, shown.profile.correction
    least, greatest = axes.sm_percents[0], axes.batches[-1]
    if sm_percents and min(sm_percents) < least:
        click.echo(f"hasfaas: SM shares below {least:g} % are shown as {least:g} %, the least in the profile", err=True)
    if batches and max(batches) > greatest:
        click.echo(f"hasfaas: batches above {greatest} go on in a straight line: none was profiled", err=True)
    if correction is not None and correction.drifted:
        click.echo(f"hasfaas: {correction.reason}", err=True)


# -- showing ----------------------------------------------------------------------------------------------------------


def _title(shown: Prediction) -> str:
    profile, device = shown.profile, shown.profile.device
    where = device.description or device.device_id or device.kind
    live = "" if profile.correction is None else f", corrected by {profile.correction.batches} live batches"
    odds = "median" if shown.quantile == 0.5 else f"quantile {shown.quantile:g}"
    return f"{profile.function} on {where} ({profile.state}{live}): {MEANINGS[shown.law]}, in ms ({odds})"


def _print_tables(shown: Prediction) -> None:
    """One row for each batch and SM share, one column for each quota; on a terminal shaded by latency."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, width=UNCUT_COLUMNS)
    click.echo(_title(shown))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("batch", "SM %", *(f"quota {percent(share)} %" for share in shown.quota_percents)):
        table.add_column(Text(name), justify="right", no_wrap=True)
    low, high = float(shown.latency_ms.min()), float(shown.latency_ms.max())
    for rows, batch in zip(shown.latency_ms, shown.surface.batches, strict=True):
        for cells, share in zip(rows, shown.surface.sm_percents, strict=True):
            shaded = [Text(_ms(float(value)), style=f"white on {_shade(float(value), low, high)}") for value in cells]
            table.add_row(Text(str(batch)), Text(percent(share)), *shaded)
    console.print(table)


def _ms(value: float) -> str:
    """Three significant digits, and never an exponent."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{digits}f}"


def _shade(value: float, low: float, high: float) -> str:
    part = 0.0 if high <= low else math.log(value / low) / math.log(high / low)
    return SHADES[min(int(part * len(SHADES)), len(SHADES) - 1)]


def draw(shown: Prediction, file: Path) -> None:
    """A heat map for each batch size: SM share across, quota up, latency as colour on a logarithmic scale.

    Raises InvalidRequestError where matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.colors import LogNorm
    except ImportError as exc:
        raise InvalidRequestError(
            "--picture needs matplotlib, which is not installed: pip install matplotlib", reason="NO_MATPLOTLIB"
        ) from exc
    batches = shown.surface.batches
    figure, axes = pyplot.subplots(1, len(batches), figsize=(1.5 + 3.2 * len(batches), 3.6), squeeze=False, sharey=True)
    low, high = float(shown.latency_ms.min()), float(shown.latency_ms.max())
    norm = LogNorm(low, max(high, low * 1.001))
    for axis, batch, cells in zip(axes[0], batches, shown.latency_ms, strict=True):
        image = axis.imshow(cells.T, origin="lower", aspect="auto", norm=norm, cmap="viridis")
        axis.set_xticks(range(len(shown.surface.sm_percents)), [percent(s) for s in shown.surface.sm_percents])
        axis.tick_params(axis="x", rotation=90, labelsize=7)
        axis.set_xlabel("SM share, %")
        axis.set_title(f"batch {batch}")
    axes[0][0].set_yticks(range(len(shown.quota_percents)), [percent(q) for q in shown.quota_percents])
    axes[0][0].set_ylabel("quota, %")
    figure.suptitle(_title(shown), fontsize=8)
    figure.colorbar(image, ax=list(axes[0]), label="ms")
    try:
        figure.savefig(file, dpi=120, bbox_inches="tight")
    except (OSError, ValueError) as exc:
        raise InvalidRequestError(f"picture={str(file)!r} cannot be written: {exc}", reason="BAD_PICTURE") from exc
    finally:
        pyplot.close(figure)
