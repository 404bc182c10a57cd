"""What our own backend keeps besides: its store, the interpreters that it starts, and how many replicas a device takes."""

from __future__ import annotations

import pytest

from hasfaas import AuthError, HasFaasError, PlacementError, function
from hasfaas.testing.apps import shares, verbs
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.backend_conformance.bad_input import forged, request
from tests.live import Gateway, eventually


@function(slo_ms=100, memory="16MiB", replicas=(0, 60), name="slots.many")
def many(x: int) -> int:
    """Small enough for more replicas than a device has slots."""
    return x


class TestBeyondTheContract(Area):
    """On every entry of conftest.py."""

    def test_a_bundle_altered_on_the_disk_is_not_loaded(self, backend: Gateway) -> None:
        verbs.slowly.deploy()
        made = verbs.slowly.deployable()
        [path] = [
            one for one in backend.settings.state_dir.joinpath("bundles").iterdir() if one.read_bytes() == made.bundle
        ]
        path.write_bytes(forged(made, kind="function"))
        verbs.slowly.scale(replicas=0)
        with pytest.raises(AuthError, match="altered"):
            verbs.slowly.remote(1)
        path.write_bytes(made.bundle)
        eventually(lambda: not backend.replicas("verbs.slowly"))
        verbs.slowly.deploy()
        assert verbs.slowly.remote(1) == 2

    def test_an_interpreter_that_is_not_there_is_told(self, backend: Gateway) -> None:
        made = verbs.add.deployable()
        assert verbs.add.remote(1) == 2
        pid = backend.replica("verbs.add").pid
        for python in ("/no/such/python3", "/bin/false"):
            bundle = forged(made, python=python, version="0" * 16)
            with pytest.raises(HasFaasError, match=python):
                backend.deploy_raw(request(backend, made, bundle=bundle, version="0" * 16))
        assert verbs.add.remote(1) == 2
        assert backend.replica("verbs.add").pid == pid

    def test_a_device_whose_slots_are_all_taken_says_so_and_goes_on(self, backend: Gateway) -> None:
        many.deploy()
        with pytest.raises(PlacementError, match="all 48 slots"):
            many.scale(replicas=49)
        eventually(lambda: len(backend.function("slots.many").replicas) == 1)
        many.scale(replicas=48)
        for _ in range(2):
            with pytest.raises(PlacementError, match="all 48 slots"):
                shares.spin.remote(1)
        many.scale(replicas=1)
        assert shares.spin.remote(1) > 0
        assert backend.replica("shares.spin").quota_percent == pytest.approx(50, abs=0.1)
        assert backend.replica("slots.many").quota_percent == pytest.approx(50, abs=0.1)
