"""`hasfaas replay`: shows a log of decisions to a fresh scaler, which must come to the same ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.version import VERSION
from hasfaas.sdk.cli_shell import json_option
from hasfaas.sdk.cli_table import print_json

if TYPE_CHECKING:
    from hasfaas.scaling.journal import Begin, Difference
    from hasfaas.scaling.policy import Policy

T = TypeVar("T")
POLICY = "hybrid"
DIFFERS = 1


@click.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@click.pass_context
def replay(context: click.Context, log: Path, as_json: bool) -> None:
    """Feeds LOG, a file of <state_dir>/scaling (`hasfaas explain` names it), to a fresh scaler with the settings in it.

    Every decision must be the same, to the last bit. Exit code 1 at the first that is not, with what differs, and for a log
    without decisions.
    """
    from hasfaas.scaling.journal import replay as replayed

    with log.open(encoding="utf-8", errors="replace") as lines:
        found = replayed(lines, fresh, str(log))
    if as_json:
        difference = found.difference
        shown = None
        if difference is not None:
            shown = {"line": difference.line, "logged": difference.logged, "replayed": difference.replayed}
        print_json({"version": found.version, "agree": found.agree, "actions": found.actions, "difference": shown})
    elif found.difference is None and not found.agree:
        click.echo(f"{log}: no decision in it")
    elif found.difference is None:
        click.echo(f"{found.agree} decisions with {found.actions} actions, all the same")
    else:
        _show(log, found.agree, found.difference, found.version)
    if found.difference is not None or not found.agree:
        context.exit(DIFFERS)


def fresh(begin: Begin) -> Policy:
    """The scaler as it was when the log began. InvalidRequestError for a policy or settings that this version lacks."""
    from hasfaas.scaling.scaler import HybridScaler
    from hasfaas.scaling.settings import ScalerSettings

    if begin.policy != POLICY:
        raise InvalidRequestError(
            f"policy={begin.policy!r} of the log is not replayed here; known: {POLICY}", reason="BAD_LOG"
        )
    try:
        return HybridScaler(built(ScalerSettings, begin.settings))
    except TypeError as exc:
        raise InvalidRequestError(
            f"the log is of a scaler with other settings ({exc}): replay it with the version that wrote it, "
            f"{_version(begin.version)}; this is {VERSION}",
            reason="BAD_LOG",
        ) from exc


def built(cls: type[T], plain: Mapping[str, Any]) -> T:
    """Settings from plain values, the settings within settings too. TypeError for keys that the class lacks."""
    kinds = {field.name: field.type for field in attrs.fields(attrs.resolve_types(cls))}  # type: ignore[type-var, arg-type]
    made: dict[str, Any] = {}
    for name, value in plain.items():
        kind = kinds.get(name)
        if isinstance(value, Mapping) and isinstance(kind, type) and attrs.has(kind):
            made[name] = built(kind, value)
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
    return cls(**made)


def _version(written: str) -> str:
    return f"hasfaas {written}" if written else "one that did not write its number down"


def _show(log: Path, agree: int, difference: Difference, version: str) -> None:
    from hasfaas.scaling.journal import changes

    if version != VERSION:
        click.echo(
            f"the log was written by another version, {_version(version)}; this is {VERSION}, and may decide otherwise"
        )
    click.echo(f"{agree} decisions are the same, the next one differs: {log}, line {difference.line}")
    for each in changes(difference):
        click.echo(f"  {each.what}: logged {json.dumps(each.logged)}, replayed {json.dumps(each.replayed)}")
