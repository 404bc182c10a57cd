"""The parents of replicas, from the agent's side: one process per environment (interpreter and preloads)."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from hasfaas.core.errors import BackendError, HasFaasError, IncompatibleError
from hasfaas.executor.config import ReplicaConfig
from hasfaas.wire.status import read_status

MAX_MESSAGE_BYTES = 1 << 20
# Heavy libraries that are known to import with one thread and without touching a GPU.
PRELOADABLE = ("numpy", "torch")
# One thread each before any import: numpy alone would start OpenBLAS's, and a fork keeps none of them.
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@attrs.frozen
class Environment:
    """What replicas of one zygote have in common."""

    python: str
    preload: tuple[str, ...]

    @classmethod
    def of(cls, python: str, packages: Sequence[str]) -> Environment:
        """The environment of a function that imports `packages`."""
        return cls(python, tuple(name for name in PRELOADABLE if name in packages))


class Zygote:
    """One running parent of replicas: a zygote, or a nursery, which is a zygote's child that has run a function's
    `__init__`. `exited(pid, exit code)` is called for each child that ends."""

    def __init__(self, name: str, process: subprocess.Popen[bytes] | None, control: socket.socket, log: Path) -> None:
        self.name = name
        self.process = process
        self._control = control
        self._log = log
        self._waiting: dict[str, asyncio.Future[Mapping[str, object]]] = {}
        self._ids = itertools.count()
        self._exited: Callable[[int, int], None] = lambda pid, code: None
        self.alive = True

    @classmethod
    async def start(
        cls, environment: Environment, log: Path, exited: Callable[[int, int], None], timeout_s: float
    ) -> Zygote:
        """Starts the interpreter and waits until its imports are done.

        Raises BackendError with the end of its output when it dies or is too slow.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            environment.python,
            "-P",  # a replica sees what its bundle brings, and not what lies in some working directory
            "-m",
            "hasfaas.executor.zygote",
            str(theirs.fileno()),
            ",".join(environment.preload),
        ]
        try:
            with log.open("ab") as output:
                # Spawning takes a millisecond or two, once an environment: not worth a thread.
                process = subprocess.Popen(  # noqa: ASYNC220
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=os.environ | SINGLE_THREADED,
                    start_new_session=True,
                )
        except OSError as exc:
            ours.close()
            raise IncompatibleError(
                f"the function's interpreter {environment.python} cannot be run: {exc}; deploy it again from one that can"
            ) from exc
        finally:
            theirs.close()
        ours.setblocking(False)
        zygote = cls(f"the zygote of {environment.python}", process, ours, log)
        zygote._exited = exited
        await zygote._greeted(timeout_s)
        return zygote

    async def nursery(self, config: ReplicaConfig, life_fd: int, log: Path, timeout_s: float) -> Zygote:
        """Forks a child that builds the function of `config` and from then on forks its replicas.

        Raises what kept the function from being built, or InvalidRequestError for what its process holds then.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        nursery = Zygote(f"the parent of {config.function}", None, ours, log)
        nursery._exited = self._exited
        log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            greeted = asyncio.ensure_future(nursery._greeted(timeout_s))
            await self._forked("nursery", config, (theirs.fileno(), life_fd, log_fd))
        finally:
            theirs.close()
            os.close(log_fd)
        await greeted
        return nursery

    async def _greeted(self, timeout_s: float) -> None:
        hello = self._expect("hello")
        asyncio.get_running_loop().add_reader(self._control, self._receive)
        try:
            await asyncio.wait_for(hello, timeout_s)
        except TimeoutError as exc:
            self.close()
            raise BackendError(f"{self.name} was not ready in {timeout_s:g} s") from exc

    async def check(self, bundle: Path) -> tuple[str, ...]:
        """What keeps this interpreter from loading a bundle, in words; empty when nothing does."""
        key = f"check-{next(self._ids)}"
        answer = self._expect(key)
        self._send({"op": "check", "id": key, "bundle": str(bundle)}, ())
        differences = (await answer)["differences"]
        assert isinstance(differences, list)
        return tuple(str(line) for line in differences)

    async def fork(self, config: ReplicaConfig, fds: Sequence[int]) -> int:
        """Forks a replica that gets copies of `fds` (channel, life line, log); its pid."""
        return await self._forked("fork", config, fds)

    async def _forked(self, what: str, config: ReplicaConfig, fds: Sequence[int]) -> int:
        answer = self._expect(config.replica_id)
        self._send({"op": what, "config": config.to_dict()}, fds)
        pid = (await answer)["pid"]
        assert isinstance(pid, int)
        return pid

    def close(self) -> None:
        """Closes our end, upon which it ends; a zygote is collected here, a nursery by its zygote."""
        self._lost()
        if self.process is None:
            return
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _expect(self, key: str) -> asyncio.Future[Mapping[str, object]]:
        future: asyncio.Future[Mapping[str, object]] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        return future

    def _send(self, message: Mapping[str, object], fds: Sequence[int]) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], list(fds))
        except OSError as exc:
            self._lost()
            raise self._death() from exc

    def _receive(self) -> None:
        try:
            data = self._control.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        message = json.loads(data)
        match message["op"]:
            case "hello":
                self._answer("hello", message)
            case "forked":
                self._answer(message["replica_id"], message)
            case "checked":
                self._answer(message["id"], message)
            case "exited":
                self._exited(message["pid"], message["code"])
            case "refused":
                self._fail(BackendError(f"{self.name} cannot fork: {message['why']}"))
            case "failed":
                self._fail(read_status(bytes.fromhex(message["status"])))

    def _answer(self, key: str, message: Mapping[str, object]) -> None:
        future = self._waiting.pop(key, None)
        if future is not None and not future.done():
            future.set_result(message)

    def _lost(self) -> None:
        if self.alive:
            self.alive = False
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._fail(self._death())

    def _fail(self, exc: HasFaasError) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(exc)

    def _death(self) -> BackendError:
        try:
            tail = self._log.read_text(errors="replace")[-2000:]
        except OSError:
            tail = ""
        return BackendError(f"{self.name} ended; the end of its output:\n{tail}")
