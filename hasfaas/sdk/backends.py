"""Finds a backend by its name, through entry points: the SDK imports none of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.settings import Settings

GROUP = "hasfaas.backends"


class Endpoint(Protocol):
    """Where a gateway listens, whether to trust it, and what it wants to see (backends/base.py says it in full)."""

    @property
    def address(self) -> str: ...

    @property
    def trusted(self) -> bool: ...

    @property
    def same_host(self) -> bool: ...

    @property
    def frames(self) -> Path | None: ...

    @property
    def roots(self) -> bytes | None: ...

    @property
    def token_file(self) -> Path | None: ...

    @property
    def server_name(self) -> str | None: ...

    @property
    def learn(self) -> Callable[[tuple[str, ...]], None] | None: ...


class Backend(Protocol):
    """What the SDK asks of a backend (backends/base.py says it in full)."""

    def endpoint(self, announce: Callable[[str], None]) -> Endpoint: ...

    def up(self) -> bool: ...

    def down(self) -> bool: ...

    def running(self) -> Endpoint | None: ...


def find_backend(settings: Settings) -> Backend:
    """The configured backend. Raises InvalidRequestError for a name that nothing offers, listing those that are."""
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if settings.backend not in known:
        raise InvalidRequestError(
            f"backend={settings.backend!r} is not installed; installed: {', '.join(sorted(known)) or 'none'}",
            reason="UNKNOWN_OPTION",
        )
    factory: Any = known[settings.backend].load()
    backend: Backend = factory(settings)
    return backend
