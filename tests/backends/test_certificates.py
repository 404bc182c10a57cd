"""What `certs init` makes, judged by another implementation of TLS: Python's own, over a real connection."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest

from hasfaas.backends import certificates
from hasfaas.backends.authority import AUTHORITY_DAYS, ISSUED_DAYS
from hasfaas.backends.certificates import Made
from hasfaas.core.errors import AuthError, InvalidRequestError

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)


def handshake(made: Made, ca_file: Path, host: str) -> None:
    """A TLS handshake with a server that has this certificate."""
    ours, theirs = socket.socketpair()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.cert_file, made.key_file)

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()  # the client has refused

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ssl.create_default_context(cafile=ca_file).wrap_socket(ours, server_hostname=host).close()
    finally:
        ours.close()
        thread.join(10)


@pytest.mark.parametrize("host", ["gpu1.example", "10.1.2.3", "::1"])
def test_a_server_is_believed_under_each_of_its_names(tmp_path: Path, host: str) -> None:
    made = certificates.make(tmp_path, ["gpu1.example", "10.1.2.3", "::1"], NOW)
    handshake(made, made.ca_file, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(made, made.ca_file, "gpu2.example")


def test_keys_are_closed_to_others_and_lifetimes_are_those_stated(tmp_path: Path) -> None:
    made = certificates.make(tmp_path / "new", ["a"], NOW)
    for name in ("ca.key", "server.key"):
        assert (made.folder / name).stat().st_mode & 0o777 == 0o600
    assert made.folder.stat().st_mode & 0o777 == 0o700
    assert made.authority_ends == NOW + AUTHORITY_DAYS * DAY
    assert made.server_ends == NOW + ISSUED_DAYS * DAY


def test_an_ended_certificate_is_not_believed(tmp_path: Path) -> None:
    made = certificates.make(tmp_path, ["a"], NOW - (ISSUED_DAYS + 1) * DAY)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(made, made.ca_file, "a")


def test_a_renewed_certificate_is_believed_by_whoever_has_the_old_authority(tmp_path: Path) -> None:
    first = certificates.make(tmp_path, ["a"], NOW)
    ca, cert = first.ca_file.read_bytes(), first.cert_file.read_bytes()
    again = certificates.make(tmp_path, ["b"], NOW)
    assert again.renewed
    assert not first.renewed
    assert again.ca_file.read_bytes() == ca
    assert again.cert_file.read_bytes() != cert
    handshake(again, first.ca_file, "b")


def test_another_authority_is_not_believed(tmp_path: Path) -> None:
    ours = certificates.make(tmp_path / "ours", ["a"], NOW)
    foreign = certificates.make(tmp_path / "foreign", ["a"], NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(foreign, ours.ca_file, "a")


def test_a_gateway_cannot_vouch_for_another(tmp_path: Path) -> None:
    """A server's key makes no certificates: with it in place of the authority's, nobody believes what comes out."""
    made = certificates.make(tmp_path, ["a"], NOW)
    handed = made.ca_file.read_bytes()
    kept = tmp_path / "kept.pem"
    kept.write_bytes(handed)
    (tmp_path / "ca.pem").write_bytes(made.cert_file.read_bytes())
    (tmp_path / "ca.key").write_bytes(made.key_file.read_bytes())
    forged = certificates.make(tmp_path, ["b"], NOW - DAY)
    chain = forged.cert_file.read_bytes() + (tmp_path / "ca.pem").read_bytes()
    forged.cert_file.write_bytes(chain)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(forged, kept, "b")


def test_an_authority_near_its_end_makes_no_more(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["a"], NOW - (AUTHORITY_DAYS - ISSUED_DAYS + 1) * DAY)
    with pytest.raises(AuthError, match="--out") as caught:
        certificates.make(tmp_path, ["a"], NOW)
    assert caught.value.reason == "CERTIFICATE_EXPIRED"


def test_an_authority_that_others_can_read_is_refused(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["a"], NOW)
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(AuthError, match="chmod 600"):
        certificates.make(tmp_path, ["a"], NOW)


@pytest.mark.parametrize("host", ["", "a b", "a:7070", "https://a", "me@a", "bücher.example"])
def test_a_host_that_cannot_be_is_told(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidRequestError, match="host="):
        certificates.make(tmp_path / "new", [host], NOW)
    assert not (tmp_path / "new").exists()


# -- of a cluster ----------------------------------------------------------------------------------------------------


def test_the_keys_of_a_cluster_are_closed_to_others_and_end_as_stated(tmp_path: Path) -> None:
    made = certificates.make_cluster(tmp_path / "new", NOW)
    for key in (made.folder / "ca.key", made.gateway_key_file, made.node_key_file):
        assert key.stat().st_mode & 0o777 == 0o600
    assert made.folder.stat().st_mode & 0o777 == 0o700
    assert (made.authority_ends, made.ends) == (NOW + AUTHORITY_DAYS * DAY, NOW + ISSUED_DAYS * DAY)
    assert not made.renewed


def test_the_certificates_of_a_cluster_are_renewed_and_its_authority_is_kept(tmp_path: Path) -> None:
    first = certificates.make_cluster(tmp_path, NOW - DAY)
    ca, gateway, node = (p.read_bytes() for p in (first.ca_file, first.gateway_cert_file, first.node_cert_file))
    again = certificates.make_cluster(tmp_path, NOW)
    assert again.renewed
    assert again.ends == first.ends + DAY
    assert again.ca_file.read_bytes() == ca
    assert again.gateway_cert_file.read_bytes() != gateway
    assert again.node_cert_file.read_bytes() != node


def test_the_authority_of_a_cluster_that_is_near_its_end_makes_no_more(tmp_path: Path) -> None:
    certificates.make_cluster(tmp_path, NOW - (AUTHORITY_DAYS - ISSUED_DAYS + 1) * DAY)
    with pytest.raises(AuthError, match=r"ca\.key out of that folder") as caught:
        certificates.make_cluster(tmp_path, NOW)
    assert caught.value.reason == "CERTIFICATE_EXPIRED"
