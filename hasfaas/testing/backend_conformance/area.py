"""What the areas of the suite share: the fixture through which each test meets the backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hasfaas.testing.running import RunningBackend


class Area:
    """One area of the contract. A test module of one's own gives the fixture `running`."""

    @pytest.fixture
    def backend(self, running: RunningBackend) -> Iterator[RunningBackend]:
        """The running backend with nothing deployed, that decorated functions go to."""
        running.use()
        yield running
        running.delete()
