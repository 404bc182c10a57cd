"""The cost part of the cluster benchmark: one identity function, called in turn by every way to a gateway.

    local         the local backend: frames on a unix socket, large values in shared memory
    own-near      a cluster's gateway by its unix socket, as a client on its own host; the replica is on that node too, and
                  its socket is handed over
    own-far       the same client, the replica on another node: frames over TLS, relayed by the agent there
    network       a gateway of one machine over its port: gRPC with TLS and a token
    near          a cluster's gateway by its port, with TLS and a token; the replica is on its node
    far           the same client, the replica on another node
    serve         a Ray Serve handle call from a process of the Ray cluster, without a proxy or TLS

All run at once and are measured by turns, so that what the host does meanwhile meets all alike. A ratio is the median over
rounds of two systems in the same round.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from benchmarks.cluster_live import report
from hasfaas import function
from hasfaas.backends.base import Endpoint
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.settings import FRAMES_SOCKET, DeviceSettings
from hasfaas.sdk.client import Client
from hasfaas.sdk.frame_session import FrameSession
from hasfaas.sdk.function import Function
from hasfaas.sdk.session import Request, Session
from hasfaas.wire import payload
from tests.clustered import clustered
from tests.live import gateway
from tests.networked import networked

SIZES = (("100 B", 100), ("600 kB", 600_000))
CALLERS = (1, 16)
SERVE = Path(__file__).with_name("cluster_serve.py")
SERVE_START_S = 120.0
TARGET = 1.3
TIMEOUT_S = 60.0
# What is compared with what: like for like, and what a user changes from to.
RATIOS = (
    *(("own-near", "local"), ("own-far", "local"), ("near", "network"), ("far", "network")),
    *(("near", "local"), ("far", "local"), ("own-near", "serve"), ("own-far", "serve")),
    *(("near", "serve"), ("far", "serve")),
)
# A device that takes no time, so that all that is measured lies around it.
INSTANT = {"default": {"batches": [1], "sm_percents": [100.0], "latency_ms": [[0.001]]}}


def _device() -> DeviceSettings:
    return DeviceSettings(kind="sim", id="gpu0", profile=INSTANT)


def identity(x: Any) -> Any:
    """What comes, goes."""
    return x


def _function(name: str, device: str) -> Function[..., Any]:
    made: Function[..., Any] = function(slo_ms=1000, timeout_s=TIMEOUT_S, memory="2GiB", device=device, name=name)(
        identity
    )
    return made


@attrs.frozen
class Way:
    """One way to call the function: by what its client has opened, or by the unix socket `frames` of its gateway."""

    name: str
    client: Client
    source: Function[..., Any]
    frames: Path | None = None

    async def open(self) -> Callable[[Any], Awaitable[Any]]:
        """What calls it, from now on."""
        built = self.source.deployable()
        await self.client.deploy(built, warm=True)
        session: Session = await self.client.session()
        if self.frames is not None:
            endpoint = Endpoint(f"unix:{self.frames}", trusted=True, same_host=True, frames=self.frames)
            session = await FrameSession.open(endpoint, self.frames)

        async def call(body: Any) -> Any:
            answer = await session.call(Request(built.name, built.version, self.source.encode((body,), {}), TIMEOUT_S))
            return payload.decode(answer, allow_pickle=True)

        return call


@attrs.frozen
class Measured:
    """One way, at one size and number of callers, in one round."""

    p50_us: float
    p99_us: float
    rps: float

    @classmethod
    def of(cls, latencies_us: Sequence[float], seconds: float) -> Measured:
        """Of all calls in so many seconds."""
        p50, p99 = np.percentile(latencies_us, (50, 99))
        return cls(float(p50), float(p99), len(latencies_us) / seconds)


Found = dict[tuple[str, int], dict[str, list[Measured]]]


def measure(rounds: int, seconds: float, serve_python: str | None) -> dict[str, Any]:
    """All ways, in turns."""
    with ExitStack() as stack:
        local = stack.enter_context(gateway(_device()))
        network = stack.enter_context(networked(_device()))
        cluster = stack.enter_context(clustered({"alpha": (_device(),), "beta": (_device(),)}, gateway_on="alpha"))
        frames = cluster.folder / "g" / "run" / FRAMES_SOCKET
        ways = [
            Way("local", local.client, _function("cost.local", "auto")),
            Way("own-near", cluster.client, _function("cost.own_near", "alpha/gpu0"), frames),
            Way("own-far", cluster.client, _function("cost.own_far", "beta/gpu0"), frames),
            Way("network", network.client, _function("cost.network", "auto")),
            Way("near", cluster.client, _function("cost.near", "alpha/gpu0")),
            Way("far", cluster.client, _function("cost.far", "beta/gpu0")),
        ]
        serve = stack.enter_context(_serve(serve_python)) if serve_python else None
        found = asyncio.run(_measured(ways, serve, rounds, seconds))
    made = ratios(found)
    return {"rows": rows(found), "ratios": made} | verdict(made)


async def _measured(ways: Sequence[Way], serve: Serve | None, rounds: int, seconds: float) -> Found:
    found: Found = {}
    calls = {way.name: await way.open() for way in ways}
    for name, size in SIZES:
        raw = os.urandom(size)
        # What a user sends that is large is an array, which none of the ways copies to encode it.
        body: Any = np.frombuffer(raw, np.uint8) if size > 100 else raw
        for call in calls.values():
            for _ in range(20):
                await call(body)
        for callers in CALLERS:
            report(f"cost: {name}, {callers} callers")
            row = found.setdefault((name, callers), {})
            for _ in range(rounds):
                for way, call in calls.items():
                    row.setdefault(way, []).append(await _one(call, body, callers, seconds))
                if serve is not None:
                    took = await asyncio.to_thread(serve.ask, size, callers, seconds)
                    row.setdefault("serve", []).append(Measured.of(took, seconds))
    return found


async def _one(call: Callable[[Any], Awaitable[Any]], body: Any, callers: int, seconds: float) -> Measured:
    latencies_us: list[float] = []
    end_s = time.perf_counter() + seconds

    async def loop() -> None:
        while (began_s := time.perf_counter()) < end_s:
            await call(body)
            latencies_us.append((time.perf_counter() - began_s) * 1e6)

    await asyncio.gather(*(loop() for _ in range(callers)))
    return Measured.of(latencies_us, seconds)


# -- Ray Serve --------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Serve:
    """Ray Serve in a process of its own."""

    process: subprocess.Popen[str]

    def ask(self, size: int, callers: int, seconds: float) -> list[float]:
        """The latencies of its calls in us."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([size, callers, seconds]) + "\n")
        self.process.stdin.flush()
        took: list[float] = self.answer()
        return took

    def answer(self) -> Any:
        """The next line that is one of ours: Ray writes there too."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                return json.loads(line)
            except ValueError:
                continue
        raise InvalidRequestError(
            f"--serve-python: Ray Serve has ended there with status {self.process.wait()}; it needs ray[serve] "
            f"(pip install 'ray[serve]'); run by itself, {SERVE.name} tells more",
            reason="BAD_BENCHMARK",
        )


@contextmanager
def _serve(python: str) -> Iterator[Serve]:
    """Ray Serve by that interpreter, once it serves."""
    report("cost: Ray Serve starts")
    process = subprocess.Popen(
        [python, str(SERVE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    serve = Serve(process)
    try:
        serve.answer()
        yield serve
    finally:
        assert process.stdin is not None
        process.stdin.close()  # it shuts Ray down, and ends
        try:
            process.wait(SERVE_START_S)
        except subprocess.TimeoutExpired:
            process.kill()


# -- figures ----------------------------------------------------------------------------------------------------------------


def rows(found: Found) -> list[dict[str, Any]]:
    """Every figure of every round."""
    return [
        {"size": size, "callers": callers, "way": way, "rounds": [attrs.asdict(one) for one in measured]}
        for (size, callers), row in found.items()
        for way, measured in row.items()
    ]


def ratios(found: Found) -> list[dict[str, Any]]:
    """What is above 1 costs more: of the median latency, and of the time that a call takes at the full rate."""
    made = []
    for (size, callers), row in found.items():
        for one, other in RATIOS:
            if one not in row or other not in row:
                continue
            pairs = list(zip(row[one], row[other], strict=True))
            p50 = [a.p50_us / b.p50_us for a, b in pairs]
            busy = [b.rps / a.rps for a, b in pairs]
            made.append(
                {
                    "size": size,
                    "callers": callers,
                    "of": one,
                    "to": other,
                    "p50": statistics.median(p50),
                    "p50_spread": [min(p50), max(p50)],
                    "time_per_call": statistics.median(busy),
                    "time_per_call_spread": [min(busy), max(busy)],
                }
            )
    return made


def verdict(made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the targets are about: small calls, one after the other, by the same kind of client. The worse of both kinds."""
    small = {(row["of"], row["to"]): row["p50"] for row in made if (row["size"], row["callers"]) == ("100 B", 1)}
    near = max(small["own-near", "local"], small["near", "network"])
    far = max(small["own-far", "local"], small["far", "network"])
    found = {
        "cost_ratio_near": near,
        "cost_ratio_far": far,
        "cost_near_met": near <= TARGET,
        "cost_far_met": far <= TARGET,
        "cost_ratio_vs_serve": small.get(("far", "serve")),
    }
    return found if found["cost_ratio_vs_serve"] is None else found | {"serve_met": small["far", "serve"] < 1.0}


def text(document: dict[str, Any]) -> str:
    """Both tables."""
    lines = ["median (least..most) over rounds; us and calls/s"]
    for row in document["rows"]:
        values = {name: [one[name] for one in row["rounds"]] for name in ("p50_us", "p99_us", "rps")}
        shown = "   ".join(f"{name} {spread(each)}" for name, each in values.items())
        lines.append(f"{row['size']:>7} x {row['callers']:<3}{row['way']:<10}{shown}")
    for row in document["ratios"]:
        least, most = row["p50_spread"]
        lines.append(
            f"{row['size']:>7} x {row['callers']:<3}{row['of']}/{row['to']}: p50 {row['p50']:.2f} ({least:.2f}..{most:.2f}), "
            f"time per call {row['time_per_call']:.2f}"
        )
    lines.append(
        f"100 B x 1, the same kind of client: near {document['cost_ratio_near']:.2f}, far {document['cost_ratio_far']:.2f} "
        f"(at most {TARGET}); far over Ray Serve {document['cost_ratio_vs_serve'] or float('nan'):.2f} (below 1)"
    )
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Median, with least and most."""
    return f"{statistics.median(values):.0f} ({min(values):.0f}..{max(values):.0f})"
