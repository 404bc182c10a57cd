"""What a call costs: an identity function through gateway, router and quota gate, beside a bare grpc.aio stream echo.

    python -m benchmarks.invoke [--json out.json] [--runs 5]

Both sides of both systems are one process each, on one unix socket. The echo multiplexes calls by an id on one stream, as
the SDK does: a writer task, a reader task, a future a call; its server sends each message back. Runs of the two alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import grpc
import numpy as np

from benchmarks.gateway import running_gateway
from hasfaas import function

SIZES = (("100 B", 100), ("600 kB", 600_000), ("8 MB", 8_000_000))
CALLERS = (1, 8, 32)
ECHO_METHOD = "/benchmark.Echo/Stream"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
Invoke = Callable[[Any], Awaitable[Any]]


@function(slo_ms=1000, timeout_s=60, memory="2GiB")
def identity(x: Any) -> Any:
    """What comes, goes."""
    return x


@attrs.frozen
class Measured:
    """One run of one system at one size and number of callers."""

    p50_us: float
    p99_us: float
    rps: float


class Echo:
    """A client of the bare echo: one stream, calls told apart by an id in front."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=UNLIMITED)
        multi: Any = self._channel.stream_stream(ECHO_METHOD, _same, _same)
        self._stream = multi()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._out: deque[bytes] = deque()
        self._some = asyncio.Event()
        self._next = 0
        self._tasks = [asyncio.ensure_future(self._write()), asyncio.ensure_future(self._read())]

    async def call(self, body: bytes) -> bytes:
        """Sends the body and waits until it comes back."""
        self._next += 1
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = future
        self._out.append(struct.pack("<Q", self._next) + body)
        self._some.set()
        return await future

    async def close(self) -> None:
        """Ends the stream."""
        for task in self._tasks:
            task.cancel()
        self._stream.cancel()
        await self._channel.close(None)

    async def _write(self) -> None:
        while True:
            while self._out:
                await self._stream.write(self._out.popleft())
            self._some.clear()
            await self._some.wait()

    async def _read(self) -> None:
        async for message in self._stream:
            self._waiting.pop(struct.unpack_from("<Q", message)[0]).set_result(message[8:])


def _same(body: bytes) -> bytes:
    return body


async def serve_echo(address: str) -> None:
    """The server of the echo, until it is killed."""

    async def echo(requests: Any, context: Any) -> None:
        async for message in requests:
            await context.write(message)

    server = grpc.aio.server(options=UNLIMITED)
    handler = grpc.stream_stream_rpc_method_handler(echo, _same, _same)
    service, method = ECHO_METHOD.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


async def measure(invoke: Invoke, body: Any, callers: int, seconds: float) -> Measured:
    """`callers` closed loops for so long."""
    latencies: list[float] = []
    end_s = time.perf_counter() + seconds

    async def loop() -> None:
        while (began_s := time.perf_counter()) < end_s:
            await invoke(body)
            latencies.append(time.perf_counter() - began_s)

    began_s = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(callers)))
    span_s = time.perf_counter() - began_s
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e6
    return Measured(float(p50), float(p99), len(latencies) / span_s)


def measure_sync(body: Any, seconds: float) -> Measured:
    """One thread with `.remote`."""
    latencies: list[float] = []
    end_s = time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < end_s:
        identity.remote(body)
        latencies.append(time.perf_counter() - began_s)
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e6
    return Measured(float(p50), float(p99), len(latencies) / sum(latencies))


async def compare(address: str, runs: int, seconds: float) -> dict[tuple[str, int], dict[str, list[Measured]]]:
    """Both systems, size by size, run by run."""
    echo = Echo(address)
    found: dict[tuple[str, int], dict[str, list[Measured]]] = {}
    for name, size in SIZES:
        raw = os.urandom(size)
        array = np.frombuffer(raw, np.uint8)
        body: Any = array if size > 100 else raw
        for _ in range(20):
            await echo.call(raw)
            await identity.aio(body)
        for callers in CALLERS:
            print(f"{name}, {callers} callers", file=sys.stderr)
            row = found.setdefault((name, callers), {"echo": [], "hasfaas": []})
            for _ in range(runs):
                row["echo"].append(await measure(echo.call, raw, callers, seconds))
                row["hasfaas"].append(await measure(identity.aio, body, callers, seconds))
    await echo.close()
    await identity.client.close()
    return found


def spread(values: list[float]) -> str:
    """Median, with least and most."""
    return f"{statistics.median(values):9.1f} ({min(values):.1f}..{max(values):.1f})"


def main() -> int:
    """Prints the table; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--serve-echo", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_echo:
        asyncio.run(serve_echo(given.serve_echo))
        return 0
    with running_gateway(), tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/echo.sock"
        server = subprocess.Popen([sys.executable, "-m", "benchmarks.invoke", "--serve-echo", address])
        try:
            identity.deploy()
            found = asyncio.run(compare(address, given.runs, given.seconds))
            sync = [measure_sync(os.urandom(100), given.seconds) for _ in range(given.runs)]
        finally:
            server.kill()
            server.wait()
    report(found, sync, given.json)
    return 0


def report(found: dict[tuple[str, int], dict[str, list[Measured]]], sync: list[Measured], out: Path | None) -> None:
    """The table, and the ratios as JSON. A ratio is the median over runs of ours over the echo's of the same run."""
    print("median (least..most) over runs; us and calls/s")
    for (name, callers), row in found.items():
        for system, runs in row.items():
            p50, rps = spread([m.p50_us for m in runs]), spread([m.rps for m in runs])
            print(
                f"{name:>7} x {callers:<3} {system:<8} p50 {p50}   p99 {spread([m.p99_us for m in runs])}   rps {rps}"
            )
    print(f"  100 B x 1   .remote  p50 {spread([m.p50_us for m in sync])}   rps {spread([m.rps for m in sync])}")
    keys = {
        "p50_over_echo": ratio(found["100 B", 1], "p50_us"),
        "rps_over_echo": ratio(found["100 B", 32], "rps"),
        "p50_8MB_over_echo": ratio(found["8 MB", 1], "p50_us"),
    }
    for key, values in keys.items():
        print(f"{key}: {spread(values)}")
    if out is not None:
        rows = [
            {"size": name, "callers": callers, "system": system, "runs": [attrs.asdict(m) for m in runs]}
            for (name, callers), row in found.items()
            for system, runs in row.items()
        ]
        figures = {key: statistics.median(values) for key, values in keys.items()}
        out.write_text(json.dumps(figures | {"remote": [attrs.asdict(m) for m in sync], "rows": rows}, indent=1))


def ratio(row: dict[str, list[Measured]], field: str) -> list[float]:
    """Ours over the echo's, run by run."""
    return [getattr(a, field) / getattr(b, field) for a, b in zip(row["hasfaas"], row["echo"], strict=True)]


if __name__ == "__main__":
    sys.exit(main())
