"""`hasfaas doctor`: whether this machine can serve, and the cure of what is in the way."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import click

from hasfaas.core.errors import HasFaasError, InvalidRequestError, UnavailableError
from hasfaas.sdk.cli_shell import UNAVAILABLE, Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import print_json, print_table, waiting

if TYPE_CHECKING:
    from hasfaas.core.settings import Settings
    from hasfaas.devices.nvml import Driver, Gpu
    from hasfaas.node.finding import Finding

MARKS = {"ok": "ok", "note": "note", "warn": "WARN", "fail": "FAIL"}


@click.command()
@click.option(
    "--probe", is_flag=True, help="First measure each GPU at several shares of its SMs, and keep the figures."
)
@json_option
@pass_shell
def doctor(shell: Shell, probe: bool, as_json: bool) -> None:
    """Checks the driver, GPUs, MPS, memory and folders, and says the cure of each fault.

    Exit code 5 when something fails. Measuring takes about a minute for each GPU, and no gateway may run meanwhile.
    """
    try:
        settings = shell.resolved.settings
    except InvalidRequestError as exc:
        from hasfaas.node.finding import fail

        _show((fail("settings", exc.message, "nothing else can be judged before they are correct"),), as_json)
        return
    measured = _measured(shell, settings) if probe else ()
    with waiting("looking at this machine"):
        from hasfaas.node.doctor import examine, gather

        findings = examine(gather(settings), settings)
    _show((*measured, *findings), as_json)


def _measured(shell: Shell, settings: Settings) -> tuple[Finding, ...]:
    """Probes every GPU and stores its record; what went wrong with each."""
    from hasfaas.node.finding import fail
    from hasfaas.node.nvidia_facts import ask_nvml

    if shell.client.backend.running() is not None:
        raise UnavailableError(
            "a gateway is running, and would be measured along with the GPU; end it first: `hasfaas down`",
            reason="GATEWAY_RUNNING",
        )
    nvidia = ask_nvml()
    if nvidia.driver is None or not nvidia.gpus:
        return (fail("probes", "there is no GPU to measure", nvidia.message or "see the finding on the driver"),)
    return tuple(found for gpu in nvidia.gpus if (found := _stored(gpu, nvidia.driver, settings)) is not None)


def _stored(gpu: Gpu, driver: Driver, settings: Settings) -> Finding | None:
    from hasfaas.devices import probe_record
    from hasfaas.node.finding import fail
    from hasfaas.node.gpu_probing import probe

    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    try:
        record = probe(gpu, driver, today, lambda text: click.echo(text, err=True))
        probe_record.store(settings.state_dir / probe_record.FOLDER, record)
    except HasFaasError as exc:
        return fail(
            f"gpu {gpu.index} probing", f"{exc.reason}: {exc.message}", "cure what fails below, then probe again"
        )
    return None


def _show(findings: tuple[Finding, ...], as_json: bool) -> None:
    """The findings, their cures, and the exit code."""
    failed = sum(finding.state.value == "fail" for finding in findings)
    if as_json:
        rows = [{"check": f.check, "state": f.state.value, "detail": f.detail, "cure": f.cure} for f in findings]
        print_json({"healthy": not failed, "findings": rows})
    else:
        print_table(["", "check", "found"], [(MARKS[f.state.value], f.check, f.detail) for f in findings])
        _show_cures([finding for finding in findings if finding.cure])
        click.echo(f"\n{failed} of {len(findings)} checks fail" if failed else "\nnothing fails")
    if failed:
        click.get_current_context().exit(UNAVAILABLE)


def _show_cures(findings: list[Finding]) -> None:
    """What to do, the worst first."""
    for state in ("fail", "warn", "note"):
        for finding in (f for f in findings if f.state.value == state):
            click.echo(f"\n{MARKS[state]} {finding.check}: {finding.cure}")
