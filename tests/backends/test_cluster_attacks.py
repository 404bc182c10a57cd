"""What somebody tries who has no place in a cluster, on every port that it really has open, and on its shared state.

Most of the gateway's port is the code of any gateway's (`backends/listener.py`, `serving/access.py`), which
test_network_attacks.py tries method by method; here one attack of each kind shows that a cluster has it in place.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import grpc
import psutil
import pytest

from hasfaas import AuthError
from hasfaas.backends import certificates
from hasfaas.backends.cluster import messages, tls
from hasfaas.backends.cluster.child import Identity, Refused
from hasfaas.backends.cluster.messages import Beat, Hello, Kill, Message, Superseded
from hasfaas.backends.cluster.shared_tokens import SharedTokens
from hasfaas.core import tokens
from hasfaas.core.errors import BackendError, HasFaasError
from hasfaas.core.own_file import write_own
from hasfaas.core.tokens import Token, parse
from hasfaas.testing.running import short_folder
from hasfaas.wire import frames
from hasfaas.wire.frames import FrameKind, FrameReader
from hasfaas.wire.status import read_status
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.backends.test_network_attacks import PREFACE, Attacker, Deployer, status_of
from tests.clustered import NODES, Cluster
from tests.live import app, eventually

verbs = app("verbs")
HOST = "127.0.0.1"
HUNG_UP_S = 30.0
# What a gateway copies its tokens within, generously.
TOKENS_WITHIN_S = 10.0
HTTP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
# The header of a TLS record of the greatest length that it can announce, and of a frame of ours.
LONG_RECORD = b"\x16\x03\x01\xff\xff" + bytes(64)
LONG_FRAME = struct.pack("<BxxxIQQ", FrameKind.CONTROL, 2**32 - 1, 0, 2**63)
LONG_BODY = struct.pack("<BxxxIQQ", FrameKind.CONTROL, 0, 0, 2**40)


class Target(Cluster):
    """With what the attackers of test_network_attacks.py ask of one."""

    @property
    def address(self) -> str:
        return self.cluster.addresses[0]

    @property
    def shared(self) -> SharedTokens:
        assert self.served.cluster.state_url is not None
        return SharedTokens(self.served.cluster.state_url)

    def secret(self, name: str) -> Token:
        """A token that its gateway was started with."""
        return parse((self.folder / f"{name}.token").read_text())

    def expired(self) -> Token:
        """One that is over, made elsewhere, once the gateway knows of it."""
        now_s = time.time()
        made, grant = tokens.create("over", ("read",), now_s=now_s, expires_s=now_s)
        self.shared.add(grant)
        known = self.folder / "g" / "state" / "tokens.json"
        eventually(lambda: '"over"' in known.read_text(), timeout_s=TOKENS_WITHIN_S)
        return made

    def processes(self) -> list[psutil.Process]:
        """Everything that it has started."""
        roots = [self.gateway, *(node.process for node in self.nodes.values())]
        parents = [psutil.Process(root.pid) for root in roots if root is not None]
        return [each for parent in parents for each in (parent, *parent.children(recursive=True))]

    def written(self) -> dict[str, int]:
        """How much is in each log."""
        return {str(path): path.stat().st_size for path in self.folder.rglob("*.log")}


class ClusterAttacker(Attacker):
    """Raw gRPC at a cluster's gateway."""

    def __init__(
        self, target: Target, token: str | None = None, *, roots: bytes | None = None, plain: bool = False
    ) -> None:
        self.metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        options = [("grpc.ssl_target_name_override", certificates.GATEWAY_NAME), ("grpc.max_metadata_size", 1 << 20)]
        if plain:
            self.channel = grpc.insecure_channel(target.address, options)
        else:
            trusted = roots or target.certs.ca_file.read_bytes()
            self.channel = grpc.secure_channel(target.address, grpc.ssl_channel_credentials(trusted), options)


class ClusterDeployer(Deployer):
    """A holder of the right to deploy at a cluster's gateway."""

    def __init__(self, target: Target, name: str) -> None:
        self.token = target.secret(name)
        self.attacker = ClusterAttacker(target, self.token.text)


@pytest.fixture(scope="module")
def running() -> Iterator[Target]:
    with short_folder() as folder:
        made = Target(folder, NODES)
        for name, scope in (("reads", "read"), ("revoked", "read"), ("calls", "invoke"), ("deploys", "deploy")):
            made.token(name, scope)
        try:
            made.up()
            made.use()
            yield made
        finally:
            made.close()


