"""The backends that the conformance suite runs on. A later one is one more entry here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import pytest

from hasfaas.backends.base import Endpoint
from hasfaas.backends.local.backend import LocalBackend
from hasfaas.core.settings import DeviceSettings
from tests.live import Gateway, gateway

# Each gives one lane: functions that nobody sized share it, and three pinned ones meet in it.
BACKENDS = {
    "cpu": (DeviceSettings(kind="cpu", cores=1),),
    "sim": (DeviceSettings(kind="sim"),),
    # The same gateway, called over gRPC alone, as from another host.
    "sim over grpc": (DeviceSettings(kind="sim"),),
}


class OverGrpc(LocalBackend):
    """The local backend to a client that may not use the gateway's frames."""

    def endpoint(self, announce: Callable[[str], None]) -> Endpoint:
        return attrs.evolve(super().endpoint(announce), frames=None)


@pytest.fixture(scope="session", params=sorted(BACKENDS))
def running(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """One gateway for all tests of one backend."""
    with gateway(*BACKENDS[request.param]) as made:
        if request.param.endswith("over grpc"):
            made.client._backend = OverGrpc(made.settings)
        yield made


@pytest.fixture
def backend(running: Gateway) -> Iterator[Gateway]:
    """A gateway with nothing deployed, that decorated functions go to."""
    running.use()
    yield running
    running.delete()
