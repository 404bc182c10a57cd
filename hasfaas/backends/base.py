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
    """Where a gateway listens, as gRPC writes it (`unix:/path`). `trusted` means that it runs as this user on this
    machine, so a client may rebuild pickled results that come from it. `frames` is the
    unix socket where it also takes calls by frames."""

    address: str
    trusted: bool
    frames: Path | None = None


class Backend(Protocol):
    """One way to serve functions."""

    def endpoint(self, announce: Callable[[str], None]) -> Endpoint:
        """A gateway that answers, started if need be, of which `announce` is told in one line. Raises BackendError."""
        ...

    def up(self) -> bool:
        """Starts a gateway that stays; False when one is running, which then stays too."""
        ...

    def down(self) -> bool:
        """Ends the gateway after its calls; False when there is none."""
        ...

    def running(self) -> Endpoint | None:
        """The gateway that answers now, None when there is none."""
        ...
