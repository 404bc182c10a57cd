"""The gateway's port on a network: a server of its own, closed to whoever shows no token.

Law: beyond loopback there is no port without both TLS and tokens, on loopback none without tokens; a gateway that is told
otherwise does not start. What a name means is decided by the addresses that it has, and those are what it listens on.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from pathlib import Path

import attrs
import grpc

from hasfaas.core import addresses
from hasfaas.core.errors import AuthError, BackendError, HasFaasError, InvalidRequestError
from hasfaas.core.own_file import read_own
from hasfaas.core.settings import NetworkSettings
from hasfaas.serving.access import Access, TokenGuard

MAX_PEM_BYTES = 1 << 20
# The largest bundle is 64 MiB, and larger arguments come in chunks.
MAX_MESSAGE_BYTES = 80 * 2**20
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    # A token has 60 bytes, and all that gRPC itself sends a few hundred.
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A client whose machine is gone says nothing, and what it holds is given back.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]
MAX_RPCS = 8192
log = logging.getLogger("hasfaas.gateway")


@attrs.frozen
class Opening:
    """What was checked: where to listen, by numbers, and what to ask for."""

    addresses: tuple[str, ...]
    access: Access
    tls: grpc.ServerCredentials | None


def opening(network: NetworkSettings) -> Opening | None:
    """None where nothing is to be opened. Raises InvalidRequestError for a setting that the law above asks for, AuthError for
    a file that others can read, BackendError for a name without an address."""
    if network.listen is None:
        return None
    found = _resolve(network.listen)
    check(network, found)
    assert network.tokens_file is not None
    try:
        access = Access(network.tokens_file)
    except AuthError:
        raise
    except OSError as exc:
        raise InvalidRequestError(
            f"network.tokens_file={network.tokens_file}: {exc.strerror}; `hasfaas token create NAME --scopes ...` makes it",
            reason="BAD_OPTION",
        ) from exc
    tls = _Certificate(network.cert_file, network.key_file) if network.cert_file and network.key_file else None
    return Opening(found, access, tls.credentials() if tls is not None else None)


def check(network: NetworkSettings, found: tuple[str, ...]) -> None:
    """The law above, for the numeric addresses that `network.listen` stands for. Raises InvalidRequestError."""
    if network.tokens_file is None:
        raise _missing(network, "tokens_file", "name a file, and put tokens in it with `hasfaas token create`")
    beyond = [address for address in found if not addresses.is_loopback(addresses.split(address)[0])]
    if beyond and network.cert_file is None:
        cure = f"other machines reach {beyond[0]}; make both files with `hasfaas certs init`, or listen on 127.0.0.1"
        raise _missing(network, "cert_file and network.key_file", cure)


def _missing(network: NetworkSettings, key: str, cure: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"network.listen={network.listen!r} needs network.{key}, and nothing was opened: {cure}",
        reason="INSECURE_LISTEN",
    )


def open_port(server: grpc.aio.Server, found: Opening) -> None:
    """Binds the server. Raises BackendError where an address is taken or not this machine's."""
    for address in found.addresses:
        try:
            tls = found.tls
            port = server.add_secure_port(address, tls) if tls is not None else server.add_insecure_port(address)
        except RuntimeError as exc:
            raise BackendError(f"cannot listen on {address}: {exc}; is it taken, or not of this machine?") from exc
        if port == 0:
            raise BackendError(f"cannot listen on {address}; is it taken, or not of this machine?")


def make_server(found: Opening) -> grpc.aio.Server:
    """A server on which every RPC has to show a token, whatever is registered."""
    return grpc.aio.server(interceptors=[TokenGuard(found.access)], options=OPTIONS, maximum_concurrent_rpcs=MAX_RPCS)


def _resolve(listen: str) -> tuple[str, ...]:
    host, port = addresses.split(listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise BackendError(f"network.listen={listen!r}: {exc.strerror}; give an address of this machine") from exc
    return tuple(dict.fromkeys(addresses.join(str(entry[4][0]), port) for entry in found))


class _Certificate:
    """A certificate and its key, read again for the next connection whenever one of the files has changed."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._files = (cert_file, key_file)
        self._seen: list[tuple[int, int]] = []

    def credentials(self) -> grpc.ServerCredentials:
        """Raises AuthError for a key that others can read, InvalidRequestError for files that cannot be read or do not go
        together."""
        first = self._read()
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            first,
            self._newest,  # type: ignore[arg-type]  # the stubs do not know None, which keeps what there is
        )
        return credentials

    def _read(self) -> grpc.ServerCertificateConfiguration:
        cert_file, key_file = self._files
        try:
            # First: what is found wrong is looked at again, and told again, only after another change.
            self._seen = self._stamps()
            cert = cert_file.read_bytes()
            key = read_own(key_file, "the key of the certificate", "make a new one", most_bytes=MAX_PEM_BYTES)
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password="")
        except AuthError:
            raise
        except OSError as exc:  # ssl.SSLError is one
            raise InvalidRequestError(
                f"network.cert_file or network.key_file: {exc}; `hasfaas certs init` makes both", reason="BAD_OPTION"
            ) from exc
        return grpc.ssl_server_certificate_configuration([(key, cert)])

    def _newest(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC for each connection; None keeps what it has."""
        try:
            return None if self._stamps() == self._seen else self._read()
        except (HasFaasError, OSError) as exc:
            log.warning("the certificate stays what it was: %s", exc)
            return None

    def _stamps(self) -> list[tuple[int, int]]:
        return [(status.st_ino, status.st_mtime_ns) for status in map(os.stat, self._files)]