@pytest.fixture
def target(running: Target) -> Iterator[Target]:
    """A cluster that every attack leaves as it was: what served before serves after it, in the same processes."""
    verbs.add.deploy()
    before = [process.pid for process in running.processes()]
    yield running
    assert verbs.add.remote(1) == 2
    assert [process.pid for process in running.processes()] == before
    assert [one.name for one in running.status().functions] == ["verbs.add"]


# -- strangers -------------------------------------------------------------------------------------------------------


def listening(target: Target) -> set[tuple[str, int]]:
    """What gateway, agents, zygotes and replicas really listen on."""
    return {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in target.processes()
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN" or connection.type == socket.SOCK_DGRAM
    }


def certificate(target: Target, name: str) -> Callable[[], ssl.SSLContext]:
    """A client that believes this cluster's authority and shows nothing, what is not of it, or what is not for calling."""

    def make() -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=target.certs.ca_file)
        context.check_hostname = False
        if name == "foreign":
            folder = target.folder / "foreign"
            if not folder.exists():
                certificates.make_cluster(folder, datetime.datetime.now(datetime.UTC))
            context.load_cert_chain(folder / "gateway.pem", folder / "gateway.key")
        elif name == "node":
            context.load_cert_chain(target.secrets / "node.pem", target.secrets / "node.key")
        return context

    return make


def heard(line: socket.socket) -> bytes:
    """All that comes before the other side hangs up."""
    answer = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while more := line.recv(4096):
            answer += more
    return answer


@pytest.mark.usefixtures("slow")
def test_every_open_port_hangs_up_on_strangers_and_tells_them_nothing(target: Target) -> None:
    agents = {(HOST, node.port) for node in target.nodes.values()}
    gateway = (HOST, target.port)
    found = listening(target)
    assert found == {gateway, *agents}
    logged = target.written()
    with contextlib.ExitStack() as lines:
        # Who says nothing, or too little, is hung up on after a while: all at once wait once.
        strangers = []
        for at in found:
            for words in (b"", HTTP, PREFACE, bytes(64), b"\x80\x05", LONG_RECORD, LONG_RECORD[:3], LONG_FRAME):
                line = lines.enter_context(socket.create_connection(at, timeout=HUNG_UP_S))
                line.sendall(words)
                strangers.append(line)
        for at in agents:
            for shown in ("nothing", "foreign", "node"):
                context = certificate(target, shown)()
                for words in (b"", PREFACE, LONG_FRAME, b"".join(packed(hello()))):
                    line = lines.enter_context(socket.create_connection(at, timeout=HUNG_UP_S))
                    # With TLS 1.3 a client learns of its refusal with what it reads first.
                    with contextlib.suppress(ssl.SSLError, ConnectionError):
                        secure = lines.enter_context(context.wrap_socket(line))
                        secure.sendall(words)
                        assert heard(secure) == b"", (shown, words)
        for line in strangers:
            answer = heard(line)
            # At most an alert of TLS, which says that this is not TLS.
            assert len(answer) <= 7, answer
            assert answer[:1] in (b"", b"\x15"), answer
    assert target.written() == logged, "strangers must not be able to fill a log"


def test_an_agent_tells_strangers_its_role_alone(target: Target) -> None:
    """Its name in the handshake is that of a role, of no host."""
    context = certificate(target, "nothing")()
    with (
        socket.create_connection((HOST, target.nodes["alpha"].port), timeout=HUNG_UP_S) as line,
        context.wrap_socket(line) as secure,
    ):
        shown: Any = secure.getpeercert()
        assert [value for kind, value in shown["subjectAltName"] if kind == "DNS"] == [certificates.NODE_NAME]


# -- with the gateway's own certificate, and no manners --------------------------------------------------------------


def hello(generation: int = 2**31) -> Hello:
    return Hello(generation, "id-nobody", "python", 0.25, 2.0)


def packed(message: Message) -> list[frames.Buffer]:
    return messages.pack(message)


