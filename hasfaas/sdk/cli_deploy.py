"""`hasfaas deploy` and `hasfaas delete`: what is deployed."""

from __future__ import annotations

import click

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.cli_app import Reference
from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import print_json, waiting


@click.command()
@click.argument("targets", metavar="APP.py[::NAME]...", nargs=-1, required=True)
@click.option("--warm/--no-warm", default=True, help="Wait until a replica is ready (the default), or only record it.")
@json_option
@pass_shell
def deploy(shell: Shell, targets: tuple[str, ...], warm: bool, as_json: bool) -> None:
    """Deploys the decorated functions of files, all of a file or the one named.

    With nothing running, a gateway is started, which ends some time after its last client.
    """
    client = shell.client  # before the files are imported: they share it
    functions = {fn.name: fn for target in targets for fn in _reference(target).functions()}
    built = [(fn, fn.deployable()) for fn in functions.values()]  # what cannot be built is told before anything is sent
    done: list[dict[str, object]] = []
    try:
        for function, deployable in built:
            with waiting(f"deploying {function.name}" + (", and starting a replica" if warm else "")):
                answer = client.run(client.deploy(deployable, warm=warm))
            done.append({"name": answer.name, "version": answer.version, "changed": answer.changed})
            if not as_json:
                click.echo(f"{answer.name}  {answer.version}  {'changed' if answer.changed else 'unchanged'}")
    finally:
        if as_json:
            print_json(done)


def _reference(target: str) -> Reference:
    found = Reference.parse(target)
    if found is None:
        raise InvalidRequestError(f"{target!r} is no Python file; say APP.py, or APP.py::NAME")
    return found


@click.command()
@click.argument("name")
@pass_shell
def delete(shell: Shell, name: str) -> None:
    """Deletes a function: its calls under way are finished, and its replicas end."""
    from hasfaas.wire.v1 import functions_pb2 as pb

    shell.running()
    with waiting(f"deleting {name}"):
        (found,) = shell.unary(lambda stub: stub.ListFunctions(pb.ListFunctionsRequest(name=name))).functions
        shell.unary(lambda stub: stub.DeleteFunction(pb.DeleteFunctionRequest(name=found.name)))
    click.echo(f"{found.name}  deleted")
