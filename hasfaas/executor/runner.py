"""One replica: takes executions from its socket, runs the user's code inside its lease, and answers.

Law: nothing the user's code does or raises ends the loop, but for the process dying. Payloads are decoded
here and nowhere else on the server's side. The lease covers device work only; it is kept between executions
while work waits, unless host hooks or large payloads would idle the lane.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import attrs

from hasfaas.core import lease as leases
from hasfaas.core.errors import (
    BackendError,
    CancelledError,
    FunctionError,
    HasFaasError,
    InvalidRequestError,
    MemoryLimitError,
)
from hasfaas.core.memory import format_memory
from hasfaas.core.settings import hand_over
from hasfaas.core.signing import load_or_create_key
from hasfaas.core.spec import Kind
from hasfaas.devices import base
from hasfaas.executor import environment, gates, loader, measuring, stacking
from hasfaas.executor.config import EXIT_BROKEN, EXIT_DEVICE_FAILED, EXIT_START_FAILED, ReplicaConfig
from hasfaas.executor.inbox import Closed, Execution, Inbox
from hasfaas.executor.stacking import Arguments
from hasfaas.executor.target import Target
from hasfaas.executor.tokens import SlotLease, TokenTable
from hasfaas.wire import frames, payload
from hasfaas.wire.frames import FrameKind, Measure, RawPayload, WorkItem
from hasfaas.wire.pickle_path import describe
from hasfaas.wire.segments import THRESHOLD_BYTES, Segment, SegmentPool, SegmentReader
from hasfaas.wire.status import is_ours, to_status, user_exception_to_status

if TYPE_CHECKING:
    from torch import nn

# Between two executions the lease is kept only while decoding and answering cost the lane next to nothing.
KEEP_LEASE_BYTES = 256 * 1024
# Less than an agent waits for a replica that was told to end.
READERS_WAIT_S = 4.0
# What executions held the lane is told to the gateway so often, a bounded number at a time.
OBSERVED_EVERY_S = 1.0
MOST_OBSERVED = 8


class DeviceFailed(BaseException):
    """The device can be used by this process no more."""


@attrs.frozen
class Prepared:
    """A function that is loaded and built: all of a replica that can be had without a lane."""

    target: Target
    raw: object


def main(config: ReplicaConfig, sock: socket.socket, life_fd: int, prepared: Prepared | None = None) -> NoReturn:
    """Runs a replica to its end and exits the process: 0 when told to end, 3 when the function could not
    start, 4 when its device failed, 1 when this code failed (tracebacks are in the log).
    `prepared` comes with a fork of a parent that has loaded the function already."""
    _end_with_agent(life_fd)
    pool = SegmentPool()
    inbox = Inbox(sock, pool.give_back)
    code, replica = 0, None
    try:
        replica = _start(config, inbox, pool, prepared)
        if replica is None:
            code = EXIT_START_FAILED
        else:
            replica.serve()
            replica.await_readers()
    except Closed:
        # The gateway has gone: there is nobody to answer, and nobody to end what the user's code has started.
        pool.close()
        _flush()
        os.killpg(0, signal.SIGKILL)
    except BaseException as exc:
        # Nothing is answered: whether these calls may run again elsewhere is for the gateway to say.
        failed = isinstance(exc, DeviceFailed) or (
            replica is not None and replica.stream.failure(exc) is base.Failure.FATAL
        )
        code = EXIT_DEVICE_FAILED if failed else EXIT_BROKEN
        traceback.print_exc()
    finally:
        pool.close()
        _flush()
        os._exit(code)


def _end_with_agent(life_fd: int) -> None:
    """The kernel ends us with the agent; a thread is for an agent that died in the instant before the kernel was asked."""
    die_with_agent(life_fd)
    threading.Thread(target=_watch_agent, args=(life_fd,), name="agent-watch", daemon=True).start()


def die_with_agent(life_fd: int) -> None:
    """The agent holds the other end of this pipe and never writes: the end of file is its death, and ours.

    The kernel is asked to kill our group then, since user code may never let a thread of ours run (a regular expression
    that backtracks).
    """
    # Opened anew: signals belong to an open file, and all replicas were given the same one.
    descriptor = os.open(f"/proc/self/fd/{life_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)


def _watch_agent(life_fd: int) -> None:
    os.read(life_fd, 1)
    os.killpg(0, signal.SIGKILL)


def _start(config: ReplicaConfig, inbox: Inbox, pool: SegmentPool, prepared: Prepared | None) -> Replica | None:
    began_s = time.monotonic()
    stream: base.Stream | None = None
    try:
        stream = base.enter(config.part)
        entered_s = time.monotonic()
        _reseed()
        table = TokenTable.open(Path(config.token_path))
        table.attach(config.slot)
        lease = SlotLease(table, config.slot, stream)
        leases.install(UsersLease(lease, threading.get_ident()))
        stream.gated(lease.gate)
        prepared = prepared or prepare(config)
        loaded_s = time.monotonic()
        replica = _build(config, inbox, lease, stream, prepared, pool)
        ready_s = time.monotonic()
        left_s = config.cold_start_s - (ready_s - began_s)
        if left_s > 0.0:
            time.sleep(left_s)
        parts_ms = (1e3 * (entered_s - began_s), 1e3 * (loaded_s - entered_s), 1e3 * (ready_s - loaded_s))
        inbox.send(frames.pack(FrameKind.READY, head=(stream.granted_percent, *parts_ms)))
        return replica
    except Closed:
        raise
    except BaseException as exc:
        inbox.send(frames.pack(FrameKind.FAILED, body=[status_of(exc, config, stream)]))
        return None


def prepare(config: ReplicaConfig) -> Prepared:
    """Sets the function's environment, loads the bundle behind the memory wall, after all its checks, and builds the user's
    object.

    Raises what environment.enter and loader.load raise, and the user's own exceptions as `status_of` knows them.
    """
    hand_over(config.settings_json)
    environment.enter(config)
    blob = Path(config.bundle_path).read_bytes()
    key = load_or_create_key(Path(config.key_path))
    base.module_of(config.part.kind).wall(config.memory_bytes)
    signature, named = bytes.fromhex(config.signature_hex), (config.function, config.version)
    loaded = loader.load(blob, signature, key, Path(config.work_dir), named=named)
    with _users_code:
        return Prepared(Target.build(Kind(loaded.kind), loaded.target), loaded.target)


def _build(
    config: ReplicaConfig,
    inbox: Inbox,
    lease: SlotLease,
    stream: base.Stream,
    prepared: Prepared,
    pool: SegmentPool,
) -> Replica:
    target = prepared.target
    calibration = gates.Calibration(lease.gate, timer=stream.timer)
    modules = gates.find_modules(target.owner, prepared.raw)
    calibration.watch(modules)
    example: Callable[[int], Any] | None = getattr(prepared.raw, "__hasfaas_example__", None)
    replica = Replica(config, inbox, lease, stream, target, calibration, modules, pool, example)
    if example is not None:
        replica.warm_up(example)
    return replica


_OVER = object()


class _UserFailure(Exception):  # noqa: N818 - a carrier
    """Carries what the user's code raised through our own frames."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__()
        self.cause = cause