@contextlib.contextmanager
def spoken(target: Target, words: bytes) -> Iterator[ssl.SSLSocket]:
    """A line of the gateway's to an agent, on which this was said."""
    cert, key = target.certs.gateway_cert_file.read_text(), target.certs.gateway_key_file.read_text()
    context = tls.gateway_context(Identity(target.certs.ca_file.read_text(), cert, key, "00"))
    at = (HOST, target.nodes["alpha"].port)
    with (
        socket.create_connection(at, timeout=HUNG_UP_S) as line,
        context.wrap_socket(line, server_hostname=tls.SERVER_NAME) as secure,
    ):
        secure.sendall(words)
        yield secure


@pytest.fixture(scope="module")
def slow(running: Target) -> Iterator[list[ssl.SSLSocket]]:
    """Lines on which nothing was said, or half of a frame; there from the first test on, which waits for others like them."""
    with contextlib.ExitStack() as lines:
        yield [lines.enter_context(spoken(running, words)) for words in (b"", b"".join(packed(hello()))[:10])]


def test_a_line_that_does_not_begin_as_one_should_is_hung_up_on(target: Target, slow: list[ssl.SSLSocket]) -> None:
    """Whatever it announces: nothing is allocated for it. One that says too little has some seconds."""
    agent = target.nodes["alpha"].process
    assert agent is not None
    memory = psutil.Process(agent.pid).memory_info().vms
    logged = sum(target.written().values())
    said = (
        LONG_FRAME,
        LONG_BODY,
        b"".join(packed(Beat(1))),
        b"".join(packed(Kill("verbs.add-1"))),
        b"".join(frames.pack(FrameKind.EXECUTE, 0, [])),
        b"".join(frames.pack(FrameKind.OPEN, 0, "verbs.add-1")),  # somebody has it
        b"".join(frames.pack(FrameKind.OPEN, 0, "../../etc/passwd")),
        b"".join(frames.pack(FrameKind.OPEN, 0, ["no", "name"])),
        b"\xff" * 64,
    )
    with contextlib.ExitStack() as lines:
        for secure in [*(lines.enter_context(spoken(target, words)) for words in said), *slow]:
            assert heard(secure) == b""
    assert psutil.Process(agent.pid).memory_info().vms < memory + (1 << 30)
    assert sum(target.written().values()) < logged + 4096


def test_a_gateway_of_an_older_generation_is_told_so_and_takes_nothing(target: Target) -> None:
    with spoken(target, b"".join(packed(hello(generation=0)))) as secure:
        reader, answer = FrameReader(), heard(secure)
        reader.buffer()[: len(answer)] = answer
        [frame] = reader.advance(len(answer))
        assert messages.unpack(frame) == Superseded(1)


# -- the gateway's port ----------------------------------------------------------------------------------------------


def test_wrong_expired_and_revoked_tokens_are_refused(target: Target) -> None:
    brief = target.expired()
    with ClusterAttacker(target, target.secret("revoked").text) as attacker:
        status_of(attacker)
        target.shared.remove("revoked")

        def refused() -> bool:
            try:
                status_of(attacker)
            except grpc.RpcError:
                return True
            return False

        eventually(refused, timeout_s=TOKENS_WITHIN_S)
        assert attacker.failure(status_of) == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")
    for text, reason in (
        (None, "NO_TOKEN"),
        (Token("all", bytes(32)).text, "BAD_TOKEN"),
        (brief.text, "EXPIRED_TOKEN"),
    ):
        with ClusterAttacker(target, text) as attacker:
            assert attacker.failure(status_of) == (grpc.StatusCode.UNAUTHENTICATED, reason)


def test_a_plain_client_a_foreign_authority_and_long_metadata_get_nothing(target: Target) -> None:
    text = target.secret("reads").text
    foreign = certificates.make_cluster(target.folder / "other", datetime.datetime.now(datetime.UTC))
    with ClusterAttacker(target, text) as attacker:
        status_of(attacker)  # it would do
        attacker.metadata.append(("x-filler", "x" * (64 << 10)))
        assert attacker.failure(status_of)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    with ClusterAttacker(target, text, plain=True) as attacker:
        assert attacker.failure(status_of)[0] == grpc.StatusCode.UNAVAILABLE
    with ClusterAttacker(target, text, roots=foreign.ca_file.read_bytes()) as attacker:
        assert attacker.failure(status_of)[0] == grpc.StatusCode.UNAVAILABLE
    client = target.client_of(attrs.evolve(target.cluster, ca_file=foreign.ca_file))
    with pytest.raises(AuthError, match=r"not believed.*cluster\.ca_file"):
        client.run(client.gateway_status())


