"""How long it takes to read whole latency surfaces: 4 batches x 20 SM shares x 10 quotas, one function and 1,000.

    python -m benchmarks.rapp_surface [--functions 1000] [--rounds 30] [--json out.json]

One thread (nothing here calls BLAS), every law, at the median and at a quantile. Bounds: one surface <= 1 ms, 1,000 of
them <= 0.5 s.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hasfaas.executor.quota import Timing
from hasfaas.rapp.lane_law import LAWS, Law
from hasfaas.rapp.surface import Surface, Surfaces

BATCHES = (1, 2, 4, 8)
SM_PERCENTS = tuple(float(share) for share in range(5, 101, 5))
QUOTAS = tuple(share / 100.0 for share in range(10, 101, 10))
QUANTILES = (0.5, 0.9)
ONE_BOUND_MS, ALL_BOUND_MS = 1.0, 500.0


def rows(functions: int = 1000, rounds: int = 30, seed: int = 0) -> dict[str, float]:
    """Milliseconds by name: median and worst of `rounds` reads, at the slowest law and quantile.

    `one_*` reads the surface of one function, `each_*` reads `functions` surfaces one after the other, `stacked_*`
    reads them as one array, `stack_*` is making that array.
    """
    surfaces = _surfaces(functions, seed)
    one = next(iter(surfaces.values()))
    stacked = Surfaces.of(surfaces)
    few = max(3, rounds // 10)
    found: dict[str, float] = {}
    for law in LAWS:
        for quantile in QUANTILES:
            _keep_slowest(found, "one", _timed_ms(_read(one, law, quantile), rounds))
            _keep_slowest(found, "stacked", _timed_ms(_read(stacked, law, quantile), few))
            _keep_slowest(found, "each", _timed_ms(_each([*surfaces.values()], law, quantile), few))
    _keep_slowest(found, "stack", _timed_ms(lambda: Surfaces.of(surfaces), few))
    return found


def _surfaces(functions: int, seed: int) -> dict[str, Surface]:
    rng = np.random.default_rng(seed)
    b, s = np.meshgrid(BATCHES, SM_PERCENTS, indexing="ij")
    made = {}
    for index in range(functions):
        work, floor = rng.uniform(0.5, 50.0, 2)
        hold_ms = work * (0.3 + 0.7 * b) * 100.0 / s + floor
        made[f"f{index}"] = Surface(BATCHES, SM_PERCENTS, hold_ms, rng.uniform(0.02, 0.3, b.shape))
    return made


def _read(surface: Surface | Surfaces, law: Law, quantile: float) -> Callable[[], object]:
    return lambda: surface.latency_ms(QUOTAS, Timing(), law, quantile)


def _each(surfaces: Sequence[Surface], law: Law, quantile: float) -> Callable[[], object]:
    timing = Timing()
    return lambda: [surface.latency_ms(QUOTAS, timing, law, quantile) for surface in surfaces]


def _timed_ms(work: Callable[[], object], rounds: int) -> list[float]:
    work()
    taken_ms = []
    for _ in range(rounds):
        before = time.perf_counter_ns()
        work()
        taken_ms.append((time.perf_counter_ns() - before) / 1e6)
    return taken_ms


def _keep_slowest(found: dict[str, float], name: str, taken_ms: Sequence[float]) -> None:
    for what, value in (("median", float(np.median(taken_ms))), ("worst", max(taken_ms))):
        key = f"{name}_{what}_ms"
        found[key] = max(found.get(key, 0.0), value)


def main() -> None:
    """Prints the figures beside their bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = rows(arguments.functions, arguments.rounds)
    for name, bound_ms in (("one", ONE_BOUND_MS), ("each", ALL_BOUND_MS), ("stacked", ALL_BOUND_MS), ("stack", None)):
        bound = "" if bound_ms is None else f"   bound {bound_ms:g} ms"
        print(
            f"{name:8} median {found[f'{name}_median_ms']:9.3f} ms   worst {found[f'{name}_worst_ms']:9.3f} ms{bound}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
