"""`hasfaas plan`: what each function of a file will need and cost, before it is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import click

from hasfaas.core.errors import HasFaasError, InvalidRequestError, NotFoundError
from hasfaas.sdk.cli_app import Reference
from hasfaas.sdk.cli_described import Described, described
from hasfaas.sdk.cli_predict import stored, timing_of, unseen
from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import figure, percent, print_json, print_table

if TYPE_CHECKING:
    from hasfaas.core.spec import FunctionSpec
    from hasfaas.executor.quota import Timing
    from hasfaas.rapp.profile import Profile
    from hasfaas.scaling.outlook import Outlook
    from hasfaas.sdk.function import Remote

# Name, options, profile, and the timing of the lanes that it would run in.
Subject: TypeAlias = "tuple[str, FunctionSpec, Profile, Timing]"
# Where a function is planned that nobody has measured.
BATCHES, SM_PERCENTS = (1, 2, 4, 8, 16, 32), tuple(range(5, 101, 5))
COLUMNS = (
    "function",
    "profile",
    ">SLO ms",
    ">rps",
    ">device p95 ms",
    ">carries rps",
    ">replicas",
    ">SM %",
    ">quota %",
    ">batch",
    ">devices",
)


@attrs.frozen(eq=False)
class Planned:
    """One function with its outlook."""

    name: str
    spec: FunctionSpec
    profile: Profile
    outlook: Outlook

    def to_dict(self, price: float | None) -> dict[str, Any]:
        """The JSON form; costs are None without a price."""
        outlook, shape = self.outlook, self.outlook.shape
        return {
            "function": self.name,
            "profile": self.profile.state,
            "device": attrs.asdict(self.profile.device),
            "slo_ms": self.spec.slo_ms,
            "slo_percentile": self.spec.slo_percentile,
            "rps": outlook.rps,
            "p95_ms": outlook.p95_ms,
            "whole_device_ms": outlook.idle_ms,
            "capacity_rps": shape.capacity_rps,
            "replicas": shape.replicas,
            "sm_percent": shape.sm_percent,
            "quota_percent": shape.quota_percent,
            "batch": shape.batch,
            "devices": shape.area,
            "price_per_device_hour": price,
            "cost_per_hour": None if price is None else outlook.cost_per_hour(price),
            "cost_per_1000_requests": None if price is None else outlook.cost_per_1000(price),
        }


@click.command()
@click.argument("target", metavar="APP.py|APP.py::NAME|NAME")
@click.option("--rps", type=float, default=20.0, show_default=True, help="Calls per second to plan for, each function.")
@click.option(
    "--device",
    metavar="NAME",
    help="A described device, such as H100, or a GPU that was probed here (its UUID, full name or device name), for "
    "functions that were never profiled; of NAME, where it was profiled.",
)
@click.option("--price", type=click.FloatRange(min=0), help="Of a whole device an hour, in any currency.")
@click.option(
    "--example", metavar="ARG", multiple=True, help="An argument for functions without example=, as for predict."
)
@json_option
@pass_shell
def plan(
    shell: Shell,
    target: str,
    rps: float,
    device: str | None,
    price: float | None,
    example: tuple[str, ...],
    as_json: bool,
) -> None:
    """Says what slice each function needs at a rate, the latency to expect, and what it costs.

    A function that was profiled is planned from its profile, any other from its graph, for a described device. An SLO that
    no slice keeps is an error that names the nearest one that can be kept. The p95 is the wait for the device and the time on
    it; what the gateway and the network add is not in it.
    """
    planned = [
        _planned(name, spec, profile, timing, rps)
        for name, spec, profile, timing in _subjects(shell, target, device, example)
    ]
    if as_json:
        print_json([each.to_dict(price) for each in planned])
        return
    prices = () if price is None else (">cost/h", ">cost/1000 calls")
    print_table((*COLUMNS, *prices), [_cells(each, price) for each in planned])
    for each in planned:
        if each.profile.state in ("zero-shot", "roofline only"):
            click.echo(
                f"hasfaas: {each.name} was never measured: `hasfaas profile {each.name}` makes its figures its own",
                err=True,
            )


def _subjects(shell: Shell, target: str, device: str | None, example: Sequence[str]) -> list[Subject]:
    """What is planned, each with the profile and the timing of the lanes that it would run in."""
    reference = Reference.parse(target)
    if reference is not None:
        return _of_file(shell, reference.functions(), device, example)
    from hasfaas.wire.convert import spec_from_proto

    profile, timing = stored(shell, target, device or "")
    (status,) = shell.client.run(shell.client.status(target)).functions
    return [(status.name, spec_from_proto(status.spec), profile, timing)]


def _of_file(
    shell: Shell, functions: Sequence[Remote[Any]], device: str | None, example: Sequence[str]
) -> list[Subject]:
    """Each from the profile of this very version where a gateway here has one, else from its graph. One error names all
    functions that have neither."""
    made: list[Subject] = []
    failed: list[tuple[str, str, str]] = []
    lookup = cache(partial(described, shell))
    for function in functions:
        found = _measured(shell, function, device)
        try:
            made.append(found or _from_graph(shell, function, None if device is None else lookup(device), example))
        except InvalidRequestError as exc:
            failed.append((function.name, exc.message, exc.reason))
    if not failed:
        return made
    cures = ", ".join(f"`hasfaas profile {name}`" for name, _, _ in failed)
    why = "; ".join(f"{name}: {message}" for name, message, _ in failed)
    raise InvalidRequestError(
        f"only functions that run torch can be planned from their graph; any that is deployed can be measured: {cures}. "
        f"Not planned: {why}",
        reason=failed[0][2],
    )


def _measured(shell: Shell, function: Remote[Any], device: str | None) -> Subject | None:
    if shell.client.backend.running() is None:
        return None
    try:
        profile, timing = stored(shell, function.name, device or "")
    except NotFoundError:
        return None  # never deployed, or never measured, or not on that device
    deployable = function.deployable()
    return (function.name, deployable.spec, profile, timing) if profile.version == deployable.version else None


def _from_graph(shell: Shell, function: Remote[Any], device: Described | None, example: Sequence[str]) -> Subject:
    if device is None:
        raise InvalidRequestError(
            "never profiled as it is now; say --device, such as --device H100, to plan it from its graph",
            reason="UNPROFILED",
        )
    spec = function.deployable().spec
    most = spec.batch.max_size if spec.batch else 1
    batches = tuple(batch for batch in BATCHES if batch <= most)
    profile = unseen(function, device, example, batches, SM_PERCENTS)
    return function.name, spec, profile, timing_of(shell.resolved.settings.local)


def _planned(name: str, spec: FunctionSpec, profile: Profile, timing: Timing, rps: float) -> Planned:
    from hasfaas.scaling.outlook import outlook

    try:
        made = outlook(
            profile.current(),
            spec.slo_ms,
            1.0 - spec.slo_percentile / 100.0,
            timing,
            rps,
            batch_max=spec.batch.max_size if spec.batch else 1,
            replicas_max=spec.max_replicas,
        )
    except HasFaasError as exc:
        raise type(exc)(f"{name}: {exc.message}", reason=exc.reason) from exc
    return Planned(name, spec, profile, made)


def _cells(planned: Planned, price: float | None) -> tuple[str, ...]:
    outlook, shape = planned.outlook, planned.outlook.shape
    costs = () if price is None else (f"{outlook.cost_per_hour(price):.4f}", f"{outlook.cost_per_1000(price):.6f}")
    return (
        planned.name,
        f"{planned.profile.state}, {planned.profile.device.description or planned.profile.device.device_id}",
        f"{planned.spec.slo_ms:g}",
        f"{outlook.rps:g}",
        figure(outlook.p95_ms),
        figure(shape.capacity_rps),
        str(shape.replicas),
        percent(shape.sm_percent),
        percent(shape.quota_percent),
        str(shape.batch),
        f"{shape.area:.3f}",
        *costs,
    )
