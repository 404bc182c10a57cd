"""The backends that the conformance suite runs on. A later one is one more entry here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hasfaas.core.settings import DeviceSettings
from tests.live import Gateway, gateway

# Each gives one lane: functions that nobody sized share it, and three pinned ones meet in it.
BACKENDS = {
    "cpu": (DeviceSettings(kind="cpu", cores=1),),
    "sim": (DeviceSettings(kind="sim"),),
}


@pytest.fixture(scope="session", params=sorted(BACKENDS))
def running(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """One gateway for all tests of one backend."""
    with gateway(*BACKENDS[request.param]) as made:
        yield made


@pytest.fixture
def backend(running: Gateway) -> Iterator[Gateway]:
    """A gateway with nothing deployed, that decorated functions go to."""
    running.use()
    yield running
    running.delete()
