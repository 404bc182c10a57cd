"""The one wrapper of `nvidia-cuda-mps-control`: a daemon of one GPU, with a pipe directory of its own.

One daemon for each GPU, since a fatal fault makes a server refuse new clients on every GPU it serves. Spoken is the v2
protocol, one command a line on standard input, which is the default of every driver and works unchanged where v3 exists
(NVIDIA, "MPS v3 Interface", release 615). v3 has named servers and a file format, but no way to change what a running
client has; so nothing here needs it, and the protocol is pinned, since a variable of the user's own would choose it.

Sources: NVIDIA's pages "Legacy MPS v2 Interface", "Common Tasks" and "Environment Variables" of release 615
(https://docs.nvidia.com/deploy/mps/) and the manual page nvidia-cuda-mps-control(1). Not yet run on a GPU.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from hasfaas.core.errors import BackendError, PlacementError
from hasfaas.devices.mps_replies import (
    PartitionTable,
    ServerStatus,
    parse_partition,
    parse_partitions,
    parse_pids,
    parse_status,
    parse_version,
    refused,
)

COMMAND = "nvidia-cuda-mps-control"
MAX_CLIENTS = 48
"""Client contexts that one server takes on Volta and later; 60 with newer drivers, second hand."""
STATIC_CUDA = (13, 1)
"""The driver's CUDA that first knows static partitions (-S), second hand."""
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
# A unix socket's path has room for 108 bytes with its closing zero; this is the longest that the daemon makes.
_SOCKET, _SOCKET_BYTES = "control_privileged", 107


class MpsControl:
    """The control daemon of one GPU. `folder` gets its pipe and log directories, for this user alone.

    Every call runs the control program for at most `timeout_s`. Raises BackendError: MPS_NOT_FOUND (no such program),
    MPS_FAILED (it or its daemon said no, with the reply), MPS_TIMEOUT.
    """

    def __init__(self, folder: Path, gpu_uuid: str, *, timeout_s: float = 10.0) -> None:
        self.folder = folder
        self.pipe = folder / "pipe"
        self.log = folder / "log"
        self._gpu_uuid = gpu_uuid
        self._timeout_s = timeout_s

    @property
    def pid(self) -> int | None:
        """The daemon's process, by the file that it keeps in its pipe directory; None where it does not live."""
        try:
            pid = int((self.pipe / f"{COMMAND}.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if _is_mps(pid) else None

    @property
    def alive(self) -> bool:
        """Whether the daemon lives."""
        return self.pid is not None

    def version(self) -> str:
        """The control program's version. Needs no daemon."""
        return parse_version(self._run("-v"))

    def start(self, static: bool) -> None:
        """Starts the daemon, with static partitions or without, and waits until it answers. On failure none is left."""
        self._make_folders()
        try:
            self._run(*(("-d", "-S") if static else ("-d",)))
            self._await_answer()
        except BackendError:
            self.quit()
            raise

    def servers(self) -> tuple[int, ...]:
        """The server processes: none before the first client, then one."""
        return parse_pids(self._ask("get_server_list"))

    def start_server(self, uid: int) -> None:
        """Starts the server of a user, before a client would."""
        self._ask(f"start_server -uid {uid}")

    def server_status(self, server: int) -> ServerStatus:
        """How a server is."""
        reply = self._ask(f"get_server_status {server}")
        status = parse_status(reply)
        if status is None:
            raise _failed(f"get_server_status {server}", reply)
        return status

    def clients(self, server: int) -> tuple[int, ...]:
        """The processes that are clients of a server."""
        return parse_pids(self._ask(f"get_client_list {server}"))

    def terminate_client(self, server: int, client: int) -> None:
        """Ends a client's work on the GPU; its process lives, and can use CUDA no more."""
        command = f"terminate_client {server} {client}"
        reply = self._ask(command)
        if refused(reply):
            raise _failed(command, reply)

    def add_partition(self, chunks: int) -> str:
        """Sets SMs aside; the value for CUDA_MPS_SM_PARTITION. Raises PlacementError where the GPU refuses, as while it has
        clients, or with too few chunks left."""
        reply = self._ask(f"sm_partition add {self._gpu_uuid} {chunks}")
        partition = parse_partition(reply)
        if partition is None:
            raise PlacementError(
                f"{self._gpu_uuid} has no partition of {chunks} chunks ({reply or 'no reply'}): it may have too few left, or "
                "take no new partition while it has clients"
            )
        return partition

    def remove_partition(self, partition: str) -> None:
        """Gives SMs back. Raises PlacementError while the partition has clients."""
        _, _, name = partition.partition("/")
        reply = self._ask(f"sm_partition rm {self._gpu_uuid} {name}")
        if refused(reply):
            raise PlacementError(f"partition {partition} was not removed ({reply}): its clients must end first")

    def partitions(self) -> PartitionTable:
        """The chunks of the GPU and the partitions made of them. Needs the daemon to be static."""
        reply = self._ask("lspart")
        table = parse_partitions(reply)
        if table is None:
            raise _failed("lspart", reply)
        return table

    def quit(self) -> None:
        """Ends the daemon and its servers: asks, waits, then kills. Does not raise; harmless where there is none."""
        pid = self.pid
        if pid is None:
            return
        family = (*_children(pid), pid)
        try:
            self._run(stdin=f"quit -t {_QUIT_S}\n", timeout_s=_QUIT_S + self._timeout_s)
        except BackendError:
            pass  # deaf, or the connection broke with its end: what counts is whether it has gone
        _await(lambda: not self.alive, self._timeout_s)
        for each in family:
            if _is_mps(each):
                os.kill(each, signal.SIGKILL)
        _await(lambda: not any(_is_mps(each) for each in family), self._timeout_s)

    # -- inside ------------------------------------------------------------------------------------------------------

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

    def _await_answer(self) -> None:
        """The daemon has forked when its command returns, but may not listen yet."""
        until_s = time.monotonic() + self._timeout_s
        while True:
            try:
                self.servers()
                return
            except BackendError:
                if time.monotonic() > until_s:
                    raise
            time.sleep(_POLL_S)

    def _ask(self, command: str) -> str:
        return self._run(stdin=f"{command}\n")

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
            "CUDA_MPS_PROTOCOL_VERSION": "2",
            "CUDA_VISIBLE_DEVICES": self._gpu_uuid,
        }


def _failed(command: str, reply: str) -> BackendError:
    return BackendError(f"MPS refused `{command}`: {reply or 'no reply'}", reason="MPS_FAILED")


def _await(done: Callable[[], bool], timeout_s: float) -> None:
    until_s = time.monotonic() + timeout_s
    while not done() and time.monotonic() < until_s:
        time.sleep(_POLL_S)


def _is_mps(pid: int) -> bool:
    """Whether the process lives and is of MPS: a number in a file may have gone to somebody else. A zombie has no command
    line."""
    try:
        return b"nvidia-cuda-mps" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _children(parent: int) -> tuple[int, ...]:
    """The servers that a daemon started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            of = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if of == parent:
            found.append(int(path.parent.name))
    return tuple(found)
