"""The bundles that a node has been sent, as files named by their content."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from hasfaas.core.errors import AuthError, NotFoundError
from hasfaas.core.own_file import write_own
from hasfaas.wire.frames import Buffer

ARRIVAL_TIMEOUT_S = 60.0


class Bundles:
    """One folder, made with mode 0700. What a replica runs is checked again there, signature and all."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._arrivals: dict[str, asyncio.Event] = {}

    def put(self, sha256: str, content: Buffer) -> None:
        """Keeps a bundle. Raises AuthError for one that is not what its name says."""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise AuthError(
                f"bundle {sha256[:12]}: its content is another; it was altered on its way", reason="TAMPERED"
            )
        write_own(self.path(sha256), bytes(content))
        if (arrival := self._arrivals.pop(sha256, None)) is not None:
            arrival.set()

    def clear(self) -> None:
        """Another gateway begins, and sends what it needs."""
        for path in self._folder.glob("*.bundle"):
            path.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """The file of a bundle, which may be on its way."""
        return self._folder / f"{sha256}.bundle"

    async def wait(self, sha256: str) -> Path:
        """The file of a bundle that is here, or comes in time. NotFoundError for one that does not."""
        path = self.path(sha256)
        if not path.is_file():
            arrival = self._arrivals.setdefault(sha256, asyncio.Event())
            try:
                await asyncio.wait_for(arrival.wait(), ARRIVAL_TIMEOUT_S)
            except TimeoutError as exc:
                raise NotFoundError(f"bundle {sha256[:12]} did not come to this node") from exc
        return path
