"""Memory shared by the processes of one lane: a mapped file of 64-bit words, locks that survive their owner,
wake-ups.

It knows layouts and system calls, and decides nothing. Laws: the file is readable by its owner alone (0600)
and sits in /dev/shm; a word is one aligned load or store; every change of a lane happens under its lock, but
a reader may look at one word without it. Linux on x86-64 or arm64 (on which the order of unlocked reads was
not tested).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasfaas.core.errors import BackendError

WORD = 8
# glibc's mutex takes 40 bytes on x86-64 and 48 on arm64.
MUTEX_WORDS = 8
_FUTEX_CALL = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_PROCESS_SHARED, _ROBUST = 1, 1
_PR_SET_TIMERSLACK = 29
_TIMER_SLACK_NS = 1_000


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


# Called through CDLL, so other threads of this process run while one waits.
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = [
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_long,
    ctypes.c_uint32,
    ctypes.POINTER(_Timespec),
]
_syscall.restype = ctypes.c_long
_mutex_lock = _libc.pthread_mutex_lock
_mutex_lock.argtypes = [ctypes.c_void_p]
_mutex_unlock = _libc.pthread_mutex_unlock
_mutex_unlock.argtypes = [ctypes.c_void_p]
_mutex_consistent = _libc.pthread_mutex_consistent
_mutex_consistent.argtypes = [ctypes.c_void_p]


class Segment:
    """A mapped file as words. `words[i]` is the i-th signed 64-bit word."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int) -> None:
        self.path = path
        self._map = mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED)
        self._raw = memoryview(self._map)
        self.words: memoryview[int] = self._raw.cast("q")
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self._map)
        self._base = ctypes.addressof(self._anchor)

    @classmethod
    def create(cls, path: Path, words: int) -> Segment:
        """A new file of zeros. Raises BackendError if it exists: its owner lives, or a dead one left it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as exc:
            raise BackendError(
                f"path={str(path)!r} exists: a node agent uses it, or a dead one left it: then remove it"
            ) from exc
        try:
            os.ftruncate(descriptor, words * WORD)
            return cls(path, descriptor, words * WORD)
        finally:
            os.close(descriptor)

    @classmethod
    def open(cls, path: Path) -> Segment:
        """An existing file, whole. Raises BackendError if it is missing or not made of words."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise BackendError(f"path={str(path)!r} does not exist: is its node agent still running?") from exc
        try:
            size = os.fstat(descriptor).st_size
            if size == 0 or size % WORD:
                raise BackendError(f"path={str(path)!r} holds {size} bytes: not a table of this program")
            return cls(path, descriptor, size)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Unmaps. No lock of this segment may be held, and no view of it used any more."""
        self._base = 0
        self._anchor = None
        self.words.release()
        self._raw.release()
        self._map.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._anchor is None

    def _address(self, word: int) -> int:
        if not self._base:
            raise BackendError(f"the table {str(self.path)!r} was closed in this process")
        return self._base + word * WORD

    def init_mutex(self, word: int) -> None:
        """Makes the lock at `word`: shared between processes, and handed on when its owner dies."""
        attributes = ctypes.create_string_buffer(64)
        _check(_libc.pthread_mutexattr_init(attributes), "pthread_mutexattr_init")
        _check(_libc.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED), "pthread_mutexattr_setpshared")
        _check(_libc.pthread_mutexattr_setrobust(attributes, _ROBUST), "pthread_mutexattr_setrobust")
        address = ctypes.c_void_p(self._address(word))
        _check(_libc.pthread_mutex_init(address, attributes), "pthread_mutex_init")
        _check(_libc.pthread_mutexattr_destroy(attributes), "pthread_mutexattr_destroy")

    def lock(self, word: int) -> bool:
        """Takes the lock at `word`; True if its last owner died in it, and what it guards must be repaired.

        Signal handlers of this thread must not raise: nothing would unlock. `unlock` on the same thread.
        """
        address = self._address(word)
        status = _mutex_lock(address)
        if status == errno.EOWNERDEAD:
            # At once: should the repair die too, then the next owner is told again, and the lock is never
            # lost.
            _check(_mutex_consistent(address), "pthread_mutex_consistent")
            return True
        _check(status, "pthread_mutex_lock")
        return False

    def unlock(self, word: int) -> None:
        """Gives the lock at `word` back."""
        _check(_mutex_unlock(self._address(word)), "pthread_mutex_unlock")

    def sleep(self, word: int, ticket: int, timeout_ns: int) -> None:
        """Sleeps until woken at `word`, for at most `timeout_ns`, unless the word differs from `ticket`
        already.

        `ticket` must be what the word was when the caller still held the lock: a second look loses wake-ups.
        """
        limit = _Timespec(timeout_ns // 1_000_000_000, timeout_ns % 1_000_000_000)
        if _syscall(_futex(), self._address(word), _FUTEX_WAIT, ticket & 0xFFFFFFFF, limit) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR):
            raise BackendError(f"futex wait failed: {os.strerror(code)}")

    def wake(self, word: int) -> None:
        """Wakes who sleeps at `word`; its count must have been moved on under the lock."""
        if _syscall(_futex(), self._address(word), _FUTEX_WAKE, 1, None) < 0:
            raise BackendError(f"futex wake failed: {os.strerror(ctypes.get_errno())}")


def _check(status: int, call: str) -> None:
    if status:
        raise BackendError(f"{call} failed: {os.strerror(status)}")


def _futex() -> int:
    try:
        return _FUTEX_CALL[platform.machine()]
    except KeyError as exc:
        raise BackendError(
            f"machine {platform.machine()!r} is not supported: x86_64 or aarch64 Linux is needed"
        ) from exc


def tighten_timers() -> None:
    """Lets this thread's timed sleeps end within a microsecond of their time (the default slack is 50 us)."""
    _libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_TIMER_SLACK_NS), 0, 0, 0)


