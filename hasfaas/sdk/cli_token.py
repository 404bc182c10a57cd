"""`hasfaas token create | list | revoke`: who may call a gateway over a network.

Tokens of one gateway are in a file where it runs; those of a cluster are in its state (`cluster.state_url`), from wherever
that is reached.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs
import click

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import print_json, print_table

if TYPE_CHECKING:
    from hasfaas.core.tokens import Grant

DAY_S = 86400.0


@click.group()
def token() -> None:
    """Tokens for callers on other machines."""


@token.command()
@click.argument("name")
@click.option("--scopes", metavar="SCOPES", required=True, help="Some of deploy,invoke,read.")
@click.option("--expires-days", type=click.FloatRange(min=0, min_open=True), help="Without it, until it is revoked.")
@json_option
@pass_shell
def create(shell: Shell, name: str, scopes: str, expires_days: float | None, as_json: bool) -> None:
    """Makes a token and prints it, this once: of its secret only a hash is kept.

    deploy: deploy, scale, delete and profile functions. invoke: call them. read: list, status, logs, explain. A running
    gateway takes it at once.
    """
    from hasfaas.core import tokens

    kept = _tokens(shell)
    now_s = time.time()
    expires_s = None if expires_days is None else now_s + DAY_S * expires_days
    made, grant = tokens.create(name, [one.strip() for one in scopes.split(",")], now_s=now_s, expires_s=expires_s)
    kept.add(grant)
    if as_json:
        row = {"name": grant.name, "scopes": list(grant.scopes), "expires": _instant(grant.expires_s)}
        print_json(row | {"token": made.text})
        return
    click.echo(made.text)
    ends = f"until {_instant(grant.expires_s)}" if grant.expires_s is not None else "until it is revoked"
    click.echo(
        f"token {grant.name} gives {', '.join(grant.scopes)} {ends}; it is not shown again. Put it in a file of mode 600 "
        "where the caller is, and name that in cluster.token_file",
        err=True,
    )


@token.command("list")
@json_option
@pass_shell
def list_tokens(shell: Shell, as_json: bool) -> None:
    """Lists the tokens, without their secrets, which nobody has."""
    now_s = time.time()
    grants = list(_tokens(shell).read().values())
    rows = [
        {
            "name": grant.name,
            "scopes": list(grant.scopes),
            "created": _instant(grant.created_s),
            "expires": _instant(grant.expires_s),
            "expired": grant.expired(now_s),
        }
        for grant in grants
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["token", "scopes", "created", "expires"],
        [
            (
                grant.name,
                ",".join(grant.scopes),
                _instant(grant.created_s) or "",
                f"{_instant(grant.expires_s) or 'never'}{', over' if grant.expired(now_s) else ''}",
            )
            for grant in grants
        ],
    )


@token.command()
@click.argument("name")
@pass_shell
def revoke(shell: Shell, name: str) -> None:
    """Takes a token back: a running gateway refuses it from the next call on, and ends its open streams within a second. A
    cluster's gateway hears of it within seconds."""
    _tokens(shell).remove(name)
    click.echo(f"{name}  revoked")


class _Tokens(Protocol):
    def read(self) -> Mapping[str, Grant]: ...

    def add(self, grant: Grant) -> None: ...

    def remove(self, name: str) -> None: ...


@attrs.frozen
class _TokenFile:
    path: Path

    def read(self) -> Mapping[str, Grant]:
        from hasfaas.core import token_file

        return token_file.read(self.path) if self.path.exists() else {}

    def add(self, grant: Grant) -> None:
        from hasfaas.core import token_file

        token_file.add(self.path, grant)

    def remove(self, name: str) -> None:
        from hasfaas.core import token_file

        token_file.remove(self.path, name)


def _tokens(shell: Shell) -> _Tokens:
    settings = shell.resolved.settings
    if settings.network.tokens_file is not None:
        return _TokenFile(settings.network.tokens_file)
    if settings.backend == "cluster" and settings.cluster.state_url is not None:
        from hasfaas.backends.cluster.shared_tokens import SharedTokens

        return SharedTokens(settings.cluster.state_url)
    raise InvalidRequestError(
        "network.tokens_file is not set: name the file in the gateway's configuration, such as [network] "
        'tokens_file = "~/.config/hasfaas/tokens.json"; for a cluster say backend = "cluster" and name its cluster.state_url',
        reason="BAD_OPTION",
    )


def _instant(unix_s: float | None) -> str | None:
    if unix_s is None:
        return None
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="seconds")
