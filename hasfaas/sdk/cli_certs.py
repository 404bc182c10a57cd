"""`hasfaas certs init`: what a gateway needs to speak TLS, and its clients to believe it."""

from __future__ import annotations

import datetime
import socket
from pathlib import Path

import click

from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import print_json

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@click.group()
def certs() -> None:
    """Certificates for a gateway on a network."""


@certs.command()
@click.option("--host", "hosts", metavar="NAME", multiple=True, help="Name or address that clients use; repeatable.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Folder; without it certs in state_dir.")
@json_option
@pass_shell
def init(shell: Shell, hosts: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Makes a private authority (365 days) and a server certificate (90 days), for this machine's names without --host.

    Where the authority is there already, only the server certificate is made anew: clients keep their ca.pem, and a running
    gateway takes the new one for its next connection. Keys are readable by you alone; ca.key makes more certificates, so keep
    it where few can take it.
    """
    from hasfaas.backends import certificates

    folder = (out or shell.resolved.settings.state_dir / "certs").absolute()
    names = hosts or tuple(dict.fromkeys((*THIS_MACHINE, socket.gethostname())))
    made = certificates.make(folder, names, datetime.datetime.now(datetime.UTC))
    if as_json:
        print_json(
            {
                "ca_file": str(made.ca_file),
                "cert_file": str(made.cert_file),
                "key_file": str(made.key_file),
                "hosts": list(made.hosts),
                "ca_ends": made.authority_ends.isoformat(),
                "cert_ends": made.server_ends.isoformat(),
                "renewed": made.renewed,
            }
        )
        return
    click.echo(f"{made.ca_file}  {'kept' if made.renewed else 'made'}, ends {made.authority_ends:%Y-%m-%d}")
    click.echo(f"{made.cert_file}  made for {', '.join(made.hosts)}, ends {made.server_ends:%Y-%m-%d}")
    click.echo(f"{made.key_file}  its key")
    click.echo(
        "the gateway: network.cert_file, network.key_file; clients: a copy of ca.pem as cluster.ca_file", err=True
    )
