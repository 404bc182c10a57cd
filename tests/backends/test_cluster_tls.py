"""Mutual TLS of a cluster, over real sockets on loopback: a node agent answers its own cluster's gateway, and nobody else."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import threading
from pathlib import Path

import attrs
import pytest

from hasfaas.backends import certificates
from hasfaas.backends.authority import ISSUED_DAYS, Wanted, issue
from hasfaas.backends.certificates import GATEWAY_NAME, NODE_NAME, ClusterCertificates
from hasfaas.backends.cluster import tls
from hasfaas.backends.cluster.child import Identity
from hasfaas.core.errors import AuthError

NOW = datetime.datetime.now(datetime.UTC)
ENDED = NOW - datetime.timedelta(days=ISSUED_DAYS + 1)
WORD = b"what only the gateway may read"


@attrs.frozen
class Cluster:
    """What the processes of one cluster are given."""

    certs: ClusterCertificates
    gateway: Identity
    node: Identity


def identity(ca: Path, cert: Path, key: Path) -> Identity:
    return Identity(ca.read_text(), cert.read_text(), key.read_text(), "00")


def cluster(folder: Path, now: datetime.datetime = NOW) -> Cluster:
    made = certificates.make_cluster(folder, now)
    return Cluster(
        made,
        identity(made.ca_file, made.gateway_cert_file, made.gateway_key_file),
        identity(made.ca_file, made.node_cert_file, made.node_key_file),
    )


@pytest.fixture
def ours(tmp_path: Path) -> Cluster:
    return cluster(tmp_path / "ours")


class Agent:
    """One connection to a port that is served as a node agent's is. `why` it was refused is None when it was answered."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.why: OSError | None = None
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(10)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def dial(self) -> socket.socket:
        return socket.create_connection(self._listening.getsockname(), timeout=10)

    def done(self) -> OSError | None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._listening.close()
        return self.why

    def _serve(self) -> None:
        line, _ = self._listening.accept()
        line.settimeout(10)
        try:
            with line, self._context.wrap_socket(line, server_side=True) as secure:
                tls.check_gateway(secure)
                secure.sendall(WORD)
        except OSError as exc:  # AuthError is one
            self.why = exc


def read(agent: Agent, context: ssl.SSLContext) -> bytes:
    """What a client with this context reads; b"" where it is refused, by whichever side."""
    try:
        with agent.dial() as line, context.wrap_socket(line, server_hostname=tls.SERVER_NAME) as secure:
            return secure.recv(100)
    except OSError:
        return b""


