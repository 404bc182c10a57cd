"""A supervised child process: its start, its refusal, its lines, its log, its end, with a child that speaks the contract."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hasfaas.backends.cluster import child as lines
from hasfaas.backends.cluster import supervisor
from hasfaas.backends.cluster.child import Ask, Identity, Line, NodeAddress, Nodes, Place, StartGateway, Stop
from hasfaas.backends.cluster.supervisor import BoundedLog, Child
from hasfaas.core.errors import BackendError, PlacementError, UnavailableError
from hasfaas.testing.waiting import eventually
from tests.fakes import cluster_child

ROOT = Path(__file__).parents[2]
PLACE = Place("id1", "gpu1", "127.0.0.1")
NODES = Nodes((NodeAddress(PLACE, 4711),))
Start = Callable[..., Child]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Start]:
    """Makes children that misbehave as told; what is left of them is ended."""
    made: list[Child] = []

    def make(mode: str = "", heard: Callable[[Line], None] = lambda _line: None, tokens: str = "") -> Child:
        identity = Identity("ca", "cert", "key", "00")
        start = StartGateway(PLACE, identity, "{}", str(tmp_path / "state"), str(tmp_path / "run"), tokens)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_CHILD": mode}
        made.append(Child("tests.fakes.cluster_child", start, heard=heard, environment=environment))
        return made[-1]

    yield make
    for one in made:
        if one.pid is not None and psutil.pid_exists(one.pid):
            os.kill(one.pid, signal.SIGKILL)


def _heard(tmp_path: Path) -> list[Line]:
    path = tmp_path / "state" / "heard"
    return [lines.read(text) for text in path.read_text().splitlines()] if path.exists() else []


def test_a_child_is_ready_hears_lines_and_stops(make: Start, tmp_path: Path) -> None:
    one = make()
    ready = one.start(30)
    assert (ready.port, ready.generation) == (one.pid, cluster_child.GENERATION)
    one.send(NODES)
    assert one.stop(30)
    assert one.wait() == 0
    assert _heard(tmp_path) == [NODES, Stop()]
    assert not (tmp_path / "run").exists(), "its sockets are gone, its log stays"
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_what_it_asks_for_is_passed_on(make: Start, tmp_path: Path) -> None:
    asked: list[Line] = []
    one = make(heard=asked.append)
    one.start(30)
    (tmp_path / "state" / "ask").write_text('[{"GPU": 1}]')
    one.send(NODES)
    eventually(lambda: asked == [Ask(({"GPU": 1},))])
    one.end()


def test_a_long_start_line_reaches_it_whole(make: Start) -> None:
    """Longer than a pipe holds: it is written in parts, to a child that has yet to read."""
    one = make(tokens="x" * 300_000)
    assert one.start(30).port == one.pid
    one.end()


def test_a_refusal_is_raised_as_what_it_is(make: Start) -> None:
    one = make("refuse")
    with pytest.raises(PlacementError, match="no room for a gateway"):
        one.start(30)
    assert one.wait() == 0


def test_a_child_that_dies_is_told_with_the_end_of_its_log(make: Start) -> None:
    with pytest.raises(BackendError, match="code 9") as caught:
        make("die").start(30)
    assert caught.value.reason == "CHILD_LOST"
    assert "a library said why" in caught.value.message


def test_a_child_that_says_nothing_is_ended(make: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ENDS_WITHIN_S", 0.2)
    one = make("silent")
    with pytest.raises(BackendError) as caught:
        one.start(0.5)
    assert caught.value.reason == "START_TIMEOUT"
    assert one.wait() == -signal.SIGKILL


def test_a_child_that_does_not_stop_is_ended(make: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ENDS_WITHIN_S", 0.2)
    one = make("stubborn")
    one.start(30)
    assert not one.stop(0.2)
    assert one.wait() == -signal.SIGKILL


def test_a_child_that_reads_nothing_does_not_hold_its_supervisor(make: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "READS_WITHIN_S", 0.3)
    monkeypatch.setattr(supervisor, "ENDS_WITHIN_S", 0.2)
    one = make("deaf")
    one.start(30)
    many = Nodes(tuple(NodeAddress(Place("i" * 100, "n" * 100, "h"), n) for n in range(1000)))
    with pytest.raises(UnavailableError) as caught:
        for _ in range(10):
            one.send(many)
    assert caught.value.reason == "CHILD_LOST"
    one.end()


def test_an_end_is_seen_and_nothing_more_is_said(make: Start) -> None:
    one = make()
    one.start(30)
    assert one.pid is not None
    codes: list[int] = []
    waiting = threading.Thread(target=lambda: codes.append(one.wait()))
    waiting.start()
    os.kill(one.pid, signal.SIGKILL)
    waiting.join(30)
    assert codes == [-signal.SIGKILL]
    with pytest.raises(UnavailableError):
        one.send(NODES)
    assert one.stop(30)


def test_what_it_writes_to_its_error_output_is_in_its_log(make: Start) -> None:
    one = make("loud")
    one.start(30)
    eventually(lambda: one.log_file.exists() and one.log_file.stat().st_size == 50 * 1024)
    assert one.log_file.stat().st_mode & 0o077 == 0
    one.end()


def test_a_log_keeps_its_end_within_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = BoundedLog(path, 200)
    for number in range(100):
        log.write(f"line {number:03d}\n".encode())
    old = tmp_path / "log.1"
    assert path.stat().st_size + old.stat().st_size <= 200
    kept = (old.read_text() + path.read_text()).splitlines()
    assert kept == [f"line {number:03d}" for number in range(100 - len(kept), 100)]
    assert len(kept) >= 10


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "gone" / "log", 200)
    log.write(b"lost")
    (tmp_path / "gone").mkdir()
    log.write(b"kept")
    assert (tmp_path / "gone" / "log").read_bytes() == b"kept"
