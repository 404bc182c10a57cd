"""The cluster backend measured: functions scaled over three nodes, failures under load, and what a call costs.

    python -m benchmarks.cluster [--data ../shared/data] [--json out.json] [--only load,failure,cost] [--minutes 5]
        [--share 0.3] [--rounds 5] [--seconds 1] [--serve-python PATH] [--seed 1]

The nodes are processes of this machine with sim devices, made as Ray's actors make them, but by this process
(tests/clustered.py): three agents, one of them with the gateway on its node, mutual TLS between them, clients over TLS with a
token. Ray carries no request, so nothing of what is measured here passes through it.

    load      ten devices of one model, twelve functions at Azure's skew, our scaler; then whole GPUs by Ray Serve's rules on
              the same arrivals, live as well; then the simulator's forecast of ours (cluster_load.py)
    failure   the same load while an agent is killed, another stops answering, and the gateway is killed (cluster_failure.py)
    cost      an identity function by every way to a gateway, by turns; beside a Ray Serve handle call by the interpreter
              --serve-python, which has ray[serve] (cluster_cost.py)

Devices are emulated, so a busy machine does not slow batches; it delays what is around them: how busy the host is, and how
much of that is ours, is told. `--data` is the folder that holds traces/azure_functions_2019_dirigent500: counts per minute of
the Azure functions trace of 2019, in the sample of 500 that eth-easl/dirigent publishes. The exit status is 1 where a target
is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import cluster_cost, cluster_failure, cluster_load
from hasfaas.core.errors import HasFaasError

PARTS = ("load", "failure", "cost")
# What of each part stands at the top of the document.
KEYS = {
    "load": ("violations_pct", "cost_ratio_vs_whole_gpu", "sim_agreement_pct", "host_cpu_pct"),
    "failure": ("lost_requests", "recovery_s", "detection_s", "orphans", "functions_lost", "gateway_reconnect_s"),
    "cost": ("cost_ratio_near", "cost_ratio_far", "cost_ratio_vs_serve"),
}


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder that holds traces/")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the load")
    parser.add_argument(
        "--share", type=float, default=0.3, help="of ten devices' time that the load would take on them"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of the cost")
    parser.add_argument("--seconds", type=float, default=1.0, help="that each way has in a round of the cost")
    parser.add_argument("--serve-python", help="an interpreter that has ray[serve], for the cost")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    parts = given.only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown or given.minutes <= 0.0 or given.rounds < 1 or given.seconds <= 0.0:
        parser.error(f"--only {given.only}: some of {','.join(PARTS)}; minutes, rounds and seconds are positive")
    began_s = time.monotonic()
    document: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_at_start": os.getloadavg(),
        "seed": given.seed,
    }
    try:
        for part in parts:
            document[part] = _part(part, given)
            document |= {key: document[part][key] for key in KEYS[part]}
    except HasFaasError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    document |= {"load_at_end": os.getloadavg(), "seconds": time.monotonic() - began_s}
    for part in parts:
        print(SHOWN[part](document[part]))
    print(f"load {document['load_at_start'][0]:.1f} .. {document['load_at_end'][0]:.1f}, {document['seconds']:.0f} s")
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(met(document[part]) for part in parts) else 1


def _part(part: str, given: argparse.Namespace) -> dict[str, Any]:
    if part == "load":
        return cluster_load.measure(given.data, given.minutes, given.share, given.seed)
    if part == "failure":
        return cluster_failure.measure(given.data, given.share, given.seed)
    return cluster_cost.measure(given.rounds, given.seconds, given.serve_python)


def met(figures: dict[str, Any]) -> bool:
    """Whether a part's targets are."""
    return all(value for key, value in figures.items() if key.endswith("_met"))


# -- shown ------------------------------------------------------------------------------------------------------------------


def load_text(found: dict[str, Any]) -> str:
    """Ours, the rival and the simulator."""
    head = f"load: {found['calls']} calls in {found['seconds']:g} s, {found['rps']:.1f} rps, "
    lines = [f"{head}{found['device_share_percent']:.1f} % of ten devices call by call; after {found['warmup_s']:g} s:"]
    rows = ("ours", "whole_gpus", "simulated_ours", "simulated_whole_gpus_on_ten")
    for name in rows:
        row = found[name]
        host = (
            f", host {row['host_cpu_percent']:.0f} % ({row['own_cpu_percent']:.0f} % ours)"
            if "host_cpu_percent" in row
            else ""
        )
        lines.append(
            f"  {name:<28} late {row['violations_percent']:6.2f} %, worst function {row['worst_function_percent']:6.2f} %, "
            f"p50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms; GPU-s billed {row['billed_gpu_s']:.0f}, provisioned "
            f"{row['provisioned_gpu_s']:.0f}, at most {row['peak_devices']} devices{host}"
        )
    agreement = found["agreement"]
    lines.append(
        f"  violations_pct {found['violations_pct']:.2f} (at most 1); cost_ratio_vs_whole_gpu "
        f"{found['cost_ratio_vs_whole_gpu']:.2f} (by devices in use {found['provisioned_ratio_vs_whole_gpu']:.2f}); forecast "
        f"off by {agreement['cost_percent']:.1f} % of the cost (at most 15) and {agreement['violations_points']:.2f} points "
        "of late calls (at most 1)"
    )
    return "\n".join(lines)


def failure_text(found: dict[str, Any]) -> str:
    """Each event, and what was lost."""
    lines = [f"failure: {found['calls']} calls, host {found['host_cpu_percent']:.0f} %"]
    lines += [
        f"  {event['what']:<14} {event['replicas']} replicas of {len(event['affected'])} functions: detected after "
        f"{_s(event['detection_s'])}, in their places after {_s(event['replaced_s'])}, all answered after "
        f"{_s(event['served_s'])}; {event['orphans']} processes left"
        for event in found["events"]
    ]
    lines.append(
        f"  gateway killed: calls answered again after {_s(found['gateway_reconnect_s'])}; "
        f"{found['functions_lost']} functions lost"
    )
    lines.append(
        f"  lost_requests {found['lost_requests']} (idempotent); others that failed {found['failed_non_idempotent']}, "
        f"{'all' if found['all_failures_typed'] else 'NOT all'} typed"
    )
    return "\n".join(lines)


def _s(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.2f} s"


SHOWN = {"load": load_text, "failure": failure_text, "cost": cluster_cost.text}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
