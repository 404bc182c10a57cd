"""Nodes with networks of their own: a bridge here, and behind it namespaces, each with one link and one address.

What runs in one is a process of this machine, seen and ended as any other; what it says goes over its link alone, which can
be taken down (packets vanish, nobody is told) or made slow. This process is on the bridge too, and reaches every namespace.

Law: nothing is left behind. Names carry this process's number: what is found of a process that has gone is removed first.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import pytest

# Of a bridge, the outer end of a link, or a namespace; at most 15 characters, as the kernel wants it.
_NAME = re.compile(r"\bhf(\d+)[bln]\d+\b")
_numbers = itertools.count()
NETWORKS = tuple(f"10.{second}.{third}" for second in range(201, 207) for third in range(256))
"""Private ranges of 254 addresses, of which each bridge takes one that this machine has no route to."""
INSIDE = "eth0"


@attrs.frozen
class Namespace:
    """One network: its name to `ip netns`, the outer end of its link, and its address."""

    netns: str
    link: str
    host: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command that runs another in it."""
        return ("ip", "netns", "exec", self.netns)


@attrs.frozen
class Network:
    """A bridge with its namespaces, by the names that were asked for."""

    spaces: dict[str, Namespace]

    @property
    def hosts(self) -> dict[str, str]:
        """The address of each."""
        return {name: space.host for name, space in self.spaces.items()}

    @property
    def prefixes(self) -> dict[str, tuple[str, ...]]:
        """The command of each that runs another in it."""
        return {name: space.prefix for name, space in self.spaces.items()}

    def down(self, name: str) -> None:
        """Takes a link down: what is sent over it is gone, and neither side hears of that."""
        _run("ip", "link", "set", self.spaces[name].link, "down")

    def up(self, name: str) -> None:
        """Brings it up again."""
        _run("ip", "link", "set", self.spaces[name].link, "up")

    @contextmanager
    def cut(self, name: str) -> Iterator[None]:
        """A link that is down for the time of the block."""
        self.down(name)
        try:
            yield
        finally:
            self.up(name)

    @contextmanager
    def slow(self, name: str, *, mbit: float, queue_ms: float) -> Iterator[None]:
        """A link that lets so much through, each way, and drops what would wait longer. Skips where the kernel cannot."""
        shape = ("tbf", "rate", f"{mbit:g}mbit", "burst", "64kb", "latency", f"{queue_ms:g}ms")
        with self._shaped(name, shape):
            yield

    @contextmanager
    def lossy(self, name: str, *, delay_ms: float, loss_percent: float) -> Iterator[None]:
        """A link that delays packets and loses some, each way. Skips where the kernel cannot."""
        with self._shaped(name, ("netem", "delay", f"{delay_ms:g}ms", "loss", f"{loss_percent:g}%")):
            yield

    @contextmanager
    def _shaped(self, name: str, shape: tuple[str, ...]) -> Iterator[None]:
        space = self.spaces[name]
        ends = [(("tc", *where, "qdisc"), link) for where, link in (((), space.link), (("-n", space.netns), INSIDE))]
        try:
            for tc, link in ends:
                said = _try(*tc, "replace", "dev", link, "root", *shape)
                if "qdisc kind is unknown" in said:
                    pytest.skip(f"this kernel has no `tc qdisc ... {shape[0]}`")
                assert not said, said
            yield
        finally:
            for tc, link in ends:
                _try(*tc, "delete", "dev", link, "root")


@contextmanager
def network(*names: str) -> Iterator[Network]:
    """A bridge, and a namespace for each name, removed afterwards. Skips where namespaces may not be made."""
    if why := why_not():
        pytest.skip(why)
    sweep()
    number, made = next(_numbers), f"hf{os.getpid()}"
    bridge, subnet = f"{made}b{number}", _free_subnet()
    spaces = {}
    try:
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "address", "add", f"{subnet}.1/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for host, name in enumerate(names, start=2):
            inside = next(_numbers)
            space = Namespace(f"{made}n{inside}", f"{made}l{inside}", f"{subnet}.{host}")
            spaces[name] = space
            _add(space, bridge)
        yield Network(spaces)
    finally:
        _remove([bridge, *(space.link for space in spaces.values())], [space.netns for space in spaces.values()])


@functools.cache
def why_not() -> str:
    """Why no namespaces can be made here, found by making one; empty where they can."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "network namespaces need the commands ip and tc, which are not here"
    if os.geteuid() != 0:
        return "network namespaces need root"
    number = next(_numbers)
    netns, link, bridge = (f"hf{os.getpid()}{kind}{number}" for kind in "nlb")
    tries = (
        ("ip", "netns", "add", netns),
        ("ip", "link", "add", bridge, "type", "bridge"),
        ("ip", "link", "add", link, "type", "veth", "peer", "name", INSIDE, "netns", netns),
        ("ip", "netns", "exec", netns, "true"),
    )
    try:
        failed = next((said for command in tries if (said := _try(*command))), "")
    finally:
        _remove([bridge, link], [netns])
    return f"network namespaces cannot be made here: {failed}" if failed else ""


def sweep() -> None:
    """Removes what processes have left that have gone."""
    links = {name: pid for name, pid in _ours(_out("ip", "-o", "link", "show")).items() if not _lives(pid)}
    spaces = {name: pid for name, pid in _ours(_out("ip", "netns", "list")).items() if not _lives(pid)}
    _remove(list(links), list(spaces))


def left_by(pid: int) -> list[str]:
    """What there is of a process's bridges, links and namespaces."""
    found = _ours(_out("ip", "-o", "link", "show") + _out("ip", "netns", "list"))
    return sorted(name for name, owner in found.items() if owner == pid)


def _add(space: Namespace, bridge: str) -> None:
    _run("ip", "netns", "add", space.netns)
    _run("ip", "link", "add", space.link, "type", "veth", "peer", "name", INSIDE, "netns", space.netns)
    _run("ip", "link", "set", space.link, "master", bridge, "up")
    _run("ip", "-n", space.netns, "address", "add", f"{space.host}/24", "dev", INSIDE)
    for link in ("lo", INSIDE):
        _run("ip", "-n", space.netns, "link", "set", link, "up")


def _remove(links: list[str], spaces: list[str]) -> None:
    """Removes what is there of these. A link goes with both its ends, also where a process still keeps its namespace."""
    for link in links:
        _try("ip", "link", "delete", link)
    for space in spaces:
        _try("ip", "netns", "delete", space)


def _ours(listed: str) -> dict[str, int]:
    return {found.group(): int(found.group(1)) for found in _NAME.finditer(listed)}


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _free_subnet() -> str:
    """One that this machine has no route to, and not the one that another process is just taking."""
    routes = _out("ip", "-4", "route", "show")
    start = os.getpid() % len(NETWORKS)
    return next(one for one in NETWORKS[start:] + NETWORKS[:start] if f"{one}.0/24" not in routes)


def _run(*command: str) -> None:
    said = _try(*command)
    assert not said, f"{' '.join(command)}: {said}"


def _try(*command: str) -> str:
    """Runs it; what it says when it fails, else nothing."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20.0)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""


def _out(*command: str) -> str:
    with suppress(subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20.0).stdout
    return ""
