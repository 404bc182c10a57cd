"""What somebody tries who has no token, a wrong one, or one that gives less: raw gRPC and raw sockets against a real gateway.

Every attack goes to loopback, where the gateway of the test listens.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import attrs
import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from hasfaas import AuthError
from hasfaas.core import token_file
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.signing import load_or_create_key, prove, sign
from hasfaas.core.tokens import Token, parse
from hasfaas.serving.access import SERVICE
from hasfaas.wire.convert import payload_to_proto, spec_to_proto
from hasfaas.wire.deploy_proof import signed_parts
from hasfaas.wire.payload import encode_arguments
from hasfaas.wire.v1 import functions_pb2, functions_pb2_grpc, payload_pb2
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.live import app
from tests.networked import NetworkedGateway, make_certificates, networked

verbs = app("verbs")
METHODS = functions_pb2.DESCRIPTOR.services_by_name["FunctionService"].methods
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture(scope="module")
def running_all_along() -> Iterator[NetworkedGateway]:
    with networked() as made:
        yield made


@pytest.fixture
def target(running_all_along: NetworkedGateway) -> Iterator[NetworkedGateway]:
    """A gateway that every attack leaves as it was: what served before serves after it, in the same process."""
    running_all_along.use()
    pid = running_all_along.pid()
    verbs.add.deploy()
    yield running_all_along
    running_all_along.use()
    assert verbs.add.remote(1) == 2
    assert running_all_along.pid() == pid
    assert [one.name for one in running_all_along.status().functions] == ["verbs.add"]


class Attacker:
    """Raw gRPC over TLS, believing whom it is told to; `token` is shown where there is one."""

    def __init__(
        self, target: NetworkedGateway, token: str | None = None, *, roots: bytes | None = None, plain: bool = False
    ) -> None:
        self.metadata: list[tuple[str, str | bytes]] = [] if token is None else [("authorization", f"Bearer {token}")]
        options = [("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)]
        if plain:
            self.channel = grpc.insecure_channel(target.address, options)
        else:
            tls = grpc.ssl_channel_credentials(roots or target.roots)
            self.channel = grpc.secure_channel(target.address, tls, options)

    def __enter__(self) -> Attacker:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def failure(self, call: Callable[[Any], Any]) -> tuple[grpc.StatusCode, str]:
        """Code and reason of an RPC that must fail: `call` is given this attacker."""
        with pytest.raises(grpc.RpcError) as caught:
            call(self)
        error: Any = caught.value
        status: status_pb2.Status | None = rpc_status.from_call(error)
        info = error_details_pb2.ErrorInfo()
        if status is not None:
            assert any(detail.Unpack(info) for detail in status.details)
        return error.code(), info.reason

    @property
    def stub(self) -> Any:
        return functions_pb2_grpc.FunctionServiceStub(self.channel)

    def raw(self, method: str, *, streams: bool = False) -> object:
        """Any method by its path, with bytes that are no message of any kind."""
        channel: Any = self.channel  # its stubs want serialisers, which a stranger has none of
        if streams:
            return next(channel.stream_stream(method)(iter([b"\xff" * 64]), metadata=self.metadata, timeout=10))
        return channel.unary_unary(method)(b"\xff" * 64, metadata=self.metadata, timeout=10)


def secret_of(target: NetworkedGateway, name: str, *scopes: str, expires_in_s: float | None = None) -> Token:
    """A new token of the target. The name of each is its own: tokens stay until the gateway ends."""
    return parse(target.token(name, *scopes, expires_in_s=expires_in_s).read_text())


# -- no token, and wrong ones ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_no_method_answers_without_a_token(target: NetworkedGateway, method: str) -> None:
    with Attacker(target) as attacker:
        for streams in (False, True):
            found = attacker.failure(partial(Attacker.raw, method=f"/{SERVICE}/{method}", streams=streams))
            assert found == (grpc.StatusCode.UNAUTHENTICATED, "NO_TOKEN")


def test_health_reflection_and_what_is_not_there_do_not_either(target: NetworkedGateway) -> None:
    def reflect(attacker: Attacker) -> object:
        stub = reflection_pb2_grpc.ServerReflectionStub(attacker.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        return next(stub.ServerReflectionInfo(iter([asked]), metadata=attacker.metadata, timeout=10))

    def health(attacker: Attacker) -> object:
        stub = health_pb2_grpc.HealthStub(attacker.channel)
        return stub.Check(health_pb2.HealthCheckRequest(), metadata=attacker.metadata, timeout=10)

    def watch(attacker: Attacker) -> object:
        stub = health_pb2_grpc.HealthStub(attacker.channel)
        return next(stub.Watch(health_pb2.HealthCheckRequest(), metadata=attacker.metadata, timeout=10))

    def nothing(attacker: Attacker) -> object:
        return attacker.raw("/no.such.Service/Method")

    with Attacker(target) as attacker:
        for attack in (reflect, health, watch, nothing):
            assert attacker.failure(attack) == (grpc.StatusCode.UNAUTHENTICATED, "NO_TOKEN")
    # With any token they do, so that the attacks above were right but for it.
    with Attacker(target, secret_of(target, "looks", "read").text) as friend:
        assert health(friend).status == health_pb2.HealthCheckResponse.SERVING  # type: ignore[attr-defined]
        assert watch(friend).status == health_pb2.HealthCheckResponse.SERVING  # type: ignore[attr-defined]
        assert SERVICE in str(reflect(friend))
        assert friend.failure(nothing)[0] == grpc.StatusCode.UNIMPLEMENTED


def status_of(attacker: Attacker) -> object:
    return attacker.stub.GetStatus(pb.GetStatusRequest(), metadata=attacker.metadata, timeout=10)


def test_wrong_expired_and_revoked_tokens_are_refused(target: NetworkedGateway) -> None:
    good = secret_of(target, "good", "read")
    brief = secret_of(target, "over", "read", expires_in_s=0.0)
    taken = secret_of(target, "taken", "read")
    with Attacker(target, taken.text) as attacker:
        status_of(attacker)  # was good, on this very connection
        token_file.remove(target.tokens_file, "taken")
        assert attacker.failure(status_of) == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")
    flipped = Token("good", good.secret[:-1] + bytes([good.secret[-1] ^ 1]))
    for text, reason in (
        (flipped.text, "BAD_TOKEN"),
        (Token("nobody", good.secret).text, "BAD_TOKEN"),
        (Token("good", bytes(32)).text, "BAD_TOKEN"),
        ("", "BAD_TOKEN"),
        (good.text[:-1], "BAD_TOKEN"),
        (brief.text, "EXPIRED_TOKEN"),
    ):
        with Attacker(target, text) as attacker:
            assert attacker.failure(status_of) == (grpc.StatusCode.UNAUTHENTICATED, reason), text
    # What the gateway keeps opens nothing.
    kept = token_file.read(target.tokens_file)["good"]
    with Attacker(target, Token("good", kept.digest).text) as attacker:
        assert attacker.failure(status_of) == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")


def test_no_secret_is_in_a_log_a_command_line_or_an_answer(target: NetworkedGateway) -> None:
    token = secret_of(target, "quiet", "read")
    secret = token.text.rpartition(".")[2]
    with Attacker(target, token.text + "x") as attacker, pytest.raises(grpc.RpcError) as caught:
        status_of(attacker)
    assert secret not in str(caught.value)
    files = [path for path in target.settings.state_dir.rglob("*") if path.is_file()]
    assert any(path.name == "gateway.log" for path in files)
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    for process in target.family():
        assert secret not in " ".join([*process.cmdline(), *process.environ().values()])


# -- rights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["invoke", "read"])
def test_a_token_without_the_right_deploys_sizes_and_deletes_nothing(target: NetworkedGateway, scope: str) -> None:
    with Attacker(target, secret_of(target, f"may-{scope}", scope).text) as attacker:
        for method in ("Deploy", "BeginDeploy", "DeleteFunction", "ScaleFunction", "Profile"):
            found = attacker.failure(partial(Attacker.raw, method=f"/{SERVICE}/{method}"))
            assert found == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE")


def test_a_caller_without_the_right_to_deploy_sends_no_pickle(target: NetworkedGateway) -> None:
    verbs.echo.deploy()
    try:
        pickled = payload_to_proto(encode_arguments(({1, 2},), {}))
        assert pickled.codec == payload_pb2.CODEC_PICKLE5
        asked = pb.InvokeRequest(function="verbs.echo", arguments=pickled)
        with Attacker(target, secret_of(target, "caller", "invoke").text) as attacker:

            def invoke(a: Attacker) -> object:
                return a.stub.Invoke(asked, metadata=a.metadata, timeout=10)

            def stream(a: Attacker) -> object:
                return next(a.stub.InvokeStream(pb.InvokeStreamRequest(call=asked), metadata=a.metadata, timeout=10))

            for attack in (invoke, stream):
                assert attacker.failure(attack) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE")
            frames = iter([pb.SessionRequest(frames=[pb.SessionCall(call_id=1, start=asked)])])
            answer = next(iter(attacker.stub.Session(frames, metadata=attacker.metadata, timeout=10)))
            assert "right to deploy" in answer.frames[0].error.message
            # A codec that nobody knows is no way around.
            pickled.codec = 7  # type: ignore[assignment]
            asked.arguments.CopyFrom(pickled)
            assert attacker.failure(invoke) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE")
    finally:
        target.delete("verbs.echo")


def test_no_memory_of_the_gateways_host_is_opened_for_a_caller(target: NetworkedGateway) -> None:
    [segment, *_] = target.shm(target.pid())
    arguments = payload_pb2.Payload(codec=1, head=b"\x90", sizes=[8], segment=segment.name)  # type: ignore[arg-type]
    with Attacker(target, secret_of(target, "peeks", "invoke").text) as attacker:
        asked = pb.InvokeRequest(function="verbs.add", arguments=arguments)
        found = attacker.failure(lambda a: a.stub.Invoke(asked, metadata=a.metadata, timeout=10))
        assert found == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_PAYLOAD")
        replies = pb.InvokeRequest(
            function="verbs.add", arguments=payload_to_proto(encode_arguments((1,), {})), segments=True
        )
        frames = [pb.SessionCall(call_id=1, start=asked), pb.SessionCall(call_id=2, start=replies)]
        answers = attacker.stub.Session(
            iter([pb.SessionRequest(frames=frames)]), metadata=attacker.metadata, timeout=10
        )
        errors = [frame.error.message for answer in answers for frame in answer.frames]
        assert len(errors) == 2
        assert all("shared memory of one host" in message for message in errors)


# -- deploys ---------------------------------------------------------------------------------------------------------


class Deployer:
    """A holder of the right to deploy, by hand."""

    def __init__(self, target: NetworkedGateway, name: str) -> None:
        self.token = secret_of(target, name, "deploy")
        self.attacker = Attacker(target, self.token.text)

    def request(self, **changes: Any) -> pb.DeployRequest:
        """A request that is right, signed last."""
        made = verbs.add.deployable()
        begun = self.attacker.stub.BeginDeploy(pb.BeginDeployRequest(), metadata=self.attacker.metadata, timeout=10)
        fields: dict[str, Any] = {
            "name": made.name,
            "version": made.version,
            "spec": spec_to_proto(made.spec),
            "bundle": made.bundle,
            "challenge": begun.challenge,
            **changes,
        }
        asked = pb.DeployRequest(**fields)
        asked.signature = prove(self.token.signing_key, signed_parts(asked))
        return asked

    def send(self, request: pb.DeployRequest) -> Any:
        return self.attacker.stub.Deploy(request, metadata=self.attacker.metadata, timeout=20)

    def refusal(self, request: pb.DeployRequest) -> str:
        code, reason = self.attacker.failure(lambda _: self.send(request))
        assert code == grpc.StatusCode.PERMISSION_DENIED
        return reason


def test_a_deploy_that_is_repeated_is_refused(target: NetworkedGateway) -> None:
    deployer = Deployer(target, "repeats")
    request = deployer.request()
    assert deployer.send(request).name == "verbs.add"
    assert deployer.refusal(request) == "DEPLOY_REPLAYED"
    # A challenge that was used up by a wrong signature is used up too.
    request = deployer.request()
    right, request.signature = request.signature, bytes(32)
    assert deployer.refusal(request) == "SIGNATURE_INVALID"
    request.signature = right
    assert deployer.refusal(request) == "DEPLOY_REPLAYED"
    # Nor is one good that was made up, or given to another token.
    assert deployer.refusal(deployer.request(challenge=bytes(32))) == "DEPLOY_REPLAYED"
    assert deployer.refusal(deployer.request(challenge=b"")) == "DEPLOY_REPLAYED"
    theirs = Deployer(target, "other").request().challenge
    assert deployer.refusal(deployer.request(challenge=theirs)) == "DEPLOY_REPLAYED"


@pytest.mark.parametrize("what", ["bundle", "name", "version", "spec", "warm", "signature", "challenge"])
def test_a_deploy_that_was_altered_on_its_way_is_refused(target: NetworkedGateway, what: str) -> None:
    deployer = Deployer(target, f"altered-{what}")
    request = deployer.request()
    match what:
        case "bundle":
            request.bundle = request.bundle[:-40] + bytes([request.bundle[-40] ^ 1]) + request.bundle[-39:]
        case "spec":
            request.spec.memory_bytes += 1
        case "warm":
            request.warm = True
        case "challenge":
            request.challenge = deployer.request().challenge
        case "signature":
            request.signature = b""
        case _:
            setattr(request, what, f"{getattr(request, what)}x")
    assert deployer.refusal(request) == "SIGNATURE_INVALID"


def test_a_deploy_signed_with_any_other_key_is_refused(target: NetworkedGateway) -> None:
    deployer, other = Deployer(target, "own-key"), Deployer(target, "other-key")
    gateways = load_or_create_key(target.settings.state_dir / "signing.key")
    request = deployer.request()
    parts = signed_parts(request)
    for forged in (
        sign(gateways, request.bundle),
        prove(gateways, parts),
        prove(other.token.signing_key, parts),
        prove(deployer.token.secret, parts),
        prove(token_file.read(target.tokens_file)["own-key"].digest, parts),
    ):
        asked = deployer.request()
        asked.signature = forged
        assert deployer.refusal(asked) == "SIGNATURE_INVALID"


def test_the_unix_socket_takes_no_tokens_signature(target: NetworkedGateway) -> None:
    deployer = Deployer(target, "socket")

    async def send() -> None:
        session = await target.own_client.session()
        await target.own_client.rpc(session.stub.Deploy(deployer.request()))

    with pytest.raises(AuthError, match="signature"):
        target.own_client.run(send())

    async def begin() -> None:
        session = await target.own_client.session()
        await target.own_client.rpc(session.stub.BeginDeploy(pb.BeginDeployRequest()))

    with pytest.raises(InvalidRequestError, match="user's key"):
        target.own_client.run(begin())


# -- the line --------------------------------------------------------------------------------------------------------


def test_a_foreign_authority_is_believed_by_nobody(target: NetworkedGateway) -> None:
    foreign = make_certificates(target.folder / f"foreign-{time.monotonic_ns()}")
    with Attacker(target, roots=foreign.ca_file.read_bytes()) as attacker:
        assert attacker.failure(status_of)[0] == grpc.StatusCode.UNAVAILABLE
    client = target.client_of(attrs.evolve(target.cluster, ca_file=foreign.ca_file))
    with pytest.raises(AuthError, match=r"not believed.*cluster\.ca_file") as caught:
        client.run(client.gateway_status())
    assert caught.value.reason == "BAD_CERTIFICATE"


def test_a_plain_client_gets_nothing(target: NetworkedGateway) -> None:
    token = secret_of(target, f"plain-{time.monotonic_ns()}", "read")
    with Attacker(target, token.text, plain=True) as attacker:
        assert attacker.failure(status_of)[0] == grpc.StatusCode.UNAVAILABLE


def test_metadata_beyond_its_bound_is_refused(target: NetworkedGateway) -> None:
    token = secret_of(target, "long", "read")
    with Attacker(target, token.text) as attacker:
        status_of(attacker)
        attacker.metadata.append(("x-filler", "x" * (64 << 10)))
        assert attacker.failure(status_of)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    with Attacker(target, "hf1.a." + "A" * (64 << 10)) as attacker:
        assert attacker.failure(status_of)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    with Attacker(target, "hf1.a." + "A" * 4000) as attacker:
        assert attacker.failure(status_of) == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")


def test_a_message_beyond_its_bound_is_refused(target: NetworkedGateway) -> None:
    blob = bytes(81 << 20)

    def deploy(attacker: Attacker) -> object:
        return attacker.stub.Deploy(pb.DeployRequest(bundle=blob), metadata=attacker.metadata, timeout=60)

    with Attacker(target, secret_of(target, "big", "deploy").text) as attacker:
        assert attacker.failure(deploy)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    # Without a token not even that much is read.
    with Attacker(target) as attacker:
        assert attacker.failure(deploy) == (grpc.StatusCode.UNAUTHENTICATED, "NO_TOKEN")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_every_port_that_is_open_wants_tls_and_a_token_and_hangs_up_on_strangers(target: NetworkedGateway) -> None:
    """Scans what the gateway, its zygotes and replicas really listen on, and talks to each as a stranger would."""
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in target.family()
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN" or connection.type == socket.SOCK_DGRAM
    }
    host, port = target.address.split(":")
    assert listening == {(host, int(port))}
    log = target.settings.state_dir / "gateway.log"
    logged = log.read_bytes()
    with contextlib.ExitStack() as lines:
        # Who says nothing, or too little, is hung up after a while: all at once wait once.
        strangers = []
        for words in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PREFACE, b"\x00" * 64, b"\x80\x05"):
            line = lines.enter_context(socket.create_connection((host, int(port)), timeout=20))
            line.sendall(words)
            strangers.append(line)
        for line in strangers:
            answer = b""
            while more := _received(line):
                answer += more
            # At most an alert of TLS, which says that this is not TLS.
            assert len(answer) <= 7, answer
            assert answer[:1] in (b"", b"\x15"), answer
    context = ssl.create_default_context(cadata=target.roots.decode())
    context.set_alpn_protocols(["h2"])
    line = socket.create_connection((host, int(port)), timeout=20)
    with context.wrap_socket(line, server_hostname=host) as secure:
        assert secure.version() in ("TLSv1.2", "TLSv1.3")
    for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        context = ssl.create_default_context(cadata=target.roots.decode())
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, old
        with socket.create_connection((host, int(port)), timeout=20) as line, pytest.raises(OSError, match=r".*"):
            context.wrap_socket(line, server_hostname=host)
    assert log.read_bytes() == logged, "strangers must not be able to fill the log"


def _received(line: socket.socket) -> bytes:
    try:
        return line.recv(4096)
    except ConnectionError:
        return b""
