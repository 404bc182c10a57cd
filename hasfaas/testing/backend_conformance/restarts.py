"""Deployed functions outlive the backend's processes, and its client finds it again."""

from __future__ import annotations

import contextlib

from hasfaas import IncompatibleError
from hasfaas.testing.apps import shares, verbs
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.running import RunningBackend
from hasfaas.testing.waiting import eventually


class Restarts(Area):
    """`up`, `down`, and what is left in between."""

    def test_what_was_deployed_and_sized_serves_after_a_restart(self, backend: RunningBackend) -> None:
        verbs.add.deploy(warm=False)
        before = shares.spin.remote(1)
        shares.spin.scale(quota=40)
        backend.restart()
        assert {one.name for one in backend.status().functions} == {"shares.spin", "verbs.add"}
        assert shares.spin.remote(1) != before
        assert backend.replica("shares.spin").quota_percent == 40.0
        assert verbs.add.remote(1) == 2
        eventually(lambda: not backend.alive(before))

    def test_a_backend_that_runs_is_found_and_not_started_again(self, backend: RunningBackend) -> None:
        asked, told = backend.client.backend, len(backend.said)
        found, before = asked.running(), backend.status()
        assert found is not None
        assert asked.endpoint(backend.said.append).address == found.address
        with contextlib.suppress(IncompatibleError):  # from one that starts none
            assert not asked.up()
        assert asked.running() == found
        assert backend.status().pid == before.pid
        assert len(backend.said) == told
