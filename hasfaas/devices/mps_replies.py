"""What `nvidia-cuda-mps-control` answers in protocol 2, as values. Nothing here runs a command.

The control program ends with status 0 whenever its daemon could be talked to, also when that refused (its manual page), so
only the text tells. Sources, all of release 615: NVIDIA's pages "Legacy MPS v2 Interface" and "Common Tasks"
(https://docs.nvidia.com/deploy/mps/), and the manual page nvidia-cuda-mps-control(1). Second hand, from transcripts of
others: the longer reply of `sm_partition add`, the table of `lspart` without its dashes, "in use", and CUDA_SUCCESS.
"""

from __future__ import annotations

import enum
import re

import attrs

NO_DAEMON = "Cannot find MPS control daemon process"

_PARTITION = re.compile(r"\b((?:GPU|MIG)-[0-9a-fA-F-]+/\S+)")
_STATUS = re.compile(r"\b(ACTIVE|INITIALIZING|FAULT)", re.IGNORECASE)
_VERSION = re.compile(r"\bversion:?\s*(\S+)", re.IGNORECASE)
_REFUSALS = ("fail", "error", "invalid", "in use", "not found", "not enabled", "unknown", "cannot", "unable")


class ServerStatus(enum.Enum):
    """What `get_server_status` says of a server."""

    INITIALIZING = "initializing"
    ACTIVE = "active"
    FAULT = "fault"  # a client faulted; no new client is taken until all that were hit have left


@attrs.frozen
class Partition:
    """A row of `lspart`: a static partition, by its identifier without the GPU's, its chunks and SMs, and whether it has
    clients (None: not told)."""

    partition: str
    chunks: int
    sms: int
    used: bool | None = None


@attrs.frozen
class PartitionTable:
    """`lspart` of one GPU: chunks that are free and used, the partitions, and the SMs that are free. SMs that make no whole
    chunk go with the free ones, and then to a partition: in NVIDIA's example of 10 chunks of 8 on 92 SMs the last partition,
    of 2 chunks, has 28 SMs."""

    free_chunks: int
    used_chunks: int
    partitions: tuple[Partition, ...] = ()
    free_sms: int = 0

    @property
    def chunks(self) -> int:
        """All that lanes can be made of."""
        return self.free_chunks + self.used_chunks

    @property
    def sms(self) -> int:
        """The GPU's SMs; 0 where they are not told. The column of used SMs does not add up in NVIDIA's example."""
        return self.free_sms + sum(each.sms for each in self.partitions)


def parse_pids(reply: str) -> tuple[int, ...]:
    """`get_server_list` and `get_client_list`: one process a line. Lines of words are no processes."""
    return tuple(int(line) for line in reply.split("\n") if line.strip().isdigit())


def parse_status(reply: str) -> ServerStatus | None:
    """`get_server_status`; None for what is no status."""
    found = _STATUS.search(reply)
    return ServerStatus[found.group(1).upper()] if found else None


def parse_version(reply: str) -> str:
    """`-v`: "CUDA MPS Control binary version: 13010", a CUDA version of two digits each after the first."""
    found = _VERSION.search(reply)
    return found.group(1) if found else reply.strip()


def parse_partition(reply: str) -> str | None:
    """`sm_partition add`: the identifier to give a client, "UUID/ID", of which ID may have slashes of its own. All forms:
    "UUID/ID", "Partition UUID/ID created", and "CUDA_MPS_SM_PARTITION=UUID/ID" of protocol 3. None where it was refused."""
    found = _PARTITION.search(reply)
    return found.group(1) if found else None


def parse_partitions(reply: str) -> PartitionTable | None:
    """`lspart`, with dashes for what a row does not have, as documented, or without. None where no GPU is in it."""
    rows = [[word for word in line.split() if word != "-"] for line in reply.splitlines()]
    rows = [row for row in rows if row and row[0].startswith(("GPU-", "MIG-"))]
    totals = [row for row in rows if len(row) >= 3 and row[1].isdigit() and row[2].isdigit()]
    if not totals:
        return None
    found = tuple(_partition(row) for row in rows if row not in totals and len(row) >= 4)
    _gpu, free, used, *sms = totals[0]
    return PartitionTable(int(free), int(used), found, int(sms[0]) if sms and sms[0].isdigit() else 0)


def refused(reply: str) -> bool:
    """Whether a command that says nothing certain when it succeeds was refused."""
    return any(word in reply.lower() for word in _REFUSALS)


def _partition(row: list[str]) -> Partition:
    _gpu, partition, chunks, sms, *clients = row
    return Partition(partition, int(chunks), int(sms), clients[0].lower() == "yes" if clients else None)
