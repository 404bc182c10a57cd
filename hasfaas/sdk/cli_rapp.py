"""`hasfaas rapp`: trains the shipped coefficients anew, and scores them on a table of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from hasfaas.sdk.cli_shell import json_option
from hasfaas.sdk.cli_table import print_json, print_table, waiting


@click.group()
def rapp() -> None:
    """The latency predictor: how it was trained, and how good it is."""


@rapp.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="The folder of measurements, with v100/ and gpu/.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write.")
@json_option
def train(data: Path, out: Path, as_json: bool) -> None:
    """Rebuilds the coefficients from the public measurements (minutes; needs the extra `rapp`)."""
    try:
        import statsmodels  # noqa: F401 - told now, and not after minutes
    except ImportError:
        raise click.UsageError("training needs statsmodels: pip install 'hasfaas[rapp]'") from None
    from hasfaas.rapp.train import train as train_all

    with waiting(f"training on {data}"):
        meta = train_all(data, out, lambda part: click.echo(f"training {part}", err=True))
    if as_json:
        print_json(meta)
        return
    print_table(["array", "shape"], [(key, " x ".join(map(str, shape))) for key, shape in meta["arrays"].items()])


@rapp.command()
@click.option(
    "--table",
    "table_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Measured latencies: model,batch,sm_pct,quota_pct,latency_ms.",
)
@click.option(
    "--features",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Operator features of the models (.npz). Checked and counted; the model needs none.",
)
@click.option(
    "--coefficients", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Instead of the shipped."
)
@click.option("--points", default="16,11", show_default=True, help="Probes a model may show, separated by commas.")
@json_option
def evaluate(table_path: Path, features: Path | None, coefficients: Path | None, points: str, as_json: bool) -> None:
    """Scores the shipped few-shot model on a table of the shared V100 form, without refitting.

    Each model shows so many probes, each chosen after those before it; all other cells are scored.
    """
    from hasfaas.rapp import coefficients as files
    from hasfaas.rapp import evaluate as scoring
    from hasfaas.rapp.launch_gated import LaunchGatedModel
    from hasfaas.rapp.table import read_table

    counts = _counts(points)
    arrays, meta = files.read(coefficients) if coefficients else files.shipped()
    model = LaunchGatedModel.from_arrays(files.part(arrays, "launch_gated"))
    table = read_table(table_path)
    known = scoring.check_features(features, table.models()) if features else {}
    with waiting(f"scoring {len(table.models())} models"):
        scores = scoring.evaluate(table, model, counts)
    found = scoring.summary(scores)
    if as_json:
        with_features = {"features": sum(known.values())} if features else {}
        print_json({"coefficients": meta["version"], "probes": found, **with_features})
        return
    print_table(
        ["model", ">probes", ">MAPE %", ">in 90 %"],
        [(s.model, str(s.probes), f"{s.mape:.2f}", f"{100 * s.coverage:.1f}") for s in scores],
    )
    for k, total in found.items():
        click.echo(
            f"{k} probes: MAPE {total['mape']:.2f} % over {total['n']} cells (median model {total['median_model']:.2f}, "
            f"p90 {total['p90']:.1f}); the 90 % interval holds {100 * total['coverage_90']:.1f} %"
        )
    if features:
        click.echo(
            f"operator features of {sum(known.values())} of {len(known)} models are in {features}: not needed here"
        )


def _counts(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of whole numbers such as 16,11", param_hint="--points"
        ) from None
