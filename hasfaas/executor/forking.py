"""A single-threaded process that forks on demand, over a SOCK_SEQPACKET socket to its node agent.

Each message is one JSON object; one that asks for a fork carries three descriptors: channel, life line, log. The loop ends
when the agent closes its end, however that happens.

Law: exactly one thread. A parent that ever ran a two-thread operation makes two-thread children hang.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hasfaas.executor.config import ReplicaConfig

MAX_MESSAGE_BYTES = 1 << 20
# What a child becomes, given its configuration, its channel and its life line; it never returns.
Become = Callable[[ReplicaConfig, socket.socket, int], NoReturn]
Answer = Callable[[Mapping[str, Any]], Mapping[str, object]]


def serve(control: socket.socket, forks: Mapping[str, Become], answers: Mapping[str, Answer]) -> None:
    """Says hello, and serves until the agent goes away. `forks` says what a child becomes for each kind of fork, `answers`
    what is replied to other messages."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    send(control, {"op": "hello", "pid": os.getpid(), "threads": thread_count()})
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake_read:
                os.read(wake_read, 4096)
                _reap(control)
                continue
            data, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 3)
            if not data:
                return
            message = json.loads(data)
            if message["op"] in forks:
                config = ReplicaConfig.from_dict(message["config"])
                _fork(control, config, fds, forks[message["op"]], (wake_read, wake_write))
            else:
                send(control, {"id": message["id"], **answers[message["op"]](message)})


def send(control: socket.socket, message: Mapping[str, object]) -> None:
    """One message to the agent."""
    try:
        control.send(json.dumps(message).encode())
    except BrokenPipeError:
        # The agent died in this instant; the loop sees the end of file next.
        return


def thread_count() -> int:
    """Threads of this process, by the kernel."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))


def _fork(
    control: socket.socket, config: ReplicaConfig, fds: Sequence[int], become: Become, wake: tuple[int, int]
) -> None:
    channel_fd, life_fd, log_fd = fds
    pid = os.fork()
    if pid == 0:
        _be_child(control, config, channel_fd, life_fd, log_fd, become, wake)
    for fd in fds:
        os.close(fd)
    send(control, {"op": "forked", "replica_id": config.replica_id, "pid": pid})


def _be_child(
    control: socket.socket,
    config: ReplicaConfig,
    channel_fd: int,
    life_fd: int,
    log_fd: int,
    become: Become,
    wake: tuple[int, int],
) -> NoReturn:
    try:
        os.setpgid(0, 0)  # a group of its own, with whatever the user's code starts
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        for fd in wake:
            os.close(fd)
        _redirect(log_fd)
        become(config, socket.socket(fileno=channel_fd), life_fd)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        # Whatever happens, a child must never return into its parent's loop.
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
        send(control, {"op": "exited", "pid": pid, "code": os.waitstatus_to_exitcode(status)})
