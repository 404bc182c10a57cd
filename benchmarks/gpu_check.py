"""Proves or refutes on this machine's GPU what the CUDA path claims, and writes a dated record of it.

    make gpu-check                                    python -m benchmarks.gpu_check [--gpu 0] [--out docs/gpu]
    python -m benchmarks.gpu_check --dry-run          what would run, with limits; needs no GPU
    python -m benchmarks.gpu_check --only census_percentage --only wall

Each check is a process with its own time limit, eight minutes at most in all; the record is written after each. Nothing is
installed, fetched, or changed in the GPU's settings. Packages: attrs, numpy, nvidia-ml-py, CuPy of any wheel; torch,
msgpack and pytest for the checks that use them. The exit status is 0 if all that ran passed, 1 if something failed, 2 if
there is no GPU.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import gpu_machine, gpu_run
from benchmarks.gpu_record import Record, bounds, number
from benchmarks.gpu_run import Check, Outcome, Status
from hasfaas.core.errors import HasFaasError
from hasfaas.devices.mps_folders import daemon_root, sweep

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "gpu"

# The most telling first: what is asked last may not be come to. Together at most gpu_run.TOTAL_S.
CHECKS = (
    Check("shares", "device time follows the quotas, by device events", "benchmarks.gpu_share:shares", 50),
    Check("census_percentage", "a percentage caps the SMs as asked", "benchmarks.gpu_lanes:census_percentage", 20),
    Check("census_static", "a static partition has its SMs", "benchmarks.gpu_lanes:census_static", 20),
    Check("parallel", "two half lanes do the work of the whole", "benchmarks.gpu_lanes:parallel", 30),
    Check("overrun", "a lease is overrun by about one gate", "benchmarks.gpu_share:overrun", 25),
    Check("resize", "a quota is in force within one window", "benchmarks.gpu_share:resize", 20),
    Check("wall", "memory is bounded, with one typed error", "benchmarks.gpu_memory:wall", 20),
    Check("kill", "a killed holder frees its lane at once", "benchmarks.gpu_faults:kill", 30),
    Check("fault", "a fault's reach is known, and it serves again", "benchmarks.gpu_faults:fault", 30),
    Check("overhead", "gates add at most 2 % to a forward", "benchmarks.gpu_gates:overhead", 35),
    Check("calibrated", "gates lie where they were planned, by events", "benchmarks.gpu_gates:calibrated", 20),
    Check("graphs", "a graph is cut at its gates", "benchmarks.gpu_gates:graphs", 20),
    Check("allocator", "torch and CuPy share memory without copies", "benchmarks.gpu_memory:allocator", 15),
    Check("coldstart", "the parts of a cold start", "benchmarks.gpu_coldstart:parts", 25),
    Check("rapp", "RaPP's error on this GPU", "benchmarks.gpu_rapp:predictions", 60),
    Check("tests", "the gpu-marked tests pass", "benchmarks.gpu_tests:tests", 40),
)


def main(arguments: Sequence[str] | None = None, checks: Sequence[Check] = CHECKS) -> int:
    """Runs the checks."""
    given = _parser(checks).parse_args(arguments)
    chosen = tuple(check for check in checks if check.name in (given.only or [c.name for c in checks]))
    try:
        gpu = gpu_machine.find(given.gpu)
        machine = gpu_machine.describe(gpu)
    except HasFaasError as exc:
        print(f"no device, {len(chosen)} GPU checks not run: {exc}")
        if given.dry_run:
            _list(chosen)
            return 0
        return 2
    if given.dry_run:
        print(f"would run on {gpu.name}, driver {machine.driver}:")
        _list(chosen)
        return 0
    # Told to end: the check that runs is ended too, and what it left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A part of the checks is no record of the GPU.
    folder = given.out or (ROOT / "out" / "gpu" if given.only else RECORDS)
    record = run(Record(machine, chosen), gpu.uuid, folder)
    passed, missed = record.count(Status.PASSED), record.count(Status.NOT_RUN)
    failed = len(chosen) - passed - missed
    print(f"{passed} passed, {failed} failed, {missed} not run; see {folder / record.stem()}.md")
    return 1 if failed or not passed else 0


def run(record: Record, uuid: str, folder: Path) -> Record:
    """The record after all checks, written after each."""
    record.write(folder)
    count = len(record.checks)
    try:
        for index, outcome in enumerate(gpu_run.run_all(record.checks, uuid), start=1):
            record = record.with_outcome(outcome)
            record.write(folder)
            _show(f"[{index:>2}/{count}]", outcome)
    finally:
        # A check that was killed may have left its MPS daemon.
        sweep(daemon_root(), daemon_root() / "none")
    return record


def _show(place: str, outcome: Outcome) -> None:
    why = f": {outcome.why}" if outcome.why else ""
    print(f"{place} {outcome.check.name:<18} {outcome.status.value:<9} {outcome.seconds:5.1f} s{why}", flush=True)
    for figure in outcome.figures:
        if figure.met is False:
            print(f"    {figure.name}: {number(figure.median)} {figure.unit}, {bounds(figure)}", flush=True)


def _list(checks: Sequence[Check]) -> None:
    for check in checks:
        print(f"  {check.name:<18} {check.claim:<50} at most {check.limit_s:g} s")
    limits_s = sum(check.limit_s for check in checks)
    print(f"  {len(checks)} checks, {limits_s:g} s if all reached their limits; {gpu_run.TOTAL_S:g} s at most in all")


def _parser(checks: Sequence[Check]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="0", help="number or UUID; a MIG slice by its UUID")
    parser.add_argument("--out", type=Path, help="folder of the record; docs/gpu, or out/gpu with --only")
    parser.add_argument("--only", action="append", choices=[check.name for check in checks], help="repeatable")
    parser.add_argument("--dry-run", action="store_true", help="list what would run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
