"""How many requests the simulator serves in a second of one core, with the product's rules and a policy that does nothing.

    python -m benchmarks.simulator [--json out.json] [--runs 5] [--quick]

Each case is a whole run: observations at ticks of 1 s, accounts, queues, batches, lanes; what is timed is `engine.run`, from
a scenario to a result. The kernel is compiled (or read from the cache) before, and that time is printed beside. The figure
of a case is its median over the runs; `simulated_rps` is the least of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np

from hasfaas.rapp.surface import Surface
from hasfaas.scaling.decision import AddReplica, Decision
from hasfaas.scaling.observation import Observation
from hasfaas.simulator import kernel
from hasfaas.simulator.engine import run
from hasfaas.simulator.result import Result
from hasfaas.simulator.scenario import Scenario, SimDevice, SimFunction

SLO_MS = 100.0
LANES = 5
SM_PERCENT = 100.0 / LANES


@attrs.frozen
class Case:
    """`functions` of `rps` each, with `replicas` each at `quota_percent`, as many of them in a lane as quotas allow."""

    name: str
    functions: int
    rps: float
    replicas: int
    quota_percent: float
    batch: int
    duration_s: float


CASES: tuple[Case, ...] = (
    Case("one replica", 1, 200.0, 1, 100.0, 8, 1000.0),
    Case("ten replicas, quota 50 %", 1, 800.0, 10, 50.0, 8, 500.0),
    Case("ten functions, lanes of three", 10, 50.0, 2, 30.0, 8, 500.0),
    Case("one at a time, lanes of three", 10, 20.0, 2, 30.0, 1, 1000.0),
    Case("500 functions, lanes of three", 500, 5.0, 1, 30.0, 8, 100.0),
)


class Standing:
    """A policy that starts the replicas at the first tick, and then leaves them alone."""

    def __init__(self, actions: Sequence[AddReplica]) -> None:
        self._actions = tuple(actions)

    def decide(self, observation: Observation) -> Decision:
        """The replicas, once."""
        actions, self._actions = self._actions, ()
        return Decision(actions, "standing", observation.now_s + 1.0)


def placed(case: Case) -> tuple[AddReplica, ...]:
    """The replicas of a case, lane after lane."""
    in_lane = int(100.0 // case.quota_percent)
    found = []
    for i in range(case.functions * case.replicas):
        device, lane = divmod(i // in_lane, LANES)
        function = f"f{i // case.replicas}"
        found.append(
            AddReplica(function, f"d{device}", lane, SM_PERCENT, case.quota_percent, case.batch, "a benchmark")
        )
    return tuple(found)


def simulated(case: Case) -> tuple[float, Result]:
    """Requests per second of the machine's time, and the result."""
    truth = Surface((1, 8), (SM_PERCENT, 100.0), [[10.0, 9.0], [30.0, 25.0]], np.zeros((2, 2)))
    random = np.random.default_rng(1)
    functions = tuple(
        SimFunction(f"f{i}", SLO_MS, truth, cold_start_s=0.0, memory_bytes=1 << 20, batch_max=case.batch)
        for i in range(case.functions)
    )
    arrivals = tuple(
        np.sort(random.uniform(0.0, case.duration_s, random.poisson(case.rps * case.duration_s))) for _ in functions
    )
    actions = placed(case)
    devices = tuple(SimDevice(name) for name in dict.fromkeys(action.device for action in actions))
    scenario = Scenario(functions, devices, arrivals, duration_s=case.duration_s, warmup_s=1.0)
    began_s = time.perf_counter()
    result = run(scenario, Standing(actions))
    passed_s = time.perf_counter() - began_s
    assert not result.refusals, result.refusals[0].why
    assert result.counts.answered == result.counts.arrived
    return result.counts.arrived / passed_s, result


def main() -> int:
    """Prints the table; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one run, short cases")
    given = parser.parse_args()
    began_s = time.perf_counter()
    warm = attrs.evolve(CASES[0], duration_s=5.0)
    interpreted = simulated(warm)[1].interpreted
    ready_s = time.perf_counter() - began_s
    print("numba is not installed: the kernel is interpreted" if interpreted else f"kernel ready after {ready_s:.1f} s")
    cases, runs = CASES, given.runs
    if given.quick:
        cases, runs = tuple(attrs.evolve(case, duration_s=case.duration_s / 10.0) for case in CASES), 1
    print(f"{'case':>32} {'requests':>9} {'late':>6} {'requests/s, median (least .. most)':>40}")
    figures: dict[str, object] = {"kernel_ready_s": ready_s, "compiled": kernel.load().compiled}
    medians = []
    for case in cases:
        speeds, results = zip(*(simulated(case) for _ in range(runs)), strict=True)
        medians.append(statistics.median(speeds))
        spread = f"{medians[-1]:,.0f} ({min(speeds):,.0f} .. {max(speeds):,.0f})"
        print(f"{case.name:>32} {results[0].counts.arrived:>9,} {results[0].violations():>6.1%} {spread:>40}")
        figures[case.name] = {"median": medians[-1], "least": min(speeds), "most": max(speeds), "runs": runs}
    figures["simulated_rps"] = min(medians)
    print(f"simulated_rps: {min(medians):,.0f} on one core, load average {os.getloadavg()[0]:.1f}")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
