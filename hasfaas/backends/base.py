"""What a backend is, from a client's side: somewhere a gateway can be reached, started and ended.

Backends are found by the entry point group `hasfaas.backends`; each is called with the resolved settings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import attrs


@attrs.frozen
class Endpoint:
    """Where a gateway listens, as gRPC writes it (`unix:/path`, `host:port`).

    `trusted` means that a client may rebuild pickled results that come from it: it runs as this user on this machine, or the
    user's own configuration names the authority of its certificate. With `same_host` it shares memory with its clients, and
    `frames` is the unix socket where it also takes calls by frames. `roots` are the certificates (PEM) of which one must have
    signed its own, and `server_name` is the name in that, where it is not the address's; without roots the line is plain.
    `token_file` holds the token to be shown with each RPC. `learn` is told other addresses of the gateway, whenever it names
    some.
    """

    address: str
    trusted: bool
    same_host: bool = False
    frames: Path | None = None
    roots: bytes | None = attrs.field(default=None, repr=False)
    token_file: Path | None = None
    server_name: str | None = None
    learn: Callable[[tuple[str, ...]], None] | None = attrs.field(default=None, eq=False, repr=False)


class Backend(Protocol):
    """One way to serve functions."""

    def endpoint(self, announce: Callable[[str], None]) -> Endpoint:
        """A gateway that answers, started if need be, of which `announce` is told in one line. Raises BackendError, and
        UnavailableError where none answers and none can be started."""
        ...

    def up(self) -> bool:
        """Starts a gateway that stays; False when one is running, which then stays too. Raises IncompatibleError where the
        backend starts none."""
        ...

    def down(self) -> bool:
        """Ends the gateway after its calls; False when there is none. Raises IncompatibleError likewise."""
        ...

    def running(self) -> Endpoint | None:
        """The gateway that answers now, None when there is none. A backend that starts none may raise UnavailableError
        instead, which says why."""
        ...
