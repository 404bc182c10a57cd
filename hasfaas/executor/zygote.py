"""The parent of replicas: an interpreter with the heavy imports done, one thread, no CUDA, no gRPC, that only
forks.

Run with the function's own interpreter as `python -m hasfaas.executor.zygote FD PRELOAD`. FD is a
SOCK_SEQPACKET socket to the node agent; each message is one JSON object. It ends when the agent closes its
end, however that happens.

Law: exactly one thread. A parent that ever ran a two-thread operation makes two-thread children hang.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hasfaas.executor import loader
from hasfaas.executor.config import ReplicaConfig
from hasfaas.wire.bundle import read_manifest

MAX_MESSAGE_BYTES = 1 << 20


def main(argv: Sequence[str]) -> None:
    """Preloads, greets, forks on demand."""
    control = socket.socket(fileno=int(argv[0]))
    preload([name for name in argv[1].split(",") if name])
    threads = thread_count()
    if threads != 1:
        _send(control, {"op": "refused", "why": f"{threads} threads after importing {argv[1]}, 1 is needed to fork"})
        return
    gc.freeze()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _send(control, {"op": "hello", "pid": os.getpid(), "threads": threads})
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake_read:
                os.read(wake_read, 4096)
                _reap(control)
            elif not _serve(control, (wake_read, wake_write)):
                return


def preload(names: Sequence[str]) -> None:
    """Imports what replicas will need, so that they inherit it. One thread each, before any operation runs."""
    for name in names:
        importlib.import_module(name)
    # The code that every replica runs, so that a fork pays for no import of ours.
    importlib.import_module("hasfaas.executor.runner")
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


def thread_count() -> int:
    """Threads of this process, by the kernel."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))


def _serve(control: socket.socket, wake: tuple[int, int]) -> bool:
    """One message; False at the end of file."""
    data, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 3)
    if not data:
        return False
    message = json.loads(data)
    match message["op"]:
        case "fork":
            _fork(control, ReplicaConfig.from_dict(message["config"]), fds, wake)
        case "check":
            _send(control, {"op": "checked", "id": message["id"], **_check(message["bundle"])})
        case unknown:
            raise AssertionError(f"an agent does not send {unknown!r}")
    return True


def _check(bundle_path: str) -> dict[str, object]:
    """What keeps this interpreter from loading a bundle, found without loading it."""
    return {"differences": list(loader.check(read_manifest(Path(bundle_path).read_bytes())))}


def _fork(control: socket.socket, config: ReplicaConfig, fds: Sequence[int], wake: tuple[int, int]) -> None:
    channel_fd, life_fd, log_fd = fds
    pid = os.fork()
    if pid == 0:
        _become_replica(control, config, channel_fd, life_fd, log_fd, wake)
    for fd in fds:
        os.close(fd)
    _send(control, {"op": "forked", "replica_id": config.replica_id, "pid": pid})


def _become_replica(
    control: socket.socket,
    config: ReplicaConfig,
    channel_fd: int,
    life_fd: int,
    log_fd: int,
    wake: tuple[int, int],
) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        for fd in wake:
            os.close(fd)
        _redirect(log_fd)
        from hasfaas.executor import runner

        runner.main(config, socket.socket(fileno=channel_fd), life_fd)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        # Whatever happens, a child must never return into the zygote's loop.
        os._exit(1)


def _redirect(log_fd: int) -> None:
    """Standard output and error go to the replica's log, line by line."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(null)
    os.close(log_fd)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable(2)


def _reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _send(control, {"op": "exited", "pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _send(control: socket.socket, message: dict[str, object]) -> None:
    try:
        control.send(json.dumps(message).encode())
    except BrokenPipeError:
        # The agent died in this instant; the loop sees the end of file next.
        return


if __name__ == "__main__":
    main(sys.argv[1:])
