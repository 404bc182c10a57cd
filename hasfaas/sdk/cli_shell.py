"""What the shell's commands share: the settings, the client, and the exit code of each error.

Law: importing this costs click and nothing else of weight; gRPC and numpy come with the first command that needs them.
"""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hasfaas.core.errors import (
    FunctionError,
    HasFaasError,
    InvalidRequestError,
    MemoryLimitError,
    NotFoundError,
    SLOInfeasibleError,
    UnavailableError,
)

if TYPE_CHECKING:
    from hasfaas.core.settings import Settings
    from hasfaas.sdk.client import Client
    from hasfaas.sdk.config import Resolved

T = TypeVar("T")
USAGE, USER_CODE, UNAVAILABLE = 2, 3, 5
"""Exit codes, besides 0. 1 is Python's own for an exception that nobody expected: a bug of ours."""
_CODES: tuple[tuple[type[HasFaasError], int], ...] = (
    (FunctionError, USER_CODE),
    (MemoryLimitError, USER_CODE),  # the user's code asked for more than its `memory=`
    (InvalidRequestError, USAGE),
    (NotFoundError, USAGE),
    (SLOInfeasibleError, USAGE),
)


def exit_code(exc: HasFaasError) -> int:
    """2 for what the caller got wrong, 3 for what the user's function raised, 5 for whatever else is in the way."""
    return next((code for cls, code in _CODES if isinstance(exc, cls)), UNAVAILABLE)


def report(exc: HasFaasError, *, show_traceback: bool) -> None:
    """One worded message on standard error, and no traceback of ours unless asked for."""
    whole = "".join(traceback.format_exception(exc)) if show_traceback else ""
    click.echo(f"{whole}hasfaas: {worded(exc)}", err=True)


def worded(exc: HasFaasError) -> str:
    """The error as text. What the user's function raised is shown with its remote frames, as Python would show it."""
    notes = "".join(f"\n{note}" for note in getattr(exc, "__notes__", ()))
    if not isinstance(exc, FunctionError):
        return f"{exc.message or type(exc).__name__}{notes}"
    head = f"{exc.qualname}: {exc.message}" if exc.message else exc.qualname
    frames = "".join(f"{frame}\n" for frame in exc.frames)
    where = f"\nRemote traceback (most recent call last):\n{frames}{head}" if frames else ""
    return f"the function raised {head}{where}{notes}"


class Shell:
    """One run of the shell. Settings are read and the client is made when a command first asks for them."""

    def __init__(self, options: Mapping[str, object], connect: Callable[[Settings], Client] | None = None) -> None:
        self._options = options
        self._connect = connect or _connect
        self._client: Client | None = None

    @cached_property
    def resolved(self) -> Resolved:
        """The settings and their origins, the command line's own included."""
        from hasfaas.sdk.config import load

        return load(cli=self._options)

    @property
    def client(self) -> Client:
        """The client, which starts a gateway if none runs. A user's module imported by the shell shares it."""
        if self._client is None:
            from hasfaas.sdk.client import set_default_client

            self._client = self._connect(self.resolved.settings)
            set_default_client(self._client)
        return self._client

    def running(self) -> Client:
        """The client where a gateway runs, else UnavailableError: nothing is started only to be looked at."""
        if self.client.backend.running() is None:
            raise UnavailableError("no gateway is running; start one with `hasfaas up`", reason="NO_GATEWAY")
        return self.client

    def unary(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """Does one RPC: `call` is given the stub of the session."""
        client = self.client

        async def answer() -> T:
            session = await client.session()
            return await client.rpc(call(session.stub))

        return client.run(answer())

    def follow(self, call: Callable[[Any], AsyncIterator[T]]) -> Iterator[T]:
        """The answers of a streaming RPC as they come: `call` is given the stub of the session."""
        client = self.client

        async def begin() -> AsyncIterator[T]:
            session = await client.session()
            return call(session.stub)

        answers = client.run(begin())

        async def following() -> T | None:
            return await client.rpc(anext(aiter(answers), None))

        while (answer := client.run(following())) is not None:
            yield answer

    def close(self) -> None:
        """Ends the connection."""
        if self._client is not None:
            from hasfaas.sdk.client import set_default_client

            set_default_client(None)
            self._client.run(self._client.close())


def _connect(settings: Settings) -> Client:
    from hasfaas.sdk.client import Client

    return Client(settings)


pass_shell = click.make_pass_decorator(Shell)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