class _UsersCode:
    """Whatever is raised inside is the user's, SystemExit and its like too: it fails one call, and never the
    loop. A plain class, since each call enters it twice and a generator costs microseconds.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, _cls: object, exc: BaseException | None, _traceback: object) -> None:
        if exc is not None:
            raise _UserFailure(exc) from exc


_users_code = _UsersCode()


@attrs.frozen
class _Failed:
    """The outcome of a call that raised. An exception that was returned is a value like any other."""

    error: BaseException


@attrs.define(eq=False)
class UsersLease:
    """The lease as the user's code sees it: threads other than the one that runs calls go past it, and it is taken back
    when the last of several waits is over (coroutines may wait for nested calls side by side)."""

    lease: leases.Lease
    thread: int
    waits: int = 0
    held: bool = False

    def gate(self) -> None:
        """A yield point on the thread of the calls."""
        if threading.get_ident() == self.thread:
            self.lease.gate()

    def suspend(self) -> bool:
        """Gives the lane up with the first wait."""
        if threading.get_ident() != self.thread:
            return False
        if self.waits == 0:
            self.held = self.lease.suspend()
        self.waits += 1
        return True

    def resume(self) -> None:
        """Takes the lane back after the last wait, if it was held before the first."""
        self.waits -= 1
        if self.waits == 0 and self.held:
            self.lease.resume()


@attrs.define(eq=False)
class Replica:
    """The running function with its lease."""

    config: ReplicaConfig
    inbox: Inbox
    lease: SlotLease
    stream: base.Stream
    target: Target
    calibration: gates.Calibration
    modules: dict[str, nn.Module]
    pool: SegmentPool
    example: Callable[[int], Any] | None = None
    reader: SegmentReader = attrs.field(factory=SegmentReader)
    calibrated_batch: int = 1
    # What the latest execution held the lane, 0 for one that failed; how many more are slower than usual.
    hold_ns: int = 0
    # The lane time charged until the end of the last execution.
    charged_ns: int = 0
    settling: int = gates.PROFILED_CALLS
    observed: list[tuple[int, int]] = attrs.field(factory=list)
    told_s: float = attrs.field(factory=time.monotonic)

    def warm_up(self, example: Callable[[int], Any]) -> None:
        """Runs the device part on the user's example until the gates are placed, so that no caller pays for
        it. The example's arguments are those of a full batch, stacked already."""
        batch = self.config.batch_max or 1
        for _ in range(gates.PROFILED_CALLS):
            with _users_code:
                made = example(batch)
            given = Arguments(made if isinstance(made, tuple) else (made,), {})
            outcome = self._run_group([given], batched=False)[0]
            if isinstance(outcome, _Failed):
                raise outcome.error
        self.calibrated_batch = batch
        self.lease.release()

    def serve(self) -> None:
        """Until the gateway says to end, or goes away (Closed)."""
        while (execution := self.inbox.next(self._idle)) is not None:
            try:
                self._run(execution)
            finally:
                del execution  # else its arguments would stay in memory while the next ones arrive
                if not self._keep_lease():
                    self.lease.release()

    def _idle(self) -> None:
        self.lease.release()
        if self.observed and self.inbox.quiet(OBSERVED_EVERY_S):
            self._tell()

    def _observe(self, calls: int) -> None:
        """Keeps what an execution held the lane, for the gateway. One of many calls a second is told of as well as all."""
        if self.settling:
            self.settling -= 1
        elif self.hold_ns > 0 and len(self.observed) < MOST_OBSERVED:
            self.observed.append((calls, self.hold_ns))
        if self.observed and time.monotonic() - self.told_s >= OBSERVED_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self.inbox.send(frames.pack(FrameKind.OBSERVED, head=self.observed))
        self.observed, self.told_s = [], time.monotonic()

    def await_readers(self) -> None:
        """Results in shared memory are ours to remove: we stay until whoever asked for them has them, or has gone."""
        give_up_s = time.monotonic() + READERS_WAIT_S
        while self.pool.busy and (left_s := give_up_s - time.monotonic()) > 0.0:
            self.inbox.wait(left_s)

    def _run(self, execution: Execution) -> None:
        if execution.measure is not None:
            self._measure(execution.call_id, execution.measure)
        elif execution.dropped:
            for item, _ in execution.items:
                self._answer(item.call_id, _Failed(MemoryError("there is no room for the arguments")))
        elif self.target.kind.streams:
            for item, blob in execution.items:
                self._stream(item, blob)
        else:
            self._execute(execution)

    def _keep_lease(self) -> bool:
        if not self.lease.held:
            return True
        waiting = self.inbox.peek_bytes()
        return waiting is not None and waiting <= KEEP_LEASE_BYTES and not self.target.has_host_work

    def _execute(self, execution: Execution) -> None:
        calls: list[tuple[int, Arguments]] = []
        for item, blob in execution.items:
            try:
                calls.append((item.call_id, self._decoded(item, blob)))
            except Exception as exc:
                self._answer(item.call_id, _Failed(exc))
        if self.config.batch_max is None:
            for call_id, given in calls:
                self._answer(call_id, self._run_group([given], batched=False)[0])
                self._observe(1)
            return
        arguments = [given for _, given in calls]
        for group in stacking.groups(arguments):
            outcomes = self._run_group([arguments[i] for i in group], batched=True)
            for index, outcome in zip(group, outcomes, strict=True):
                self._answer(calls[index][0], outcome)
            self._observe(len(group))

    def _measure(self, call_id: int, measure: Measure) -> None:
        """Runs one batch again and again, as batches are served, and answers with what that took."""
        try:
            runs = self._runs(call_id, measure)
            head = tuple(runs.measured().values())
            pieces = frames.pack(FrameKind.MEASURED, call_id, head)
        except Closed:
            raise
        except Exception as exc:
            pieces = frames.pack(FrameKind.ERROR, call_id, body=[status_of(exc, self.config, self.stream)])
        self.inbox.forget(call_id)
        self.inbox.send(pieces)

    def _runs(self, call_id: int, measure: Measure) -> measuring.Runs:
        calls = self._examples(measure)
        batched = self.config.batch_max is not None
        runs = measuring.Runs.at(self.lease.quota_ppm, self.lease.timing, measure.bound_s)
        ended_ns = time.monotonic_ns()
        while not runs.enough:
            if self.inbox.cancelled(call_id) or self.inbox.ending:
                raise CancelledError("the measurement was taken back")
            for outcome in self._run_group(calls, batched=batched):
                if isinstance(outcome, _Failed):
                    raise outcome.error
            now_ns = time.monotonic_ns()
            runs.add(max(self.hold_ns, 1), max(now_ns - ended_ns, 1))
            ended_ns = now_ns
        return runs

    def _examples(self, measure: Measure) -> list[Arguments]:
        """The calls of one batch: of the arguments given, else the user's example, else of a call that was served."""
        raw = measure.arguments
        batched = self.config.batch_max is not None
        if self.example is not None and not measure.given:
            with _users_code:
                return measuring.examples(self.example, measure.batch, batched=batched)
        if raw is None:
            raise InvalidRequestError(
                f"{self.config.function} has no arguments to be measured with: declare @function(example=...), a "
                "callable(batch) -> arguments, or call it once first, or give them: `hasfaas profile NAME -- ARGS`",
                reason="NO_EXAMPLE",
            )
        received = payload.from_bytes(raw.codec, raw.head, raw.sizes, b"".join(raw.chunks))
        given = Arguments(*payload.decode_arguments(received, allow_pickle=True))
        with _users_code:
            return [self.target.decoded(given)] * measure.batch

    def _decoded(self, item: WorkItem, blob: memoryview) -> Arguments:
        if item.segment:
            blob = self._mapped(Segment(item.segment, payload.blob_bytes(item.sizes)))
        received = payload.from_bytes(item.codec, item.head, item.sizes, blob)
        given = Arguments(*payload.decode_arguments(received, allow_pickle=True))
        with _users_code:
            return self.target.decoded(given)

    def _mapped(self, segment: Segment) -> memoryview:
        """Shared memory is not behind the wall of the process, so its share is counted here."""
        if segment.nbytes > self.config.memory_bytes:
            raise MemoryError(f"arguments of {format_memory(segment.nbytes)}")
        # A call that may run again must find its arguments as they were sent, whatever the user's code did to them.
        return self.reader.view(segment, private=self.config.idempotent)

    def _run_group(self, calls: list[Arguments], *, batched: bool) -> list[Any]:
        """One outcome a call, `_Failed` where it raised. A batch that raises is run again call by call: a bad
        item fails alone, and the others do not pay for it."""
        self.hold_ns = 0
        # While the lane is kept from one execution to the next, what lies between is charged too: to the next.
        held_ns = self.charged_ns if self.lease.held else self.lease.held_ns
        self.lease.acquire()
        self._recalibrate(len(calls) if batched else 1)
        self.calibration.begin()
        try:
            fetch = self.stream.fetch
            outcomes = self.target.run_batch(calls, fetch) if batched else [fetch(self.target.run(calls[0]))]
            self.stream.serve(self.config.function, len(calls), self.lease.gate)
            self.charged_ns = self.lease.held_ns
            self.hold_ns = self.charged_ns - held_ns
        except BaseException as exc:
            self._end_if_fatal(exc)
            self.charged_ns = self.lease.held_ns
            if len(calls) > 1:
                alone = [self._run_group([call], batched=True)[0] for call in calls]
                self.hold_ns = 0  # that was not one execution
                return alone
            outcomes = [_Failed(exc if is_own(exc) else _UserFailure(exc))]
        if self.target.has_host_work:
            self.lease.release()
        return outcomes

    def _end_if_fatal(self, exc: BaseException) -> None:
        cause = _cause(exc)
        if self.stream.failure(cause) is base.Failure.FATAL:
            raise DeviceFailed(f"{self.config.function}: {type(cause).__name__}: {describe(cause)}") from exc

    def _recalibrate(self, batch: int) -> None:
        """Gates placed for a small batch lie too far apart in a large one: at each doubling they are placed
        anew.
        """
        if batch >= 2 * self.calibrated_batch:
            self.calibrated_batch = batch
            self.calibration.watch(self.modules)
            self.settling = gates.PROFILED_CALLS

    def _answer(self, call_id: int, outcome: Any) -> None:
        """Sends a result or an error; a result that cannot be sent is itself an error."""
        try:
            if isinstance(outcome, _Failed):
                raise outcome.error
            with _users_code:
                value = self.target.encoded(outcome)
            pieces = frames.pack_payload(FrameKind.RESULT, call_id, self._encoded(call_id, value, "result"))
        except Exception as exc:
            pieces = frames.pack(FrameKind.ERROR, call_id, body=[status_of(exc, self.config, self.stream)])
        self.inbox.forget(call_id)
        self.inbox.send(pieces)

    def _encoded(self, call_id: int, value: object, name: str) -> RawPayload:
        """A value as a payload that is only passed on; a large one in a segment where the caller can read it. Raises
        SerializationError naming what cannot be sent."""
        made = payload.encode(value, name=name)
        pieces, nbytes = payload.segments(made), payload.blob_bytes(made.lengths)
        if nbytes >= THRESHOLD_BYTES and self.inbox.replies_in_segments(call_id):
            segment = self.pool.write(pieces, nbytes)
            if segment is not None:
                return RawPayload(int(made.codec), made.head, made.lengths, (), segment.name)
        return RawPayload(int(made.codec), made.head, made.lengths, tuple(pieces))

    def _stream(self, item: WorkItem, blob: memoryview) -> None:
        call_id = item.call_id
        try:
            self._send_items(call_id, self._decoded(item, blob))
            pieces = frames.pack(FrameKind.END, call_id)
        except Closed:
            raise
        except Exception as exc:
            self._end_if_fatal(exc)
            pieces = frames.pack(FrameKind.ERROR, call_id, body=[status_of(exc, self.config, self.stream)])
        self.inbox.forget(call_id)
        self.inbox.send(pieces)

    def _send_items(self, call_id: int, given: Arguments) -> None:
        """Each item is made inside the lease. Without credit the lane is given up until the reader has caught
        up.
        """
        self.lease.acquire()
        with _users_code:
            items = self.target.items(given)
        try:
            while not self.inbox.cancelled(call_id):
                with _users_code:
                    value = next(items, _OVER)
                if value is _OVER:
                    return
                value = self.stream.fetch(value)
                self.stream.serve(self.config.function, 1, self.lease.gate)
                if self.target.has_host_work:
                    self.lease.release()
                with _users_code:
                    value = self.target.encoded(value)
                encoded = self._encoded(call_id, value, "item")
                self._wait_credit(call_id)
                self.inbox.send(frames.pack_payload(FrameKind.ITEM, call_id, encoded))
                if not self.lease.held:
                    self.lease.acquire()
                self.lease.gate()
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                with _users_code:
                    close()

    def _wait_credit(self, call_id: int) -> None:
        while not self.inbox.spend_credit(call_id) and not self.inbox.cancelled(call_id):
            if self.lease.held:
                self.lease.release()
            self.inbox.wait()


