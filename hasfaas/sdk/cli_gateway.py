"""`hasfaas up`, `down` and `status`: the gateway itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import duration, percent, print_json, print_table, size, waiting

if TYPE_CHECKING:
    from hasfaas.wire.v1 import functions_pb2 as pb

# What answers at all answers this in milliseconds, unless its machine is overloaded.
STATUS_TIMEOUT_S = 30.0


@click.command()
@pass_shell
def up(shell: Shell) -> None:
    """Starts a gateway that stays until `hasfaas down`."""
    with waiting("starting a gateway"):
        started = shell.client.backend.up()
    status = get_status(shell)
    devices = ", ".join(device.device_id for device in status.devices)
    what = "started a gateway, which stays" if started else "a gateway was running, which now stays"
    click.echo(f"{what} until `hasfaas down` (pid {status.pid}, devices: {devices})")


@click.command()
@pass_shell
def down(shell: Shell) -> None:
    """Ends the gateway: calls under way are finished, then its replicas end. What is deployed stays deployed."""
    with waiting("waiting for calls under way"):
        ended = shell.client.backend.down()
    click.echo("the gateway has ended" if ended else "no gateway was running")


@click.command()
@json_option
@pass_shell
def status(shell: Shell, as_json: bool) -> None:
    """Shows the gateway, its devices with their lanes, and the functions. Exit code 5 when none runs."""
    endpoint = shell.running().backend.running()
    found = get_status(shell)
    address = endpoint.address if endpoint is not None else ""
    if as_json:
        print_json(
            {
                "gateway": _gateway(found, address),
                "devices": [_device(device) for device in found.devices],
                "functions": [_function(function) for function in found.functions],
            }
        )
        return
    far = shell.resolved.settings.backend == "cluster"
    stays = "stays until it is ended where it runs" if far else "stays until `hasfaas down`"
    kept = "ends after its last client" if found.embedded else stays
    click.echo(f"gateway {found.hasfaas_version}, pid {found.pid}, up {duration(found.uptime_s)}, {kept}")
    click.echo(f"at {address}; windows of {found.window_ms:g} ms, quanta of {found.quantum_ms:g} ms")
    _show_devices(found)
    _show_functions(found)


def get_status(shell: Shell) -> pb.GetStatusResponse:
    """What the running gateway says of itself."""
    from hasfaas.wire.v1 import functions_pb2 as messages

    request = messages.GetStatusRequest()
    answer: pb.GetStatusResponse = shell.unary(lambda stub: stub.GetStatus(request, timeout=STATUS_TIMEOUT_S))
    return answer


def _show_devices(found: pb.GetStatusResponse) -> None:
    click.echo()
    print_table(
        ["device", "kind", "health", ">units", ">memory", ">promised", ">occupancy"],
        [
            (
                d.device_id,
                d.kind,
                d.health,
                str(d.units),
                size(d.memory_bytes),
                size(d.memory_used_bytes),
                f"{d.occupancy:.2f}",
            )
            for d in found.devices
        ],
    )
    for device in found.devices:
        if device.facts:
            click.echo(
                f"{device.device_id}: {', '.join(f'{key} {text}' for key, text in sorted(device.facts.items()))}"
            )
        if device.why:
            click.echo(f"{device.device_id} is {device.health}: {device.why}. {device.cure}".rstrip())
    lanes = [(device, lane) for device in found.devices for lane in device.lanes]
    if lanes:
        click.echo()
        print_table(
            ["device", ">lane", ">units", ">SM %", ">quota %"],
            [
                (d.device_id, str(x.lane), str(len(x.units)), percent(x.sm_percent), percent(x.quota_percent))
                for d, x in lanes
            ],
        )


def _show_functions(found: pb.GetStatusResponse) -> None:
    click.echo()
    if not found.functions:
        click.echo("no function is deployed")
        return
    print_table(
        [
            "function",
            "version",
            "kind",
            "SLO",
            ">memory",
            ">replicas",
            ">queue",
            ">calls",
            ">failed",
            ">SLO met %",
            "sizing",
            "profile",
        ],
        [_function_row(function) for function in found.functions],
    )


def _function_row(function: pb.FunctionStatus) -> tuple[str, ...]:
    spec, calls = function.spec, function.calls
    ready = sum(replica.state == "ready" for replica in function.replicas)
    # A call that failed, or whose time ran out, missed its promise too.
    ended = calls.completed + calls.failed + calls.expired
    met = 100.0 * calls.slo_met / ended if ended else None
    return (
        function.name,
        function.version,
        function.kind,
        f"{spec.slo_ms:g} ms at p{spec.slo_percentile:g}",
        size(spec.memory_bytes),
        f"{ready} of {spec.min_replicas}-{spec.max_replicas}",
        str(function.queue_depth),
        str(calls.accepted),
        str(calls.failed),
        percent(met),
        "set" if function.sized else "auto",
        f"{function.profile_state or 'unprofiled'}{', drifted' if function.drifted else ''}",
    )


def _gateway(found: pb.GetStatusResponse, address: str) -> dict[str, object]:
    return {
        "version": found.hasfaas_version,
        "pid": found.pid,
        "uptime_s": found.uptime_s,
        "embedded": found.embedded,
        "address": address,
        "window_ms": found.window_ms,
        "quantum_ms": found.quantum_ms,
    }


def _device(device: pb.DeviceStatus) -> dict[str, object]:
    return {
        "device": device.device_id,
        "kind": device.kind,
        "units": device.units,
        "memory_bytes": device.memory_bytes,
        "memory_used_bytes": device.memory_used_bytes,
        "occupancy": device.occupancy,
        "health": device.health,
        "why": device.why or None,
        "cure": device.cure or None,
        "fixed_lanes": device.fixed_lanes,
        "facts": dict(device.facts),
        "lanes": [
            {
                "lane": lane.lane,
                "units": list(lane.units),
                "sm_percent": lane.sm_percent,
                "quota_percent": lane.quota_percent,
            }
            for lane in device.lanes
        ],
    }


def _function(function: pb.FunctionStatus) -> dict[str, object]:
    spec, calls = function.spec, function.calls
    return {
        "name": function.name,
        "version": function.version,
        "kind": function.kind,
        "slo_ms": spec.slo_ms,
        "slo_percentile": spec.slo_percentile,
        "batch_max_size": spec.batch.max_size if spec.HasField("batch") else None,
        "batch_max_wait_ms": spec.batch.max_wait_ms if spec.HasField("batch") else None,
        "memory_bytes": spec.memory_bytes,
        "device": spec.device,
        "min_replicas": spec.min_replicas,
        "max_replicas": spec.max_replicas,
        "idempotent": spec.idempotent,
        "timeout_s": spec.timeout_s,
        "unprofiled": function.unprofiled,
        "profile": function.profile_state or None,
        "drifted": function.drifted,
        "drift_reason": function.drift_reason or None,
        "queue_depth": function.queue_depth,
        "replicas": [replica.replica_id for replica in function.replicas],
        "calls": {field.name: getattr(calls, field.name) for field in calls.DESCRIPTOR.fields},
    }
