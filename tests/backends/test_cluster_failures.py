"""What dies, hangs or is cut off in a cluster under load: when that is noticed, what is placed anew, what becomes of calls.

Two nodes with sim devices, without Ray. Calls come at a fixed rate, whether or not earlier ones were answered, to a function
that may run again and to one that may not. Times are compared with `lost_after_s` of the same run, and with nothing else.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import psutil
import pytest

from hasfaas import UnavailableError
from hasfaas.backends.cluster import manifest, messages
from hasfaas.backends.cluster.child import GATEWAY_MODULE, Ask, NodeAddress, Nodes, Place, StartGateway, Stop
from hasfaas.core.errors import HasFaasError
from hasfaas.devices.base import Health
from hasfaas.sdk.function import Call
from hasfaas.testing.load import Load, used_share
from hasfaas.testing.running import short_folder
from hasfaas.wire.payload import encode_arguments
from tests.backends.test_cluster_messages import _classes
from tests.clustered import NODES, Cluster, Process, alive
from tests.fakes.wire import Wire
from tests.live import ROOT, app, eventually

pytestmark = pytest.mark.alone

steady, verbs, clocks, shares, batches = (app(name) for name in ("steady", "verbs", "clocks", "shares", "batches"))
LOST_AFTER_S = 2.0
# Until what was lost serves elsewhere: mostly a cold start, which takes as long as the machine is busy.
AGAIN_S = 4 * LOST_AFTER_S
EVERY_S = 0.02
CALL_MS = 4
ROOM_S = 30.0
FUNCTIONS = ("steady.again", "verbs.touch")


class Site(Cluster):
    """A cluster whose nodes come and go for the gateway, while their agents stay where nothing happened to them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, NODES, lost_after_s=LOST_AFTER_S, wait_for_room_s=ROOM_S)
        self.listed: tuple[str, ...] = ()
        self.wires: dict[str, Wire] = {}

    def list_nodes(self) -> None:
        assert self.gateway is not None
        there = [self.nodes[name] for name in self.listed if self.nodes[name].process is not None]
        ports = {name: wire.port for name, wire in self.wires.items()}
        self.gateway.tell(Nodes(tuple(NodeAddress(n.place, ports.get(n.place.name, n.port)) for n in there)))

    def bring(self, *names: str) -> None:
        """Exactly these nodes are there from now on; one whose agent has ended gets another."""
        self.listed = names
        for name in names:
            process = self.nodes[name].process
            if process is None or process.popen.poll() is not None:
                self.start_node(name)
        self.list_nodes()
        self.joined(*names)

    def agent(self, name: str) -> Process:
        """The process of a node's agent."""
        process = self.nodes[name].process
        assert process is not None
        return process

    def zygotes_and_replicas(self, name: str) -> list[psutil.Process]:
        return psutil.Process(self.agent(name).pid).children(recursive=True)


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    with short_folder() as folder:
        made = Site(folder)
        try:
            made.start_gateway()
            yield made
        finally:
            made.close()


@pytest.fixture
def cluster(running: Site) -> Site:
    """A gateway without nodes, and nothing deployed."""
    running.use()
    running.bring()
    running.delete()
    running.client._deployed.clear()  # the functions of this process are deployed anew by the next test
    return running


@pytest.fixture
def full(cluster: Site) -> Site:
    """Both functions serve from `alpha`, and `beta` has joined since."""
    cluster.bring("alpha")
    fill(cluster)
    return cluster


@pytest.fixture
def wire(cluster: Site) -> Iterator[Wire]:
    """The gateway's way to `alpha`, which is the only node."""
    cluster.bring("alpha")
    made = cluster.wires["alpha"] = Wire(cluster.nodes["alpha"].port)
    cluster.list_nodes()
    eventually(lambda: len(made.cables) == 1)
    cluster.joined("alpha")
    yield made
    del cluster.wires["alpha"]
    made.close()


def fill(cluster: Site) -> None:
    steady.again.deploy()
    verbs.touch.deploy()
    cluster.bring("alpha", "beta")
    steady.again.deploy()  # beta has looked at the bundle too
    assert moved(cluster, "alpha")


