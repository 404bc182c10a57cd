"""The two doors a user's function has to its lease: `gate()` and `host()`.

In plain local code there is no lease and both do nothing. A replica process installs its own with `install`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Lease(Protocol):
    """The right to use a lane of a device, for a while."""

    def gate(self) -> None:
        """A yield point: returns at once while the lease lasts, else waits for the next one."""
        ...

    def suspend(self) -> bool:
        """Gives the lane up for host work; says whether `resume` is to be called after it."""
        ...

    def resume(self) -> None:
        """Waits until the lane is held again."""
        ...


_installed: list[Lease] = []


def install(lease: Lease) -> None:
    """Makes `lease` the one that `gate` and `host` act on, in this process."""
    _installed[:] = [lease]


def gate() -> None:
    """A voluntary yield point for device code that is not made of torch modules. About every millisecond is right."""
    if _installed:
        _installed[0].gate()


@contextlib.contextmanager
def host() -> Iterator[None]:
    """Gives the device up while the body does host work (decoding, tokenising), and takes it back after."""
    held = bool(_installed) and _installed[0].suspend()
    try:
        yield
    finally:
        if held:
            _installed[0].resume()
