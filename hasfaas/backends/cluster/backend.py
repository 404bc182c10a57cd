"""The cluster backend from a client's side: gateways on other machines, tried in order, believed by one authority alone.

It starts and ends nothing: a gateway is started where it runs.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from hasfaas.backends.base import Endpoint
from hasfaas.core import addresses
from hasfaas.core.errors import AuthError, HasFaasError, IncompatibleError, InvalidRequestError, UnavailableError
from hasfaas.core.settings import Settings

CONNECT_TIMEOUT_S = 3.0
MOST_LEARNT = 64
# What a client calls a gateway that it had and lost: calls that may be sent again wait for one to answer.
GATEWAY_LOST = "GATEWAY_LOST"


class ClusterBackend:
    """The gateways of `[cluster]`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.cluster
        self._had_one = False
        self._learnt: tuple[str, ...] = ()

    def endpoint(self, announce: Callable[[str], None]) -> Endpoint:
        """The first of the addresses that answers. Raises UnavailableError that says of each why it does not, AuthError
        when none answers and one showed a certificate of somebody else."""
        roots = self._roots()
        failures: list[HasFaasError] = []
        for address in dict.fromkeys((*self._learnt, *self._addresses())):
            try:
                _connect(address, roots, self._settings.server_name)
            except HasFaasError as exc:
                failures.append(exc)
                continue
            self._had_one = True
            # The user's own configuration names who vouches for this gateway; a plain line is anybody's.
            return Endpoint(
                address,
                trusted=roots is not None,
                roots=roots,
                token_file=self._settings.token_file,
                server_name=self._settings.server_name,
                learn=self._learn if roots is not None else None,
            )
        raise self._none(failures)

    def _learn(self, told: tuple[str, ...]) -> None:
        """A gateway names where another may be found should it go: nodes come and go. They are tried first from then on, and
        believed for the same certificates alone."""
        self._learnt = tuple(address for address in told[:MOST_LEARNT] if _is_address(address))

    def up(self) -> bool:
        """False when a gateway answers. Raises IncompatibleError when none does: it is started where it runs."""
        try:
            self.endpoint(lambda line: None)
        except UnavailableError as exc:
            raise self._elsewhere("started", "`hasfaas --backend local up`") from exc
        return False

    def down(self) -> bool:
        """Raises IncompatibleError: a gateway of another machine is ended there."""
        raise self._elsewhere("ended", "`hasfaas --backend local down`")

    def running(self) -> Endpoint | None:
        """The same as `endpoint`."""
        return self.endpoint(lambda line: None)

    def _elsewhere(self, done: str, command: str) -> IncompatibleError:
        where = ", ".join(self._settings.addresses) or "none yet"
        return IncompatibleError(
            f"backend='cluster' uses a gateway elsewhere ({where}), which is {done} there: a cluster by `hasfaas cluster "
            f"{'up' if done == 'started' else 'down'}`, a gateway of one machine by {command} on it",
            reason="BACKEND_LACKS_CAPABILITY",
        )

    def _addresses(self) -> tuple[str, ...]:
        if not self._settings.addresses:
            raise _missing(
                "addresses",
                "`hasfaas cluster up` writes it for a cluster that it starts; for others list where gateways are, such as "
                '["gpu1.example:7070"]',
            )
        if self._settings.token_file is None:
            raise _missing("token_file", "give the file with the token that `hasfaas token create` printed there")
        return self._settings.addresses

    def _roots(self) -> bytes | None:
        """The authority's certificate, None for a plain line, which no other machine may be asked on."""
        if self._settings.ca_file is not None:
            return _read_roots(self._settings.ca_file)
        if self._settings.server_name is not None:
            raise _missing(
                "ca_file", "cluster.server_name is a name in a certificate, and a plain line has none; give the ca.pem"
            )
        far = [one for one in self._settings.addresses if not addresses.is_loopback(addresses.split(one)[0])]
        if far:
            raise _missing(
                "ca_file", f"without it the token would go to {far[0]} in the clear; give the ca.pem of that gateway"
            )
        return None

    def _none(self, failures: list[HasFaasError]) -> HasFaasError:
        why = "; ".join(failure.message for failure in failures)
        foreign = [failure for failure in failures if isinstance(failure, AuthError)]
        if foreign:
            return AuthError(why, reason=foreign[0].reason)
        cure = "is one running there? (`hasfaas cluster status`; on one machine `hasfaas up`, with network.listen set)"
        return UnavailableError(
            f"no gateway answers: {why}; {cure}", reason=GATEWAY_LOST if self._had_one else "NO_GATEWAY"
        )


def _is_address(text: str) -> bool:
    try:
        addresses.split(text)
    except ValueError:
        return False
    return True


def _missing(key: str, cure: str) -> InvalidRequestError:
    return InvalidRequestError(f"backend='cluster' needs cluster.{key}: {cure}", reason="BAD_OPTION")


def _read_roots(ca_file: Path) -> bytes:
    try:
        roots = ca_file.read_bytes()
        ssl.create_default_context(cadata=roots.decode("ascii"))
    except (OSError, UnicodeDecodeError, ssl.SSLError) as exc:
        raise InvalidRequestError(
            f"cluster.ca_file={ca_file} holds no certificate that can be read ({exc}); copy the gateway's ca.pem there",
            reason="BAD_OPTION",
        ) from exc
    return roots


def _connect(address: str, roots: bytes | None, server_name: str | None) -> None:
    """Connects, and over TLS sees the certificate. Raises UnavailableError, and AuthError for a certificate that is not
    signed by `roots`, has ended, or has neither `server_name` nor, without one, the host's name in it."""
    host, port = addresses.split(address)
    try:
        with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as line:
            if roots is not None:
                context = ssl.create_default_context(cadata=roots.decode("ascii"))
                context.set_alpn_protocols(["h2"])
                context.wrap_socket(line, server_hostname=server_name or host).close()
    except ssl.SSLCertVerificationError as exc:
        name = "was its certificate made for this name (`hasfaas certs init --host NAME`)"
        if server_name is not None:
            name = f"does its certificate carry cluster.server_name={server_name}"
        raise AuthError(
            f"{address}: its certificate is not believed ({exc.verify_message}); is cluster.ca_file the ca.pem of this very "
            f"gateway, and {name}?",
            reason="BAD_CERTIFICATE",
        ) from exc
    except OSError as exc:
        raise UnavailableError(f"{address}: {exc.strerror or exc}", reason="NO_GATEWAY") from exc
