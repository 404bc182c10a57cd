"""TLS between a cluster's gateway and its node agents, both of which show a certificate of the cluster's own authority.

Law: a gateway is who has the gateway's certificate, and a node agent's does not pass for one. Only our own processes speak
here, so nothing older than TLS 1.3 is spoken.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any

from hasfaas.backends.certificates import GATEWAY_NAME, NODE_NAME
from hasfaas.backends.cluster.child import Identity
from hasfaas.core.errors import AuthError

SERVER_NAME = NODE_NAME
"""What a gateway gives as `server_hostname` when it connects to a node agent."""


def node_context(identity: Identity) -> ssl.SSLContext:
    """The listening side, of a node agent: whoever connects must show a certificate of the authority. Whether it is the
    gateway's, `check_gateway` says then. Raises AuthError for an identity that is none."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.verify_mode = ssl.CERT_REQUIRED
    # Every line is checked in full: none is resumed on the word of an earlier one.
    context.num_tickets = 0
    return context


def gateway_context(identity: Identity) -> ssl.SSLContext:
    """The connecting side, of the gateway; connect with `server_hostname=SERVER_NAME`. Raises AuthError likewise."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity)  # which asks for a certificate, and checks the name in it


def check_gateway(ssl_object: ssl.SSLObject | ssl.SSLSocket | None) -> None:
    """Raises AuthError unless who has connected showed the gateway's certificate."""
    shown: Mapping[str, Any] = (ssl_object.getpeercert() if ssl_object is not None else None) or {}
    names = [value for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
    if GATEWAY_NAME not in names:
        raise AuthError(
            f"only {GATEWAY_NAME} may connect, and the certificate shown is of {', '.join(names) or 'nobody'}",
            reason="BAD_CERTIFICATE",
        )


def _context(protocol: int, identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=identity.ca_pem)
        _load_own(context, identity)
    except (ssl.SSLError, ValueError, TypeError) as exc:
        raise AuthError(
            f"the certificates that this process was given cannot be used ({exc}); start the cluster anew: it makes others",
            reason="BAD_CERTIFICATE",
        ) from exc
    return context


def _load_own(context: ssl.SSLContext, identity: Identity) -> None:
    # The library reads files only. This one has no name in any folder, and is gone once it is closed.
    with os.fdopen(os.memfd_create("identity"), "wb") as file:
        file.write(f"{identity.cert_pem}\n{identity.key_pem}\n".encode())
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
