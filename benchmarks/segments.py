"""Whether shared memory is left as it was: calls of 1 MB while clients, replicas and gateways are killed at random.

    python -m benchmarks.segments [--calls 10000] [--seed 1] [--json out.json]

Client processes call an idempotent function with 1 MB and check the answer. Something is killed by SIGKILL after every few
hundred calls; a killed gateway is started again by the next client. At the end everything is ended, a gateway starts once
more, as the next user's would, and what lies in /dev/shm is compared. Then 32 calls of 8 MB at once, and what the gateway
holds at most meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gateway import running_gateway
from hasfaas import HasFaasError, function
from hasfaas.sdk.client import Client, set_default_client

SHM = Path("/dev/shm")
CALLS_A_CLIENT = 400
NBYTES = 1_000_000


@function(slo_ms=1000, timeout_s=60, memory="512MiB", idempotent=True, name="segments.double")
def double(x: np.ndarray) -> np.ndarray:
    """Twice what comes."""
    return x * 2


def segments() -> set[str]:
    """Our files in shared memory, but for a gateway's own tables."""
    return {path.name for path in SHM.glob(f"hasfaas-{os.getuid()}-*.seg")}


async def call_many(count: int) -> tuple[int, int]:
    """(right answers, typed failures) of so many calls, eight at a time."""
    right = failed = 0
    x = np.arange(NBYTES // 8, dtype=np.int64)

    async def one() -> None:
        nonlocal right, failed
        try:
            answer = await double.aio(x)
        except HasFaasError:
            failed += 1
        else:
            assert (answer == 2 * x).all(), "a wrong answer"
            right += 1

    for _ in range(count // 8):
        await asyncio.gather(*(one() for _ in range(8)))
    return right, failed


def client_main(folder: str, count: int) -> None:
    """One client process; prints what it got."""
    set_default_client(_client(folder))
    print(json.dumps(asyncio.run(call_many(count))), flush=True)


def _client(folder: str) -> Client:
    from hasfaas.sdk.config import load

    own = {"state_dir": f"{folder}/state", "runtime_dir": f"{folder}/run"}
    return Client(load(own, cwd=Path(folder), env={}).settings, announce=lambda line: None)


def stress(client: Client, folder: str, calls: int, dice: random.Random) -> dict[str, int]:
    """The calls and the kills; counts of both."""
    counts = {"right": 0, "failed": 0, "clients_killed": 0, "replicas_killed": 0, "gateways_killed": 0}
    made = 0
    while made < calls:
        command = [sys.executable, "-m", "benchmarks.segments", "--client", folder, "--calls", str(CALLS_A_CLIENT)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        victim = dice.choice(["client", "replica", "gateway", "nobody"])
        time.sleep(dice.uniform(0.2, 0.5))
        if victim == "client":
            process.kill()
            counts["clients_killed"] += 1
        elif victim != "nobody":
            counts[f"{victim}s_killed"] += _kill(client, victim)
        output, _ = process.communicate(timeout=300)
        if output:
            right, failed = json.loads(output)
            counts["right"] += right
            counts["failed"] += failed
        made += CALLS_A_CLIENT
        print(f"{made} of {calls} calls, {victim} killed", file=sys.stderr)
    return counts


def _kill(client: Client, victim: str) -> int:
    try:
        status = client.run(client.gateway_status())
    except HasFaasError:
        return 0  # a killed gateway that no client has started again yet
    pids = [r.pid for f in status.functions for r in f.replicas] if victim == "replica" else [status.pid]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return len(pids)


def _resident_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:"))


async def large_calls(pid: int) -> float:
    """MB that the gateway holds at most during 32 calls of 8 MB at once, looked at every 5 ms."""
    x = np.zeros(8_000_000, np.uint8)
    calls = asyncio.gather(*(double.aio(x) for _ in range(32)))
    most_kib = 0
    while not calls.done():
        most_kib = max(most_kib, _resident_kib(pid))
        await asyncio.sleep(0.005)
    await calls
    return most_kib / 1000.0


def main() -> int:
    """Prints what was left and how much the gateway held; 0 when nothing was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        client_main(given.client, given.calls)
        return 0
    before = segments()
    with running_gateway() as client:
        folder = str(client.settings.state_dir.parent)
        figures: dict[str, Any] = dict(stress(client, folder, given.calls, random.Random(given.seed)))
        client.backend.down()
        client.backend.up()
        client.run(client.gateway_status())
        left = segments() - before
        figures["left_in_shared_memory"] = len(left)
        figures["gateway_peak_mb"] = asyncio.run(large_calls(client.run(client.gateway_status()).pid))
    for key, value in figures.items():
        print(f"{key}: {value}")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0 if not left else 1


if __name__ == "__main__":
    sys.exit(main())
