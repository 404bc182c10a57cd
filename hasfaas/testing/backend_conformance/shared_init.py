"""`share_init=True`: replicas fork from a process that has run `__init__`, or the function is refused."""

from __future__ import annotations

import pytest

from hasfaas import FunctionError, InvalidRequestError
from hasfaas.testing.apps import shared
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.running import RunningBackend
from hasfaas.testing.waiting import eventually


class SharedInit(Area):
    """`share_init=True`."""

    def test_init_runs_once_for_all_replicas(self, backend: RunningBackend) -> None:
        shared.Weights.deploy()
        shared.Weights.scale(replicas=3)
        answers = set(shared.Weights.map([7] * 60))
        assert {value for value, _, _ in answers} == {7}
        [parent] = {parent for _, parent, _ in answers}
        pids = {one.pid for one in backend.replicas("shared.Weights")}
        assert {pid for _, _, pid in answers} <= pids
        assert len(pids) == 3
        assert parent not in pids
        victim = min(pids)
        backend.kill_process(victim)
        eventually(lambda: {one.pid for one in backend.replicas("shared.Weights")} - pids)
        assert {parent for _, parent, _ in shared.Weights.map([7] * 60)} == {parent}

    def test_its_parent_ends_with_the_function(self, backend: RunningBackend) -> None:
        _, parent, _ = shared.Weights.remote(1)
        backend.delete("shared.Weights")
        eventually(lambda: not backend.alive(parent))

    def test_a_killed_parent_is_made_anew(self, backend: RunningBackend) -> None:
        _, parent, pid = shared.Weights.remote(1)
        backend.kill_process(parent)
        assert shared.Weights.remote(1)[1:] == (parent, pid)
        backend.kill_process(pid)
        eventually(lambda: [one for one in backend.replicas("shared.Weights") if one.pid != pid])
        assert shared.Weights.remote(2)[1] != parent

    def test_what_a_fork_cannot_share_is_refused(self, backend: RunningBackend) -> None:
        with pytest.raises(InvalidRequestError, match="2 threads, which forks cannot share") as caught:
            shared.Threaded.remote(1)
        assert caught.value.reason == "CANNOT_SHARE_INIT"

    def test_what_init_raises_comes_back_as_its_type(self, backend: RunningBackend) -> None:
        for _ in range(2):
            with pytest.raises(LookupError, match="no weights here") as caught:
                shared.Unborn.remote(1)
            assert isinstance(caught.value, FunctionError)
