"""`share_init=True`: replicas fork from a process that has run `__init__`, or the function is refused."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from hasfaas import FunctionError, InvalidRequestError
from tests.live import Gateway, app, eventually

shared = app("shared")


def test_init_runs_once_for_all_replicas(backend: Gateway) -> None:
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
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: {one.pid for one in backend.replicas("shared.Weights")} - pids)
    assert {parent for _, parent, _ in shared.Weights.map([7] * 60)} == {parent}


def test_its_parent_ends_with_the_function(backend: Gateway) -> None:
    _, parent, _ = shared.Weights.remote(1)
    process = psutil.Process(parent)
    backend.delete("shared.Weights")
    eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


def test_a_killed_parent_is_made_anew(backend: Gateway) -> None:
    _, parent, pid = shared.Weights.remote(1)
    os.kill(parent, signal.SIGKILL)
    assert shared.Weights.remote(1)[1:] == (parent, pid)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: [one for one in backend.replicas("shared.Weights") if one.pid != pid])
    assert shared.Weights.remote(2)[1] != parent


def test_what_a_fork_cannot_share_is_refused(backend: Gateway) -> None:
    with pytest.raises(InvalidRequestError, match="2 threads, which forks cannot share") as caught:
        shared.Threaded.remote(1)
    assert caught.value.reason == "CANNOT_SHARE_INIT"


def test_what_init_raises_comes_back_as_its_type(backend: Gateway) -> None:
    for _ in range(2):
        with pytest.raises(LookupError, match="no weights here") as caught:
            shared.Unborn.remote(1)
        assert isinstance(caught.value, FunctionError)
