"""Stands for a node agent or a gateway of a cluster: speaks what `backends/cluster/child.py` says, and keeps what it heard.

`python -m tests.fakes.cluster_child`. Its port is its process's number, so that a test can tell one child from the next. Each
line that it hears is a line of `heard` in its state_dir; `FAKE_CHILD` says how it misbehaves, and a file `ask` there is what
it asks for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hasfaas.backends.cluster import child
from hasfaas.backends.cluster.child import Ask, Nodes, Ready, Refused, StartGateway, StartNode, Stop

GENERATION = 7


def say(line: child.Line) -> None:
    sys.stdout.buffer.write(child.write(line))
    sys.stdout.buffer.flush()


def main() -> None:
    mode = os.environ.get("FAKE_CHILD", "")
    if mode == "die":
        print("a library said why", file=sys.stderr)
        os._exit(9)
    start = child.read(sys.stdin.readline())
    assert isinstance(start, StartNode | StartGateway)
    folder = Path(start.state_dir)
    if mode == "refuse":
        from hasfaas.core.errors import PlacementError
        from hasfaas.wire.status import to_status

        say(Refused(to_status(PlacementError("no room for a gateway", reason="NO_ROOM")).SerializeToString().hex()))
        return
    if mode == "silent":
        time.sleep(3600)
    if mode == "deaf":
        say(Ready(os.getpid()))
        time.sleep(3600)
    if mode == "stubborn":  # hears neither Stop nor the end of its input
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say(Ready(os.getpid()))
        while True:
            time.sleep(3600)
    if mode == "loud":
        subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('x' * 50 * 1024)"], check=True)
    print("this is no line of ours", flush=True)
    say(Ready(os.getpid(), GENERATION if isinstance(start, StartGateway) else 0))
    for text in sys.stdin:
        with (folder / "heard").open("a") as heard:
            heard.write(text)
        line = child.read(text)
        if isinstance(line, Stop):
            return
        if isinstance(line, Nodes) and (folder / "ask").exists():
            say(Ask(tuple(json.loads((folder / "ask").read_text()))))


if __name__ == "__main__":
    main()
