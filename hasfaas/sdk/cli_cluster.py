"""`hasfaas cluster up | down | status`: a cluster of hasfaas on a Ray cluster that is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from hasfaas.sdk.cli_shell import Shell, json_option, pass_shell
from hasfaas.sdk.cli_table import print_json, print_table, waiting

if TYPE_CHECKING:
    from hasfaas.backends.cluster.command import Joined
    from hasfaas.backends.cluster.launch import ControlState
    from hasfaas.core.settings import ClusterSettings

address_option = click.option(
    "--address", metavar="ADDRESS", default="auto", help="host:port of Ray's head; auto: the cluster of this machine."
)
CLIENT_KEYS = ("addresses", "ca_file", "server_name", "token_file")


@click.group()
def cluster() -> None:
    """hasfaas on the nodes of a Ray cluster."""


@cluster.command()
@address_option
@json_option
@pass_shell
def up(shell: Shell, address: str, as_json: bool) -> None:
    """Starts a gateway and an agent on each node with devices, and writes into your configuration how they are reached.

    On a cluster that is up already it only brings your configuration and token up to date. What is deployed is kept at
    cluster.state_url, and served again by a cluster that is started with the same one.
    """
    from hasfaas.backends.cluster import command
    from hasfaas.backends.cluster.operator_folder import state_url
    from hasfaas.sdk.config import UserFolders
    from hasfaas.sdk.user_file import set_keys

    settings = shell.resolved.settings
    state_url(settings)  # what is missing is said before Ray is joined
    with _joined(address) as ray, waiting("waiting for the gateway and the agents"):
        made = command.up(settings, ray, lambda line: click.echo(line, err=True))
    file = UserFolders.of_this_user(os.environ).config_file
    written = set_keys(file, "cluster", _plain(made.client))
    for note in [*made.notes, *_overruled(made.client)]:
        click.echo(f"hasfaas: {note}", err=True)
    if as_json:
        print_json(_state(made.state) | {"started": made.started, "config_file": str(file), "notes": list(made.notes)})
        return
    nodes = ", ".join(member.place.name for member in made.state.members) or "none"
    click.echo(f"{'started a cluster' if made.started else 'a cluster was up'}; nodes with devices: {nodes}")
    click.echo(f"{file}  {'[cluster] was written' if written else '[cluster] is as it was'}")
    if settings.backend != "cluster":
        click.echo('to use it: HASFAAS_BACKEND=cluster, or backend = "cluster" in a configuration')


@cluster.command()
@address_option
@json_option
@pass_shell
def down(shell: Shell, address: str, as_json: bool) -> None:
    """Ends the cluster: calls under way are finished, then nothing of it is left but its state at cluster.state_url."""
    from hasfaas.backends.cluster import command

    with _joined(address) as ray, waiting("waiting for calls under way"):
        stopped = command.down(shell.resolved.settings, ray)
    if as_json:
        print_json(
            {
                "ended": stopped is not None,
                "gateway_finished": stopped is not None and stopped.gateway,
                "nodes_finished": list(stopped.nodes) if stopped else [],
                "nodes_ended": list(stopped.ended) if stopped else [],
            }
        )
        return
    if stopped is None:
        click.echo("no cluster was running")
        return
    click.echo("the cluster has ended")
    if not stopped.gateway or stopped.ended:
        late = [*([] if stopped.gateway else ["the gateway"]), *stopped.ended]
        click.echo(f"hasfaas: did not finish by themselves and were ended: {', '.join(late)}", err=True)


@cluster.command()
@address_option
@json_option
@pass_shell
def status(shell: Shell, address: str, as_json: bool) -> None:
    """Shows nodes and agents, the gateway, and what is asked of Ray's autoscaler. Exit code 5 when no cluster runs."""
    from hasfaas.backends.cluster import command

    with _joined(address) as ray:
        found = command.status(ray)
    if as_json:
        print_json(_state(found))
        return
    plain = _state(found)
    gateway = plain["gateway"]
    click.echo(
        f"gateway {gateway['address'] or 'not up'}, generation {gateway['generation']}, starts {gateway['starts']}"
    )
    for what, text in (("gateway", gateway["why"]), ("looking at the nodes", plain["trouble"])):
        if text:
            click.echo(f"{what}: {text}")
    click.echo()
    print_table(
        ["node", "agent", "address", ">CPU", ">GPU", "why"],
        [
            (
                node["node"],
                node["agent"],
                node["address"] or "",
                f"{node['cpus']:g}",
                f"{node['gpus']:g}",
                node["why"] or "",
            )
            for node in plain["nodes"]
        ],
    )
    if plain["asked"]:
        click.echo(f"\nasked of Ray's autoscaler: {', '.join(map(str, plain['asked']))}")


@contextlib.contextmanager
def _joined(address: str) -> Iterator[Joined]:
    from hasfaas.backends.cluster.ray_cluster import joined

    with joined(address) as ray:
        yield ray


def _plain(client: ClusterSettings) -> dict[str, object]:
    """The keys of `[cluster]` that say how it is reached, as TOML has them."""
    found = {key: getattr(client, key) for key in CLIENT_KEYS}
    return {key: list(value) if isinstance(value, tuple) else str(value) for key, value in found.items()}


def _overruled(client: ClusterSettings) -> list[str]:
    """Of the keys just written, those that a stronger source sets to something else."""
    from hasfaas.sdk.config import load

    resolved = load()
    return [
        f"cluster.{key} comes from {resolved.origins[f'cluster.{key}']}, which is stronger than your file: take it out there"
        for key in CLIENT_KEYS
        if getattr(resolved.settings.cluster, key) != getattr(client, key)
    ]


def _state(state: ControlState) -> dict[str, Any]:
    from hasfaas.core import addresses
    from hasfaas.wire.status import read_status

    gateway = state.gateway
    return {
        "gateway": {
            "address": addresses.join(gateway.host, gateway.port) if gateway.port else None,
            "pid": gateway.pid or None,
            "generation": gateway.generation,
            "starts": gateway.starts,
            "why": read_status(bytes.fromhex(gateway.refused)).message if gateway.refused else None,
        },
        "nodes": [
            {
                "node": member.place.name,
                "node_id": member.place.node_id,
                "agent": member.phase.value,
                "address": addresses.join(member.place.host, member.port) if member.port else None,
                "cpus": member.reservation.cpus,
                "gpus": member.reservation.gpus,
                "why": member.why or None,
            }
            for member in state.members
        ],
        "hosts": list(state.hosts),
        "asked": [dict(bundle) for bundle in state.asked],
        "trouble": state.trouble or None,
        "version": state.version,
    }
