"""How long one decision takes for many functions at once: `decide` of the hybrid scaler on Poisson loads, warm caches.

    python -m benchmarks.scaling_speed [--json out.json] [--ticks 60]

Every function has a load of its own between 0.1 and 50 rps, 16 different profiles are shared among them, and all have
replicas (a plant of values does at once what is decided). Milliseconds of this machine, median and 90th percentile.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from hasfaas.scaling.scaler import HybridScaler
from tests.fakes.plant import Plant, surface

SIZES = (100, 1000, 5000)


def measure(count: int, ticks: int, seed: int = 0) -> dict[str, float]:
    """Milliseconds of the decisions after the first twenty."""
    random = np.random.default_rng(seed)
    surfaces = [surface(5.0 + kind, steep=0.05 + 0.02 * kind) for kind in range(16)]
    rates = np.exp(random.uniform(np.log(0.1), np.log(50.0), count))
    plant = Plant([surfaces[row % 16] for row in range(count)], slo_ms=150.0, devices=max(4, count // 4))
    scaler = HybridScaler()
    spent_ms, actions = [], 0
    for tick in range(20 + ticks):
        plant.now_s += 1.0
        for member in plant.members.values():
            member.life = type(member.life).READY
        observation = plant.observe(random.poisson(rates))
        began = time.perf_counter()
        decision = scaler.decide(observation)
        elapsed_ms = (time.perf_counter() - began) * 1e3
        if tick >= 20:
            spent_ms.append(elapsed_ms)
            actions += len(decision.actions)
        for action in decision.actions:
            plant.apply_one(action)
    median, p90 = np.quantile(spent_ms, (0.5, 0.9))
    return {"median_ms": float(median), "p90_ms": float(p90), "actions_per_tick": actions / ticks}


def main() -> int:
    """Prints a line for each size; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ticks", type=int, default=60)
    given = parser.parse_args()
    figures = {}
    for count in SIZES:
        found = figures[f"decide_{count}"] = measure(count, given.ticks)
        print(
            f"{count:5d} functions: median {found['median_ms']:.2f} ms, p90 {found['p90_ms']:.2f} ms, "
            f"{found['actions_per_tick']:.1f} actions a tick"
        )
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
