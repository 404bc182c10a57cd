"""`hasfaas invoke`: calls a deployed function by its name, or one of a file, which is deployed first."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from hasfaas.sdk import cli_arguments as arguments
from hasfaas.sdk.cli_app import Reference
from hasfaas.sdk.cli_arguments import Given
from hasfaas.sdk.cli_result import Output
from hasfaas.sdk.cli_shell import Shell, pass_shell
from hasfaas.sdk.cli_table import waiting

if TYPE_CHECKING:
    from hasfaas.sdk.client import Client

NEGATIVE = re.compile(r"-(\d|\.\d).*")


@attrs.frozen(eq=False)
class Prepared:
    """A call that has been checked and not been made."""

    name: str
    streams: bool
    one: Callable[[], Coroutine[Any, Any, Any]]
    many: Callable[[], AsyncIterator[Any]]


class InvokeCommand(click.Command):
    """Takes a negative number as an argument, where click would look for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # JSON allows the space, and click no longer sees an option.
        return super().parse_args(ctx, [f" {text}" if NEGATIVE.fullmatch(text) else text for text in args])


@click.command(cls=InvokeCommand)
@click.argument("target", metavar="NAME|APP.py::NAME")
@click.argument("args", nargs=-1)
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), help="Seconds to wait.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the result to .npy or .json.")
@pass_shell
def invoke(shell: Shell, target: str, args: tuple[str, ...], timeout_s: float | None, out: Path | None) -> None:
    """Calls a function and prints its result as JSON.

    Each of ARGS is JSON where it parses as JSON, else text. key=value is a keyword argument. @FILE is what a file holds
    (.npy, .npz, .json, .png, .jpg, .txt, else bytes), - is standard input (an array in .npy form, JSON, or text), and
    @@text is text that starts with @.

    NAME is what has been deployed. APP.py::NAME imports the file, deploys the function, and calls it.
    """
    output = Output(out)
    given = arguments.parse(args, lambda: sys.stdin.buffer.read())
    reference = Reference.parse(target)
    if reference is None:
        prepared = _of_name(shell, target, given, timeout_s)
    else:
        prepared = _of_file(shell, reference, given, timeout_s)
    output.begin(streams=prepared.streams)
    if prepared.streams:
        for item in _items(shell.client, prepared.many()):
            output.write(item)
    else:
        with waiting(f"calling {prepared.name}"):
            value = shell.client.run(prepared.one())
        output.write(value)
    output.end()


def _of_file(shell: Shell, reference: Reference, given: Given, timeout_s: float | None) -> Prepared:
    client = shell.client
    function = reference.function()
    payload = function.encode(given.args, given.kwargs)
    allowed_s = timeout_s or function.deployable().spec.timeout_s
    return Prepared(
        function.name,
        function.kind.streams,
        lambda: client.call(function, payload, allowed_s),
        lambda: client.stream(function, payload, allowed_s),
    )


def _of_name(shell: Shell, name: str, given: Given, timeout_s: float | None) -> Prepared:
    from hasfaas.core.spec import Kind
    from hasfaas.wire.payload import encode_arguments
    from hasfaas.wire.v1 import functions_pb2 as pb

    payload = encode_arguments(given.args, given.kwargs)
    client = shell.client
    (found,) = shell.unary(lambda stub: stub.ListFunctions(pb.ListFunctionsRequest(name=name))).functions
    allowed_s = timeout_s or found.spec.timeout_s
    return Prepared(
        found.name,
        Kind(found.kind).streams,
        lambda: client.call_named(found.name, payload, allowed_s),
        lambda: client.stream_named(found.name, payload, allowed_s),
    )


def _items(client: Client, items: AsyncIterator[Any]) -> Iterator[Any]:
    """The items of a stream as they come."""
    ended = object()

    async def following() -> Any:
        return await anext(items, ended)

    while (item := client.run(following())) is not ended:
        yield item
