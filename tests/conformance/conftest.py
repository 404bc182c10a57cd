"""The backends that the conformance suite runs on. A later one is one more entry here.

The whole suite on one of those that `AREAS` limits, such as on nodes with networks of their own (as root):
`HASFAAS_ALL_AREAS=1 make test ARGS="tests/conformance -k namespaces"`
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import attrs
import pytest

from hasfaas.backends.base import Endpoint
from hasfaas.backends.local.backend import LocalBackend
from hasfaas.core.settings import DeviceSettings
from hasfaas.testing.running import RunningBackend
from tests.clustered import clustered
from tests.live import gateway
from tests.namespaces import network
from tests.rayed import rayed

# Each gives one lane: functions that nobody sized share it, and three pinned ones meet in it.
BACKENDS = {
    "cpu": (DeviceSettings(kind="cpu", cores=1),),
    "sim": (DeviceSettings(kind="sim"),),
    # The same gateway, called over gRPC alone, as from another host.
    "sim over grpc": (DeviceSettings(kind="sim"),),
    # A cluster of one node, on which the gateway is not: every call goes over TLS and a token to the gateway, over mutual TLS
    # to the node's agent, and on to the replica.
    "sim over nodes": (DeviceSettings(kind="sim"),),
    # Two nodes and a gateway in network namespaces of their own: nothing goes by loopback.
    "sim over namespaces": (DeviceSettings(kind="sim"),),
    # Three raylets of a real Ray cluster, of which one has a device.
    "sim on raylets": (DeviceSettings(kind="sim", node="right"),),
    "cpu on raylets": (DeviceSettings(kind="cpu", cores=1, node="middle"),),
}


AREAS = {
    "over grpc": ("LargeValues",),
    "over namespaces": ("CallVerbs", "StreamVerbs", "LargeValues"),
    "cpu on raylets": (),
    "on raylets": ("CallVerbs", "Restarts"),
}
"""The areas that the way to the gateway can change. What lanes do is decided beyond it, and would take half as long again."""

ELSEWHERE = ("over nodes", "over namespaces", "on raylets")
"""Where clients come in by a network, which names no interpreters and has no folder of the gateway's."""

MEASURED = ("QuotaShares", "ProfileVerbs")
"""The areas that measure."""


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _area(item) in MEASURED or _backend(item).endswith("on raylets"):
            item.add_marker(pytest.mark.alone)
    left_out = [item for item in items if not _wanted(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _wanted(item: pytest.Item) -> bool:
    backend = _backend(item)
    if _area(item) == "TestBeyondTheContract" and backend.endswith(ELSEWHERE):
        return False
    areas = next((areas for way, areas in AREAS.items() if backend.endswith(way)), None)
    if os.environ.get("HASFAAS_ALL_AREAS"):
        return True
    return areas is None or _area(item) in areas


def _backend(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("running", "")) if callspec is not None else ""


def _area(item: pytest.Item) -> str:
    """The class that says what a test of the suite is about, whoever inherits it."""
    cls, name = getattr(item, "cls", None), getattr(item, "originalname", "")
    return [one.__name__ for one in cls.__mro__ if name in vars(one)][-1] if cls is not None else ""


class OverGrpc(LocalBackend):
    """The local backend to a client that may not use the gateway's frames."""

    def endpoint(self, announce: Callable[[str], None]) -> Endpoint:
        return attrs.evolve(super().endpoint(announce), frames=None)


@contextmanager
def in_namespaces(devices: tuple[DeviceSettings, ...]) -> Iterator[RunningBackend]:
    """A cluster of two nodes; its gateway and both agents have namespaces of their own. The one node is too small for any
    function, since the suite is about one lane."""
    small = (DeviceSettings(kind="sim", memory="1MiB"),)
    with (
        network("front", "small", "far") as net,
        clustered({"small": small, "far": devices}, hosts=net.hosts, prefixes=net.prefixes) as made,
    ):
        yield made


def _started(backend: str) -> AbstractContextManager[RunningBackend]:
    devices = BACKENDS[backend]
    if backend.endswith("over namespaces"):
        return in_namespaces(devices)
    if backend.endswith("on raylets"):
        pytest.importorskip("ray", reason="Ray is not installed (pip install 'hasfaas[cluster]')")
        return rayed(*devices)
    if backend.endswith("over nodes"):
        return clustered({"far": devices})
    return gateway(*devices)


@pytest.fixture(scope="session", params=sorted(BACKENDS))
def running(request: pytest.FixtureRequest) -> Iterator[RunningBackend]:
    """One gateway for all tests of one backend."""
    with _started(request.param) as made:
        if request.param.endswith("over grpc"):
            made.client._backend = OverGrpc(made.settings)
        yield made
