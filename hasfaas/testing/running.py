"""A running backend as tests see it: its settings, a client of it, and what can be asked through that client.

Nothing here knows how it runs. What must reach a process goes by `kill_process`, `alive` and `restart`, which the tests of a
backend override where its replicas are not processes of this machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from hasfaas.core.settings import DeviceSettings, LocalSettings, ScalingSettings, Settings
from hasfaas.sdk.client import Client, set_default_client
from hasfaas.testing.waiting import eventually
from hasfaas.wire.v1 import functions_pb2 as pb


class RunningBackend:
    """One backend that answers. `client` is made from `settings` unless another is given; `said` is what that was told."""

    def __init__(self, settings: Settings, *, client: Client | None = None) -> None:
        self.settings = settings
        self.said: list[str] = []
        self.client = client or Client(settings, announce=self.said.append)

    # -- what a backend whose processes are elsewhere does its own way ------------------------------------------------

    def kill_process(self, pid: int) -> None:
        """SIGKILL to a replica's process, or to the one it was forked from, by the number that the backend reports."""
        os.kill(pid, signal.SIGKILL)

    def alive(self, pid: int) -> bool:
        """Whether such a process still runs."""
        try:
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def restart(self) -> None:
        """Ends the backend in good order, and starts it again."""
        self.client.backend.down()
        self.client.backend.up()

    # -- what is asked through the client -----------------------------------------------------------------------------

    def use(self, client: Client | None = None) -> None:
        """Makes this the backend that decorated functions of this process go to, by its own client or another."""
        set_default_client(client or self.client)

    def close(self) -> None:
        """Closes the client. The backend runs on."""
        set_default_client(None)
        self.client.run(self.client.close())

    def status(self) -> pb.GetStatusResponse:
        """Devices, functions, replicas."""
        return self.client.run(self.client.gateway_status())

    def function(self, name: str) -> pb.FunctionStatus:
        """One deployed function."""
        return next(one for one in self.status().functions if one.name == name)

    def replicas(self, name: str, state: str = "ready") -> list[pb.ReplicaStatus]:
        """The replicas of a function in one state."""
        return [replica for replica in self.function(name).replicas if replica.state == state]

    def replica(self, name: str) -> pb.ReplicaStatus:
        """The one ready replica of a function, waited for."""

        def only() -> list[pb.ReplicaStatus]:
            found = self.replicas(name)
            return found if len(found) == 1 else []

        return eventually(only)[0]

    def printed(self, name: str, tail: int = 0) -> list[str]:
        """The last lines that the replicas of a function have printed, all with 0."""

        async def ask() -> list[str]:
            session = await self.client.session()
            return [one.line async for one in session.stub.StreamLogs(pb.StreamLogsRequest(name=name, tail=tail))]

        return self.client.run(ask())

    def deploy_raw(self, request: pb.DeployRequest) -> pb.DeployResponse:
        """A deploy request as it is, forged or not."""

        async def ask() -> pb.DeployResponse:
            session = await self.client.session()
            answer: pb.DeployResponse = await self.client.rpc(session.stub.Deploy(request))
            return answer

        return self.client.run(ask())

    def delete(self, *names: str) -> None:
        """Deletes functions, all without names, and waits until their replicas have gone."""

        async def ask(name: str) -> None:
            session = await self.client.session()
            await self.client.rpc(session.stub.DeleteFunction(pb.DeleteFunctionRequest(name=name)))

        for name in names or [one.name for one in self.status().functions]:
            self.client.run(ask(name))


def settings_in(folder: Path, **given: Any) -> Settings:
    """Settings with both folders below `folder`, and over one device of one lane, where functions that nobody sized meet.

    The scaler is off: most tests are about what nobody else sizes meanwhile. `given` are fields of `Settings` instead.
    """
    own: dict[str, Any] = {
        "state_dir": folder / "s",
        "runtime_dir": folder / "r",
        "devices": (DeviceSettings(kind="sim"),),
        "local": LocalSettings(linger_s=60.0, drain_timeout_s=10.0),
        "scaling": ScalingSettings(enabled=False),
    }
    return Settings(**own | given)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A new folder, removed afterwards. Its path is short, since the name of a unix socket must be."""
    folder = Path(tempfile.mkdtemp(prefix="hf-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started(backend: str, **given: Any) -> Iterator[RunningBackend]:
    """The installed backend of this name over folders of its own, ended and removed afterwards. `given` are fields of
    `Settings`, in place of those of `settings_in`."""
    with short_folder() as folder:
        made = RunningBackend(settings_in(folder, backend=backend, **given))
        try:
            made.client.backend.up()
            yield made
        finally:
            made.close()
            made.client.backend.down()
