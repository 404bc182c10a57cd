"""Whether this machine can serve, and what would make it serve better: the checks of `hasfaas doctor`.

`gather` looks, each look with a time limit; `examine` judges what was seen, and is a function of values.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from hasfaas.core.errors import HasFaasError
from hasfaas.core.settings import Settings
from hasfaas.devices import probe_record
from hasfaas.devices.nvml import Driver, Gpu
from hasfaas.devices.probe_record import ProbeRecord
from hasfaas.node import nvidia_facts
from hasfaas.node.finding import Finding, State, fail, note, ok
from hasfaas.node.gpu_checks import GpuFacts, gpu_findings
from hasfaas.node.machine_checks import machine_findings
from hasfaas.node.machine_facts import Folder, Machine, folder, machine, process

PROBE_CURE = "`hasfaas doctor --probe` measures it"


@attrs.frozen
class Facts:
    """All that was seen."""

    machine: Machine
    gpus: GpuFacts
    runtime: Folder
    state: Folder


def gather(settings: Settings) -> Facts:
    """Looks at this machine. Takes seconds, and with a driver that hangs at most about a minute."""
    return Facts(machine(), gpu_facts(settings), folder(settings.runtime_dir), folder(settings.state_dir))


def gpu_facts(settings: Settings) -> GpuFacts:
    """What can be learned of the GPUs. Where no driver answers, the libraries on top of it are not asked."""
    nvidia, module = nvidia_facts.ask_nvml(), nvidia_facts.kernel_module()
    if nvidia.driver is None:
        return GpuFacts(nvidia, module)
    pids = {each.pid for listed in nvidia.processes.values() for each in listed}
    records = settings.state_dir / probe_record.FOLDER
    return GpuFacts(
        nvidia,
        module,
        cupy=nvidia_facts.ask_cupy(),
        torch=nvidia_facts.torch_build(),
        nodes=nvidia_facts.device_nodes(),
        pids={pid: process(pid) for pid in pids},
        records={gpu.uuid: stored(records, gpu, nvidia.driver) for gpu in nvidia.gpus},
    )


def examine(facts: Facts, settings: Settings) -> tuple[Finding, ...]:
    """Every finding: of the GPUs, then of the machine."""
    found = gpu_findings(facts.gpus, facts.machine, settings)
    return (*found, *machine_findings(facts.machine, settings, facts.runtime, facts.state))


def healthy(findings: tuple[Finding, ...]) -> bool:
    """Whether nothing fails."""
    return all(finding.state is not State.FAIL for finding in findings)


def stored(records: Path, gpu: Gpu, driver: Driver) -> Finding:
    """What is stored of a GPU's probes, by its file."""
    try:
        return of_record(probe_record.load(records, gpu.uuid), driver)
    except HasFaasError as exc:
        return fail("probes", exc.message, PROBE_CURE)


def of_record(record: ProbeRecord | None, driver: Driver) -> Finding:
    """What a record says; it is of little use for another driver than the one it was made with."""
    if record is None:
        return note("probes", "never probed: predictions for it rest on data sheets", PROBE_CURE)
    last = record.points[-1]
    detail = (
        f"of {record.date}: {last.sms} SMs at {record.clock_mhz:.0f} MHz, {last.triad_bytes_per_s / 1e9:.0f} GB/s, "
        f"{last.fma_flops_per_s / 1e12:.1f} fp32 TFLOP/s, a launch takes {record.launch_us:.1f} us"
    )
    if record.driver != driver.version:
        return note("probes", f"{detail}; made with driver {record.driver}, here is {driver.version}", PROBE_CURE)
    return ok("probes", detail)
