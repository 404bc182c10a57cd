"""The actor of the whole cluster, which Ray restarts: it supervises the gateway, and sees to it that nodes have their agents.

It carries no request. Law: it waits for no other actor without a limit, so that a dead or a hanging node stops nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import attrs

from hasfaas.backends.cluster import members as book
from hasfaas.backends.cluster.actors import (
    ENDS_WITHIN_S,
    NAMESPACE,
    NodeActor,
    agent_name,
    child_environment,
    drain_s,
    end_with_raylet,
    own_folders,
    require_version,
    status_of,
)
from hasfaas.backends.cluster.child import Ask, Line, Nodes, Place, Ready, StartGateway
from hasfaas.backends.cluster.launch import AgentState, ControlState, GatewayState, Launch, Stopped
from hasfaas.backends.cluster.members import Member, Phase, Wanted
from hasfaas.backends.cluster.reservation import RayNode, ray_node, reservation
from hasfaas.backends.cluster.supervisor import Child
from hasfaas.core.errors import HasFaasError
from hasfaas.core.settings import Settings
from hasfaas.core.version import VERSION
from hasfaas.wire.status import read_status

CONTROL = "control"
LOOK_EVERY_S = 1.0
ANSWERS_WITHIN_S = 0.5
# Ray takes 15 s to miss a node, and one that was started anew wants its name back before.
SILENT_S = 2.0
# After so long a gateway was well, and the next delay is the shortest again.
WELL_AFTER_S = 30.0
# Of what Ray says of an actor that is lost.
MOST_WHY = 120
log = logging.getLogger("hasfaas.cluster")


class ControlActor:
    """The cluster's: supervises the gateway, sees to it that each node that should has an agent, and tells the gateway."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._settings = Settings.from_json(launch.settings_json)
        self._lock = threading.Lock()
        self._nodes: tuple[RayNode, ...] = ()
        self._members: dict[str, Member] = {}
        self._agents: dict[str, Any] = {}  # by node id: the actors' handles
        self._questions: dict[str, tuple[Any, float]] = {}  # by node id: one without an answer yet, and since when
        self._failures: dict[str, tuple[int, float]] = {}  # by node id: how often in a row, and when to try again
        self._place = _own_place()
        self._gateway = GatewayState(self._place.host)
        self._child: Child | None = None
        self._told: Nodes | None = None
        self._asked: tuple[Mapping[str, float], ...] = ()
        self._requested: tuple[Mapping[str, float], ...] = ()
        self._trouble = ""
        self._stopping = threading.Event()
        end_with_raylet()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._keep_gateway, self._keep_looking)]
        for thread in self._threads:
            thread.start()

    def state(self) -> ControlState:
        """All that it sees."""
        with self._lock:
            members = tuple(sorted(self._members.values(), key=lambda member: member.place.name))
            return ControlState(
                launch_id=self._launch.launch_id,
                ca_pem=self._launch.gateway.ca_pem,
                settings_json=self._launch.settings_json,
                version=VERSION,
                node_id=self._place.node_id,
                pid=os.getpid(),
                gateway=self._gateway,
                members=members,
                hosts=book.hosts(self._nodes, self._place.host),
                asked=tuple(dict(bundle) for bundle in self._asked),
                trouble=self._trouble,
            )

    def stop(self) -> Stopped:
        """Ends the gateway and then the agents, each after it has finished what it had. Their actors stay, to be killed."""
        self._stopping.set()
        gateway = self._child is None or self._child.stop(drain_s(self._settings))
        for thread in self._threads:
            thread.join(ENDS_WITHIN_S)
        names = {node_id: member.place.name for node_id, member in self._members.items()}
        finished = self._stop_agents()
        self._request(())
        return Stopped(
            gateway,
            tuple(sorted(names[node_id] for node_id in finished)),
            tuple(sorted(name for node_id, name in names.items() if node_id not in finished)),
        )

    # -- the gateway -------------------------------------------------------------------------------------------------

    def _keep_gateway(self) -> None:
        failures, starts = 0, 0
        while not self._stopping.is_set():
            starts += 1
            try:
                child = Child(
                    self._launch.gateway_module, self._start(), heard=self._heard, environment=child_environment()
                )
                self._child = child
                ready = child.start(self._settings.start_timeout_s)
            except Exception as exc:
                log.warning("the gateway could not start: %s", exc)
                self._show(refused=status_of(exc), starts=starts)
            else:
                since_s = time.monotonic()
                self._serves(child, ready, starts)
                if self._stopping.is_set():  # while it started
                    child.stop(drain_s(self._settings))
                code = child.wait()
                self._show(starts=starts)
                if not self._stopping.is_set():
                    log.error("the gateway ended with code %s; see %s", code, child.log_file)
                if time.monotonic() - since_s > WELL_AFTER_S:
                    failures = 0
            self._stopping.wait(book.delay_s(failures))
            failures += 1

    def _start(self) -> StartGateway:
        require_version(self._launch.version)
        settings = own_folders(self._settings, f"gateway-{self._place.name}", "gw")
        return StartGateway(
            place=self._place,
            identity=self._launch.gateway,
            settings_json=settings.to_json(),
            state_dir=str(settings.state_dir),
            runtime_dir=str(settings.runtime_dir),
            tokens=self._launch.tokens,
        )

    def _serves(self, child: Child, ready: Ready, starts: int) -> None:
        self._show(pid=child.pid or 0, port=ready.port, generation=ready.generation, starts=starts)
        with self._lock:
            self._told, self._asked = None, ()
        self._tell()

    def _show(self, **known: Any) -> None:
        with self._lock:
            self._gateway = GatewayState(self._place.host, **known)

    def _heard(self, line: Line) -> None:
        if isinstance(line, Ask):
            with self._lock:
                self._asked = line.bundles

    def _tell(self) -> None:
        """The nodes, to a gateway that listens and does not know them so."""
        with self._lock:
            line = book.line(self._members.values())
            child, news = self._child, self._gateway.port and line != self._told
            if child is None or not news:
                return
            self._told = line
        try:
            child.send(line)
        except HasFaasError as exc:
            log.warning("the gateway reads nothing and is ended: %s", exc)
            child.end()

    # -- the nodes ---------------------------------------------------------------------------------------------------

    def _keep_looking(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
                trouble = ""
            except Exception as exc:  # whatever Ray raises: the next look may be better
                log.exception("looking at the nodes failed")
                trouble = f"{type(exc).__name__}: {exc}"
            with self._lock:
                self._trouble = trouble
            self._stopping.wait(LOOK_EVERY_S)

    def _look(self) -> None:
        import ray

        nodes = tuple(ray_node(entry) for entry in ray.nodes() if entry["Alive"])
        with self._lock:
            self._nodes = nodes
        for node_id in book.gone(nodes, list(self._members)):
            self._forget(node_id)
        now_s = time.monotonic()
        waiting = {node_id for node_id, (_, then_s) in self._failures.items() if then_s > now_s}
        due = [node for node in nodes if node.node_id not in waiting]
        for one in book.wanted(due, self._members, lambda node: reservation(self._settings.devices, node)):
            self._begin(one)
        self._ask_agents()
        self._tell()
        self._request(book.bundles(self._asked, self._members.values()))

    def _begin(self, wanted: Wanted) -> None:
        """Has Ray start an actor there, or finds the one that an earlier control actor has started."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node_id = wanted.place.node_id
        self._agents[node_id] = (
            ray.remote(NodeActor)
            .options(
                name=agent_name(node_id),
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
                num_cpus=wanted.reservation.cpus,
                num_gpus=wanted.reservation.gpus,
                max_restarts=-1,
                # A question that met a dead actor is asked again at the next look; `stop` must not wait for a restart.
                max_task_retries=0,
                max_concurrency=4,
            )
            .remote(self._launch.on_node(wanted.place))
        )
        why = f"waits for Ray to give it {dict(wanted.reservation.bundle)}" if wanted.reservation.bundle else ""
        self._know(Member(wanted.place, wanted.reservation, why=why))

    def _ask_agents(self) -> None:
        """One question to each, of which the answers that are there are taken: who hangs is asked nothing more."""
        import ray

        for node_id, agent in self._agents.items():
            if node_id not in self._questions:
                self._questions[node_id] = (agent.state.remote(), time.monotonic())
        if not self._questions:
            return
        questions = {question: node_id for node_id, (question, _) in self._questions.items()}
        answered, _ = ray.wait(list(questions), num_returns=len(questions), timeout=ANSWERS_WITHIN_S)
        for question in answered:
            node_id = questions[question]
            del self._questions[node_id]
            try:
                self._answered(node_id, ray.get(question, timeout=ANSWERS_WITHIN_S))
            except ray.exceptions.ActorUnavailableError as exc:
                self._lost(node_id, exc)
            except Exception as exc:  # it cannot be started, or is not to be restarted: another is tried
                self._lost(node_id, exc)
                self._drop(node_id)
        for node_id, (_, since_s) in self._questions.items():
            silent_s = time.monotonic() - since_s
            if silent_s > SILENT_S and self._members[node_id].phase is not Phase.STARTING:
                why = f"its actor has not answered for {silent_s:.0f} s"
                self._know(attrs.evolve(self._members[node_id], phase=Phase.LOST, why=why))

    def _answered(self, node_id: str, state: AgentState) -> None:
        if state.launch_id != self._launch.launch_id:  # one of an earlier cluster, with other settings and certificates
            self._drop(node_id)
            return
        known = attrs.evolve(
            self._members[node_id], place=state.place, pid=state.pid, child_pid=state.child_pid, port=state.port, why=""
        )
        if state.port:
            self._failures.pop(node_id, None)
            self._know(attrs.evolve(known, phase=Phase.READY))
        elif state.refused:
            why = read_status(bytes.fromhex(state.refused)).message
            self._know(attrs.evolve(known, phase=Phase.REFUSED, why=why))
        else:
            self._know(attrs.evolve(known, phase=Phase.STARTING))

    def _lost(self, node_id: str, exc: Exception) -> None:
        why = str(exc).strip().splitlines()
        text = shorten(why[-1], MOST_WHY) if why else type(exc).__name__
        self._know(attrs.evolve(self._members[node_id], phase=Phase.LOST, why=text))

    def _know(self, member: Member) -> None:
        with self._lock:
            before = self._members.get(member.place.node_id)
            self._members[member.place.node_id] = member
        if before is None or before.phase is not member.phase:
            log.info("node %s: %s %s", member.place.name, member.phase.value, member.why)

    def _drop(self, node_id: str) -> None:
        """Another actor is started there, after a while."""
        count = self._failures.get(node_id, (0, 0.0))[0]
        self._forget(node_id)
        self._failures[node_id] = (count + 1, time.monotonic() + book.delay_s(count))

    def _forget(self, node_id: str) -> None:
        import ray

        with self._lock:
            self._members.pop(node_id, None)
        self._questions.pop(node_id, None)
        self._failures.pop(node_id, None)
        agent = self._agents.pop(node_id, None)
        if agent is not None:
            ray.kill(agent, no_restart=True)

    def _stop_agents(self) -> set[str]:
        """The nodes whose agents finished by themselves. Each is asked at once; who was never there, or is lost, is not."""
        import ray

        asked = {
            self._agents[node_id].stop.remote(): node_id
            for node_id, member in self._members.items()
            if node_id in self._agents and member.phase in (Phase.READY, Phase.REFUSED)
        }
        finished = set()
        if asked:
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=drain_s(self._settings) + ENDS_WITHIN_S)
            for answer in answered:
                with contextlib.suppress(Exception):
                    if ray.get(answer, timeout=ANSWERS_WITHIN_S):
                        finished.add(asked[answer])
        return finished

    def _request(self, bundles: tuple[Mapping[str, float], ...]) -> None:
        """Asks Ray's autoscaler, if what is to be asked has changed. Without an autoscaler nobody hears it."""
        from ray.autoscaler.sdk import request_resources

        if bundles != self._requested:
            request_resources(bundles=[dict(bundle) for bundle in bundles])
            self._requested = bundles


def _own_place() -> Place:
    """Of this actor's node."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    node = next(node for node in map(ray_node, ray.nodes()) if node.node_id == node_id)
    return Place(node_id, node.name, node.host)
