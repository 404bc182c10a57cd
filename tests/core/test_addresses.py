from __future__ import annotations

import pytest

from hasfaas.core import addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("localhost:1", "localhost", 1), ("10.0.0.1:65535", "10.0.0.1", 65535), ("[::1]:7070", "::1", 7070)],
)
def test_an_address_is_taken_apart_and_put_together(text: str, host: str, port: int) -> None:
    assert addresses.split(text) == (host, port)
    assert addresses.join(host, port) == text


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":7070", "host:0", "host:65536", "::1:7070", "[::g]:1", "a b:1", "http://host:1", "h:1\n"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        addresses.split(text)


@pytest.mark.parametrize(
    ("ip", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost", False),  # a name may mean anything
        ("127.0.0.1.example.org", False),
    ],
)
def test_only_loopback_is_loopback(ip: str, own: bool) -> None:
    assert addresses.is_loopback(ip) is own
