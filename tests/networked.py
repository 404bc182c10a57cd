"""A gateway that also listens on a port of loopback, with TLS and tokens of its own, and clients that come by that port."""

from __future__ import annotations

import datetime
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from hasfaas.backends import certificates
from hasfaas.backends.certificates import Made
from hasfaas.backends.local.backend import LocalBackend
from hasfaas.core import token_file, tokens
from hasfaas.core.own_file import write_own
from hasfaas.core.settings import ClusterSettings, DeviceSettings, NetworkSettings
from hasfaas.sdk.client import Client
from hasfaas.testing.running import short_folder
from tests.live import UNSCALED, Gateway


def free_port() -> int:
    """A port of loopback that nobody has, from below those that the kernel gives to clients."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("no port is free")


def make_certificates(folder: Path, *hosts: str) -> Made:
    """An authority and a server certificate, from now on."""
    return certificates.make(folder, hosts or ("localhost", "127.0.0.1"), datetime.datetime.now(datetime.UTC))


class NetworkedGateway(Gateway):
    """Its `client` comes by the port, with a token that may do all."""

    def __init__(self, folder: Path, devices: tuple[DeviceSettings, ...], *, tls: bool = True) -> None:
        super().__init__(folder, devices, UNSCALED)
        self.folder = folder
        self.certs = make_certificates(folder / "certs")
        self.tokens_file = folder / "tokens.json"
        self.address = f"127.0.0.1:{free_port()}"
        network = NetworkSettings(
            listen=self.address,
            cert_file=self.certs.cert_file if tls else None,
            key_file=self.certs.key_file if tls else None,
            tokens_file=self.tokens_file,
        )
        self.settings = attrs.evolve(self.settings, network=network)
        self.local = LocalBackend(self.settings)
        self.own_client = Client(self.settings, announce=self.said.append)
        cluster = ClusterSettings(
            addresses=(self.address,),
            ca_file=self.certs.ca_file if tls else None,
            token_file=self.token("all", *tokens.SCOPES),
        )
        self.cluster = cluster
        self.client = self.client_of(cluster)

    def token(self, name: str, *scopes: str, expires_in_s: float | None = None) -> Path:
        """A new token, in a file of its own."""
        now_s = time.time()
        expires_s = None if expires_in_s is None else now_s + expires_in_s
        made, grant = tokens.create(name, scopes, now_s=now_s, expires_s=expires_s)
        token_file.add(self.tokens_file, grant)
        path = self.folder / f"{name}.token"
        write_own(path, made.text.encode())
        return path

    def client_of(self, cluster: ClusterSettings) -> Client:
        """A client by these settings, as on another machine: it has none of this gateway's folders."""
        elsewhere = attrs.evolve(
            self.settings,
            state_dir=self.folder / "elsewhere",
            runtime_dir=self.folder / "nowhere",
            backend="cluster",
            cluster=cluster,
            network=NetworkSettings(),
        )
        return Client(elsewhere, announce=self.said.append)

    def client_with(self, path: Path) -> Client:
        """A client that shows another token."""
        return self.client_of(attrs.evolve(self.cluster, token_file=path))

    @cached_property
    def roots(self) -> bytes:
        """The authority's certificate."""
        return self.certs.ca_file.read_bytes()

    def close(self) -> None:
        super().close()
        self.own_client.run(self.own_client.close())


@contextmanager
def networked(*devices: DeviceSettings, start: bool = True, **options: Any) -> Iterator[NetworkedGateway]:
    """Such a gateway in a new folder, ended and removed afterwards."""
    with short_folder() as folder:
        made = NetworkedGateway(folder, devices or (DeviceSettings(kind="sim"),), **options)
        try:
            if start:
                made.up()
            made.use()
            yield made
        except BaseException:
            print(made.logs())
            raise
        finally:
            made.close()
