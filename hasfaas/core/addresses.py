"""Addresses of gateways on a network, as people write them: "host:port", with an IPv6 host in brackets."""

from __future__ import annotations

import ipaddress
import re

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})", re.ASCII)


def split(address: str) -> tuple[str, int]:
    """Host and port. Raises ValueError for anything but "host:port" with a port from 1 to 65535."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 1 <= int(found["port"]) <= 65535:
        raise ValueError(f"{address!r} is not host:port")
    if found["six"] is not None:
        ipaddress.IPv6Address(found["six"])
    return found["six"] or found["host"], int(found["port"])


def join(host: str, port: int) -> str:
    """The reverse of `split`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(ip: str) -> bool:
    """Whether only this machine reaches an IP address. A name is not judged: it may mean anything."""
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return False
