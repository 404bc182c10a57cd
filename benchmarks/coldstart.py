"""From a request to its first answer, when no replica runs: a fresh interpreter, a warm zygote, and `share_init`.

    python -m benchmarks.coldstart [--json out.json] [--runs 7]

The function builds a ResNet-like torch model in `__init__`. "Fresh" ends the zygote first, so that the interpreter starts and
torch is imported again. The three take turns in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.gateway import running_gateway
from hasfaas import ClassFunction, function
from hasfaas.sdk.client import Client


class Recogniser:
    """A ResNet-like model, built once per replica, or once for all of them."""

    def __init__(self) -> None:
        import torch

        from benchmarks.models import resnet_like

        self.torch = torch
        self.model, _ = resnet_like()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        with self.torch.inference_mode():
            answer: np.ndarray = self.model(self.torch.from_numpy(image)[None]).numpy()[0]
            return answer


Served = ClassFunction[Recogniser, [np.ndarray], np.ndarray]
plain = cast("Served", function(slo_ms=1000, name="plain")(Recogniser))
shared = cast("Served", function(slo_ms=1000, name="shared", share_init=True)(Recogniser))


def end_zygotes(gateway_pid: int) -> None:
    """Ends every zygote of the gateway; its replicas have gone already."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat[1]) == gateway_pid and b"hasfaas.executor.zygote" in command:
            os.kill(int(entry.name), signal.SIGKILL)


def first_answer_ms(served: Served, image: np.ndarray, prepare: Callable[[], None]) -> float:
    """Ends the replicas, prepares, and times one call."""
    served.scale(replicas=0)
    while served.status().replicas:
        time.sleep(0.01)
    prepare()
    time.sleep(0.3)
    began_s = time.perf_counter()
    served.remote(image)
    return (time.perf_counter() - began_s) * 1000.0


def measure(client: Client, runs: int) -> dict[str, list[float]]:
    """The three ways in turn."""
    image = np.zeros((3, 112, 112), np.float32)
    pid = client.run(client.gateway_status()).pid
    found: dict[str, list[float]] = {"fresh_ms": [], "zygote_ms": [], "share_init_ms": []}
    plain.deploy()
    shared.deploy()
    for number in range(runs):
        print(f"run {number + 1} of {runs}", file=sys.stderr)
        found["share_init_ms"].append(first_answer_ms(shared, image, lambda: None))
        found["zygote_ms"].append(first_answer_ms(plain, image, lambda: None))
        shared.scale(replicas=0)
        found["fresh_ms"].append(first_answer_ms(plain, image, lambda: end_zygotes(pid)))
        # The parent of `shared` went with nobody, but its zygote has: make both anew before the next turn.
        shared.remote(image)
    return found


def main() -> int:
    """Prints the medians and the speed-ups; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    with running_gateway() as client:
        found = measure(client, given.runs)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, values in found.items():
        print(f"{name:<15} median {medians[name]:8.1f} ({min(values):.1f} .. {max(values):.1f})")
    figures: dict[str, Any] = {
        "zygote_speedup": medians["fresh_ms"] / medians["zygote_ms"],
        "share_init_speedup": medians["fresh_ms"] / medians["share_init_ms"],
        **medians,
    }
    print(f"zygote_speedup {figures['zygote_speedup']:.1f}, share_init_speedup {figures['share_init_speedup']:.1f}")
    if given.json is not None:
        given.json.write_text(json.dumps({**figures, "runs": found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