def start_time(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None if it does not run any more (a zombie does
    not).

    Source: field 22 of /proc/PID/stat. With it a recycled pid is told from the old one.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold blanks and brackets: what follows the last bracket is state, parent, ...
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZXx" else int(fields[19])


def alive(pid: int, started: int) -> bool:
    """Whether the very process that was `pid` at `started` still runs."""
    return pid > 0 and start_time(pid) == started


# -- views ---------------------------------------------------------------------------------------------------

SLOT_FIELDS = (
    *("state", "lane", "quota_ppm", "lend", "borrowed", "tokens_ns", "carry", "stamp_ns", "v_ns"),
    *("lease_start_ns", "lease_end_ns", "taken_ns", "grants"),
    *("granted_ns", "used_ns", "wait_ns", "throttled_ns", "overrun_ns", "lent_ns"),
    *("generation", "acknowledged", "acknowledged_ns"),
    *("pid", "started", "epoch", "futex"),
)
LANE_FIELDS = ("holder", "v_ns", "handoffs", "offered", "offered_ns", "members")
SLOT_WORDS = 32
LANE_WORDS = 32


class View:
    """Named words from `base` on."""

    __slots__ = ("base", "words")

    def __init__(self, words: memoryview[int], base: int) -> None:
        self.words = words
        self.base = base


def _word(offset: int) -> Any:
    def load(view: View) -> int:
        return view.words[view.base + offset]

    def store(view: View, value: int) -> None:
        view.words[view.base + offset] = value

    return property(load, store)


class SlotView(View):
    """One replica's words; the shape of quota.Slot, and who the replica is."""

    if TYPE_CHECKING:
        state: int
        lane: int
        quota_ppm: int
        tokens_ns: int
        carry: int
        stamp_ns: int
        lease_start_ns: int
        lease_end_ns: int
        used_ns: int
        wait_ns: int
        throttled_ns: int
        granted_ns: int
        overrun_ns: int
        lent_ns: int
        grants: int
        v_ns: int
        lend: int
        borrowed: int
        generation: int
        acknowledged: int
        acknowledged_ns: int
        taken_ns: int
        pid: int
        started: int
        epoch: int
        futex: int

    def word(self, field: str) -> int:
        """The index of a field's word in the segment."""
        return self.base + SLOT_FIELDS.index(field)


class LaneView(View):
    """One lane's words; the shape of quota.Lane, and a bit mask of the slots in it."""

    if TYPE_CHECKING:
        holder: int
        v_ns: int
        handoffs: int
        offered: int
        offered_ns: int
        members: int


for _offset, _name in enumerate(SLOT_FIELDS):
    setattr(SlotView, _name, _word(_offset))
for _offset, _name in enumerate(LANE_FIELDS):
    setattr(LaneView, _name, _word(MUTEX_WORDS + _offset))
