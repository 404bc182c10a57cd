"""The device of `--device` as the shell's commands predict for it: measured on this machine, or by its data sheet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs
import click

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.cli_shell import Shell

if TYPE_CHECKING:
    from hasfaas.devices.probe_record import ProbeRecord
    from hasfaas.rapp.description import DeviceDescription


@attrs.frozen
class Described:
    """A device's description, and how titles call it."""

    description: DeviceDescription
    label: str


def described(shell: Shell, device: str) -> Described:
    """A GPU by its UUID or full name as probed on this machine, else a GPU by its data sheet; `cpu` is this machine, measured
    now; a device of the running gateway (`cuda0`) stands for its GPU. What was measured is said on standard error.

    Raises InvalidRequestError for any other name, and for a stored record that is broken.
    """
    from hasfaas.rapp.cpu_description import measure_cpu
    from hasfaas.rapp.description import describe

    if device == "cpu":
        return Described(measure_cpu(len(os.sched_getaffinity(0))), device)
    record = _probed(shell, device)
    if record is not None:
        return _calibrated(record)
    try:
        return Described(describe(device), device)
    except InvalidRequestError:
        uuid, name = _of_gateway(shell, device)
        if not uuid:
            raise
    record = _probed(shell, uuid)
    if record is not None:
        return _calibrated(record)
    click.echo(
        f"hasfaas: {device} is {name} ({uuid}), which was never probed (`hasfaas doctor --probe`): "
        "its data sheet stands for it",
        err=True,
    )
    return Described(describe(name), f"{device}, {name} by its data sheet")


def _probed(shell: Shell, device: str) -> ProbeRecord | None:
    from hasfaas.devices import probe_record

    return probe_record.find(shell.resolved.settings.state_dir / probe_record.FOLDER, device)


def _calibrated(record: ProbeRecord) -> Described:
    from hasfaas.rapp.gpu_description import MeasuredGpu, MeasuredShare, describe_measured

    day = record.date[:10]
    shares = [
        MeasuredShare(point.sm_percent, point.sms, point.triad_bytes_per_s, point.fma_flops_per_s)
        for point in record.points
    ]
    made = describe_measured(
        MeasuredGpu(
            name=record.name,
            shares=tuple(shares),
            launch_s=record.launch_us / 1e6,
            clock_hz=record.clock_mhz * 1e6,
            l2_bytes=record.l2_bytes,
            memory_bytes=record.memory_bytes,
            note=f"{record.uuid}, {day}, driver {record.driver}",
        )
    )
    click.echo(
        f"hasfaas: {record.name} as measured on {day} ({record.uuid}, driver {record.driver}): "
        f"{made.bandwidth_bytes_per_s / 1e9:,.0f} GB/s, {made.fp32_flops_per_s / 1e12:.1f} fp32 TFLOP/s on {made.sms} SMs",
        err=True,
    )
    return Described(made, f"{record.name}, measured {day}")


def _of_gateway(shell: Shell, device: str) -> tuple[str, str]:
    """UUID and name of the GPU behind a device of the running gateway; empty where there is none."""
    if shell.client.backend.running() is None:
        return "", ""
    status = shell.client.run(shell.client.gateway_status())
    for each in status.devices:
        if each.device_id == device:
            return each.facts.get("uuid", ""), each.facts.get("name", "")
    return "", ""
