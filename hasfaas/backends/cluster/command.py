"""`hasfaas cluster up`, `down` and `status`, but for what is shown: over a Ray cluster that was joined (`ray_cluster`)."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import attrs

from hasfaas.backends.cluster.actors import drain_s
from hasfaas.backends.cluster.backend import ClusterBackend
from hasfaas.backends.cluster.launch import ControlState, Launch, Stopped
from hasfaas.backends.cluster.members import Member, Phase
from hasfaas.backends.cluster.operator_folder import OperatorFolder, launched, state_url
from hasfaas.backends.cluster.reservation import RayNode, reservation
from hasfaas.core import addresses
from hasfaas.core.errors import AuthError, BackendError, ConflictError, HasFaasError, UnavailableError
from hasfaas.core.settings import ClusterSettings, Settings
from hasfaas.wire.status import read_status

ANSWERS_WITHIN_S = 30.0
LOOK_EVERY_S = 0.2
# A gateway that refuses so often in a row will do so again.
GATEWAY_TRIES = 3
"""A port that the last gateway has just left, or storage that is slow for a moment, is not worth giving up for."""


class Joined(Protocol):
    """A Ray cluster, as `ray_cluster.RayCluster` is."""

    def nodes(self) -> tuple[RayNode, ...]: ...

    def actors(self) -> tuple[str, ...]: ...

    def start(self, launch: Launch) -> None: ...

    def state(self, timeout_s: float) -> ControlState | None: ...

    def stop(self, timeout_s: float) -> Stopped | None: ...

    def kill(self, processes: Mapping[int, str]) -> None: ...


@attrs.frozen
class Up:
    """A cluster that serves: how this user reaches it, what its control actor sees, and what the operator should know."""

    client: ClusterSettings
    state: ControlState
    started: bool
    notes: tuple[str, ...] = ()


def up(
    settings: Settings,
    ray: Joined,
    announce: Callable[[str], None],
    *,
    reach: Callable[[Settings], None] | None = None,
) -> Up:
    """Starts a cluster, or takes up the one that runs, and waits until its gateway serves and its agents have joined.

    `announce` is told each step in a line, `reach` sees whether a client with these settings gets an answer. Raises
    InvalidRequestError without `cluster.state_url`, AuthError where a cluster runs that was started from another folder,
    ConflictError where it keeps its state elsewhere, and
    what keeps the gateway from starting; a cluster that was started for nothing is ended again.
    """
    state_url(settings)
    folder = OperatorFolder(settings)
    running = ray.state(ANSWERS_WITHIN_S)
    notes: list[str] = []
    if running is None:
        if not settings_need(settings, ray.nodes()):
            notes.append(
                "no node of the Ray cluster has any of the devices of [[devices]]; agents start once there is one that has"
            )
        announce("starting the control actor")
        ray.start(folder.launch(datetime.datetime.now(datetime.UTC)))
    else:
        notes += _taken_up(settings, folder, running)
    try:
        state = _await_cluster(settings, ray, announce)
    except (HasFaasError, KeyboardInterrupt):
        if running is None:
            down(settings, ray)
        raise
    notes += [
        f"node {m.place.name} has no agent yet ({m.phase.value}): {m.why or 'it takes its time'}" for m in _late(state)
    ]
    client = folder.client(tuple(addresses.join(host, settings.cluster.port) for host in state.hosts))
    (reach or _reach)(attrs.evolve(settings, backend="cluster", cluster=client))
    return Up(client, state, started=running is None, notes=tuple(notes))


def down(settings: Settings, ray: Joined) -> Stopped | None:
    """Ends the cluster: gateway and agents finish what they have, then all its actors and processes are gone. None when there
    was none. What is deployed stays at `cluster.state_url`. Raises BackendError for what does not end."""
    if not ray.actors():
        return None
    processes: dict[int, str] = {}
    stopped: Stopped | None = None
    try:
        state = ray.state(ANSWERS_WITHIN_S)
        processes = _processes(state) if state else {}
        # Two after each other: the gateway, then all agents at once.
        stopped = ray.stop(2 * drain_s(settings) + ANSWERS_WITHIN_S)
    except UnavailableError:  # it hangs, or its node does: what is left is to end it
        pass
    ray.kill(processes)
    return stopped or Stopped(gateway=False, nodes=(), ended=())


def status(ray: Joined) -> ControlState:
    """What the control actor sees. Raises UnavailableError when there is none."""
    state = ray.state(ANSWERS_WITHIN_S)
    if state is None:
        raise UnavailableError("no cluster is running there; start one with `hasfaas cluster up`", reason="NO_CLUSTER")
    return state


def settings_need(settings: Settings, nodes: Iterable[RayNode]) -> set[str]:
    """The ids of the nodes that get an agent."""
    return {node.node_id for node in nodes if reservation(settings.devices, node) is not None}


def _taken_up(settings: Settings, folder: OperatorFolder, running: ControlState) -> list[str]:
    if not folder.knows(running.ca_pem):
        raise AuthError(
            f"a cluster is running that was not started from {folder.path}: copy the folder of whoever started it there "
            "(mode 700), or end it with `hasfaas cluster down` and start it from here",
            reason="OTHER_CLUSTER",
        )
    served = Settings.from_json(running.settings_json).cluster.state_url
    if served != settings.cluster.state_url:
        raise ConflictError(
            f"the cluster that is running keeps its state at {served}, and cluster.state_url is now "
            f"{settings.cluster.state_url}: set it back, or end that cluster with `hasfaas cluster down` first",
            reason="OTHER_STATE",
        )
    notes = []
    if folder.ensure_token(time.time()) is not None:
        notes.append("a new token was made for this user; the gateway takes it within seconds")
    if running.settings_json != launched(settings).to_json():
        notes.append(
            "the cluster runs with the settings that it was started with, which are not those of now; to change them: "
            "`hasfaas cluster down`, then `up`"
        )
    return notes


def _await_cluster(settings: Settings, ray: Joined, announce: Callable[[str], None]) -> ControlState:
    """Until the gateway listens, and each node that should have an agent has one that is ready or says why not; agents that
    take longer than the time for starting are not waited for."""
    deadline_s = time.monotonic() + settings.start_timeout_s
    said: dict[str, str] = {}
    while True:
        late = time.monotonic() > deadline_s
        state = _seen(ray, late)
        if state is not None:
            for name, text in _progress(state):
                if said.get(name) != text:
                    announce(f"{name}: {text}")
                    said[name] = text
            there = {m.place.node_id for m in state.members if m.phase in (Phase.READY, Phase.REFUSED)}
            if state.gateway.port and (late or (state.hosts and settings_need(settings, ray.nodes()) <= there)):
                return state
            if state.gateway.refused and (late or state.gateway.starts >= GATEWAY_TRIES):
                why = read_status(bytes.fromhex(state.gateway.refused))
                raise type(why)(f"the gateway could not start: {why.message}", reason=why.reason)
        if late:
            raise BackendError(
                f"the gateway was not ready after {settings.start_timeout_s:g} s (start_timeout_s)"
                f"{': ' + state.trouble if state and state.trouble else ''}",
                reason="START_TIMEOUT",
            )
        time.sleep(LOOK_EVERY_S)


def _seen(ray: Joined, late: bool) -> ControlState | None:
    try:
        return ray.state(ANSWERS_WITHIN_S)
    except UnavailableError:
        if late:
            raise
        return None


def _progress(state: ControlState) -> Iterable[tuple[str, str]]:
    gateway = state.gateway
    if gateway.port:
        yield "gateway", f"listens at {addresses.join(gateway.host, gateway.port)}"
    elif gateway.refused:
        yield "gateway", f"refused to start: {read_status(bytes.fromhex(gateway.refused)).message}"
    for member in state.members:
        yield f"node {member.place.name}", f"{member.phase.value}{', ' + member.why if member.why else ''}"


def _late(state: ControlState) -> list[Member]:
    return [member for member in state.members if member.phase is not Phase.READY]


def _processes(state: ControlState) -> dict[int, str]:
    """By number, where each runs."""
    found = {state.pid: state.gateway.host, state.gateway.pid: state.gateway.host}
    for member in state.members:
        found |= {member.pid: member.place.host, member.child_pid: member.place.host}
    found.pop(0, None)
    return found


def _reach(settings: Settings) -> None:
    ClusterBackend(settings).endpoint(lambda _line: None)
