"""`hasfaas explain`: what the scaler sees of a function, what it expects, what it has done about it, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import duration, figure, percent, print_json, print_table

SHOWN_ACTIONS = 12


@click.command()
@click.argument("name")
@click.option("--price", type=click.FloatRange(min=0), help="Of a whole device an hour, to say what the slices cost.")
@click.option("--last", type=click.IntRange(min=0), default=SHOWN_ACTIONS, show_default=True, help="So many actions.")
@json_option
@pass_shell
def explain(shell: Shell, name: str, price: float | None, last: int, as_json: bool) -> None:
    """Says how a function is scaled: its load, the forecast, its slices and their cost, and the latest actions with reasons.

    What was predicted stands beside what was observed in the last minute.
    """
    client = shell.running()
    found = client.run(client.explain(name))
    if price is not None and "occupancy" in found:
        found["cost_per_hour"] = found["occupancy"] * price
    if as_json:
        print_json(found)
        return
    _head(found)
    if "observed" not in found:
        return
    _figures(found)
    if found["replicas"]:
        click.echo()
        _replicas(found["replicas"])
    if found["actions"] and last:
        click.echo()
        _actions(found["actions"][:last])


def _head(found: Mapping[str, Any]) -> None:
    if not found["governed"]:
        click.echo(f"{found['function']} is not scaled: {found['why_not']}")
    elif "reason" not in found:
        click.echo(f"{found['function']}: the scaler has not looked at it yet; ask again in a second")
    else:
        click.echo(f"{found['function']}: {found['reason']}, decided {duration(found['decided_ago_s'])} ago")
    if "observed" not in found and found["log"]:
        click.echo(f"  log  {found['log']}")


def _figures(found: Mapping[str, Any]) -> None:
    observed = found["observed"]
    promise = 100.0 * (1.0 - observed["late_share_promised"])
    cost = f", {found['cost_per_hour']:.4g} an hour" if "cost_per_hour" in found else ""
    lines = [
        ("promised", f"{promise:g} % of the calls within {observed['slo_ms']:g} ms"),
        (
            "observed",
            f"{figure(observed['rps'])} rps, {observed['late']} of {observed['completed']} late "
            f"({figure(100.0 * observed['late_share'])} %), p50 {_ms(observed['p50_ms'])}, p95 {_ms(observed['p95_ms'])}, "
            f"in {duration(observed['seconds'])}",
        ),
        *_expected(found),
        ("holds", f"{found['occupancy']:.3g} of a device{cost}"),
        *_device_type(found.get("device_type")),
    ]
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        click.echo(f"  {label:<{width}}  {text}")
    click.echo(f"  {'log':<{width}}  {found['log']}")


def _device_type(choice: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """The type of device that it is on, and what all of them would cost."""
    if choice is None:
        return
    yield "device", f"{choice['type']}: {choice['why']}"
    for each in choice["candidates"]:
        room = ", no room" if each["room"] is False else ""
        yield (
            "",
            f"{each['type']}: costs {each['cost']:.3g}{'' if each['keeps'] else ', cannot keep the promise'}{room}",
        )


def _expected(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is predicted and planned for, or why nothing is."""
    observed, predicted, told = found["observed"], found["predicted"], found["diagnostics"]
    if found["unpredicted"]:
        yield "predicted", f"{found['unpredicted']}: nothing is predicted"
        return
    if predicted is not None:
        within = ""
        if predicted["p95_ms"] is not None:
            within = f"p95 {_ms(predicted['p95_ms'])} at the {figure(predicted['rps'])} rps of now; "
        elif not predicted["carried"]:
            within = (
                f"the {figure(predicted['rps'])} rps of now are more than its slices are sure to answer within "
                f"{observed['slo_ms']:g} ms; "
            )
        yield (
            "predicted",
            f"{within}one call alone {_ms(predicted['idle_ms'])} after a pause, "
            f"at most {_ms(predicted['worst_ms'])} where calls before it used the quota up",
        )
    if not found["governed"]:
        yield "planned for", "not planned"
    elif not found["replicas"] and not observed["rps"]:
        yield "planned for", "not planned: no call comes, and no replica is held for one"
    elif told.get("rate_rps") is not None and told.get("peak_rps") is not None:
        carries = told.get("capacity_rps")
        yield (
            "planned for",
            f"{figure(told['rate_rps'])} rps now, {figure(told['peak_rps'])} rps before another replica could serve"
            + ("" if carries is None else f"; its slices carry {figure(carries)} rps"),
        )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{figure(value)} ms"


def _replicas(replicas: list[Mapping[str, Any]]) -> None:
    columns = ("replica", "state", "device", ">lane", ">SM %", ">quota %", ">batch", ">of a device")
    rows = [
        (
            each["replica"],
            each["state"],
            each["device"],
            str(each["lane"]),
            percent(each["sm_percent"]),
            percent(each["quota_percent"]),
            str(each["batch"]),
            f"{each['occupancy']:.3g}",
        )
        for each in replicas
    ]
    print_table(columns, rows)


def _actions(actions: list[Mapping[str, Any]]) -> None:
    rows = []
    for each in actions:
        refused = f" (came to nothing: {each['refused']})" if each["refused"] else ""
        rows.append((f"{duration(each['ago_s'])} ago", _what(each), f"{each['reason']}{refused}"))
    print_table((">when", "what", "why"), rows)


def _what(action: Mapping[str, Any]) -> str:
    match action["do"]:
        case "resize":
            return f"{action['replica_id']} to quota {percent(action['quota_percent'])} %"
        case "rebatch":
            return f"{action['replica_id']} to batches of {action['batch']}"
        case "add":
            return (
                f"a replica in {action['device']} lane {action['lane']}: SM {percent(action['sm_percent'])} %, quota "
                f"{percent(action['quota_percent'])} %, batches of {action['batch']}"
            )
    return f"{action['replica_id']} drained"
