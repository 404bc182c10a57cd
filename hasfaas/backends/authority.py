"""A private certificate authority in a folder: made once, kept closed to others, and asked for certificates that end soon.

Renewing a certificate asks nothing of those who believe the authority.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hasfaas.core.errors import AuthError, BackendError, InvalidRequestError
from hasfaas.core.own_file import read_own, write_own

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 365
ISSUED_DAYS = 90
AUTHORITY_CERT, AUTHORITY_KEY = "ca.pem", "ca.key"
# Clocks of two machines differ: what begins now must not begin in a client's future.
SKEW = datetime.timedelta(minutes=10)
MOST_BYTES = 1 << 20


@attrs.frozen
class Wanted:
    """A certificate to be made: its files, what it is called, the names and addresses it is believed under, and whether its
    holder may also call others with it."""

    cert_name: str
    key_name: str
    common_name: str
    hosts: tuple[str, ...]
    calls: bool = False


@attrs.frozen
class Issued:
    """Until when the authority is good, and what it has just made; `renewed` means that the authority was there already."""

    authority_ends: datetime.datetime
    ends: datetime.datetime
    renewed: bool


def issue(folder: Path, wanted: Sequence[Wanted], now: datetime.datetime, *, cure: str) -> Issued:
    """Makes an authority in `folder` unless one is there, and with it these certificates anew.

    Raises BackendError without the package `cryptography`, InvalidRequestError for a host that cannot be; with `cure`, for an
    authority that cannot be used; AuthError for one that others can read, or that ends before the new certificates would.
    """
    _require()
    alternatives = [[_alternative(host) for host in one.hosts] for one in wanted]
    renewed = (folder / AUTHORITY_KEY).exists()
    cert, key = _authority(folder, cure) if renewed else _new_authority(folder, now)
    ends = now + datetime.timedelta(days=ISSUED_DAYS)
    if ends > cert.not_valid_after_utc:
        raise AuthError(
            f"the authority in {folder} ends on {cert.not_valid_after_utc:%Y-%m-%d}, before a new certificate would: {cure}, "
            "and give its ca.pem to the clients",
            reason="CERTIFICATE_EXPIRED",
        )
    for one, names in zip(wanted, alternatives, strict=True):
        _new_certificate(folder, one, names, (cert, key), now, ends)
    return Issued(cert.not_valid_after_utc, ends, renewed)


def _require() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as exc:
        raise BackendError(
            "certificates are made with the package cryptography, which is not installed: pip install 'hasfaas[network]'",
            reason="CRYPTOGRAPHY_NOT_INSTALLED",
        ) from exc


def _alternative(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        if not host or any(character.isspace() or character in "/:@" for character in host):
            raise ValueError("not a name")
        return x509.DNSName(host)
    except ValueError as exc:
        raise InvalidRequestError(f"host={host!r}: give a name or an address, without a port") from exc


def _new_authority(folder: Path, now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("hasfaas private authority")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    cert = (
        _builder(name, name, key.public_key(), now, now + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder, AUTHORITY_KEY, AUTHORITY_CERT, key, cert)
    return cert, key


def _authority(folder: Path, cure: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = read_own(folder / AUTHORITY_KEY, "the authority's key", cure, most_bytes=MOST_BYTES)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
        cert = x509.load_pem_x509_certificate((folder / AUTHORITY_CERT).read_bytes())
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key():
            raise ValueError("key and certificate do not belong together")
    except (OSError, ValueError, TypeError) as exc:
        raise InvalidRequestError(f"the authority in {folder} cannot be used ({exc}): {cure}") from exc
    return cert, key


def _new_certificate(
    folder: Path,
    wanted: Wanted,
    alternatives: Sequence[x509.GeneralName],
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    now: datetime.datetime,
    ends: datetime.datetime,
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    above, signer = authority
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    uses = [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    if wanted.calls:
        uses.append(x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH)
    cert = (
        _builder(_name(wanted.common_name), above.subject, key.public_key(), now, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(issuer, critical=False)
        .sign(signer, hashes.SHA256())
    )
    _write(folder, wanted.key_name, wanted.cert_name, key, cert)


def _name(common: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    ends: datetime.datetime,
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(ends)
    )


def _usage(**given: bool) -> x509.KeyUsage:
    from cryptography import x509

    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    chosen: dict[str, Any] = dict.fromkeys(names, False) | given
    return x509.KeyUsage(**chosen)


def _write(
    folder: Path, key_name: str, cert_name: str, key: ec.EllipticCurvePrivateKey, cert: x509.Certificate
) -> None:
    from cryptography.hazmat.primitives import serialization

    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_own(folder / key_name, pem)
    write_own(folder / cert_name, cert.public_bytes(serialization.Encoding.PEM), mode=0o644)
