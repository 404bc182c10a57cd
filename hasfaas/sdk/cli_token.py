"""`hasfaas token create | list | revoke`: who may call a gateway over a network. Run where the gateway runs, as its user."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import click

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import print_json, print_table

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
    from hasfaas.core import token_file, tokens

    path = _file(shell)
    now_s = time.time()
    expires_s = None if expires_days is None else now_s + DAY_S * expires_days
    made, grant = tokens.create(name, [one.strip() for one in scopes.split(",")], now_s=now_s, expires_s=expires_s)
    token_file.add(path, grant)
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
    from hasfaas.core import token_file

    path, now_s = _file(shell), time.time()
    grants = list(token_file.read(path).values()) if path.exists() else []
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
    """Takes a token back: a running gateway refuses it from the next call on, and ends its open streams within a second."""
    from hasfaas.core import token_file

    token_file.remove(_file(shell), name)
    click.echo(f"{name}  revoked")


def _file(shell: Shell) -> Path:
    found = shell.resolved.settings.network.tokens_file
    if found is None:
        raise InvalidRequestError(
            "network.tokens_file is not set: name the file in the gateway's configuration, such as [network] "
            'tokens_file = "~/.config/hasfaas/tokens.json"',
            reason="BAD_OPTION",
        )
    return found


def _instant(unix_s: float | None) -> str | None:
    if unix_s is None:
        return None
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="seconds")
