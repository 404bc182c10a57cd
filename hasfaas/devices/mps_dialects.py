"""The two protocols of `nvidia-cuda-mps-control`: commands as text, and what their replies mean. Nothing here runs a command.

Version 2 is a shell, one command a line on standard input; it is the default of every driver. Version 3 takes a module and a
verb as arguments, and its servers and partitions have names. Sources, of release 615 and 620: NVIDIA's pages "Legacy MPS v2
Interface", "MPS v3 Interface", "MPS v3 Namespaces" and "Common Tasks" (https://docs.nvidia.com/deploy/mps/).

Of version 3 those pages do not state, so it is assumed here: every word for a server's status but "Ready", the exit status
and the text of a refusal, the reply of `client terminate`, and that a list with no rows is empty or words. They do state
that it takes no new partition while the GPU has clients. Not yet run on a GPU.
"""

from __future__ import annotations

import csv
import re
from abc import ABC, abstractmethod
from typing import ClassVar

import attrs

from hasfaas.devices.mps_replies import (
    Partition,
    PartitionTable,
    ServerStatus,
    parse_partitions,
    parse_pids,
    parse_status,
)

_CSV = "--format=csv,noheader"
_READY = re.compile(r"ready|active", re.IGNORECASE)
_FAULT = re.compile(r"fault|fail|error|recover", re.IGNORECASE)


class Dialect(ABC):
    """What to say to a daemon, and how to read its replies. `shell`: on standard input, else as arguments. `serves_first`:
    partitions are made of a server that runs, so it must be started before them."""

    protocol: ClassVar[int]
    shell: ClassVar[bool]
    serves_first: ClassVar[bool]

    @abstractmethod
    def start(self, static: bool) -> str:
        """The options that start the daemon, as arguments in either case."""

    @abstractmethod
    def quit(self, wait_s: int) -> str:
        """Ends the daemon and its servers."""

    @abstractmethod
    def servers(self) -> str:
        """Which servers run."""

    @abstractmethod
    def read_servers(self, reply: str) -> tuple[int, ...]:
        """Their processes."""

    @abstractmethod
    def start_server(self, uid: int) -> str:
        """Starts the server of a user."""

    @abstractmethod
    def status(self, server: int) -> str:
        """How a server is."""

    @abstractmethod
    def read_status(self, reply: str, server: int) -> ServerStatus | None:
        """Its status; None for what is none."""

    @abstractmethod
    def clients(self, server: int) -> str:
        """Which processes are clients."""

    @abstractmethod
    def read_clients(self, reply: str) -> tuple[int, ...]:
        """Their numbers."""

    @abstractmethod
    def terminate(self, server: int, client: int) -> str:
        """Ends a client's work."""

    @abstractmethod
    def add(self, gpu: str, chunks: int, name: str) -> str:
        """Makes a partition, whose reply holds its identifier; `name` is ours."""

    @abstractmethod
    def remove(self, gpu: str, partition: str, name: str) -> str:
        """Takes a partition back, by its identifier without the GPU's, and by our name."""

    @abstractmethod
    def partitions(self) -> str:
        """The table of partitions."""

    @abstractmethod
    def read_partitions(self, reply: str) -> PartitionTable | None:
        """That table; None where no GPU is in it."""


class V2(Dialect):
    """The shell. The protocol is not among the options, since older drivers do not know it."""

    protocol = 2
    shell = True
    serves_first = False

    def start(self, static: bool) -> str:
        return "-d -S" if static else "-d"

    def quit(self, wait_s: int) -> str:
        return f"quit -t {wait_s}"

    def servers(self) -> str:
        return "get_server_list"

    def read_servers(self, reply: str) -> tuple[int, ...]:
        return parse_pids(reply)

    def start_server(self, uid: int) -> str:
        return f"start_server -uid {uid}"

    def status(self, server: int) -> str:
        return f"get_server_status {server}"

    def read_status(self, reply: str, server: int) -> ServerStatus | None:
        return parse_status(reply)

    def clients(self, server: int) -> str:
        return f"get_client_list {server}"

    def read_clients(self, reply: str) -> tuple[int, ...]:
        return parse_pids(reply)

    def terminate(self, server: int, client: int) -> str:
        return f"terminate_client {server} {client}"

    def add(self, gpu: str, chunks: int, name: str) -> str:
        return f"sm_partition add {gpu} {chunks}"

    def remove(self, gpu: str, partition: str, name: str) -> str:
        return f"sm_partition rm {gpu} {partition}"

    def partitions(self) -> str:
        return "lspart"

    def read_partitions(self, reply: str) -> PartitionTable | None:
        return parse_partitions(reply)


@attrs.frozen
class V3(Dialect):
    """Modules and verbs. The server is the one that NVIDIA names after a user, to which the pipe directory itself leads that
    user's clients: so they need no other environment than with version 2. Each daemon here has that server alone, and sees
    one GPU: lists are not narrowed."""

    uid: int
    protocol = 3
    shell = False
    serves_first = True

    @property
    def _server(self) -> str:
        return f"--server=uid_{self.uid}"

    def start(self, static: bool) -> str:
        return "-d -p 3"

    def quit(self, wait_s: int) -> str:
        return "-q"

    def servers(self) -> str:
        return f"server list {_CSV}"

    def read_servers(self, reply: str) -> tuple[int, ...]:
        return tuple(int(row[2]) for row in _servers(reply))

    def start_server(self, uid: int) -> str:
        return f"server create --uid={uid}"

    def status(self, server: int) -> str:
        return self.servers()

    def read_status(self, reply: str, server: int) -> ServerStatus | None:
        word = next((row[3] for row in _servers(reply) if int(row[2]) == server), "")
        if _FAULT.search(word):
            return ServerStatus.FAULT
        if _READY.fullmatch(word):
            return ServerStatus.ACTIVE
        return ServerStatus.INITIALIZING if word else None

    def clients(self, server: int) -> str:
        return f"client list --all {_CSV}"

    def read_clients(self, reply: str) -> tuple[int, ...]:
        return tuple(int(row[0]) for row in _rows(reply, 2) if row[0].isdigit())

    def terminate(self, server: int, client: int) -> str:
        return f"client terminate {client}"

    def add(self, gpu: str, chunks: int, name: str) -> str:
        return f"sm-partition create {name} {self._server} --device={gpu} --chunks={chunks}"

    def remove(self, gpu: str, partition: str, name: str) -> str:
        return f"sm-partition delete {name} {self._server} --device={gpu}"

    def partitions(self) -> str:
        return f"sm-partition list {self._server} --all {_CSV}"

    def read_partitions(self, reply: str) -> PartitionTable | None:
        rows = [row for row in _rows(reply, 8) if row[3].isdigit() and row[4].isdigit()]
        if not rows:
            return None
        free = [row for row in rows if row[6].lower() == "unallocated"]
        made = tuple(Partition(row[7], int(row[3]), int(row[4])) for row in rows if row not in free)
        chunks, sms = (sum(int(row[column]) for row in free) for column in (3, 4))
        return PartitionTable(chunks, sum(each.chunks for each in made), made, sms)


def _rows(reply: str, columns: int) -> list[list[str]]:
    """Lines of so many columns or more; those of words have fewer."""
    return [row for row in csv.reader(reply.splitlines(), skipinitialspace=True) if len(row) >= columns]


def _servers(reply: str) -> list[list[str]]:
    """name, uid, pid, status, and more: those that have a process."""
    return [row for row in _rows(reply, 4) if row[2].isdigit() and int(row[2])]
