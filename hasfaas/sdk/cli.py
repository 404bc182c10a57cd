"""The shell: `hasfaas` and its commands.

Exit codes: 0 ok, 2 usage (also a bad request, an unknown function), 3 the user's function raised, 5 unavailable.
Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from hasfaas.core.errors import HasFaasError
from hasfaas.core.version import VERSION
from hasfaas.sdk.cli_certs import certs
from hasfaas.sdk.cli_cluster import cluster
from hasfaas.sdk.cli_config import config
from hasfaas.sdk.cli_deploy import delete, deploy
from hasfaas.sdk.cli_doctor import doctor
from hasfaas.sdk.cli_explain import explain
from hasfaas.sdk.cli_gateway import down, status, up
from hasfaas.sdk.cli_invoke import invoke
from hasfaas.sdk.cli_plan import plan
from hasfaas.sdk.cli_predict import predict
from hasfaas.sdk.cli_profile import profile
from hasfaas.sdk.cli_rapp import rapp
from hasfaas.sdk.cli_replay import replay
from hasfaas.sdk.cli_replicas import logs, ps, scale
from hasfaas.sdk.cli_shell import Shell, exit_code, report
from hasfaas.sdk.cli_simulate import simulate
from hasfaas.sdk.cli_token import token

# As a shell reports a process that ended by SIGINT or SIGPIPE.
INTERRUPTED, NOBODY_READS = 130, 141


class Commands(click.Group):
    """Turns what a command raises into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except HasFaasError as exc:
            report(exc, show_traceback=ctx.params["traceback"])
            ctx.exit(exit_code(exc))
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # `hasfaas ps | head -1`: nothing to tell, and Python's own last flush must not complain either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(NOBODY_READS)
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are used."""
        return list(self.commands)


def _pairs(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in given:
        key, mark, value = text.partition("=")
        if not mark or not key:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE, such as local.window_ms=50", ctx=ctx, param=param)
        pairs[key] = value
    return pairs


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--backend", metavar="NAME", help="Where functions run; `local` is this machine.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, callback=_pairs, help="A setting; repeatable.")
@click.option("--traceback", is_flag=True, help="With an error, show where in hasfaas it was raised.")
@click.version_option(VERSION, package_name="hasfaas")
@click.pass_context
def cli(ctx: click.Context, backend: str | None, settings: dict[str, str], traceback: bool) -> None:
    """Serves Python functions from slices of a device.

    Exit codes: 0 ok, 2 usage, 3 the user's function raised, 5 unavailable.
    """
    options = settings | ({"backend": backend} if backend is not None else {})
    ctx.obj = Shell(options, connect=ctx.obj)
    ctx.call_on_close(ctx.obj.close)


for _command in (
    up,
    down,
    status,
    deploy,
    invoke,
    predict,
    ps,
    scale,
    profile,
    plan,
    explain,
    replay,
    simulate,
    logs,
    delete,
    rapp,
    doctor,
    token,
    certs,
    cluster,
    config,
):
    cli.add_command(_command)


def main() -> None:
    """The console script."""
    cli.main(prog_name="hasfaas")
