"""Large buffers of one host: files in /dev/shm that the writer keeps in a pool and the reader maps, so that nothing copies
them twice and the gateway never holds them.

Law: whoever made a segment removes it. The reader holds a shared lock on the file while any view of it lives, so a writer
that can lock it alone knows that nobody looks any more; a reader that dies lets go by dying. A segment that is missing or
too short is a SerializationError before anything is mapped.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import re
import secrets
import stat
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import attrs

from hasfaas.core.errors import SerializationError
from hasfaas.wire.tensors import Buffer

SHM = Path("/dev/shm")  # noqa: S108 - shared memory is the point; files are made with mode 0600
# Below this a copy through the socket costs less than the file's system calls.
THRESHOLD_BYTES = 128 * 1024
POOL_BYTES = 512 * 2**20
GRAIN_BYTES = 256 * 1024
MAPPED_FILES = 64
_NAME = re.compile(r"hasfaas-(\d+)-(\d+)-[0-9a-f]{16}\.seg")
# The kernel refuses more pieces in one vectored write (IOV_MAX).
_MAX_PIECES = 512


@attrs.frozen
class Segment:
    """Where a payload's blob lies: a file's name in /dev/shm, and how much of it is meant."""

    name: str
    nbytes: int


@attrs.define(eq=False)
class _Owned:
    name: str
    fd: int
    size: int


class SegmentPool:
    """The writer's side: makes, fills and reuses segments, `limit_bytes` in all. Not for several threads at once.

    What is left is removed when the pool, or its process, ends.
    """

    def __init__(self, *, limit_bytes: int = POOL_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._free: list[_Owned] = []
        self._busy: dict[str, _Owned] = {}
        self._all: dict[str, _Owned] = {}
        self.close = weakref.finalize(self, _remove_all, self._all, os.getpid())

    def write(self, pieces: Sequence[Buffer], nbytes: int) -> Segment | None:
        """Puts a blob in a segment, busy until `give_back` or `drop`. None when the pool is full: send it in line."""
        owned = self._take(nbytes)
        if owned is None:
            return None
        try:
            _write_all(owned.fd, pieces)
        except OSError:
            # Shared memory itself is full. The payload can still go in line.
            self._remove(owned)
            return None
        self._busy[owned.name] = owned
        return Segment(owned.name, nbytes)

    def give_back(self, name: str) -> None:
        """The reader has answered; the segment is reused once no view of it lives there."""
        owned = self._busy.pop(name, None)
        if owned is not None:
            self._free.append(owned)

    def drop(self, name: str) -> None:
        """Nobody knows whether a reader will still open it: it is removed rather than reused."""
        owned = self._busy.pop(name, None)
        if owned is not None:
            self._remove(owned)

    @property
    def busy(self) -> bool:
        """Whether a reader has still to say that it has one of ours."""
        return bool(self._busy)

    @property
    def nbytes(self) -> int:
        """Shared memory that this pool holds."""
        return sum(owned.size for owned in self._all.values())

    def _take(self, nbytes: int) -> _Owned | None:
        size = -(-nbytes // GRAIN_BYTES) * GRAIN_BYTES
        fitting = [owned for owned in self._free if size <= owned.size <= 2 * size]
        for owned in sorted(fitting, key=lambda o: o.size):
            if _unwatched(owned.fd):
                self._free.remove(owned)
                return owned
        while self.nbytes + size > self._limit_bytes and self._free:
            self._remove(self._free.pop(0))
        return self._make(size) if self.nbytes + size <= self._limit_bytes else None

    def _make(self, size: int) -> _Owned | None:
        name = f"hasfaas-{os.getuid()}-{os.getpid()}-{secrets.token_hex(8)}.seg"
        try:
            fd = os.open(SHM / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        os.ftruncate(fd, size)
        owned = self._all[name] = _Owned(name, fd, size)
        return owned

    def _remove(self, owned: _Owned) -> None:
        if self._all.pop(owned.name, None) is not None:
            _unlink(owned)


def _unlink(owned: _Owned) -> None:
    (SHM / owned.name).unlink(missing_ok=True)
    os.close(owned.fd)


def _remove_all(owned: dict[str, _Owned], pid: int) -> None:
    """Readers that have one mapped keep what they see. A fork of the writer removes nothing of it."""
    while owned and os.getpid() == pid:
        _unlink(owned.popitem()[1])


def _unwatched(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def _write_all(fd: int, pieces: Sequence[Buffer]) -> None:
    """Vectored writes, which fill fresh pages without the fault a page that writing through a mapping costs."""
    views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    offset = 0
    while views:
        written = os.pwritev(fd, views[:_MAX_PIECES], offset)
        offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


@attrs.define(eq=False)
class _Mapped:
    fd: int
    map: mmap.mmap
    views: int = 0


class SegmentReader:
    """The reader's side: maps segments, and keeps the most recent maps."""

    def __init__(self) -> None:
        self._maps: OrderedDict[str, _Mapped] = OrderedDict()

    def view(self, segment: Segment, *, private: bool = False) -> memoryview:
        """The blob. The file is locked against reuse until this view and every array made from it have gone. `private`:
        what is written to the view stays in this process, for a blob that somebody may read again.

        Raises SerializationError when it is not a segment of this user, is missing, or is too short.
        """
        mapped = _map_anew(segment, mmap.MAP_PRIVATE) if private else self._map(segment)
        # Sizes are asked anew each time: reading a map beyond the end of a file that was cut would kill this process.
        if len(mapped.map) < segment.nbytes or os.fstat(mapped.fd).st_size < len(mapped.map):
            raise SerializationError(f"segment {segment.name} is shorter than the {segment.nbytes} bytes announced")
        if mapped.views == 0:
            fcntl.flock(mapped.fd, fcntl.LOCK_SH)
        mapped.views += 1
        # Views of a view refer to what exports the memory, not to each other: this object lives as long as any of them.
        exporter = (ctypes.c_char * segment.nbytes).from_buffer(mapped.map)
        end = _close if private else self._let_go
        weakref.finalize(exporter, end, segment.name, mapped).atexit = False
        return memoryview(exporter).cast("B")

    def close(self) -> None:
        """Unmaps what nobody looks at; the rest goes with its views."""
        for name in [name for name, mapped in self._maps.items() if mapped.views == 0]:
            self._forget(name)

    def _map(self, segment: Segment) -> _Mapped:
        mapped = self._maps.get(segment.name)
        if mapped is not None:
            self._maps.move_to_end(segment.name)
            return mapped
        mapped = self._maps[segment.name] = _map_anew(segment, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        idle = [(name, other) for name, other in self._maps.items() if other.views == 0 and other is not mapped]
        for position, (name, other) in enumerate(idle):
            if position < len(self._maps) - MAPPED_FILES or os.fstat(other.fd).st_nlink == 0:
                self._forget(name)
        return mapped

    def _let_go(self, name: str, mapped: _Mapped) -> None:
        """The last view has gone: the writer may use the file again. One that the writer has removed is not kept mapped."""
        mapped.views -= 1
        if mapped.views == 0:
            fcntl.flock(mapped.fd, fcntl.LOCK_UN)
            if os.fstat(mapped.fd).st_nlink == 0:
                self._forget(name)

    def _forget(self, name: str) -> None:
        """Unmaps a file that nobody looks at."""
        mapped = self._maps.pop(name, None)
        if mapped is not None:
            with contextlib.suppress(BufferError):  # the last view is just going, and takes the map along
                mapped.map.close()
            os.close(mapped.fd)


def _map_anew(segment: Segment, flags: int) -> _Mapped:
    fd = _open(segment.name)
    try:
        size = os.fstat(fd).st_size
        if size < segment.nbytes or size == 0:
            raise SerializationError(
                f"segment {segment.name} has {size} bytes, shorter than the {segment.nbytes} announced"
            )
        return _Mapped(fd, mmap.mmap(fd, size, flags=flags))
    except OSError as exc:
        os.close(fd)
        raise MemoryError(f"{segment.nbytes} bytes cannot be mapped: {exc.strerror}") from exc
    except BaseException:
        os.close(fd)
        raise


def _close(_name: str, mapped: _Mapped) -> None:
    """A private map goes with its last view; closing the file lets go of its lock."""
    os.close(mapped.fd)


def _open(name: str) -> int:
    found = _NAME.fullmatch(name)
    if found is None or int(found[1]) != os.getuid():
        raise SerializationError(f"{name!r} is not a segment of this user")
    try:
        fd = os.open(SHM / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise SerializationError(
            f"segment {name} cannot be opened ({exc.strerror}): whoever made it has gone; call again"
        ) from exc
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
        os.close(fd)
        raise SerializationError(f"segment {name} is not a plain file of this user")
    return fd
