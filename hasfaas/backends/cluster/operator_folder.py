"""What an operator keeps of a cluster, in `<state_dir>/cluster/` (mode 0700): its authority, certificates, the key that signs
bundles, and a token of the operator's own.

Whoever has this folder can start the cluster anew so that its clients notice nothing, and can let anybody in.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import attrs

from hasfaas.backends import certificates
from hasfaas.backends.authority import AUTHORITY_CERT
from hasfaas.backends.certificates import ClusterCertificates
from hasfaas.backends.cluster.child import Identity
from hasfaas.backends.cluster.launch import Launch
from hasfaas.backends.cluster.members import free_name
from hasfaas.backends.cluster.shared_tokens import SharedTokens
from hasfaas.core import token_file, tokens
from hasfaas.core.errors import AuthError, InvalidRequestError
from hasfaas.core.own_file import read_own, write_own
from hasfaas.core.settings import ClusterSettings, Settings
from hasfaas.core.signing import KEY_FILE, load_or_create_key

FOLDER = "cluster"
TOKEN = "token"  # noqa: S105 - a file's name
FIRST_NAME = "operator"
MOST_BYTES = 1 << 20


class OperatorFolder:
    """The folder of these settings. Methods raise AuthError for files that others can read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.path = settings.state_dir / FOLDER

    @property
    def ca_file(self) -> Path:
        return self.path / AUTHORITY_CERT

    @property
    def token_file(self) -> Path:
        return self.path / TOKEN

    def client(self, addresses: tuple[str, ...]) -> ClusterSettings:
        """How this user reaches the cluster."""
        return attrs.evolve(
            self._settings.cluster,
            addresses=addresses,
            ca_file=self.ca_file,
            server_name=certificates.GATEWAY_NAME,
            token_file=self.token_file,
        )

    def knows(self, ca_pem: str) -> bool:
        """Whether a cluster that shows this authority was started from this folder."""
        return self.ca_file.exists() and self.ca_file.read_text() == ca_pem

    def launch(self, now: datetime.datetime) -> Launch:
        """What a cluster is started with. The authority and the signing key are made once, certificates each time.

        Raises BackendError without the package cryptography, InvalidRequestError, and UnavailableError where the tokens at
        cluster.state_url cannot be had.
        """
        made = certificates.make_cluster(self.path, now)
        key = load_or_create_key(self.path / KEY_FILE).hex()
        self.ensure_token(now.timestamp())
        return Launch(
            settings_json=launched(self._settings).to_json(),
            gateway=_identity(made, made.gateway_cert_file, made.gateway_key_file, key),
            node=_identity(made, made.node_cert_file, made.node_key_file, key),
            tokens=token_file.text(self._shared().read()).decode(),
        )

    def ensure_token(self, now_s: float) -> str | None:
        """The name of a token that was made, of all rights; None where the one that lies here still counts."""
        shared = self._shared()
        grants = shared.read()
        if self._counts(grants, now_s):
            return None
        token, grant = tokens.create(free_name(FIRST_NAME, grants), tokens.SCOPES, now_s=now_s)
        shared.add(grant)
        write_own(self.token_file, token.text.encode())
        return grant.name

    def _counts(self, grants: dict[str, tokens.Grant], now_s: float) -> bool:
        if not self.token_file.exists():
            return False
        cure = "remove it, and say `hasfaas cluster up` again, which makes another"
        text = read_own(self.token_file, "the token", cure, most_bytes=MOST_BYTES).decode(errors="replace")
        try:
            return set(tokens.check(grants, text, now_s=now_s).scopes) == set(tokens.SCOPES)
        except AuthError:
            return False

    def _shared(self) -> SharedTokens:
        return SharedTokens(state_url(self._settings))


def state_url(settings: Settings) -> str:
    """`cluster.state_url`. Raises InvalidRequestError, with what to give, where it is not set."""
    if settings.cluster.state_url is None:
        raise InvalidRequestError(
            "cluster.state_url is not set, and without it what is deployed would be lost with the node of the gateway: give "
            'storage that each node reaches, such as "s3://bucket/hasfaas" or "file:///shared/hasfaas"; with all on this '
            'machine any folder will do, such as "file:///var/lib/hasfaas"',
            reason="BAD_OPTION",
        )
    return settings.cluster.state_url


def launched(settings: Settings) -> Settings:
    """The settings that a cluster runs by: the operator's, without how the operator reaches it."""
    away = ClusterSettings()
    cluster = attrs.evolve(
        settings.cluster,
        addresses=away.addresses,
        ca_file=away.ca_file,
        server_name=away.server_name,
        token_file=away.token_file,
    )
    return attrs.evolve(settings, backend="cluster", cluster=cluster)


def _identity(made: ClusterCertificates, cert_file: Path, key_file: Path, signing_key: str) -> Identity:
    cure = "start the cluster anew, which makes another"
    key = read_own(key_file, "the key of a certificate", cure, most_bytes=MOST_BYTES)
    return Identity(made.ca_file.read_text(), cert_file.read_text(), key.decode(), signing_key)
