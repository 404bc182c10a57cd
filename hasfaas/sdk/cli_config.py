"""`hasfaas config show`: the settings of this directory, and where each comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import print_json, print_table


@click.group()
def config() -> None:
    """The configuration."""


@config.command()
@click.option("--origin", is_flag=True, help="Also where each value comes from.")
@json_option
@pass_shell
def show(shell: Shell, origin: bool, as_json: bool) -> None:
    """Shows every setting as it holds in this directory."""
    rows = [(key, plain(value), source) for key, value, source in shell.resolved.rows()]
    if as_json:
        print_json([{"key": k, "value": v} | ({"origin": o} if origin else {}) for k, v, o in rows])
        return
    columns = ["key", "value", *(["origin"] if origin else [])]
    print_table(columns, [(k, _text(v), o)[: len(columns)] for k, v, o in rows])


def plain(value: Any) -> Any:
    """A setting in JSON's own types; keys of a table that are not set are left out."""
    if attrs.has(type(value)):
        return plain(attrs.asdict(value, recurse=False))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
