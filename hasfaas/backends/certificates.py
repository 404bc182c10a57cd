"""The certificates that a gateway on a network, and the processes of a cluster, have from a private authority.

A cluster's carry fixed names, not hosts, since nodes come and go: whoever connects checks the name of what it wants.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import attrs

from hasfaas.backends.authority import AUTHORITY_CERT, Wanted, issue
from hasfaas.core.errors import InvalidRequestError

SERVER_CERT, SERVER_KEY = "server.pem", "server.key"
GATEWAY_CERT, GATEWAY_KEY = "gateway.pem", "gateway.key"
NODE_CERT, NODE_KEY = "node.pem", "node.key"
GATEWAY_NAME = "gateway.hasfaas.internal"
"""The name in the certificate of a cluster's gateway, whichever node it runs on: clients check it, and node agents too."""
NODE_NAME = "node.hasfaas.internal"
"""The name in the certificate of a cluster's node agents: the gateway checks it."""


@attrs.frozen
class Made:
    """What lies in the folder now, and when it ends. `renewed` means that the authority was there already."""

    folder: Path
    hosts: tuple[str, ...]
    authority_ends: datetime.datetime
    server_ends: datetime.datetime
    renewed: bool

    @property
    def ca_file(self) -> Path:
        return self.folder / AUTHORITY_CERT

    @property
    def cert_file(self) -> Path:
        return self.folder / SERVER_CERT

    @property
    def key_file(self) -> Path:
        return self.folder / SERVER_KEY


def make(folder: Path, hosts: Sequence[str], now: datetime.datetime) -> Made:
    """Makes an authority in `folder` unless one is there, and with it a new server certificate for these names and addresses.

    Raises BackendError without the package `cryptography`, InvalidRequestError for a host that cannot be, AuthError for an
    authority that others can read or that ends before the new certificate would.
    """
    if not hosts:
        raise InvalidRequestError("a certificate is made for at least one name; give --host NAME")
    server = Wanted(SERVER_CERT, SERVER_KEY, "hasfaas gateway", tuple(hosts))
    issued = issue(folder, [server], now, cure="make another in a new folder with --out")
    return Made(folder, tuple(hosts), issued.authority_ends, issued.ends, issued.renewed)


@attrs.frozen
class ClusterCertificates:
    """What lies in a cluster's folder now, and when it ends. `renewed` means that the authority was there already."""

    folder: Path
    authority_ends: datetime.datetime
    ends: datetime.datetime
    renewed: bool

    @property
    def ca_file(self) -> Path:
        return self.folder / AUTHORITY_CERT

    @property
    def gateway_cert_file(self) -> Path:
        return self.folder / GATEWAY_CERT

    @property
    def gateway_key_file(self) -> Path:
        return self.folder / GATEWAY_KEY

    @property
    def node_cert_file(self) -> Path:
        return self.folder / NODE_CERT

    @property
    def node_key_file(self) -> Path:
        return self.folder / NODE_KEY


def make_cluster(folder: Path, now: datetime.datetime) -> ClusterCertificates:
    """Makes an authority in `folder` unless one is there, and with it new certificates: of the gateway, which serves clients
    and calls node agents, and of node agents, which are only called. Raises as `make` does."""
    gateway = Wanted(GATEWAY_CERT, GATEWAY_KEY, "hasfaas gateway", (GATEWAY_NAME, "localhost"), calls=True)
    node = Wanted(NODE_CERT, NODE_KEY, "hasfaas node agent", (NODE_NAME,))
    cure = "take ca.pem and ca.key out of that folder, start the cluster anew, which makes others"
    issued = issue(folder, [gateway, node], now, cure=cure)
    return ClusterCertificates(folder, issued.authority_ends, issued.ends, issued.renewed)
