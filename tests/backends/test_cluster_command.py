"""What `hasfaas cluster up`, `down` and `status` do, over a Ray cluster with memory: secrets, waiting, notes, the shell."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner, Result

from hasfaas.backends.certificates import GATEWAY_NAME
from hasfaas.backends.cluster import command, ray_cluster
from hasfaas.backends.cluster.child import Place
from hasfaas.backends.cluster.launch import ControlState, GatewayState, Launch, Stopped
from hasfaas.backends.cluster.members import Member, Phase
from hasfaas.backends.cluster.operator_folder import OperatorFolder
from hasfaas.backends.cluster.reservation import RayNode, Reservation
from hasfaas.backends.cluster.shared_tokens import SharedTokens
from hasfaas.core import token_file, tokens
from hasfaas.core.errors import (
    AuthError,
    BackendError,
    HasFaasError,
    IncompatibleError,
    InvalidRequestError,
    PlacementError,
    UnavailableError,
)
from hasfaas.core.settings import ClusterSettings, DeviceSettings, Settings
from hasfaas.sdk.cli import cli
from hasfaas.sdk.config import load
from hasfaas.wire.status import to_status

SERVES = GatewayState("10.0.0.2", pid=20, port=7070, generation=3, starts=1)
NODES = (RayNode("id1", "gpu1", "10.0.0.1"), RayNode("id2", "gpu2", "10.0.0.2"))


def _refused(error: HasFaasError) -> str:
    status: bytes = to_status(error).SerializeToString()
    return status.hex()


@attrs.define
class FakeRay:
    """A Ray cluster whose control actor needs some looks until all is there. It remembers what it was told."""

    running: list[ControlState] = attrs.field(factory=list)
    launches: list[Launch] = attrs.field(factory=list)
    killed: list[Mapping[int, str]] = attrs.field(factory=list)
    gateway: GatewayState = SERVES
    refused: Mapping[str, str] = attrs.field(factory=dict)
    hangs: bool = False
    _looks: int = 0

    def nodes(self) -> tuple[RayNode, ...]:
        return NODES

    def actors(self) -> tuple[str, ...]:
        return ("control",) if self.launches or self.running else ()

    def start(self, launch: Launch) -> None:
        self.launches.append(launch)
        self._looks = 0

    def state(self, timeout_s: float) -> ControlState | None:
        if self.hangs:
            raise UnavailableError("the control actor does not answer")
        if self.running:
            return self.running[-1]
        if not self.launches:
            return None
        self._looks += 1
        launch = self.launches[-1]
        members = [self._member(node) for node in NODES[: max(0, self._looks - 2)]]
        gateway = self.gateway if self._looks > 1 else GatewayState("10.0.0.2")
        return ControlState(
            launch_id=launch.launch_id,
            ca_pem=launch.gateway.ca_pem,
            settings_json=launch.settings_json,
            version=launch.version,
            node_id="id2",
            pid=30,
            gateway=gateway,
            members=tuple(members),
            hosts=("10.0.0.2", "10.0.0.1"),
            asked=({"GPU": 1.0},),
        )

    def _member(self, node: RayNode) -> Member:
        place, why = Place(node.node_id, node.name, node.host), self.refused.get(node.name, "")
        if why:
            return Member(place, Reservation(), Phase.REFUSED, why=why, pid=4)
        return Member(place, Reservation(gpus=2), Phase.READY, port=9000, pid=40 + int(node.name[-1]), child_pid=50)

    def stop(self, timeout_s: float) -> Stopped | None:
        if self.hangs:
            raise UnavailableError("the control actor does not answer")
        return Stopped(True, ("gpu1", "gpu2"))

    def kill(self, processes: Mapping[int, str]) -> None:
        self.killed.append(processes)
        self.launches, self.running = [], []


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(command, "LOOK_EVERY_S", 0.001)
    return Settings(
        state_dir=tmp_path / "s",
        runtime_dir=tmp_path / "r",
        devices=(DeviceSettings(kind="sim"),),
        cluster=ClusterSettings(state_url=f"file://{tmp_path}/shared"),
    )


def _up(settings: Settings, ray: FakeRay, said: list[str] | None = None) -> command.Up:
    return command.up(settings, ray, (said if said is not None else []).append, reach=lambda settings: None)


def test_up_starts_a_cluster_and_says_how_it_is_reached(settings: Settings) -> None:
    ray, said = FakeRay(), list[str]()
    reached: list[Settings] = []
    made = command.up(settings, ray, said.append, reach=reached.append)
    folder = settings.state_dir / "cluster"
    assert made.started
    assert made.notes == ()
    assert made.client.addresses == ("10.0.0.2:7070", "10.0.0.1:7070")  # where the gateway is, before the others
    assert made.client.server_name == GATEWAY_NAME
    assert (made.client.ca_file, made.client.token_file) == (folder / "ca.pem", folder / "token")
    assert [(one.backend, one.cluster) for one in reached] == [("cluster", made.client)]
    assert "gateway: listens at 10.0.0.2:7070" in said
    assert len(said) == len(set(said)), "each step is said once"


def test_what_a_cluster_is_started_with(settings: Settings) -> None:
    ray = FakeRay()
    away = attrs.evolve(settings.cluster, addresses=("old:1",), server_name="old")
    _up(attrs.evolve(settings, cluster=away), ray)
    (launch,) = ray.launches
    folder = settings.state_dir / "cluster"
    assert launch.gateway.ca_pem == launch.node.ca_pem == (folder / "ca.pem").read_text()
    assert launch.gateway.cert_pem == (folder / "gateway.pem").read_text() != launch.node.cert_pem
    assert launch.node.key_pem == (folder / "node.key").read_text() != launch.gateway.key_pem
    assert bytes.fromhex(launch.node.signing_key) == (folder / "signing.key").read_bytes()
    assert Settings.from_json(launch.settings_json).cluster == settings.cluster
    grants = token_file.parse(launch.tokens.encode(), "it")
    assert tokens.check(grants, (folder / "token").read_text(), now_s=0.0).scopes == tokens.SCOPES
    for secret in (launch.gateway.key_pem, launch.node.signing_key, launch.tokens):
        assert secret not in repr(launch)
        assert secret not in repr(launch.on_node(Place("a", "b", "c")))
    for secret in (launch.gateway.key_pem, launch.tokens):
        assert secret not in str(attrs.asdict(launch.on_node(Place("a", "b", "c"))))
    for name in ("ca.key", "gateway.key", "node.key", "signing.key", "token"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_second_up_takes_up_what_runs(settings: Settings) -> None:
    ray = FakeRay()
    before = _up(settings, ray)
    token, cert = (settings.state_dir / "cluster" / name for name in ("token", "gateway.pem"))
    kept = (token.read_text(), cert.read_text())
    again = _up(attrs.evolve(settings, cluster=attrs.evolve(before.client, state_url=settings.cluster.state_url)), ray)
    assert not again.started
    assert again.notes == ()
    assert again.client == before.client
    assert len(ray.launches) == 1
    assert (token.read_text(), cert.read_text()) == kept


def test_a_second_up_brings_the_token_back(settings: Settings) -> None:
    ray = FakeRay()
    _up(settings, ray)
    shared = SharedTokens(str(settings.cluster.state_url))
    shared.remove("operator")
    assert any("token" in note for note in _up(settings, ray).notes)
    text = OperatorFolder(settings).token_file.read_text()
    assert tokens.check(shared.read(), text, now_s=0.0).name == "operator"
    OperatorFolder(settings).token_file.unlink()
    _up(settings, ray)
    assert sorted(shared.read()) == ["operator", "operator-2"]  # who has the first may still use it


def test_a_second_up_tells_of_other_settings(settings: Settings) -> None:
    ray = FakeRay()
    _up(settings, ray)
    (note,) = _up(attrs.evolve(settings, log_level="debug"), ray).notes
    assert "settings that it was started with" in note


def test_a_cluster_of_another_folder_is_not_taken_up(settings: Settings, tmp_path: Path) -> None:
    ray = FakeRay()
    _up(settings, ray)
    with pytest.raises(AuthError) as caught:
        _up(attrs.evolve(settings, state_dir=tmp_path / "other"), ray)
    assert caught.value.reason == "OTHER_CLUSTER"
    assert ray.launches
    assert not ray.killed


def test_the_same_authority_serves_the_next_cluster(settings: Settings) -> None:
    """Clients keep their ca.pem and their tokens."""
    ray = FakeRay()
    _up(settings, ray)
    first = ray.launches[0]
    command.down(settings, ray)
    made = _up(settings, ray)
    assert made.started
    assert ray.launches[0].gateway.ca_pem == first.gateway.ca_pem
    assert ray.launches[0].gateway.signing_key == first.gateway.signing_key
    assert ray.launches[0].tokens == first.tokens
    assert ray.launches[0].launch_id != first.launch_id  # its certificates are new


def test_without_a_state_url_it_says_what_to_give(settings: Settings) -> None:
    ray = FakeRay()
    with pytest.raises(InvalidRequestError, match=r"cluster\.state_url is not set.*file:///"):
        _up(attrs.evolve(settings, cluster=ClusterSettings()), ray)
    assert not ray.launches
    assert not settings.state_dir.exists()


def test_a_gateway_that_cannot_start_is_told_and_nothing_stays(settings: Settings) -> None:
    why = _refused(PlacementError("port 7070 is taken", reason="NO_ROOM"))
    ray = FakeRay(gateway=GatewayState("10.0.0.2", refused=why, starts=command.GATEWAY_TRIES))
    with pytest.raises(PlacementError, match="could not start: port 7070 is taken"):
        _up(settings, ray)
    assert len(ray.killed) == 1
    assert not ray.actors()


def test_a_cluster_that_ran_before_is_left_though_its_gateway_is_down(settings: Settings) -> None:
    ray = FakeRay()
    made = _up(settings, ray)
    down = GatewayState("10.0.0.2", refused=_refused(PlacementError("no")), starts=command.GATEWAY_TRIES)
    ray.running = [attrs.evolve(made.state, gateway=down)]
    with pytest.raises(PlacementError):
        _up(settings, ray)
    assert not ray.killed


def test_a_gateway_that_is_not_ready_in_time(settings: Settings) -> None:
    ray = FakeRay(gateway=GatewayState("10.0.0.2", starts=1))
    with pytest.raises(BackendError) as caught:
        _up(attrs.evolve(settings, start_timeout_s=0.1), ray)
    assert caught.value.reason == "START_TIMEOUT"


def test_an_agent_that_refuses_is_a_note(settings: Settings) -> None:
    made = _up(settings, FakeRay(refused={"gpu2": "no driver: install one"}))
    assert made.notes == ("node gpu2 has no agent yet (refused): no driver: install one",)


def test_without_a_node_that_has_the_devices_it_says_so(settings: Settings) -> None:
    made = _up(attrs.evolve(settings, devices=(DeviceSettings(kind="cuda"),)), FakeRay())
    assert "no node of the Ray cluster has any of the devices" in made.notes[0]


def test_down_finishes_and_then_ends_what_it_knows(settings: Settings) -> None:
    ray = FakeRay()
    _up(settings, ray)
    assert command.down(settings, ray) == Stopped(True, ("gpu1", "gpu2"))
    assert ray.killed == [{30: "10.0.0.2", 20: "10.0.0.2", 41: "10.0.0.1", 42: "10.0.0.2", 50: "10.0.0.2"}]
    assert command.down(settings, ray) is None
    assert SharedTokens(str(settings.cluster.state_url)).read(), "what is at state_url stays"


def test_down_ends_a_cluster_that_does_not_answer(settings: Settings) -> None:
    ray = FakeRay()
    _up(settings, ray)
    ray.hangs = True
    assert command.down(settings, ray) == Stopped(False, ())
    assert ray.killed == [{}]


def test_status_of_no_cluster(settings: Settings) -> None:
    with pytest.raises(UnavailableError) as caught:
        command.status(FakeRay())
    assert caught.value.reason == "NO_CLUSTER"


@pytest.mark.parametrize("version", ["2.49.1", "1.13.0", "strange"])
def test_an_old_ray_is_refused(version: str) -> None:
    with pytest.raises(IncompatibleError, match=r"Ray 2\.50"):
        ray_cluster.require_version(version)


@pytest.mark.parametrize("version", ["2.50.0", "2.60.0", "3.0.0.dev0"])
def test_a_new_ray_is_taken(version: str) -> None:
    ray_cluster.require_version(version)


@pytest.mark.parametrize("address", ["local", "ray://head:10001", "head", "", "a b:1"])
def test_an_address_that_cannot_be(address: str) -> None:
    with pytest.raises(InvalidRequestError, match="--address"), ray_cluster.joined(address):
        raise AssertionError("joined")


def test_where_nothing_listens_it_says_so_at_once() -> None:
    with pytest.raises(UnavailableError, match="no Ray cluster is at") as caught, ray_cluster.joined("127.0.0.1:1"):
        raise AssertionError("joined")
    assert caught.value.reason == "NO_RAY"


# -- the shell -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs `hasfaas cluster ...` over one Ray cluster, in a world with nothing but a user's file."""
    for name in list(os.environ):
        if name.startswith("HASFAAS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HASFAAS_STATE_DIR", str(settings.state_dir))
    monkeypatch.setenv("HASFAAS_RUNTIME_DIR", str(settings.runtime_dir))
    monkeypatch.setenv("HASFAAS_CLUSTER_STATE_URL", str(settings.cluster.state_url))
    monkeypatch.setattr(command, "_reach", lambda settings: None)
    (tmp_path / "project" / ".git").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    _user_file(tmp_path).parent.mkdir(parents=True)
    _user_file(tmp_path).write_text('# mine\nlog_level = "debug"  # loud\n\n[[devices]]\nkind = "sim"\n')
    ray = FakeRay()

    @contextmanager
    def joined(address: str) -> Iterator[FakeRay]:
        assert address == "auto"
        yield ray

    monkeypatch.setattr(ray_cluster, "joined", joined)
    yield lambda *args: CliRunner().invoke(cli, ["cluster", *args], catch_exceptions=False)


