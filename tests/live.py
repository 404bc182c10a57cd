"""A gateway of one's own for tests: real sockets, real processes, in short folders that are removed afterwards.

Whoever starts one ends it. Nothing here sleeps for a fixed time: it looks until something is so, or says what was not.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from hasfaas.backends.local.backend import LocalBackend
from hasfaas.core.settings import DeviceSettings, LocalSettings, ScalingSettings, Settings
from hasfaas.sdk.client import Client, set_default_client
from hasfaas.wire.v1 import functions_pb2 as pb

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
APPS = Path(__file__).parent / "apps"
SHM = Path("/dev/shm")
UNSCALED = ScalingSettings(enabled=False)


def eventually(look: Callable[[], T], *, timeout_s: float = 20.0, every_s: float = 0.02) -> T:
    """What `look` gives once it gives something true; fails with its last answer when it never does."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not so after {timeout_s:g} s; at last it was {found!r}")
        time.sleep(every_s)
    return found


def app(name: str) -> Any:
    """A user's module from tests/apps, imported as a user would: its folder is on the path."""
    if str(APPS) not in sys.path:
        sys.path.insert(0, str(APPS))
    return importlib.import_module(name)


class Gateway:
    """One gateway with its folders, and a client that is this process's default while it runs."""

    def __init__(
        self, folder: Path, devices: tuple[DeviceSettings, ...], scaling: ScalingSettings, **local: Any
    ) -> None:
        self.settings = Settings(
            state_dir=folder / "s",
            runtime_dir=folder / "r",
            devices=devices,
            local=LocalSettings(**{"linger_s": 60.0, "drain_timeout_s": 10.0} | local),
            scaling=scaling,
        )
        self.said: list[str] = []
        self.local = LocalBackend(self.settings)
        self.client = Client(self.settings, announce=self.said.append)

    @property
    def env(self) -> dict[str, str]:
        """What another process needs to find this gateway."""
        return {
            **os.environ,
            "HASFAAS_STATE_DIR": str(self.settings.state_dir),
            "HASFAAS_RUNTIME_DIR": str(self.settings.runtime_dir),
            "HASFAAS_LOCAL_LINGER_S": str(self.settings.local.linger_s),
            "HASFAAS_SCALING_ENABLED": json.dumps(self.settings.scaling.enabled),
            "PYTHONPATH": str(ROOT),
        }

    def up(self) -> None:
        """Starts it; it stays until told otherwise."""
        self.local.up()

    def use(self, client: Client | None = None) -> None:
        """Makes this the gateway that decorated functions of this process go to, by its own client or another."""
        set_default_client(client or self.client)

    def close(self) -> None:
        """Ends it with all its processes, whatever state it is in."""
        set_default_client(None)
        family = self.family()
        self.client.run(self.client.close())
        self.local.down()
        for process in psutil.wait_procs(family, timeout=10.0)[1]:
            process.kill()

    def kill(self) -> list[psutil.Process]:
        """SIGKILL to the gateway alone; the zygotes and replicas that it had."""
        pid = self.pid()
        family = [process for process in self.family() if process.pid != pid]
        os.kill(pid, signal.SIGKILL)
        return family

    def pid(self) -> int:
        """The gateway's process."""
        pid = self.local.pid()
        assert pid is not None, "no gateway runs"
        return pid

    def family(self) -> list[psutil.Process]:
        """The gateway, its zygotes and its replicas."""
        pid = self.local.pid()
        if pid is None:
            return []
        gateway = psutil.Process(pid)
        return [gateway, *gateway.children(recursive=True)]

    def shm(self, pid: int) -> list[Path]:
        """What the gateway `pid` has in shared memory."""
        return list(SHM.glob(f"hasfaas-{os.getuid()}-{pid}-*"))

    def status(self) -> pb.GetStatusResponse:
        """Devices, functions, replicas."""

        async def ask() -> pb.GetStatusResponse:
            session = await self.client.session()
            answer: pb.GetStatusResponse = await self.client.rpc(session.stub.GetStatus(pb.GetStatusRequest()))
            return answer

        return self.client.run(ask())

    def function(self, name: str) -> pb.FunctionStatus:
        """One deployed function."""
        return next(one for one in self.status().functions if one.name == name)

    def deploy_raw(self, request: pb.DeployRequest) -> pb.DeployResponse:
        """A deploy request as it is, forged or not."""

        async def ask() -> pb.DeployResponse:
            session = await self.client.session()
            answer: pb.DeployResponse = await self.client.rpc(session.stub.Deploy(request))
            return answer

        return self.client.run(ask())

    def replicas(self, name: str, state: str = "ready") -> list[pb.ReplicaStatus]:
        """The replicas of a function in one state."""
        return [replica for replica in self.function(name).replicas if replica.state == state]

    def replica(self, name: str) -> pb.ReplicaStatus:
        """The one ready replica of a function, waited for."""

        def only() -> list[pb.ReplicaStatus]:
            found = self.replicas(name)
            return found if len(found) == 1 else []

        return eventually(only)[0]

    def delete(self, *names: str) -> None:
        """Deletes functions, all without names, and waits until their replicas have gone."""

        async def ask(name: str) -> None:
            session = await self.client.session()
            await self.client.rpc(session.stub.DeleteFunction(pb.DeleteFunctionRequest(name=name)))

        for name in names or [one.name for one in self.status().functions]:
            self.client.run(ask(name))

    def logs(self) -> str:
        """The end of every log, for the message of a failed test."""
        files = [self.settings.state_dir / "gateway.log", *(self.settings.state_dir / "logs").glob("*.log")]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in files)


@contextmanager
def gateway(
    *devices: DeviceSettings, start: bool = True, scaling: ScalingSettings = UNSCALED, **local: Any
) -> Iterator[Gateway]:
    """A gateway over these devices in a new folder, ended and removed afterwards. Its scaler is off unless asked for: a
    function that pauses gets a profile, and most tests are about what nobody else sizes meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="hf-", dir="/tmp"))
    made = Gateway(folder, devices or (DeviceSettings(kind="sim"),), scaling, **local)
    try:
        if start:
            made.up()
        made.use()
        yield made
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


class Load:
    """Keeps calls under way, `width` at a time, until told to stop; `errors` is what failed."""

    def __init__(self, call: Callable[[], Any], width: int) -> None:
        import threading

        self.done = 0
        self.errors: list[BaseException] = []
        self._call = call
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(width)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._call()
                self.done += 1
            except Exception as exc:
                self.errors.append(exc)


def used_share(made: Gateway, names: list[str], seconds: float) -> list[float]:
    """The share of the time from now on that the one replica of each function holds its lane."""

    def look() -> tuple[int, list[int]]:
        status = made.status()
        by_name = {one.name: one for one in status.functions}
        return status.at_ns, [sum(r.usage.used_ns for r in by_name[name].replicas) for name in names]

    began_ns, before = look()
    time.sleep(seconds)
    ended_ns, after = look()
    return [(b - a) / (ended_ns - began_ns) for a, b in zip(before, after, strict=True)]
