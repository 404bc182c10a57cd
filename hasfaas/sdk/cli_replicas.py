"""`hasfaas ps`, `scale` and `logs`: the replicas of functions, what they hold of a device, and what they take."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from hasfaas.sdk.cli_gateway import STATUS_TIMEOUT_S
from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import duration, percent, print_json, print_table, size, waiting

if TYPE_CHECKING:
    from hasfaas.wire.v1 import functions_pb2 as pb

LIVE = ("starting", "ready")
SIZES = (
    ("quota_percent", "quota", " %"),
    ("sm_percent", "SM", " %"),
    ("replicas", "replicas", ""),
    ("lends", "lends", ""),
)
COLUMNS = (
    "function",
    "replica",
    "state",
    "device",
    ">lane",
    ">SM %",
    ">quota %",
    ">used %",
    ">throttled",
    ">overrun",
    ">lent",
    ">memory",
    ">pid",
    ">in flight",
    ">cold start",
)
# Fields of the messages, which are keys of the JSON form too.
OF_REPLICA = tuple(
    "state device lane sm_asked_percent sm_granted_percent quota_percent lends memory_bytes pid in_flight".split()  # noqa: SIM905
)
COLD_START = ("enter_ms", "load_ms", "first_run_ms")
OF_USAGE = ("granted_ns", "used_ns", "throttled_ns", "wait_ns", "overrun_ns", "lent_ns", "grants")


@click.command()
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0),
    default=0.3,
    show_default=True,
    help="Seconds over which the used share is measured; 0 leaves it out.",
)
@json_option
@pass_shell
def ps(shell: Shell, interval_s: float, as_json: bool) -> None:
    """Shows a row for each replica: what it holds of its device, and what it takes. Also functions that have none.

    "SM %" is what was asked for and what was granted, and what the replica found where that differs. "used" is the share of
    its lane's time that a replica held during the interval. "throttled" and "overrun" count from the replica's start.
    "cold start" is what it took to enter the device, to load the function, and to run it first on its example.
    """
    shell.running()
    before = after = _list(shell)
    if interval_s and any(function.replicas for function in before.functions):
        time.sleep(interval_s)
        after = _list(shell)
    rows = list(replica_rows(before, after))
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("no function is deployed")
    else:
        print_table(COLUMNS, [_cells(row) for row in rows])
        for row in rows:
            if row["error"]:
                click.echo(f"{row['replica'] or row['function']}: {row['error']}")


def _list(shell: Shell, name: str = "") -> pb.ListFunctionsResponse:
    from hasfaas.wire.v1 import functions_pb2 as messages

    request = messages.ListFunctionsRequest(name=name)
    answer: pb.ListFunctionsResponse = shell.unary(lambda stub: stub.ListFunctions(request, timeout=STATUS_TIMEOUT_S))
    return answer


def replica_rows(before: pb.ListFunctionsResponse, after: pb.ListFunctionsResponse) -> Iterator[dict[str, Any]]:
    """A row for each replica of `after`, and one for each function without; shares are measured between the two."""
    used_before_ns = {r.replica_id: r.usage.used_ns for f in before.functions for r in f.replicas}
    elapsed_ns = after.at_ns - before.at_ns
    for function in after.functions:
        for replica in function.replicas or (None,):
            row = _row(function, replica)
            if replica is not None and elapsed_ns > 0 and replica.replica_id in used_before_ns:
                used_ns = replica.usage.used_ns - used_before_ns[replica.replica_id]
                row["used_percent"] = 100.0 * used_ns / elapsed_ns
            yield row


def _row(function: pb.FunctionStatus, replica: pb.ReplicaStatus | None) -> dict[str, Any]:
    usage = replica.usage if replica is not None else None
    return {
        "function": function.name,
        "version": replica.version if replica is not None else function.version,
        "unprofiled": function.unprofiled,
        "profile": function.profile_state or None,
        "drifted": function.drifted,
        "slo_ms": function.spec.slo_ms,
        "queue_depth": function.queue_depth,
        "replica": replica.replica_id if replica is not None else None,
        "used_percent": None,
        **{name: getattr(replica, name, None) for name in OF_REPLICA},
        **{name: getattr(usage, name, None) for name in OF_USAGE},
        **_start(replica),
        "error": (replica.error if replica is not None else function.why_none) or None,
    }


def _start(replica: pb.ReplicaStatus | None) -> dict[str, Any]:
    """What a replica told when it became ready."""
    found = replica is not None and replica.HasField("sm_counted_percent")
    ready = replica is not None and replica.HasField("cold_start")
    return {
        "sm_counted_percent": replica.sm_counted_percent if replica is not None and found else None,
        **{part: getattr(replica.cold_start, part) if replica is not None and ready else None for part in COLD_START},
    }


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = f"{row['function']}{_profile(row)}"
    if row["replica"] is None:
        return (name, "none", *[""] * (len(COLUMNS) - 2))
    asked, granted, counted = (percent(row[f"sm_{what}_percent"]) for what in ("asked", "granted", "counted"))
    differs = row["sm_counted_percent"] is not None and counted != granted
    parts_ms = [row[part] for part in COLD_START]
    return (
        name,
        row["replica"],
        row["state"],
        row["device"],
        str(row["lane"]),
        f"{asked}/{granted}, found {counted}" if differs else f"{asked}/{granted}",
        percent(row["quota_percent"]),
        percent(row["used_percent"]),
        duration(row["throttled_ns"] / 1e9),
        duration(row["overrun_ns"] / 1e9),
        duration(row["lent_ns"] / 1e9) if row["lends"] else "-",
        size(row["memory_bytes"]),
        str(row["pid"]),
        str(row["in_flight"]),
        "" if None in parts_ms else " + ".join(duration(part / 1e3) for part in parts_ms),
    )


def _profile(row: Mapping[str, Any]) -> str:
    """What is known of the function's latency, after its name. Of one that somebody has sized, only a profile counts."""
    if row["unprofiled"]:
        return " (unprofiled)"
    if row["profile"] in (None, "unprofiled"):
        return ""
    return f" ({row['profile']}, drifted)" if row["drifted"] else f" ({row['profile']})"