def _user_file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "hasfaas" / "config.toml"


def test_the_shells_up_writes_the_users_file(run: Callable[..., Result], settings: Settings, tmp_path: Path) -> None:
    done = run("up")
    assert done.exit_code == 0, done.output
    assert "started a cluster; nodes with devices: gpu1, gpu2" in done.stdout
    assert "HASFAAS_BACKEND=cluster" in done.stdout
    assert "node gpu2: ready" in done.stderr
    text = _user_file(tmp_path).read_text()
    assert text.startswith('# mine\nlog_level = "debug"  # loud\n\n[[devices]]\nkind = "sim"\n')
    found = load().settings
    assert found.backend == "local"
    assert found.cluster.addresses == ("10.0.0.2:7070", "10.0.0.1:7070")
    assert found.cluster.server_name == GATEWAY_NAME
    assert found.cluster.ca_file == settings.state_dir / "cluster" / "ca.pem"
    assert found.cluster.token_file == settings.state_dir / "cluster" / "token"
    again = run("up")
    assert "a cluster was up" in again.stdout
    assert "[cluster] is as it was" in again.stdout
    assert again.stderr.count("settings") == 0, again.stderr
    assert _user_file(tmp_path).read_text() == text


def test_the_shells_up_says_what_overrules_the_file(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "project" / "hasfaas.toml").write_text('[cluster]\nserver_name = "another"\n')
    assert "cluster.server_name comes from" in run("up").stderr