def is_own(exc: BaseException) -> bool:
    """Whether this is an error that hasfaas raised by itself, rather than the user's code here or in a nested
    call.
    """
    if not isinstance(exc, HasFaasError) or isinstance(exc, FunctionError):
        return False
    frame = exc.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and is_ours(frame.tb_frame.f_code.co_filename)


def status_of(exc: BaseException, config: ReplicaConfig, stream: base.Stream | None = None) -> bytes:
    """The status of whatever was raised. Running into the memory wall, the host's or the stream's, is told as such."""
    cause = _cause(exc)
    refused = stream.failure(cause) is base.Failure.MEMORY if stream else base.is_host_memory_error(cause)
    if refused:
        limit = format_memory(config.memory_bytes)
        wall = MemoryLimitError(
            f"{config.function}: a replica reached its memory of {limit} ({type(cause).__name__}: {describe(cause)}); "
            "declare more with memory=, or use smaller batches"
        )
        return bytes(to_status(wall).SerializeToString())
    if isinstance(exc, HasFaasError):
        return bytes(to_status(exc).SerializeToString())
    if isinstance(exc, _UserFailure):
        return bytes(user_exception_to_status(cause, skip_file=is_ours).SerializeToString())
    wrapped = BackendError(f"{config.function}: the replica failed: {type(exc).__name__}: {describe(exc)}")
    return bytes(to_status(wrapped).SerializeToString())


def _cause(exc: BaseException) -> BaseException:
    return exc.cause if isinstance(exc, _UserFailure) else exc


def _reseed() -> None:
    """Forks of one zygote would otherwise draw the same random numbers."""
    random.seed()
    if "numpy.random" in sys.modules:  # else it seeds itself, if it is ever imported
        import numpy as np

        np.random.seed(int.from_bytes(os.urandom(4), "little"))
    if "torch" in sys.modules:
        import torch

        # Not torch.seed(): that imports what other accelerators need, for milliseconds; CUDA's generators seed themselves.
        torch.default_generator.seed()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # the log's disk is full or the user closed the stream; the process ends either way
