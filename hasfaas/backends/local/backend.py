"""The local backend from a client's side: finds this user's gateway, starts one, ends it.

Nothing of the server is imported here: a client that only calls stays light.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hasfaas.backends.base import Endpoint
from hasfaas.core.errors import AuthError, BackendError, InvalidRequestError
from hasfaas.core.settings import FRAMES_SOCKET, GATEWAY_SOCKET, Settings

LOG_FILE = "gateway.log"
LOCK_FILE = "gateway.lock"
# How a gateway that does not start says that its settings are to blame.
REFUSED = "refused: "


class LocalBackend:
    """This machine, this user."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def endpoint(self, announce: Callable[[str], None]) -> Endpoint:
        """The running gateway, else a new one that ends when nobody has used it for `local.linger_s`."""
        found = self.running()
        if found is not None:
            return found
        announce(
            f"hasfaas: no gateway was running; started one for this user "
            f"(it ends {self._settings.local.linger_s:g} s after its last client; `hasfaas up` keeps one)"
        )
        self._start(embedded=True)
        return self._endpoint()

    def up(self) -> bool:
        """Starts a gateway that stays. An embedded one that is running is told to stay, and False is returned."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGUSR1)
            return False
        self._start(embedded=False)
        return True

    def down(self) -> bool:
        """Ends the gateway: it finishes its calls, then drains and ends its replicas."""
        pid = self.pid()
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return False
        deadline_s = time.monotonic() + 2 * self._settings.local.drain_timeout_s + 10.0
        while self.pid() is not None:
            if time.monotonic() > deadline_s:
                raise BackendError(f"the gateway (pid {pid}) did not end; see {self._log()}")
            time.sleep(0.02)
        return True

    def running(self) -> Endpoint | None:
        """The gateway's address if one holds the lock and listens."""
        return self._endpoint() if self.pid() is not None and self._socket().exists() else None

    def pid(self) -> int | None:
        """The process that holds the gateway's lock."""
        try:
            descriptor = os.open(self._settings.runtime_dir / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 32, 0)
            return int(text) if text.isdigit() else None
        else:
            return None
        finally:
            os.close(descriptor)

    def _start(self, *, embedded: bool) -> None:
        settings = self._settings
        _own_folder(settings.runtime_dir)
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        # -P: what lies in the working directory must not shadow what a gateway imports.
        command = [sys.executable, "-P", "-m", "hasfaas.backends.local.server", "--ready-fd", str(write_fd)]
        with self._log().open("ab") as output:
            process = subprocess.Popen(
                [*command, *(["--embedded"] if embedded else [])],
                pass_fds=[write_fd],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        os.close(write_fd)
        try:
            assert process.stdin is not None
            process.stdin.write(settings.to_json().encode())
            process.stdin.close()
            self._await_ready(read_fd)
        finally:
            os.close(read_fd)

    def _await_ready(self, read_fd: int) -> None:
        timeout_s = self._settings.start_timeout_s
        if not select.select([read_fd], [], [], timeout_s)[0]:
            raise BackendError(f"the gateway was not ready after {timeout_s:g} s; see {self._log()}")
        line = os.read(read_fd, 65536).decode(errors="replace").strip()
        if line == "taken":
            self._await_other()
        elif line.startswith(REFUSED):
            raise InvalidRequestError(f"the gateway could not start: {line.removeprefix(REFUSED)}", reason="BAD_OPTION")
        elif line != "ready":
            tail = self._log().read_text(errors="replace")[-2000:]
            raise BackendError(f"the gateway could not start: {line or tail}")

    def _await_other(self) -> None:
        """Somebody else started one in the same instant."""
        deadline_s = time.monotonic() + self._settings.start_timeout_s
        while self.running() is None:
            if time.monotonic() > deadline_s:
                raise BackendError(f"another gateway holds {self._settings.runtime_dir} and does not answer")
            time.sleep(0.02)

    def _socket(self) -> Path:
        return self._settings.socket_path(GATEWAY_SOCKET)

    def _log(self) -> Path:
        return self._settings.state_dir / LOG_FILE

    def _endpoint(self) -> Endpoint:
        return Endpoint(f"unix:{self._socket()}", trusted=True, frames=self._settings.socket_path(FRAMES_SOCKET))


def _own_folder(folder: Path) -> None:
    """The folder of the socket: ours, and closed to others, else whoever owns it could take our place."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise AuthError(
            f"runtime_dir {folder} belongs to user {status.st_uid} with mode {status.st_mode & 0o777:o}; it must be "
            f"yours with mode 700: `chmod 700 {folder}`, or set HASFAAS_RUNTIME_DIR to a folder of your own"
        )