def test_the_shells_json(run: Callable[..., Result]) -> None:
    up = json.loads(run("up", "--json").stdout)
    assert up["started"] is True
    status = json.loads(run("status", "--json").stdout)
    assert status["gateway"] == {"address": "10.0.0.2:7070", "pid": 20, "generation": 3, "starts": 1, "why": None}
    assert [(node["node"], node["agent"], node["address"]) for node in status["nodes"]] == [
        ("gpu1", "ready", "10.0.0.1:9000"),
        ("gpu2", "ready", "10.0.0.2:9000"),
    ]
    assert status["asked"] == [{"GPU": 1.0}]
    down = json.loads(run("down", "--json").stdout)
    assert down == {"ended": True, "gateway_finished": True, "nodes_finished": ["gpu1", "gpu2"], "nodes_ended": []}
    assert json.loads(run("down", "--json").stdout)["ended"] is False


def test_the_shells_status_for_people(run: Callable[..., Result]) -> None:
    none = run("status")
    assert none.exit_code == 5
    assert "hasfaas cluster up" in none.stderr
    run("up")
    text = run("status").stdout
    assert "gateway 10.0.0.2:7070, generation 3" in text
    assert "gpu2" in text
    assert "asked of Ray's autoscaler: {'GPU': 1.0}" in text
    assert "the cluster has ended" in run("down").stdout
