"""The parent of replicas: an interpreter with the heavy imports done, one thread, no CUDA, no gRPC, that only
forks.

Run with the function's own interpreter as `python -m hasfaas.executor.zygote FD PRELOAD`. FD is a
SOCK_SEQPACKET socket to the node agent (forking.py says what goes over it). It ends when the agent closes its
end, however that happens.
"""

from __future__ import annotations

import gc
import importlib
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasfaas.executor import forking, loader
from hasfaas.wire.bundle import read_manifest


def main(argv: Sequence[str]) -> None:
    """Preloads, greets, forks on demand."""
    control = socket.socket(fileno=int(argv[0]))
    preload([name for name in argv[1].split(",") if name])
    threads = forking.thread_count()
    if threads != 1:
        why = f"{threads} threads after importing {argv[1]}, 1 is needed to fork"
        forking.send(control, {"op": "refused", "why": why})
        return
    gc.freeze()
    from hasfaas.executor import nursery, runner

    forking.serve(control, {"fork": runner.main, "nursery": nursery.main}, {"check": check})


def preload(names: Sequence[str]) -> None:
    """Imports what replicas will need, so that they inherit it. One thread each, before any operation runs."""
    for name in names:
        importlib.import_module(name)
    # The code that every replica runs, so that a fork pays for no import of ours.
    importlib.import_module("hasfaas.executor.nursery")
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


def check(message: Mapping[str, Any]) -> Mapping[str, object]:
    """What keeps this interpreter from loading a bundle, found without loading it."""
    found = loader.check(read_manifest(Path(message["bundle"]).read_bytes()))
    return {"op": "checked", "differences": list(found)}


if __name__ == "__main__":
    main(sys.argv[1:])
