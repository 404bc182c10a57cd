"""Shared segments: written once, read as views, reused only when nobody looks, and gone at the end."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from hasfaas.core.errors import SerializationError
from hasfaas.wire.segments import SHM, Segment, SegmentPool, SegmentReader

MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[SegmentPool]:
    made = SegmentPool(limit_bytes=8 * MIB)
    yield made
    made.close()


@pytest.fixture
def reader() -> Iterator[SegmentReader]:
    made = SegmentReader()
    yield made
    made.close()


def write(pool: SegmentPool, blob: bytes) -> Segment:
    segment = pool.write([blob[:7], blob[7:]], len(blob))
    assert segment is not None
    return segment


def test_what_is_written_is_read_without_a_copy(pool: SegmentPool, reader: SegmentReader) -> None:
    blob = os.urandom(MIB)
    segment = write(pool, blob)
    view = reader.view(segment)
    assert bytes(view) == blob
    array = np.frombuffer(view, np.uint8)
    array[0] ^= 255
    assert bytes(reader.view(segment)[:1]) == bytes([blob[0] ^ 255])
    assert (SHM / segment.name).stat().st_mode & 0o777 == 0o600


def test_a_segment_is_reused_once_nobody_looks(pool: SegmentPool, reader: SegmentReader) -> None:
    first = write(pool, b"a" * MIB)
    array = np.frombuffer(reader.view(first), np.uint8)[5:]
    pool.give_back(first.name)
    second = write(pool, b"b" * MIB)
    assert second.name != first.name
    assert bytes(array[:3]) == b"aaa"
    del array
    gc.collect()
    third = write(pool, b"c" * MIB)
    assert third.name == first.name


def test_a_busy_segment_is_not_reused_and_a_dropped_one_is_removed(pool: SegmentPool) -> None:
    first = write(pool, b"a" * MIB)
    second = write(pool, b"b" * MIB)
    assert second.name != first.name
    pool.drop(first.name)
    assert not (SHM / first.name).exists()
    assert (SHM / second.name).exists()


def test_a_full_pool_says_so_and_makes_room_of_what_is_free(pool: SegmentPool) -> None:
    held = [write(pool, bytes(4 * MIB)), write(pool, bytes(4 * MIB))]
    assert pool.write([bytes(MIB)], MIB) is None
    pool.give_back(held[0].name)
    assert pool.write([bytes(MIB)], MIB) is not None
    assert pool.nbytes <= 8 * MIB


def test_what_is_missing_cut_or_foreign_is_an_error(pool: SegmentPool, reader: SegmentReader) -> None:
    segment = write(pool, bytes(MIB))
    with pytest.raises(SerializationError, match="shorter"):
        reader.view(Segment(segment.name, 64 * MIB))
    assert len(reader.view(segment)) == MIB
    os.truncate(SHM / segment.name, 100)
    with pytest.raises(SerializationError, match="shorter"):
        reader.view(segment)
    gone = f"hasfaas-{os.getuid()}-1-{'0' * 16}.seg"
    with pytest.raises(SerializationError, match="cannot be opened"):
        reader.view(Segment(gone, 1))
    for name in ("../../etc/passwd", "hasfaas-99999-1-0123456789abcdef.seg", "/etc/passwd", ""):
        with pytest.raises(SerializationError, match="not a segment of this user"):
            reader.view(Segment(name, 1))


def test_a_link_in_place_of_a_segment_is_refused(reader: SegmentReader) -> None:
    name = f"hasfaas-{os.getuid()}-1-{'f' * 16}.seg"
    (SHM / name).symlink_to("/etc/hostname")
    try:
        with pytest.raises(SerializationError, match="cannot be opened"):
            reader.view(Segment(name, 1))
    finally:
        (SHM / name).unlink()


def test_the_pool_of_a_process_that_ends_leaves_nothing() -> None:
    code = (
        "from hasfaas.wire.segments import SegmentPool\n"
        "p = SegmentPool(); p.write([bytes(1 << 20)], 1 << 20); s = p.write([bytes(1 << 20)], 1 << 20); print(s.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not (SHM / done.stdout.strip()).exists()


def test_a_fork_removes_nothing_of_its_parent(pool: SegmentPool) -> None:
    segment = write(pool, bytes(MIB))
    pid = os.fork()
    if pid == 0:
        pool.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert (SHM / segment.name).exists()
