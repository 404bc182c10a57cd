"""A served gateway of one's own for each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes.gateway_site import Session, Site, until


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: a unix socket's path has room for about a hundred bytes."""
    made = Path(tempfile.mkdtemp(prefix="hg"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def site(folder: Path) -> AsyncIterator[Site]:
    made = Site(folder)
    await made.server.start()
    yield made
    await until(lambda: made.router.outstanding == 0 and made.service.intake.clients == 0)
    await made.close()


@pytest.fixture
async def session(site: Site) -> AsyncIterator[Session]:
    made = Session(site)
    yield made
    made.stream.cancel()
