"""A gateway on a port: when it does not start, what its clients get, and what happens when gateways, tokens or certificates
change under them."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from hasfaas import AuthError, ConflictError, InvalidRequestError, NotFoundError, SerializationError, UnavailableError
from hasfaas.backends import certificates
from hasfaas.backends.certificates import GATEWAY_NAME
from hasfaas.backends.cluster.backend import ClusterBackend
from hasfaas.backends.local.backend import LocalBackend
from hasfaas.core import token_file
from hasfaas.core.errors import BackendError, HasFaasError, IncompatibleError
from hasfaas.core.settings import ClusterSettings, NetworkSettings
from hasfaas.sdk.client import set_default_client
from hasfaas.wire.bundle import pack, read_manifest, unpack
from hasfaas.wire.convert import spec_to_proto
from hasfaas.wire.payload import encode_arguments
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.live import app, eventually, gateway
from tests.networked import NetworkedGateway, free_port, make_certificates, networked

verbs = app("verbs")
steady = app("steady")
streams = app("streams")
tensors = app("tensors")


@pytest.fixture(scope="module")
def running_all_along() -> Iterator[NetworkedGateway]:
    with networked() as made:
        yield made


@pytest.fixture
def shared(running_all_along: NetworkedGateway) -> Iterator[NetworkedGateway]:
    """A gateway that no test ends."""
    running_all_along.use()
    yield running_all_along
    running_all_along.delete()


# -- starting --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed() -> Iterator[NetworkedGateway]:
    """Certificates and tokens, and no gateway."""
    with networked(start=False) as made:
        yield made


def refusal(made: NetworkedGateway, **changes: Any) -> HasFaasError:
    """Why a gateway with other network settings does not start; nothing of it is left."""
    network = attrs.evolve(made.settings.network, **changes)
    backend = LocalBackend(attrs.evolve(made.settings, network=network))
    with pytest.raises(HasFaasError) as caught:
        backend.up()
    eventually(lambda: backend.pid() is None)
    assert "could not start" in caught.value.message
    return caught.value


@pytest.mark.parametrize("listen", ["0.0.0.0", "[::]"])
def test_beyond_loopback_there_is_no_port_without_tls(closed: NetworkedGateway, listen: str) -> None:
    found = refusal(closed, listen=f"{listen}:{free_port()}", cert_file=None, key_file=None)
    assert isinstance(found, InvalidRequestError)
    assert found.reason == "INSECURE_LISTEN"
    for words in ("network.cert_file", "network.key_file", "hasfaas certs init", listen):
        assert words in found.message


@pytest.mark.parametrize("listen", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_nowhere_is_there_a_port_without_tokens(closed: NetworkedGateway, listen: str) -> None:
    found = refusal(closed, listen=f"{listen}:{free_port()}", tokens_file=None)
    assert (type(found), found.reason) == (InvalidRequestError, "INSECURE_LISTEN")
    assert "network.tokens_file" in found.message
    assert "hasfaas token create" in found.message


def test_files_that_are_missing_open_or_mismatched_are_told(closed: NetworkedGateway) -> None:
    assert "hasfaas token create" in refusal(closed, tokens_file=closed.folder / "none.json").message
    assert "none.pem" in refusal(closed, cert_file=closed.folder / "none.pem").message
    other = make_certificates(closed.folder / "other")
    assert "cert_file" in refusal(closed, key_file=other.key_file).message
    other.key_file.chmod(0o644)
    found = refusal(closed, cert_file=other.cert_file, key_file=other.key_file)
    assert isinstance(found, AuthError)
    assert "chmod 600" in found.message


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_told(
    closed: NetworkedGateway, shared: NetworkedGateway
) -> None:
    for listen in (shared.address, f"192.0.2.1:{free_port()}"):
        found = refusal(closed, listen=listen)
        assert isinstance(found, BackendError)
        assert listen in found.message


def test_settings_of_the_network_are_checked() -> None:
    with pytest.raises(InvalidRequestError, match=r"network\.key_file.*set both"):
        NetworkSettings(cert_file=Path("/a"))
    with pytest.raises(InvalidRequestError, match="host:port"):
        NetworkSettings(listen="7070")
    with pytest.raises(InvalidRequestError, match="host:port"):
        ClusterSettings(addresses=("https://gpu1",))


# -- calling ---------------------------------------------------------------------------------------------------------


def test_a_client_elsewhere_deploys_calls_and_gets_large_and_pickled_results(shared: NetworkedGateway) -> None:
    assert verbs.add.remote(1) == 2
    x = np.arange(3 << 20, dtype=np.uint8)
    args, _ = verbs.echo.remote(x)
    assert np.array_equal(args[0], x)
    assert verbs.echo.remote({1, 2}) == (({1, 2},), {})
    assert not (shared.folder / "elsewhere").exists(), "the gateway's signing key is not the client's"
    # What it deployed serves those of the gateway's own host.
    arguments = encode_arguments((5,), {})
    assert shared.own_client.run(shared.own_client.call_named("verbs.add", arguments, 20.0)) == 6


def test_on_a_plain_line_results_are_not_trusted() -> None:
    with networked(tls=False) as made:
        assert verbs.add.remote(1) == 2
        with pytest.raises(SerializationError, match="pickle"):
            verbs.echo.remote({1, 2})
        assert made.client.run(made.client.gateway_status()).pid == made.pid()


def test_a_deploy_runs_on_the_gateways_interpreter_and_must_fit_it(shared: NetworkedGateway) -> None:
    made = verbs.add.deployable()
    contents = unpack(made.bundle)

    def request(**changes: Any) -> pb.DeployRequest:
        manifest = attrs.evolve(read_manifest(made.bundle), **changes)
        asked = pb.DeployRequest(
            name=made.name,
            version=manifest.version,
            spec=spec_to_proto(made.spec),
            bundle=pack(manifest, contents.archive, contents.pickle),
            warm=True,
        )
        shared.client.run(shared.client.sign(asked))
        return asked

    shared.deploy_raw(request(python="/of/the/deployer/python3", version="0" * 16))
    replica = shared.replica("verbs.add")
    assert Path(f"/proc/{replica.pid}/exe").resolve() == Path(sys.executable).resolve()
    other = attrs.evolve(read_manifest(made.bundle).fingerprint, cache_tag="cpython-399")
    with pytest.raises(IncompatibleError, match="cpython-399"):
        shared.deploy_raw(request(fingerprint=other, version="1" * 16))


def test_a_client_must_have_what_it_needs(shared: NetworkedGateway) -> None:
    def endpoint(**changes: Any) -> None:
        settings = attrs.evolve(shared.settings, cluster=attrs.evolve(shared.cluster, **changes))
        ClusterBackend(settings).endpoint(lambda line: None)

    with pytest.raises(InvalidRequestError, match=r"cluster\.addresses"):
        endpoint(addresses=())
    with pytest.raises(InvalidRequestError, match=r"cluster\.token_file"):
        endpoint(token_file=None)
    with pytest.raises(InvalidRequestError, match=r"cluster\.ca_file.*in the clear"):
        endpoint(addresses=("gpu1.example:7070",), ca_file=None)
    with pytest.raises(InvalidRequestError, match=r"cluster\.ca_file.*cluster\.server_name"):
        endpoint(server_name=GATEWAY_NAME, ca_file=None)
    with pytest.raises(InvalidRequestError, match=r"cluster\.ca_file=.*no certificate"):
        endpoint(ca_file=shared.tokens_file)


def test_a_gateway_elsewhere_is_not_started_or_ended_from_here(shared: NetworkedGateway) -> None:
    backend = shared.client.backend
    assert backend.up() is False
    with pytest.raises(IncompatibleError) as caught:
        backend.down()
    assert caught.value.reason == "BACKEND_LACKS_CAPABILITY"
    nobody = attrs.evolve(
        shared.settings, cluster=attrs.evolve(shared.cluster, addresses=(f"127.0.0.1:{free_port()}",))
    )
    with pytest.raises(IncompatibleError, match="hasfaas --backend local up"):
        ClusterBackend(nobody).up()
    assert shared.local.pid() is not None


def test_a_token_file_that_others_can_read_is_not_used(shared: NetworkedGateway) -> None:
    path = shared.token("careless", "read")
    path.chmod(0o644)
    client = shared.client_with(path)
    with pytest.raises(AuthError, match="chmod 600"):
        client.run(client.gateway_status())
    path.unlink()
    with pytest.raises(AuthError, match="token_file"):
        client.run(client.gateway_status())


# -- rights ----------------------------------------------------------------------------------------------------------


def test_a_token_to_call_with_calls_what_others_have_deployed(shared: NetworkedGateway) -> None:
    caller = shared.client_with(shared.token("caller", "invoke"))
    set_default_client(caller)
    with pytest.raises(NotFoundError):
        verbs.add.remote(1)
    shared.use()
    verbs.add.deploy()
    set_default_client(caller)
    assert verbs.add.remote(1) == 2
    with pytest.raises(AuthError, match="and not read"):
        caller.run(caller.gateway_status())
    shared.use()
    other = attrs.evolve(verbs.add.deployable(), version="0" * 16)
    bundle = unpack(other.bundle)
    blob = pack(attrs.evolve(bundle.manifest, version="0" * 16), bundle.archive, bundle.pickle)
    shared.client.run(shared.client.deploy(attrs.evolve(other, bundle=blob), warm=False))
    set_default_client(caller)
    with pytest.raises(ConflictError, match="superseded"):
        verbs.add.remote(1)


def test_a_pickle_is_code_and_wants_the_right_to_deploy(shared: NetworkedGateway) -> None:
    verbs.echo.deploy()
    set_default_client(shared.client_with(shared.token("plain", "invoke")))
    assert verbs.echo.remote([1, "a"], x=np.float32(2)) == (([1, "a"],), {"x": np.float32(2)})
    with pytest.raises(AuthError, match="right to deploy") as caught:
        verbs.echo.remote({1, 2})
    assert caught.value.reason == "SCOPE"


# -- changes under way -----------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_a_revoked_token_is_refused_and_its_open_streams_end(shared: NetworkedGateway) -> None:
    verbs.add.deploy()
    client = shared.client_with(shared.token("short", "invoke", "read"))
    arguments = encode_arguments((1,), {})
    assert client.run(client.call_named("verbs.add", arguments, 20.0)) == 2
    ended: list[BaseException] = []

    async def follow() -> None:
        session = await client.session()
        call = session.stub.StreamLogs(pb.StreamLogsRequest(name="verbs.add", follow=True))
        answers = aiter(call)
        while await client.rpc(anext(answers, None)) is not None:
            pass

    def wait() -> None:
        try:
            client.run(follow())
        except AuthError as exc:
            ended.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    token_file.remove(shared.tokens_file, "short")
    with pytest.raises(AuthError, match="revoked"):
        client.run(client.gateway_status())
    thread.join(20)
    [error] = ended
    assert isinstance(error, AuthError)
    assert error.reason == "BAD_TOKEN"

    def refused() -> bool:
        # The session was open before: it ends within a second.
        try:
            client.run(client.call_named("verbs.add", arguments, 20.0))
        except AuthError:
            return True
        return False

    eventually(refused)
    assert verbs.add.remote(2) == 3


def test_a_token_that_expires_ends_what_it_opened(shared: NetworkedGateway) -> None:
    verbs.add.deploy()
    client = shared.client_with(shared.token("brief", "invoke", "read", expires_in_s=1.5))
    client.run(client.gateway_status())

    def reason() -> str:
        try:
            client.run(client.gateway_status())
        except AuthError as exc:
            return exc.reason
        return ""

    assert eventually(reason) == "EXPIRED_TOKEN"


def test_a_renewed_certificate_serves_without_a_restart(shared: NetworkedGateway) -> None:
    pid = shared.pid()
    now = datetime.datetime.now(datetime.UTC)
    certificates.make(shared.certs.folder, ["renewed.example", "127.0.0.1", "localhost"], now)
    context = ssl.create_default_context(cadata=shared.roots.decode())
    context.set_alpn_protocols(["h2"])
    host, port = shared.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        context.wrap_socket(line, server_hostname="renewed.example").close()
    assert verbs.add.remote(1) == 2
    assert shared.pid() == pid


def test_a_certificate_may_be_looked_at_for_a_name_that_is_not_the_address(shared: NetworkedGateway) -> None:
    now = datetime.datetime.now(datetime.UTC)
    certificates.make(shared.certs.folder, [GATEWAY_NAME], now)
    try:
        named = shared.client_of(attrs.evolve(shared.cluster, server_name=GATEWAY_NAME))
        set_default_client(named)
        assert verbs.add.remote(1) == 2
        for name, words in ((None, "certs init --host"), ("other.example", "cluster.server_name=other.example")):
            stranger = shared.client_of(attrs.evolve(shared.cluster, server_name=name))
            with pytest.raises(AuthError, match=words) as caught:
                stranger.run(stranger.gateway_status())
            assert caught.value.reason == "BAD_CERTIFICATE"
        named.run(named.close())
    finally:
        certificates.make(shared.certs.folder, ["127.0.0.1", "localhost"], now)


def test_a_client_goes_to_the_next_gateway_and_comes_back() -> None:
    with networked() as first, networked(start=False) as second:
        # One authority, one token: two gateways of one operator.
        for name in ("server.pem", "server.key"):
            (second.certs.folder / name).write_bytes((first.certs.folder / name).read_bytes())
        second.tokens_file.write_bytes(first.tokens_file.read_bytes())
        second.up()
        dead = f"127.0.0.1:{free_port()}"
        both = attrs.evolve(first.cluster, addresses=(dead, first.address, second.address))
        client = first.client_of(both)
        first.use(client)
        ran_on_first = steady.again.remote(0)[1]
        assert first.replica("steady.again").pid == ran_on_first
        first.kill()
        assert steady.again.remote(1)[0] == 1  # idempotent: it is sent again, and deployed there first
        own = second.own_client.run(second.own_client.gateway_status())
        assert [one.name for one in own.functions] == ["steady.again"]
        second.kill()
        began_s = time.monotonic()
        threading.Timer(1.0, first.up).start()
        assert steady.again.remote(2)[0] == 2  # waits for one that answers
        assert time.monotonic() - began_s < 50
        client.run(client.close())


def test_a_gateway_that_falls_silent_is_given_up() -> None:
    with networked() as made:
        verbs.add.deploy()
        pid = made.pid()
        os.kill(pid, signal.SIGSTOP)  # its kernel goes on, and takes what is sent
        try:
            with pytest.raises(UnavailableError) as caught:
                made.client.run(made.client.call_named("verbs.add", encode_arguments((1,), {}), 60.0))
            assert caught.value.reason == "GATEWAY_LOST"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert verbs.add.remote(1) == 2


def test_what_was_never_reached_is_told_at_once(shared: NetworkedGateway) -> None:
    dead = (f"127.0.0.1:{free_port()}", f"localhost:{free_port()}")
    client = shared.client_of(attrs.evolve(shared.cluster, addresses=dead))
    set_default_client(client)
    began_s = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        verbs.add.remote(1)
    assert time.monotonic() - began_s < 20, "the call's own 60 s are not waited for"
    for address in dead:
        assert address in caught.value.message


def test_without_network_settings_nothing_is_opened() -> None:
    with gateway() as made:
        made.status()
        listening = [c for one in made.family() for c in one.net_connections("inet") if c.status == "LISTEN"]
        assert listening == []