@click.command()
@click.argument("name")
@click.option("--quota", type=float, help="Percent of its lane's time for each replica, changed in place.")
@click.option("--sm", type=float, help="Percent of the device's SMs (of a cpu's cores), changed by new replicas.")
@click.option("--replicas", type=click.IntRange(min=0), help="How many replicas.")
@click.option("--lend/--no-lend", default=None, help="Whether replicas use lane time that no other is entitled to.")
@click.option("--auto", is_flag=True, help="Take all that back: the scaler sizes the function again. Give it alone.")
@json_option
@pass_shell
def scale(
    shell: Shell,
    name: str,
    quota: float | None,
    sm: float | None,
    replicas: int | None,
    lend: bool | None,
    auto: bool,
    as_json: bool,
) -> None:
    """Sizes a function by hand, and keeps the scaler from it until --auto. Says what changed, and after how many
    milliseconds it was in force."""
    from hasfaas.wire.v1 import functions_pb2 as messages

    sizes = (quota, sm, replicas, lend)
    if auto == any(size is not None for size in sizes):
        raise click.UsageError("give at least one of --quota, --sm, --replicas and --lend, or --auto alone")
    shell.running()
    (old,) = _list(shell, name).functions
    request = messages.ScaleFunctionRequest(
        name=old.name, quota_percent=quota, sm_percent=sm, replicas=replicas, lend=lend, auto=auto
    )
    with waiting(f"sizing {old.name}"):
        answer = shell.unary(lambda stub: stub.ScaleFunction(request))
    before, after = _sizes(old), _sizes(answer.function)
    if as_json:
        print_json({"function": old.name, "applied_ms": answer.applied_ms, "before": before, "after": after})
        return
    changed = [
        f"{label} {_shares(before[key])} -> {_shares(after[key])}{unit}"
        for key, label, unit in SIZES
        if before[key] != after[key]
    ]
    replaced = {r.replica_id for r in old.replicas} - {r.replica_id for r in answer.function.replicas}
    if replaced and not changed and after["replicas"]:
        changed = [f"{len(replaced)} replaced, with the same share"]
    unchanged = "nothing changed" if after["replicas"] else "set for the replicas to come, there is none now"
    what = ", ".join([*(["sized by hasfaas again"] if auto else []), *changed]) or unchanged
    click.echo(f"{old.name}: {what}; in force after {answer.applied_ms:.1f} ms")


def _sizes(function: pb.FunctionStatus) -> dict[str, Any]:
    """What the function's replicas have: their number, and the distinct shares among them."""
    live = [replica for replica in function.replicas if replica.state in LIVE]
    return {
        "replicas": len(live),
        "quota_percent": sorted({round(replica.quota_percent, 4) for replica in live}),
        "sm_percent": sorted({round(replica.sm_granted_percent, 4) for replica in live}),
        "lends": sum(1 for replica in live if replica.lends),
    }


def _shares(value: int | list[float]) -> str:
    return str(value) if isinstance(value, int) else "/".join(percent(share) for share in value) or "-"


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines, until interrupted.")
@click.option("--tail", type=click.IntRange(min=0), help="Only so many lines from the end of each replica's log.")
@json_option
@pass_shell
def logs(shell: Shell, name: str, follow: bool, tail: int | None, as_json: bool) -> None:
    """Prints what a function's replicas wrote, each line after its replica's name. With --json one object a line."""
    from hasfaas.wire.v1 import functions_pb2 as messages

    shell.running()
    if tail == 0 and not follow:
        return
    # On the wire 0 means all.
    request = messages.StreamLogsRequest(name=name, follow=follow, tail=tail or 0)
    for entry in shell.follow(lambda stub: stub.StreamLogs(request)):
        if as_json:
            click.echo(json.dumps({"replica": entry.replica_id, "line": entry.line}))
        else:
            click.echo(f"{entry.replica_id} | {entry.line}")
