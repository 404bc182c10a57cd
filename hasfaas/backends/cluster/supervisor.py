"""One child process of the cluster, from the side of whoever started it: its start, its lines, its log, its end.

It knows nothing of Ray. Law: no call here waits for a child without a limit but `wait`, and a child never outlives its
supervisor's process: the end of file of its input is its end.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from hasfaas.backends.cluster import child
from hasfaas.backends.cluster.child import Ask, Line, Ready, Refused, StartGateway, StartNode, Stop
from hasfaas.core.errors import BackendError, HasFaasError, UnavailableError
from hasfaas.wire.status import read_status

LOG_FILE = "process.log"
MOST_LOG_BYTES = 8 << 20
"""Of a child's log and the one before it together."""
# A child that reads nothing for so long has hung: its pipe has room for many lines.
READS_WITHIN_S = 10.0
# After the end of file of its input, before it is killed.
ENDS_WITHIN_S = 10.0
_TAIL_BYTES = 2000
log = logging.getLogger("hasfaas.cluster")


class Child:
    """A process of `module`, which is told `start`. `heard` is given what it says after its first line, in a thread."""

    def __init__(
        self,
        module: str,
        start: StartNode | StartGateway,
        *,
        heard: Callable[[Line], None] = lambda _line: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._module = module
        self._start_line = start
        self._heard = heard
        self._environment = environment
        self._first: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._writing = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.log_file = Path(start.state_dir) / LOG_FILE

    @property
    def pid(self) -> int | None:
        """Of the process, once it was started."""
        return self._process.pid if self._process else None

    def start(self, timeout_s: float) -> Ready:
        """Starts it and waits until it is ready. Raises what it refused with, BackendError when it ended or is too slow; it
        has ended then."""
        assert self._process is None, "a child is started once"
        for folder in (self._start_line.state_dir, self._start_line.runtime_dir):
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        # -P: what lies in the working directory must not shadow what a child imports.
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=self._start_line.state_dir,
            env=self._environment,
        )
        assert process.stdin and process.stdout and process.stderr
        os.set_blocking(process.stdin.fileno(), False)
        for what, pipe in ((self._listen, process.stdout), (self._keep_log, process.stderr)):
            threading.Thread(target=what, args=(pipe,), name=f"{self._module}-{process.pid}", daemon=True).start()
        try:
            self.send(self._start_line)
            return self._await_ready(timeout_s)
        except BaseException:
            self.end()
            raise

    def send(self, line: Line) -> None:
        """Writes a line to it. Raises UnavailableError when it has ended, or does not read."""
        assert self._process is not None and self._process.stdin is not None
        try:
            with self._writing:
                _write(self._process.stdin.fileno(), child.write(line), time.monotonic() + READS_WITHIN_S)
        except (OSError, ValueError) as exc:
            raise UnavailableError(f"{self._module} cannot be told anything: {exc}", reason="CHILD_LOST") from exc

    def wait(self) -> int:
        """Waits for its end, and gives its exit code: negative for a signal."""
        assert self._process is not None
        return self._process.wait()

    def stop(self, timeout_s: float) -> bool:
        """Lets it finish what it has. False when it did not within the time, and was ended."""
        if self._process is None:
            return True
        try:
            self.send(Stop())
            self._process.wait(timeout_s)
        except (HasFaasError, subprocess.TimeoutExpired):
            pass
        stopped = self._process.poll() is not None
        self.end()
        return stopped

    def end(self) -> None:
        """Ends it now: by the end of file of its input, and should that not do by a kill."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with self._writing:
            process.stdin.close()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # Its sockets: nobody listens there any more.
        shutil.rmtree(self._start_line.runtime_dir, ignore_errors=True)

    def _await_ready(self, timeout_s: float) -> Ready:
        assert self._process is not None
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            # Asked before the look at its line: what it said last is then there.
            ended = self._process.poll()
            try:
                line = self._first.get(timeout=0.05 if ended is None else 0.5)
            except queue.Empty:
                if ended is None:
                    continue
                raise self._failed(f"ended with code {ended} before it was ready", "CHILD_LOST") from None
            if isinstance(line, Ready):
                return line
            if isinstance(line, Refused):
                raise read_status(bytes.fromhex(line.status))
            raise self._failed(f"said {type(line).__name__} before it was ready", "BACKEND_FAILURE")
        raise self._failed(f"was not ready after {timeout_s:g} s", "START_TIMEOUT")

    def _failed(self, what: str, reason: str) -> BackendError:
        try:
            tail = self.log_file.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            tail = ""
        text = f"{self._module} {what}; see {self.log_file}"
        return BackendError(f"{text}, which ends:\n{tail}" if tail else text, reason=reason)

    def _listen(self, pipe: IO[bytes]) -> None:
        first = True
        for text in pipe:
            try:
                line = child.read(text)
            except Exception:  # a child of another version, or a library that prints
                log.warning("%s: not a line of ours: %r", self._module, text[:200])
                continue
            if first:
                self._first.put(line)
            elif isinstance(line, Ask):
                self._heard(line)
            first = False

    def _keep_log(self, pipe: IO[bytes]) -> None:
        keep = BoundedLog(self.log_file, MOST_LOG_BYTES)
        while content := os.read(pipe.fileno(), 65536):
            keep.write(content)


class BoundedLog:
    """A file that is begun anew when it has half of `most_bytes`; the one before it is kept as `.1`. What the disk has no
    room for is lost, and nobody waits for it."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path = path
        self._half = most_bytes // 2

    def write(self, content: bytes) -> None:
        try:
            if self._path.exists() and self._path.stat().st_size + len(content) > self._half:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)
        except OSError as exc:
            log.warning("%s cannot be written: %s", self._path, exc)


def _write(descriptor: int, content: bytes, deadline_s: float) -> None:
    """All of it, to a pipe that does not block. Raises TimeoutError when nobody reads it until then."""
    left = memoryview(content)
    while left:
        wait_s = deadline_s - time.monotonic()
        if wait_s <= 0 or not select.select([], [descriptor], [], wait_s)[1]:
            raise TimeoutError(f"it read nothing for {READS_WITHIN_S:g} s")
        left = left[os.write(descriptor, left) :]