class Arrivals:
    """Calls at a fixed rate until told to stop, each with a number of its own."""

    def __init__(self, call: Callable[[int], Call[Any]]) -> None:
        self._call = call
        self._calls: list[Call[Any]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self._calls.append(self._call(len(self._calls)))

    def outcomes(self) -> list[object]:
        """What each has come to: its value, or the error that it raised."""
        return [outcome(call) for call in self._calls]


def outcome(call: Call[Any]) -> object:
    try:
        return call.result(30.0)
    except HasFaasError as exc:
        return exc


class Traffic:
    """Calls to both functions, and what must have come of them whatever died."""

    def __init__(self, folder: Path) -> None:
        self.trace = folder / f"trace-{time.monotonic_ns()}"
        self.trace.touch()
        self._again = Arrivals(lambda i: steady.again.spawn(i, CALL_MS))
        self._once = Arrivals(lambda i: verbs.touch.spawn(str(self.trace), str(i), CALL_MS / 1000))
        self._held: list[Call[Any]] = []

    def __enter__(self) -> Traffic:
        self._again.__enter__()
        self._once.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._again.__exit__()
        self._once.__exit__()

    def hold(self) -> None:
        """One call of each is running from now on, and will for long. They run beside the others in one lane, in turns."""
        self._held = [steady.again.spawn("held", 400), verbs.touch.spawn(str(self.trace), "held", 0.4)]
        eventually(lambda: "held" in self.words())

    def words(self) -> Counter[str]:
        """How often each call of the function that may not run again has begun."""
        return Counter(self.trace.read_text().split())

    def check(self, *reasons: str) -> None:
        """Nothing is lost that may run again. What may not has run at most once, and failed, where it did, for one of these
        reasons; of those that an answer was had for each ran once."""
        again = self._again.outcomes()
        assert [found[0] if isinstance(found, tuple) else found for found in again] == list(range(len(again)))
        once, words = self._once.outcomes(), self.words()
        failed = [found for found in once if not isinstance(found, str)]
        assert len(again) > 10 and len(once) > 10
        if self._held:
            held_again, held_once = (outcome(call) for call in self._held)
            assert isinstance(held_again, tuple) and held_again[0] == "held"
            failed.append(held_once)
        assert {type(found) for found in failed} <= {UnavailableError}, failed
        found = {exc.reason for exc in failed if isinstance(exc, UnavailableError)}
        assert found <= set(reasons), failed
        assert bool(found) == bool(reasons), "what was running when it died has failed"
        assert max(words.values()) == 1, "nothing ran twice"
        assert {word for word in once if isinstance(word, str)} <= set(words)
        assert sum(isinstance(found, str) for found in once[-5:]) == 5, "at the end all is well"


def serving(cluster: Cluster) -> list[Any]:
    return [replica for one in cluster.status().functions for replica in one.replicas if replica.state == "ready"]


def nodes_there(cluster: Cluster) -> set[str]:
    return {device.device_id.partition("/")[0] for device in cluster.status().devices}


def timed(look: Callable[[], object]) -> float:
    """How long it takes until that is so."""
    began_s = time.monotonic()
    eventually(look, every_s=0.01)
    return time.monotonic() - began_s


def ended(processes: list[psutil.Process]) -> bool:
    return not any(alive(process.pid) for process in processes)


def moved(cluster: Cluster, node: str = "beta") -> bool:
    """Whether both functions serve there, and nowhere else."""
    there = serving(cluster)
    return len(there) == 2 and {replica.device for replica in there} == {f"{node}/sim0"}


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    """It does not run meanwhile, and its sockets stay."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if process.popen.poll() is None:
            os.kill(process.pid, signal.SIGCONT)


# -- a node ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "told to stop"])
def test_an_agent_that_ends_is_noticed_at_once(full: Site, tmp_path: Path, how: str) -> None:
    left = full.zygotes_and_replicas("alpha")
    assert left
    process = full.agent("alpha")
    with Traffic(tmp_path) as traffic:
        traffic.hold()
        if how == "killed":
            assert {p.pid for p in full.kill_node("alpha")} == {p.pid for p in left}
        else:
            process.tell(Stop())
        assert timed(lambda: nodes_there(full) == {"beta"}) < LOST_AFTER_S / 2
        assert timed(lambda: moved(full)) < AGAIN_S
        assert timed(lambda: ended(left)) < 2 * LOST_AFTER_S
        time.sleep(10 * EVERY_S)
    traffic.check("EXECUTOR_CRASHED")
    if how == "told to stop":
        assert process.popen.wait(10.0) == 0


def test_an_agent_that_hangs_is_given_up_and_joins_again_empty(full: Site, tmp_path: Path) -> None:
    """What it ran goes on while it hangs, since nobody there ends it, and ends with its first breath: never heard again."""
    before = {replica.pid for replica in serving(full)}
    process = full.agent("alpha")
    with Traffic(tmp_path) as traffic:
        traffic.hold()
        with stopped(process):
            assert 0.5 * LOST_AFTER_S < timed(lambda: nodes_there(full) == {"beta"}) < 2 * LOST_AFTER_S
            assert timed(lambda: moved(full)) < AGAIN_S
            time.sleep(10 * EVERY_S)
        assert timed(lambda: not any(map(alive, before))) < 2 * LOST_AFTER_S
        full.joined("alpha", "beta")
        assert moved(full), "it comes back empty"
        # It is used again.
        steady.again.scale(sm=100, quota=100)
        assert {replica.device for replica in serving(full)} == {"alpha/sim0", "beta/sim0"}
        time.sleep(10 * EVERY_S)
    traffic.check("EXECUTOR_CRASHED")


def test_a_node_that_is_cut_off_ends_what_it_runs_by_itself(cluster: Site, wire: Wire, tmp_path: Path) -> None:
    """Both sides give each other up, each by its own clock, and neither is told."""
    fill(cluster)
    before = {replica.pid for replica in serving(cluster)}
    with Traffic(tmp_path) as traffic:
        traffic.hold()
        wire.hold()
        assert 0.5 * LOST_AFTER_S < timed(lambda: nodes_there(cluster) == {"beta"}) < 2 * LOST_AFTER_S
        assert timed(lambda: moved(cluster)) < AGAIN_S
        assert timed(lambda: not any(map(alive, before))) < 2 * LOST_AFTER_S
        assert nodes_there(cluster) == {"beta"}
        wire.release()
        cluster.joined("alpha", "beta")
        assert moved(cluster)
    traffic.check("EXECUTOR_CRASHED")


def test_a_slow_node_stays_and_loses_nothing(full: Site, tmp_path: Path) -> None:
    before = {replica.pid for replica in serving(full)}
    process = full.agent("alpha")
    with Traffic(tmp_path) as traffic:
        for _ in range(3):
            with stopped(process):
                time.sleep(0.4 * LOST_AFTER_S)
            time.sleep(0.1 * LOST_AFTER_S)
            assert nodes_there(full) == {"alpha", "beta"}
    traffic.check()
    assert {replica.pid for replica in serving(full)} == before


def test_a_replicas_line_that_breaks_costs_that_replica_alone(cluster: Site, wire: Wire, tmp_path: Path) -> None:
    steady.again.deploy()
    verbs.touch.deploy()
    before = {replica.replica_id: replica.pid for replica in serving(cluster)}

    def left() -> int:
        """How many of them serve, once two do."""
        there = {replica.replica_id for replica in serving(cluster)}
        return len(there & set(before)) if len(there) == 2 else -1

    with Traffic(tmp_path) as traffic:
        traffic.hold()
        control, *data = range(len(wire.cables))
        assert len(data) == 2
        wire.cut(data[0])
        eventually(lambda: left() == 1)
        wire.cut(data[1])
        eventually(lambda: left() == 0)
        eventually(lambda: not any(map(alive, before.values())))
        time.sleep(10 * EVERY_S)
    traffic.check("EXECUTOR_CRASHED")
    # Its control line is the one that it had.
    assert nodes_there(cluster) == {"alpha"}
    wire.cut(control)
    eventually(lambda: nodes_there(cluster) != {"alpha"})
    cluster.joined("alpha")


def test_a_replica_that_cannot_be_reached_is_ended_and_its_seat_is_free(cluster: Site, wire: Wire) -> None:
    steady.again.deploy(warm=False)
    before = cluster.zygotes_and_replicas("alpha")
    wire.refuses = True
    with pytest.raises(UnavailableError, match="cannot be reached"):
        steady.again.remote(1)
    assert wire.refused
    assert not cluster.function("steady.again").replicas
    assert cluster.zygotes_and_replicas("alpha") == before
    wire.refuses = False
    steady.again.scale(replicas=1, sm=100, quota=100)
    assert steady.again.remote(2)[0] == 2


def test_a_node_that_dies_while_a_replica_there_is_being_reached_loses_no_call(cluster: Site, wire: Wire) -> None:
    """Calls that wait go elsewhere: the end of the replica's line is taken for its node's, should that be lost too."""
    verbs.touch.deploy(warm=False)
    wire.refuses = True
    waits = verbs.touch.spawn(os.devnull, "word")
    eventually(lambda: wire.refused)
    cluster.kill_node("alpha")
    cluster.bring("beta")
    assert waits.result(ROOM_S) == "word"


# -- the gateway -----------------------------------------------------------------------------------------------------


def stored(cluster: Cluster) -> manifest.Manifest:
    content = (cluster.folder / "state" / "manifest.json").read_bytes()
    return manifest.read(content, "the state")


def test_a_gateway_that_dies_loses_no_function_and_no_call_that_may_run_again(full: Site, tmp_path: Path) -> None:
    left = [*full.zygotes_and_replicas("alpha"), *full.zygotes_and_replicas("beta")]
    replicas = {replica.pid for replica in serving(full)}
    before = stored(full)
    assert full.gateway is not None
    with Traffic(tmp_path) as traffic:
        traffic.hold()
        full.gateway.kill()
        # Its nodes end what ran for it, whether or not another comes.
        assert timed(lambda: not any(map(alive, replicas))) < 2 * LOST_AFTER_S
        assert left, "zygotes stay"
        ready = full.start_gateway()
        assert ready.generation == before.generation + 1
        full.joined("alpha", "beta")
        eventually(lambda: len(serving(full)) == 2)
        time.sleep(10 * EVERY_S)
    traffic.check("GATEWAY_LOST")
    assert sorted(one.name for one in full.status().functions) == sorted(FUNCTIONS)
    assert set(stored(full).functions) == set(FUNCTIONS)


def test_a_gateway_that_comes_back_after_another_took_over_ends_and_changes_nothing(full: Site) -> None:
    old = full.gateway
    assert old is not None
    place = Place("id-second", "second", "127.0.0.2")
    home = full.folder / "second"
    start = StartGateway(
        place,
        full._identity("gateway"),
        full.served.to_json(),
        str(home / "state"),
        str(home / "run"),
        full.tokens_file.read_text(),
    )
    there = Nodes(tuple(NodeAddress(node.place, node.port) for node in full.nodes.values()))
    with stopped(old):
        second = Process(GATEWAY_MODULE, start, home / "gateway.log")
        try:
            assert second.ready().generation == stored(full).generation
            second.tell(there)
            where = attrs.evolve(full.cluster, addresses=(f"127.0.0.2:{full.port}",))
            client = full.client_of(where)
            full.use(client)
            eventually(lambda: len(client.run(client.gateway_status()).devices) == 2)
            assert steady.again.remote(1)[0] == 1
            verbs.add.deploy()
            taken_over = stored(full)
            assert set(taken_over.functions) == {*FUNCTIONS, "verbs.add"}
            os.kill(old.pid, signal.SIGCONT)
            assert old.popen.wait(10 * LOST_AFTER_S) is not None, "it ends by itself"
            assert "generation" in old.log.read_text()[-2000:]
            assert stored(full) == taken_over
            replicas = [r.pid for one in client.run(client.gateway_status()).functions for r in one.replicas]
            assert steady.again.remote(2)[0] == 2
            assert replicas == [r.pid for one in client.run(client.gateway_status()).functions for r in one.replicas]
            client.run(client.close())
        finally:
            full.use()
            second.end()
    full.start_gateway()
    full.joined("alpha", "beta")


# -- nodes that come -------------------------------------------------------------------------------------------------


def test_calls_wait_for_the_room_that_a_node_brings_which_is_asked_for_until_it_is_there(
    cluster: Site, tmp_path: Path
) -> None:
    assert cluster.gateway is not None
    said = cluster.gateway.said
    asked = len(said)
    waits = steady.again.spawn(1)
    eventually(lambda: said[asked:] == [Ask(({"GPU": 1.0},))])
    assert not waits.done()
    cluster.bring("alpha")
    assert waits.result(ROOM_S)[0] == 1
    eventually(lambda: said[asked + 1 :] == [Ask(())])
    # The whole of alpha is somebody's, who is not to make room.
    steady.again.scale(replicas=1, sm=100, quota=100)
    waits = verbs.touch.spawn(str(tmp_path / "trace"), "waited")
    with pytest.raises(HasFaasError):
        waits.result(0.2 * LOST_AFTER_S)
    cluster.bring("alpha", "beta")
    assert waits.result(ROOM_S) == "waited"
    assert [r.device for r in cluster.replicas("verbs.touch")] == ["beta/sim0"]


# -- clocks ----------------------------------------------------------------------------------------------------------

DAY_S, HOUR_S = 86_400.0, 3_600.0
OTHER_CLOCKS = f"""
import time


def shifted(clock, by):
    return lambda: clock() + by


time.time = shifted(time.time, {DAY_S})
time.time_ns = shifted(time.time_ns, {int(DAY_S)} * 10**9)
time.monotonic = shifted(time.monotonic, {HOUR_S})
time.monotonic_ns = shifted(time.monotonic_ns, {int(HOUR_S)} * 10**9)
"""


@pytest.fixture
def elsewhen(cluster: Site, tmp_path: Path) -> Iterator[Site]:
    """A cluster of one node, all of whose processes have other clocks: agent, zygote and replicas."""
    (tmp_path / "sitecustomize.py").write_text(OTHER_CLOCKS)
    if cluster.nodes["alpha"].process is not None:
        cluster.kill_node("alpha")
    cluster.prefixes["alpha"] = ("env", f"PYTHONPATH={tmp_path}:{ROOT}")
    cluster.bring("alpha")
    yield cluster
    del cluster.prefixes["alpha"]
    cluster.kill_node("alpha")


def test_a_node_whose_clocks_say_something_else_serves_like_any_other(elsewhen: Site) -> None:
    cluster = elsewhen
    time_s, monotonic_s = clocks.told.remote()
    assert time_s - time.time() == pytest.approx(DAY_S, abs=60.0)
    assert monotonic_s - time.monotonic() == pytest.approx(HOUR_S, abs=60.0)
    began_s = time.monotonic()
    shares.spin.deploy()
    with Load(shares.spin.remote, width=2) as load:
        found = {}
        for quota in (20, 80):
            applied = shares.spin.scale(quota=quota)
            assert applied.applied_ms < 1000.0 * LOST_AFTER_S
            [found[quota]] = used_share(cluster, ["shares.spin"], 1.0)
    assert not load.errors
    assert found[20] < 0.5 < found[80], found
    usage = cluster.replica("shares.spin").usage
    assert 0 < usage.used_ns < (time.monotonic() - began_s) * 1e9
    cluster.delete()  # it is measured alone on its device
    batches.sums.deploy(warm=False)
    given = encode_arguments((np.ones(3),), {})
    news = measured(cluster, at=[(1, 100.0, 100.0)], arguments=given)
    assert len(news) == 1 and 0.0 < news[0].hold_ms < 1000.0
    # Signs of life have passed all along, and are still looked for.
    assert time.monotonic() - began_s > LOST_AFTER_S
    assert nodes_there(cluster) == {"alpha"}


def measured(cluster: Cluster, **asked: Any) -> list[Any]:
    async def gathered() -> list[Any]:
        news = cluster.client.profile("batches.sums", **asked)
        return [each.measured async for each in news if each.WhichOneof("news") == "measured"]

    return cluster.client.run(gathered())


def test_what_crosses_between_hosts_is_of_types_that_hold_no_instant() -> None:
    """Numbers are named in test_cluster_messages.py; there is nothing else here that a clock's reading could hide in."""
    seen: set[type] = set()
    for kind in messages.KINDS.values():
        _classes(kind, seen)
    leaves: set[object] = set()

    def gather(kind: Any) -> None:
        arguments = [each for each in getattr(kind, "__args__", ()) if each is not Ellipsis]
        for each in arguments:
            gather(each)
        if not arguments and kind not in seen:
            leaves.add(kind)

    for cls in seen:
        for field in attrs.fields(cls):
            gather(field.type)
    assert leaves == {int, float, str, bytes, bool, type(None), object, Path, Health}