def test_a_deploy_that_is_repeated_or_altered_is_refused(target: Target) -> None:
    deployer = ClusterDeployer(target, "deploys")
    request = deployer.request()
    assert deployer.send(request).name == "verbs.add"
    assert deployer.refusal(request) == "DEPLOY_REPLAYED"
    request = deployer.request()
    request.bundle = request.bundle[:-40] + bytes([request.bundle[-40] ^ 1]) + request.bundle[-39:]
    assert deployer.refusal(request) == "SIGNATURE_INVALID"
    # The right to call is not the right to deploy.
    with ClusterAttacker(target, target.secret("calls").text) as attacker:
        found = attacker.failure(lambda a: a.stub.BeginDeploy(pb.BeginDeployRequest(), metadata=a.metadata, timeout=10))
        assert found == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE")


def test_no_secret_is_in_a_log_a_command_line_or_an_environment(target: Target) -> None:
    secrets = [target.secret("reads").text.rpartition(".")[2]]
    secrets += [(target.secrets / name).read_text()[100:160] for name in ("gateway.key", "node.key")]
    for process in target.processes():
        for secret in secrets:
            assert secret not in " ".join([*process.cmdline(), *process.environ().values()])
    for path in map(Path, target.written()):
        assert not any(secret.encode() in path.read_bytes() for secret in secrets)


# -- the shared state ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def between_gateways(target: Target) -> Iterator[Path]:
    """The state's folder while no gateway runs, and nothing of it is kept elsewhere."""
    assert target.gateway is not None
    target.gateway.end()
    shutil.rmtree(target.folder / "g" / "state" / "objects")
    yield target.folder / "state"
    target.start_gateway()
    target.joined(*target.nodes)


def refusal(call: Callable[[], object]) -> HasFaasError:
    with pytest.raises(HasFaasError) as caught:
        call()
    return caught.value


def test_a_bundle_that_was_altered_in_the_state_runs_nowhere_until_it_is_deployed_again(running: Target) -> None:
    verbs.add.deploy()
    with between_gateways(running) as state:
        [bundle] = state.glob("objects/*.bundle")
        content = bundle.read_bytes()
        write_own(bundle, content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    assert isinstance(refusal(lambda: verbs.add.remote(1)), AuthError)
    eventually(lambda: not running.function("verbs.add").replicas)
    verbs.add.deploy()
    assert verbs.add.remote(1) == 2


def test_who_writes_the_state_without_the_signing_key_makes_no_node_run_other_code(running: Target) -> None:
    """A manifest that names another bundle under a function's name, with a digest that is right."""
    for borrowed in (("bundle_sha256",), ("bundle_sha256", "signature")):
        verbs.add.deploy(warm=False)
        verbs.echo.deploy(warm=False)
        with between_gateways(running) as state:
            path = state / "manifest.json"
            table = json.loads(path.read_bytes())
            add, echo = table["functions"]["verbs.add"], table["functions"]["verbs.echo"]
            for field in borrowed:
                add["record"][field] = echo["record"][field]
            add["versions"][-1]["bundle_sha256"] = echo["record"]["bundle_sha256"]
            write_own(path, json.dumps(table).encode())
        # By name, as a client that has deployed nothing itself.
        arguments = verbs.add.encode((1,), {})
        call = running.client.call_named("verbs.add", arguments, 20.0)
        found = refusal(lambda call=call: running.client.run(call))  # type: ignore[misc]
        assert isinstance(found, AuthError | BackendError), found
        eventually(lambda: not running.function("verbs.add").replicas)
    running.delete()


def test_a_manifest_that_is_torn_starts_no_gateway_and_stays_as_it_is(running: Target) -> None:
    verbs.add.deploy()
    assert running.gateway is not None
    running.gateway.end()
    path = running.folder / "state" / "manifest.json"
    whole = path.read_bytes()
    write_own(path, whole[:-20])
    with pytest.raises(AssertionError):
        running.start_gateway()
    [told] = running.gateway.said
    assert isinstance(told, Refused)
    assert read_status(bytes.fromhex(told.status)).reason == "STATE_DAMAGED"
    assert path.read_bytes() == whole[:-20]
    write_own(path, whole)
    running.start_gateway()
    running.joined(*running.nodes)
    assert verbs.add.remote(1) == 2
