"""A gateway of one's own for tests: real sockets, real processes, in short folders that are removed afterwards.

Whoever starts one ends it. Nothing here sleeps for a fixed time: it looks until something is so, or says what was not.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from hasfaas.backends.local.backend import LocalBackend
from hasfaas.core.settings import DeviceSettings, LocalSettings, ScalingSettings
from hasfaas.testing import apps
from hasfaas.testing.load import Load, used_share
from hasfaas.testing.running import RunningBackend, settings_in, short_folder
from hasfaas.testing.waiting import eventually

__all__ = ["APPS", "ROOT", "SUITE_APPS", "Gateway", "Load", "app", "eventually", "gateway", "used_share"]

ROOT = Path(__file__).parents[1]
APPS = Path(__file__).parent / "apps"
SUITE_APPS = Path(apps.__path__[0])
SHM = Path("/dev/shm")
UNSCALED = ScalingSettings(enabled=False)


def app(name: str) -> Any:
    """A user's module of tests/apps, imported as a user would, with its folder on the path; else one of the suite's."""
    if not (APPS / f"{name}.py").exists():
        return importlib.import_module(f"hasfaas.testing.apps.{name}")
    if str(APPS) not in sys.path:
        sys.path.insert(0, str(APPS))
    return importlib.import_module(name)


class Gateway(RunningBackend):
    """One gateway of the local backend with its folders, and a client that is this process's default while it runs."""

    def __init__(
        self, folder: Path, devices: tuple[DeviceSettings, ...], scaling: ScalingSettings, **local: Any
    ) -> None:
        options = LocalSettings(**{"linger_s": 60.0, "drain_timeout_s": 10.0} | local)
        super().__init__(settings_in(folder, devices=devices, local=options, scaling=scaling))
        self.local = LocalBackend(self.settings)

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

    def restart(self) -> None:
        """Ends the gateway and starts it again, whatever backend its client goes by."""
        self.local.down()
        self.up()

    def close(self) -> None:
        """Ends it with all its processes, whatever state it is in."""
        family = self.family()
        super().close()
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
    with short_folder() as folder:
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
