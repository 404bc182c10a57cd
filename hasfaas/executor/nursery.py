"""The parent of the replicas of one function with `share_init=True`: it has run `__init__`, and they fork from it.

It is a replica in all but serving: the same signature and fingerprint checks, the same memory wall, the same log. After
`__init__` it is refused when it holds what a fork cannot share: a second thread, a socket, or a CUDA context.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from hasfaas.core.errors import InvalidRequestError
from hasfaas.executor import forking, runner
from hasfaas.executor.config import EXIT_START_FAILED, ReplicaConfig


def main(config: ReplicaConfig, control: socket.socket, life_fd: int) -> NoReturn:
    """Loads and builds the function, says hello or what is wrong, and forks replicas until the agent closes `control`."""
    runner.die_with_agent(life_fd)
    try:
        prepared = runner.prepare(config)
        refuse_unshareable(config.function, ours={control.fileno()})
    except BaseException as exc:
        forking.send(control, {"op": "failed", "status": runner.status_of(exc, config).hex()})
        os._exit(EXIT_START_FAILED)
    gc.freeze()

    def become(child: ReplicaConfig, channel: socket.socket, life: int) -> NoReturn:
        runner.main(child, channel, life, prepared)

    forking.serve(control, {"fork": become}, {})
    os._exit(0)


def refuse_unshareable(function: str, *, ours: set[int]) -> None:
    """Raises InvalidRequestError naming what this process holds that its forks could not use; `ours` are sockets of ours."""
    found: list[str] = []
    threads = forking.thread_count()
    if threads != 1:
        found.append(f"{threads} threads")
    sockets = [fd for fd in _open_sockets() if fd not in ours]
    if sockets:
        found.append(f"{len(sockets)} open socket(s)")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found.append("a CUDA context")
    if found:
        raise InvalidRequestError(
            f"{function}: share_init=True, but after __init__ the process holds {', '.join(found)}, which forks cannot "
            "share; open them on the first call, or leave share_init out",
            reason="CANNOT_SHARE_INIT",
        )


def _open_sockets() -> list[int]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue  # the descriptor of this very listing
        if target.startswith("socket:"):
            found.append(int(entry.name))
    return found
