"""The one wrapper of `nvidia-cuda-mps-control`: a daemon of one GPU, with a pipe directory of its own.

One daemon for each GPU, since a fatal fault makes a server refuse new clients on every GPU it serves. It is spoken to in
protocol 2, whose replies are documented best and which works unchanged where version 3 exists, and in protocol 3 where a
daemon does not take 2, or where that is asked for; `mps_dialects` knows both. Which one, the folder tells: whoever looks
after a daemon later must speak as it does. The protocol is pinned, since a variable of the user's own would choose it.

Sources: NVIDIA's pages "Legacy MPS v2 Interface", "MPS v3 Interface", "Common Tasks" and "Environment Variables" of release
615 (https://docs.nvidia.com/deploy/mps/) and the manual page nvidia-cuda-mps-control(1). Not yet run on a GPU.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hasfaas.core.errors import BackendError, PlacementError
from hasfaas.devices.mps_dialects import V2, V3, Dialect
from hasfaas.devices.mps_processes import COMMAND, children, daemon_of, is_mps
from hasfaas.devices.mps_replies import PartitionTable, ServerStatus, parse_partition, parse_version, refused

MAX_CLIENTS = 48
"""Client contexts that one server takes on Volta and later; 60 with newer drivers, second hand."""
STATIC_CUDA = (13, 1)
"""The driver's CUDA that first knows static partitions (-S): NVIDIA's page "MPS GPU Partitioning" of Isaac ROS asks for a
control program of version 13010."""
PROTOCOLS = (2, 3)
"""Versions of the protocol, in the order in which they are tried."""
VARIABLES = (
    "CUDA_MPS_PIPE_DIRECTORY",
    "CUDA_MPS_LOG_DIRECTORY",
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "CUDA_MPS_ENABLE_PER_CTX_DEVICE_MULTIPROCESSOR_PARTITIONING",
    "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT",
    "CUDA_MPS_CLIENT_PRIORITY",
    "CUDA_MPS_SM_PARTITION",
    "CUDA_MPS_PROTOCOL_VERSION",
)
"""Every variable that MPS reads: in the daemon's environment most would bound all its clients, so it gets none it is not
given here."""

_NOT_FOUND = (
    f"{COMMAND} is not on PATH: install the driver's MPS (Ubuntu: nvidia-compute-utils), or give the container the driver "
    "capabilities `compute,utility`"
)
_QUIT_S = 5
_POLL_S = 0.02
_PROTOCOL = "protocol"
# A unix socket's path has room for 108 bytes with its closing zero; this is the longest that the daemon makes.
_SOCKET, _SOCKET_BYTES = "control_privileged", 107


class MpsControl:
    """The control daemon of one GPU. `folder` gets its pipe and log directories, for this user alone. `protocols` are those
    that it may be started with, tried in this order.

    Every call runs the control program for at most `timeout_s`. Raises BackendError: MPS_NOT_FOUND (no such program),
    MPS_FAILED (it or its daemon said no, with the reply), MPS_TIMEOUT.
    """

    def __init__(
        self, folder: Path, gpu_uuid: str, *, timeout_s: float = 10.0, protocols: Sequence[int] = PROTOCOLS
    ) -> None:
        self.folder = folder
        self.pipe = folder / "pipe"
        self.log = folder / "log"
        self._gpu_uuid = gpu_uuid
        self._timeout_s = timeout_s
        self._protocols = protocols
        self._names: dict[str, str] = {}
        self._numbers = itertools.count(1)

    @property
    def pid(self) -> int | None:
        """The daemon's process; None where it does not live. Of the file in its pipe directory no page speaks, and it was
        seen with protocol 2 only: where it is not there, the process with that directory is looked for."""
        try:
            pid = int((self.pipe / f"{COMMAND}.pid").read_text())
        except (OSError, ValueError):
            pid = 0
        return pid if is_mps(pid) else daemon_of(self.pipe)

    @property
    def alive(self) -> bool:
        """Whether the daemon lives."""
        return self.pid is not None

    @property
    def protocol(self) -> int:
        """The protocol that the daemon of this folder was started with."""
        return self._dialect.protocol

    def version(self) -> str:
        """The control program's version. Needs no daemon."""
        return parse_version(self._run("-v"))

    def start(self, static: bool) -> None:
        """Starts the daemon, with static partitions or without, and waits until it answers. On failure none is left."""
        self._make_folders()
        refusals = []
        for protocol in self._protocols:
            (self.folder / _PROTOCOL).write_text(f"{protocol}\n")
            try:
                self._start(static)
                return
            except BackendError as exc:
                self.quit()
                if exc.reason != "MPS_FAILED":
                    raise
                refusals.append(str(exc))
        raise BackendError("; ".join(refusals), reason="MPS_FAILED")

    def servers(self) -> tuple[int, ...]:
        """The server processes: none before the first client, then one."""
        dialect = self._dialect
        return dialect.read_servers(self._ask(dialect.servers()))

    def start_server(self, uid: int) -> None:
        """Starts the server of a user, before a client would."""
        self._ask(self._dialect.start_server(uid))

    def server_status(self, server: int) -> ServerStatus:
        """How a server is."""
        dialect, command = self._dialect, self._dialect.status(server)
        reply = self._ask(command)
        status = dialect.read_status(reply, server)
        if status is None:
            raise _failed(command, reply)
        return status

    def clients(self, server: int) -> tuple[int, ...]:
        """The processes that are clients of a server."""
        dialect = self._dialect
        return dialect.read_clients(self._ask(dialect.clients(server)))

    def terminate_client(self, server: int, client: int) -> None:
        """Ends a client's work on the GPU; its process lives, and can use CUDA no more."""
        command = self._dialect.terminate(server, client)
        reply = self._ask(command)
        if refused(reply):
            raise _failed(command, reply)

    def add_partition(self, chunks: int) -> str:
        """Sets SMs aside; the value for CUDA_MPS_SM_PARTITION. Raises PlacementError where the GPU refuses, as while it has
        clients, or with too few chunks left."""
        name = f"lane_{next(self._numbers)}"
        reply = self._ask_to_place(self._dialect.add(self._gpu_uuid, chunks, name))
        partition = parse_partition(reply)
        if partition is None:
            raise PlacementError(
                f"{self._gpu_uuid} has no partition of {chunks} chunks ({reply or 'no reply'}): it may have too few left, or "
                "take no new partition while it has clients"
            )
        self._names[partition] = name
        return partition

    def remove_partition(self, partition: str) -> None:
        """Gives back the SMs of a partition that was added here. Raises PlacementError while it has clients."""
        _, _, identifier = partition.partition("/")
        reply = self._ask_to_place(self._dialect.remove(self._gpu_uuid, identifier, self._names[partition]))
        if refused(reply):
            raise PlacementError(f"partition {partition} was not removed ({reply}): its clients must end first")
        del self._names[partition]

    def partitions(self) -> PartitionTable:
        """The chunks of the GPU and the partitions made of them. Needs the daemon to be static."""
        dialect, command = self._dialect, self._dialect.partitions()
        reply = self._ask(command)
        table = dialect.read_partitions(reply)
        if table is None:
            raise _failed(command, reply)
        return table

    def quit(self) -> None:
        """Ends the daemon and its servers: asks, waits, then kills. Does not raise; harmless where there is none."""
        pid = self.pid
        if pid is None:
            return
        family = (*children(pid), pid)
        try:
            self._ask(self._dialect.quit(_QUIT_S), timeout_s=_QUIT_S + self._timeout_s)
        except BackendError:
            pass  # deaf, or the connection broke with its end: what counts is whether it has gone
        _await(lambda: not self.alive, self._timeout_s)
        for each in family:
            if is_mps(each):
                os.kill(each, signal.SIGKILL)
        _await(lambda: not any(is_mps(each) for each in family), self._timeout_s)

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _dialect(self) -> Dialect:
        try:
            protocol = int((self.folder / _PROTOCOL).read_text())
        except (OSError, ValueError):
            protocol = self._protocols[0]
        return V3(os.getuid()) if protocol == V3.protocol else V2()

    def _make_folders(self) -> None:
        length = len(os.fsencode(self.pipe / _SOCKET))
        if length > _SOCKET_BYTES:
            raise BackendError(
                f"the path of the MPS socket in {self.pipe} has {length} bytes, a socket's may have {_SOCKET_BYTES}: use a "
                "shorter folder",
                reason="MPS_FAILED",
            )
        for folder in (self.folder, self.pipe, self.log):
            folder.mkdir(mode=0o700, exist_ok=True)

    def _start(self, static: bool) -> None:
        dialect = self._dialect
        self._run(*dialect.start(static).split())
        # The daemon has forked when its command returns, but may not listen yet.
        self._until(lambda: not refused(self._ask(dialect.servers())), dialect.servers())
        if static and dialect.serves_first:
            self.start_server(os.getuid())
            self._until(lambda: ServerStatus.ACTIVE in map(self.server_status, self.servers()), dialect.servers())

    def _until(self, done: Callable[[], bool], command: str) -> None:
        """Asks until the daemon says so, or with its last refusal no more."""
        until_s = time.monotonic() + self._timeout_s
        while True:
            try:
                if done():
                    return
                last = _failed(command, "it is not ready")
            except BackendError as exc:
                last = exc
            if time.monotonic() > until_s:
                raise last
            time.sleep(_POLL_S)

    def _ask_to_place(self, command: str) -> str:
        """The reply, which may be a refusal: protocol 3 may say that with its exit status too."""
        try:
            return self._ask(command)
        except BackendError as exc:
            if exc.reason != "MPS_FAILED" or not self.alive:
                raise
            return str(exc)

    def _ask(self, command: str, *, timeout_s: float | None = None) -> str:
        if self._dialect.shell:
            return self._run(stdin=f"{command}\n", timeout_s=timeout_s)
        return self._run(*command.split(), timeout_s=timeout_s)

    def _run(self, *arguments: str, stdin: str | None = None, timeout_s: float | None = None) -> str:
        """The reply to an option or to a line. Standard input is closed where nothing is said."""
        named, limit_s = " ".join(arguments) or (stdin or "").strip(), timeout_s or self._timeout_s
        # Into a file: the daemon that `-d` starts may keep what it inherits, and a pipe would then never end.
        with tempfile.TemporaryFile() as out:
            try:
                done = subprocess.run(
                    [COMMAND, *arguments],
                    input=(stdin or "").encode(),
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    timeout=limit_s,
                    env=self._environment(os.environ),
                    start_new_session=True,
                    check=False,
                )
            except FileNotFoundError:
                raise BackendError(_NOT_FOUND, reason="MPS_NOT_FOUND") from None
            except OSError as exc:
                raise _failed(named, str(exc)) from exc
            except subprocess.TimeoutExpired:
                raise BackendError(
                    f"MPS did not answer `{named}` within {limit_s:g} s: see {self.log}/control.log",
                    reason="MPS_TIMEOUT",
                ) from None
            out.seek(0)
            reply = out.read().decode(errors="replace").strip()
        if done.returncode:
            raise _failed(named, reply or f"status {done.returncode}")
        return reply

    def _environment(self, ours: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in ours.items() if name not in VARIABLES} | {
            "CUDA_MPS_PIPE_DIRECTORY": str(self.pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(self.log),
            "CUDA_MPS_PROTOCOL_VERSION": str(self.protocol),
            "CUDA_VISIBLE_DEVICES": self._gpu_uuid,
        }


def _failed(command: str, reply: str) -> BackendError:
    return BackendError(f"MPS refused `{command}`: {reply or 'no reply'}", reason="MPS_FAILED")


def _await(done: Callable[[], bool], timeout_s: float) -> None:
    until_s = time.monotonic() + timeout_s
    while not done() and time.monotonic() < until_s:
        time.sleep(_POLL_S)
