"""A Ray cluster from the side of the shell: joins it, starts and finds our actors there, and leaves.

While it is joined, standard output is closed: Ray prints what happens on any node there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hasfaas.backends.cluster.actors import AGENT_PREFIX, NAMESPACE
from hasfaas.backends.cluster.control_actor import CONTROL, ControlActor
from hasfaas.backends.cluster.launch import ControlState, Launch, Stopped
from hasfaas.backends.cluster.reservation import RayNode, ray_node
from hasfaas.core import addresses
from hasfaas.core.errors import BackendError, IncompatibleError, InvalidRequestError, UnavailableError

OLDEST_RAY = (2, 50)
AUTO = "auto"
GONE_WITHIN_S = 30.0
KNOCK_TIMEOUT_S = 5.0
# Where `ray start` leaves the address of its head.
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # noqa: S108 - it is Ray's


class RayCluster:
    """The cluster that this process has joined. Made by `joined`."""

    @property
    def host(self) -> str:
        """The address of the node that this process is on."""
        import ray

        return str(ray.util.get_node_ip_address())

    def nodes(self) -> tuple[RayNode, ...]:
        """Those that live."""
        import ray

        return tuple(ray_node(entry) for entry in ray.nodes() if entry["Alive"])

    def actors(self) -> tuple[str, ...]:
        """The names of our actors that there are."""
        import ray

        found = ray.util.list_named_actors(all_namespaces=True)
        names = (entry["name"] for entry in found if entry["namespace"] == NAMESPACE)
        return tuple(sorted(name for name in names if name == CONTROL or name.startswith(AGENT_PREFIX)))

    def start(self, launch: Launch) -> None:
        """Starts the control actor, on this node as long as that lives."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        ray.remote(ControlActor).options(
            name=CONTROL,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
            num_cpus=0,
            max_restarts=-1,
            # What it is asked can be asked again: a question waits until it has been restarted.
            max_task_retries=-1,
            max_concurrency=4,
        ).remote(launch)

    def state(self, timeout_s: float) -> ControlState | None:
        """What the control actor sees; None without one. Raises UnavailableError where it does not answer in time."""
        control = self._control()
        return None if control is None else _answer(control.state.remote(), timeout_s, "state")

    def stop(self, timeout_s: float) -> Stopped | None:
        """Has the control actor end gateway and agents, and waits for that; None without one. Raises UnavailableError."""
        control = self._control()
        return None if control is None else _answer(control.stop.remote(), timeout_s, "stop")

    def kill(self, processes: Mapping[int, str]) -> None:
        """Ends all our actors, and with them what they started. Waits until they are gone, and of these processes, by host,
        those on this one. Raises BackendError for what stays."""
        import ray

        for name in self.actors():
            with contextlib.suppress(ValueError):  # it has ended in this moment
                ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
        here = [pid for pid, host in processes.items() if host == self.host]
        deadline_s = time.monotonic() + GONE_WITHIN_S
        while (left := [*self.actors(), *(f"process {pid}" for pid in here if _runs(pid))]) != []:
            if time.monotonic() > deadline_s:
                raise BackendError(f"still there after {GONE_WITHIN_S:g} s: {', '.join(left)}", reason="NOT_ENDED")
            time.sleep(0.05)

    def _control(self) -> Any:
        import ray

        try:
            return ray.get_actor(CONTROL, namespace=NAMESPACE)
        except ValueError:
            return None


@contextlib.contextmanager
def joined(address: str) -> Iterator[RayCluster]:
    """Joins the Ray cluster at `address` ("auto": the one that this machine is part of) while the block runs.

    Raises BackendError without Ray, IncompatibleError for an old one or another Python than the cluster's, UnavailableError
    where there is no cluster, InvalidRequestError for an address that cannot be.
    """
    try:
        if address != AUTO:
            addresses.split(address)
    except ValueError as exc:
        raise InvalidRequestError(
            f'--address {address}: give "auto" on a machine of the Ray cluster, or the host:port of its head',
            reason="BAD_OPTION",
        ) from exc
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        ray = _ray()
        _knock(address)
        already = ray.is_initialized()
        if not already:
            _join(ray, address)
        try:
            yield RayCluster()
        finally:
            if not already:
                ray.shutdown()


def _ray() -> Any:
    # With `uv run` Ray would have each actor make the environment of this shell anew. It is read when Ray is imported.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ImportError as exc:
        raise BackendError(
            "a cluster needs Ray, which is not installed here: pip install 'hasfaas[cluster]', here and on each node",
            reason="RAY_NOT_INSTALLED",
        ) from exc
    require_version(ray.__version__)
    return ray


def require_version(version: str) -> None:
    """Raises IncompatibleError for a Ray that is too old."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_RAY:
        least = ".".join(map(str, OLDEST_RAY))
        raise IncompatibleError(
            f"a cluster needs Ray {least} or newer, this is {version}: pip install -U 'ray>={least}' here and on each node",
            reason="RAY_TOO_OLD",
        )


def _knock(address: str) -> None:
    """Where nothing listens, Ray would say so after half a minute, and to the operator's terminal."""
    known = _this_machines() if address == AUTO else address
    try:
        where = addresses.split(known)
    except ValueError:
        return  # Ray looks for it, or knows another form
    try:
        socket.create_connection(where, timeout=KNOCK_TIMEOUT_S).close()
    except OSError as exc:
        raise _no_ray(known, exc) from exc


def _this_machines() -> str:
    """Where Ray would find the cluster that this machine is part of; empty where it does not say."""
    if given := os.environ.get("RAY_ADDRESS"):
        return given
    with contextlib.suppress(OSError):
        return CURRENT_CLUSTER.read_text().strip()
    return ""


def _no_ray(address: str, exc: Exception) -> UnavailableError:
    return UnavailableError(
        f"no Ray cluster is at {address} ({exc}): start one (`ray start --head`), or give --address its head's host:port",
        reason="NO_RAY",
    )


def _join(ray: Any, address: str) -> None:
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            # Detached actors inherit it, and would keep what happens to be set here.
            runtime_env={},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as exc:
        raise _no_ray(address, exc) from exc
    except RuntimeError as exc:
        if "mismatch" not in str(exc).lower():
            raise BackendError(f"joining the Ray cluster at {address} failed: {exc}", reason="NO_RAY") from exc
        raise IncompatibleError(
            f"the Ray cluster at {address} has another Ray or another Python than this shell: {exc}",
            reason="PYTHON_MISMATCH",
        ) from exc


def _answer(question: Any, timeout_s: float, what: str) -> Any:
    import ray

    try:
        return ray.get(question, timeout=timeout_s)
    except ray.exceptions.RayError as exc:
        raise UnavailableError(
            f"the control actor does not answer {what!r} within {timeout_s:g} s ({type(exc).__name__}: {exc})",
            reason="NO_CONTROL",
        ) from exc


def _runs(pid: int) -> bool:
    """Whether there is such a process here: one that has ended and that nobody has waited for does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