def refusal(node: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """Why the node did not answer this client."""
    agent = Agent(node)
    assert read(agent, client) == b""
    why = agent.done()
    assert why is not None, "it was answered"
    return str(why)


def client_context(ours: Cluster, **given: Path) -> ssl.SSLContext:
    """A client that believes our authority, and shows what the test gives it."""
    context = ssl.create_default_context(cafile=ours.certs.ca_file)
    if given:
        context.load_cert_chain(given["cert"], given["key"])
    return context


def test_the_gateway_of_the_cluster_is_answered(ours: Cluster) -> None:
    agent = Agent(tls.node_context(ours.node))
    with agent.dial() as line:
        secure = tls.gateway_context(ours.gateway).wrap_socket(line, server_hostname=tls.SERVER_NAME)
        assert secure.version() == "TLSv1.3"
        assert secure.recv(100) == WORD
        secure.close()
    assert agent.done() is None


def test_who_shows_no_certificate_is_not_answered(ours: Cluster) -> None:
    assert "did not return a certificate" in refusal(tls.node_context(ours.node), client_context(ours))


def test_a_gateway_of_another_authority_is_not_answered(ours: Cluster, tmp_path: Path) -> None:
    foreign = cluster(tmp_path / "foreign").certs
    shown = client_context(ours, cert=foreign.gateway_cert_file, key=foreign.gateway_key_file)
    assert "certificate verify failed" in refusal(tls.node_context(ours.node), shown)


def test_an_ended_gateway_is_not_answered(ours: Cluster) -> None:
    node = tls.node_context(ours.node)
    ended = cluster(ours.certs.folder, ENDED).gateway
    assert "expired" in refusal(node, tls.gateway_context(ended))


def test_a_node_does_not_pass_for_the_gateway(ours: Cluster) -> None:
    """Its certificate is good for being called alone."""
    assert "purpose" in refusal(tls.node_context(ours.node), tls.gateway_context(ours.node))


def test_nor_does_anybody_else_whom_the_authority_let_call(ours: Cluster) -> None:
    wanted = Wanted("else.pem", "else.key", GATEWAY_NAME, (NODE_NAME, "127.0.0.1"), calls=True)
    issue(ours.certs.folder, [wanted], NOW, cure="-")
    folder = ours.certs.folder
    other = identity(ours.certs.ca_file, folder / "else.pem", folder / "else.key")
    why = refusal(tls.node_context(ours.node), tls.gateway_context(other))
    assert why == f"only {GATEWAY_NAME} may connect, and the certificate shown is of {NODE_NAME}"


def test_an_old_tls_is_not_spoken_by_either_side(ours: Cluster) -> None:
    certs = ours.certs
    old = client_context(ours, cert=certs.gateway_cert_file, key=certs.gateway_key_file)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "unsupported protocol" in refusal(tls.node_context(ours.node), old)
    server = tls.node_context(ours.node)
    server.minimum_version = server.maximum_version = ssl.TLSVersion.TLSv1_2
    refusal(server, tls.gateway_context(ours.gateway))


def test_plain_text_is_not_answered(ours: Cluster) -> None:
    agent = Agent(tls.node_context(ours.node))
    with agent.dial() as line:
        line.sendall(b"GET / HTTP/1.1\r\n\r\n")
        heard = b""
        try:
            while piece := line.recv(100):
                heard += piece
        except ConnectionResetError:
            pass
    assert isinstance(agent.done(), ssl.SSLError)
    assert WORD not in heard
    assert len(heard) <= 7, "an alert of TLS at most"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("foreign", "unable to get local issuer|self.signed"), ("ended", "expired"), ("gateway", "mismatch")],
)
def test_a_gateway_speaks_to_no_other_node(ours: Cluster, tmp_path: Path, wrong: str, words: str) -> None:
    """Nor to a gateway in a node's place."""
    context = tls.gateway_context(ours.gateway)
    if wrong == "foreign":
        server = cluster(tmp_path / "foreign").node
    elif wrong == "ended":
        server = cluster(ours.certs.folder, ENDED).node
    else:
        server = ours.gateway
    agent = Agent(tls.node_context(server))
    with agent.dial() as line, pytest.raises(ssl.SSLCertVerificationError, match=words):
        context.wrap_socket(line, server_hostname=tls.SERVER_NAME)
    assert agent.done() is not None


def test_a_line_without_tls_is_of_no_gateway() -> None:
    with pytest.raises(AuthError, match="nobody"):
        tls.check_gateway(None)


def test_keys_lie_in_no_file_afterwards(ours: Cluster) -> None:
    def open_files() -> list[str]:
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        return sorted(os.readlink(link) for link in links if os.path.lexists(link))

    before = open_files()
    tls.node_context(ours.node)
    tls.gateway_context(ours.gateway)
    assert open_files() == before


@pytest.mark.parametrize("field", ["ca_pem", "cert_pem", "key_pem"])
@pytest.mark.parametrize("value", ["", "no PEM, ü"])
def test_an_identity_that_is_none_is_told_without_its_key(ours: Cluster, field: str, value: str) -> None:
    for make in (tls.node_context, tls.gateway_context):
        with pytest.raises(AuthError, match="cannot be used") as caught:
            make(attrs.evolve(ours.node, **{field: value}))
        assert "PRIVATE KEY" not in str(caught.value)


def test_a_key_of_another_certificate_is_told(ours: Cluster) -> None:
    with pytest.raises(AuthError, match="cannot be used"):
        tls.node_context(attrs.evolve(ours.node, key_pem=ours.gateway.key_pem))
