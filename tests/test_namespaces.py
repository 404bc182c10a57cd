"""Namespaces for tests: they reach one another until a link is down, and nothing of them stays, whoever made them and however
that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.live import ROOT
from tests.namespaces import INSIDE, Network, left_by, network, sweep

MAKES_ONE_AND_WAITS = """
from tests.namespaces import network
with network("a") as net:
    print(net.spaces["a"].netns, flush=True)
    input()
"""


def reaches(net: Network, name: str, host: str) -> bool:
    """Whether a connection from there gets an answer, and be it that nobody listens."""
    connects = f"import socket; print(socket.socket().connect_ex(('{host}', 9)) == 111)"
    command = [*net.prefixes[name], "timeout", "1", sys.executable, "-c", connects]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout == "True\n"


def test_namespaces_reach_one_another_but_for_one_whose_link_is_down() -> None:
    with network("a", "b") as net, network("a") as another:
        assert len({*net.hosts.values(), *another.hosts.values()}) == 3
        a, b = net.hosts["a"], net.hosts["b"]
        assert reaches(net, "a", a) and reaches(net, "a", b)
        with net.cut("b"):
            assert not reaches(net, "a", b)
        assert reaches(net, "b", a)
    assert left_by(os.getpid()) == []


def test_a_slow_link_is_as_before_afterwards() -> None:
    with network("a") as net:
        space = net.spaces["a"]
        shown = ("tc", "-n", space.netns, "qdisc", "show", "dev", INSIDE)
        before = subprocess.check_output(shown)
        with net.slow("a", mbit=10, queue_ms=50):
            assert b"tbf" in subprocess.check_output(shown)
        assert subprocess.check_output(shown) == before


def test_what_a_test_that_died_has_left_is_removed_by_the_next() -> None:
    with network():  # skips where it must
        pass
    made = subprocess.Popen([sys.executable, "-c", MAKES_ONE_AND_WAITS], cwd=ROOT, stdin=subprocess.PIPE, stdout=-1)
    assert made.stdout is not None and made.stdin is not None
    assert made.stdout.readline()
    sweep()
    assert len(left_by(made.pid)) == 3, "a bridge, a link and a namespace of one that lives stay"
    made.send_signal(signal.SIGKILL)
    made.wait()
    assert len(left_by(made.pid)) == 3
    sweep()
    assert left_by(made.pid) == []
    made.stdin.close()
    made.stdout.close()


def test_without_root_it_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import namespaces

    monkeypatch.setattr(namespaces, "why_not", namespaces.why_not.__wrapped__)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pytest.skip.Exception, match="need root"), network("a"):
        pass
    assert left_by(os.getpid()) == []
