"""What grows with the size of a cluster: 1,000 GPUs and 5,000 functions, simulated, and the parts of the loop around it.

    python -m benchmarks.cluster_scale [--data ../shared/data] [--json out.json] [--functions 5000] [--gpus 1000]
        [--seconds 240] [--only azure,busy,own,loop,wire]

    azure    the functions of the Azure sample again and again, each copy from another part of the day, at 10 rps in the mean:
             a few very busy ones, most at rest. It needs --data
    busy     every function with a load of its own (made up, 10 rps each): all have replicas all the time
    own      as busy, for 30 s, but each function with a profile of its own: a gateway that starts has all frontiers to make
    loop     what a gateway does beside deciding in each tick: observing (on a fleet of memory) and the text of its log
    wire     the frames of a node agent's control line, and the manifest

The first three are `hasfaas simulate --scale` (docs/simulator.md) with a clock on the parts of a decision: `observe` is the
simulator's, `plan` is what the others leave. Milliseconds of this machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import numpy as np

from hasfaas.backends.cluster import manifest, messages
from hasfaas.backends.observer import Observer
from hasfaas.core.allocation import Usage
from hasfaas.devices.base import Condition, DeviceInfo
from hasfaas.executor.quota import Timing
from hasfaas.scaling import scaler
from hasfaas.scaling.frontiers import Frontiers
from hasfaas.scaling.journal import Scribe
from hasfaas.simulator import engine, models, report, run
from hasfaas.simulator.trace import Trace
from hasfaas.simulator.trace_file import read_trace
from hasfaas.wire.frames import FrameReader
from tests.fakes.fleet_of_memory import MemoryFleet, MemoryProfiles, record, surface

PARTS = ("azure", "busy", "own", "loop", "wire")
POLICY = "hybrid:pooling=true:keep_alive_s=60"
MODELS = ("resnet50", "mobilenet_v3_large", "vgg16", "convnext_large")
AZURE = Path("traces") / "azure_functions_2019_dirigent500" / "invocations_500.csv"
RPS = 10.0
# Until the first wave of cold starts and the give-back of what it took are over.
WARMUP_S = 60.0
DIGEST = "0" * 64
PRICE_USD_H = 2.48
Spent = dict[str, list[float]]

# What a tick consists of, and where that is done; the rest of a decision is planning.
STEPS: tuple[tuple[str, Any, str], ...] = (
    ("observe", engine._Run, "_observe"),
    ("forecast", scaler.HybridScaler, "_recall"),
    ("forecast", scaler.HybridScaler, "_load"),
    ("frontiers", Frontiers, "stacked"),
    ("place", scaler, "act"),
)


def simulated(trace: Trace, gpus: int, seconds: float, *, rps: float | None, error: float = 0.0) -> dict[str, Any]:
    """One run: the figures of `hasfaas simulate --scale`, and where its decisions spent their time."""
    began_s = time.perf_counter()
    scenario = run.scenario(
        models.named(MODELS),
        trace,
        seed=1,
        rps=rps,
        duration_s=seconds,
        gpus=gpus,
        warmup_s=min(WARMUP_S, seconds / 2.0),
        lend=True,
        predictor_error=error,
    )
    with _clocked() as spent:
        outcomes = run.compare(scenario, run.chosen(POLICY), clock_s=time.perf_counter)
    comparison = report.Comparison(scenario, outcomes, PRICE_USD_H, (), "")
    (outcome,) = outcomes
    assert outcome.packing is not None
    parts_s = {name: sum(each) for name, each in spent.items()}
    decided_s = parts_s.pop("decide")
    parts_s["plan"] = decided_s - sum(parts_s[name] for name in ("forecast", "frontiers", "place"))
    return {
        **{key: value for key, value in outcome.to_dict(PRICE_USD_H).items() if key not in ("functions", "usd_per_1k")},
        "functions": len(scenario.functions),
        "gpus": gpus,
        "seconds": seconds,
        "rps": comparison.rps,
        "gateways": comparison.gateways,
        "reserved_gpus": outcome.reserved_gpu_s / (seconds - scenario.warmup_s),
        "used_gpus": outcome.used_gpu_s / (seconds - scenario.warmup_s),
        "slowest_decision_ms": max(spent["decide"]) * 1e3,
        "shares": {name: part_s / sum(parts_s.values()) for name, part_s in parts_s.items()},
        "wall_s": time.perf_counter() - began_s,
    }


def azure(data: Path, functions: int, gpus: int, seconds: float) -> dict[str, Any]:
    """The Azure sample, again and again."""
    trace = read_trace(data / AZURE, "azure-functions", top=min(functions, 500))
    return simulated(trace.repeated(functions), gpus, seconds, rps=RPS)


def busy(functions: int, gpus: int, seconds: float, error: float = 0.0) -> dict[str, Any]:
    """A load of its own for each function."""
    trace = run.made_up(models.named(MODELS), "diurnal", rps=RPS, duration_s=seconds, seed=1)
    return simulated(trace.repeated(functions), gpus, seconds, rps=None, error=error)


def loop(functions: int, gpus: int) -> dict[str, float]:
    """What a gateway does in a tick beside deciding: median milliseconds of five, and megabytes of log."""
    names = [f"app.f{number}" for number in range(functions)]
    fleet = MemoryFleet(*(record(name) for name in names))
    devices = [DeviceInfo(f"node{n // 8}/cuda{n % 8}", "sim", tuple(range(80)), 2**34) for n in range(gpus)]
    fleet.nodes.devices = {device.device_id: device for device in devices}
    fleet.nodes.conditions = {device.device_id: Condition() for device in devices}
    for number in range(2 * gpus):
        home = devices[number % gpus].device_id
        fleet.seat(f"r{number}", names[number % functions], device_id=home, lane=number // gpus)
    homes = {replica_id: known for known in fleet.known.values() for replica_id in known.members}
    one = surface()
    with mock.patch.object(fleet, "member", lambda replica_id: homes[replica_id].members[replica_id]):
        observer = Observer(fleet, MemoryProfiles(dict.fromkeys(names, one)), Timing(), 1.0)  # type: ignore[arg-type]
        observe_ms = _median_ms(lambda: observer.observe(time.monotonic()))
        observation = observer.observe(time.monotonic())
    decision = scaler.HybridScaler().decide(observation)
    scribe = Scribe("hybrid", {})
    lines = list(scribe.tick(observation, decision))
    return {
        "functions": functions,
        "gpus": gpus,
        "replicas": 2 * gpus,
        "observe_ms": observe_ms,
        "log_ms": _median_ms(lambda: list(scribe.tick(observation, decision))),
        "log_mb": len(lines[-1]) / 1e6,
    }


def wire(functions: int, gpus: int) -> dict[str, float]:
    """Bytes of the frames between a gateway and its nodes, and of the manifest."""
    usage = Usage(230_000, *(987_654_321_000 + number for number in range(7)))

    def packed(replicas: int) -> bytes:
        by_replica = {f"app.function{number:04d}-{number:06d}": usage for number in range(replicas)}
        return b"".join(messages.pack(messages.Usages(by_replica)))

    def told(replicas: int) -> int:
        return len(packed(replicas))

    version = manifest.Version("0" * 16, DIGEST, DIGEST)
    records = [attrs.evolve(record(f"app.function{n:04d}"), bundle_sha256=DIGEST) for n in range(functions)]
    entries = {each.name: manifest.Entry(each, (version,) * manifest.KEPT_VERSIONS) for each in records}
    whole = manifest.Manifest(owner="gateway", functions=entries)
    began_s = time.perf_counter()
    size_mb = len(manifest.write(whole)) / 1e6
    first_s = time.perf_counter() - began_s
    replicas = 2 * 8
    reader, content = FrameReader(), packed(replicas)
    return {
        "usage_bytes_of_one": told(1),
        "usage_bytes_of_each_more": (told(replicas) - told(1)) / (replicas - 1),
        "usage_frame_bytes_8_gpus": told(replicas),
        "usage_read_ms_8_gpus": _median_ms(lambda: _unpacked(reader, content)),
        "beat_bytes": sum(map(len, messages.pack(messages.Beat(123_456)))),
        "nodes": gpus / 8,
        "manifest_mb": size_mb,
        "manifest_first_write_ms": first_s * 1e3,
        "manifest_write_ms": _median_ms(lambda: manifest.write(whole)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Prints each part as JSON; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--functions", type=int, default=5000)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--only", default=",".join(PARTS))
    given = parser.parse_args(arguments)
    size = given.functions, given.gpus
    parts: dict[str, Callable[[], Any]] = {
        "azure": lambda: azure(given.data, *size, given.seconds),
        "busy": lambda: busy(*size, given.seconds),
        "own": lambda: busy(*size, min(30.0, given.seconds), error=0.05),
        "loop": lambda: [loop(size[0] // part, size[1] // part) for part in (10, 5, 2, 1)],
        "wire": lambda: wire(*size),
    }
    chosen = [name for name in given.only.split(",") if name != "azure" or given.data is not None]
    figures: dict[str, Any] = {"machine": f"{platform.machine()}, Python {platform.python_version()}"}
    for name in chosen:
        figures[name] = parts[name]()
        print(f"{name}: {json.dumps(figures[name], indent=1)}", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


# -- leaves -------------------------------------------------------------------------------------------------------------


@contextmanager
def _clocked() -> Iterator[Spent]:
    """Seconds of every call of the steps, and of `decide` as a whole."""
    spent: Spent = {}
    with ExitStack() as stack:
        for label, owner, name in (*STEPS, ("decide", scaler.HybridScaler, "decide")):
            stack.enter_context(mock.patch.object(owner, name, _timed(getattr(owner, name), spent, label)))
        yield spent


def _timed(function: Callable[..., Any], spent: Spent, label: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        began_s = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent.setdefault(label, []).append(time.perf_counter() - began_s)

    return call


def _unpacked(reader: FrameReader, content: bytes) -> list[messages.Message]:
    reader.buffer()[: len(content)] = content
    return [messages.unpack(frame) for frame in reader.advance(len(content))]


def _median_ms(work: Callable[[], object]) -> float:
    spent_ms = []
    for _ in range(5):
        began_s = time.perf_counter()
        work()
        spent_ms.append((time.perf_counter() - began_s) * 1e3)
    return float(np.median(spent_ms))


if __name__ == "__main__":
    sys.exit(main())
