"""The folder at `cluster.state_url`, where a cluster keeps what must outlive its nodes: small files, read and written whole.

Law: a reader sees a file as it was before a write or after it, never a part. On a file system that is a rename; object stores
put whole objects; on any other store it is as good as that store's own move.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from hasfaas.core.errors import InvalidRequestError, UnavailableError
from hasfaas.core.own_file import write_own

LOCK = ".lock"
# Stores whose puts replace an object at once.
WHOLE_PUTS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "memory"})


class StateFolder(Protocol):
    """Files by name, such as "objects/1f.bundle". Each method raises UnavailableError (STATE_UNAVAILABLE) when the store
    cannot do it.

    `url` is for messages, without passwords. With `exclusive`, nobody else writes inside `alone`, in whatever process; a
    store without locks has it False, and there `alone` does nothing.
    """

    url: str
    exclusive: bool

    def read(self, name: str) -> bytes | None:
        """The file, None when there is none."""
        ...

    def write(self, name: str, content: bytes) -> None: ...

    def remove(self, name: str) -> None:
        """Removes a file, which may be gone already."""
        ...

    def names(self, folder: str) -> list[str]:
        """The files right in a folder of it, without those below; none when there is no such folder."""
        ...

    def alone(self) -> contextlib.AbstractContextManager[None]: ...


def open_folder(url: str) -> StateFolder:
    """The folder of that URL; it need not exist yet. Raises InvalidRequestError for one that cannot be a state folder."""
    scheme, mark, rest = url.partition("://")
    if not mark or "::" in url:
        cure = 'give one URL, such as "s3://bucket/hasfaas" or "file:///shared/hasfaas", without caches before it'
        raise _refused(url, cure)
    if scheme not in ("file", "local"):
        return RemoteFolder(url)
    if not rest.startswith("/"):
        raise _refused(url, 'give an absolute path, such as "file:///shared/hasfaas": each process has its own folder')
    return LocalFolder(Path(rest))


class LocalFolder:
    """A folder of a file system. Whoever writes holds a lock on a file in it, over a network where that locks."""

    exclusive = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url = f"file://{path}"

    def read(self, name: str) -> bytes | None:
        with _reaching(self.url, f"reading {name}"):
            try:
                return (self._path / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        with _reaching(self.url, f"writing {name}"):
            write_own(self._path / name, content)

    def remove(self, name: str) -> None:
        with _reaching(self.url, f"removing {name}"):
            (self._path / name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        with _reaching(self.url, f"listing {folder}"):
            try:
                return sorted(path.name for path in (self._path / folder).iterdir() if path.is_file())
            except FileNotFoundError:
                return []

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with _reaching(self.url, "locking it"):
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with _reaching(self.url, "locking it"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class RemoteFolder:
    """A folder of a store that fsspec reaches."""

    exclusive = False

    def __init__(self, url: str) -> None:
        self.url = _shown(url)
        self._fs, self._root = _connected(url)
        self._puts_whole = url.partition("://")[0] in WHOLE_PUTS

    def read(self, name: str) -> bytes | None:
        with _reaching(self.url, f"reading {name}"):
            try:
                return bytes(self._fs.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        with _reaching(self.url, f"writing {name}"):
            if self._puts_whole:
                self._fs.pipe_file(self._at(name), content)
            else:
                self._moved(name, content)

    def remove(self, name: str) -> None:
        with _reaching(self.url, f"removing {name}"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def names(self, folder: str) -> list[str]:
        path = self._at(folder)
        with _reaching(self.url, f"listing {folder}"):
            self._fs.invalidate_cache(path)
            try:
                found = self._fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        files = (entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "file")
        return sorted(name for name in files if name)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        yield

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _moved(self, name: str, content: bytes) -> None:
        folder, _, last = self._at(name).rpartition("/")
        aside = f"{folder}/.{last}.{secrets.token_hex(8)}"
        self._fs.makedirs(folder, exist_ok=True)
        try:
            self._fs.pipe_file(aside, content)
            self._fs.mv(aside, self._at(name))
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.rm_file(aside)
            raise


def _connected(url: str) -> tuple[Any, str]:
    try:
        import fsspec.core  # type: ignore[import-untyped]
    except ImportError as exc:
        raise _refused(url, "this needs the package fsspec: pip install 'hasfaas[cluster]'") from exc
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except ImportError as exc:
        raise _refused(url, f"a package for such a store is missing here and on every node: {exc}") from exc
    except ValueError as exc:
        raise _refused(url, f"fsspec knows no such store ({exc}); give one, such as s3:// or file://") from exc
    except Exception as exc:  # whatever the store's own package raises
        raise _unreachable(_shown(url), "connecting to it", exc) from exc
    return filesystem, root.rstrip("/")


def _shown(url: str) -> str:
    """The URL as it may be written into a log: what stands before an @ may be a password."""
    return re.sub(r"://[^/@]*@", "://***@", url)


def _refused(url: str, cure: str) -> InvalidRequestError:
    return InvalidRequestError(f"cluster.state_url={_shown(url)!r}: {cure}", reason="BAD_OPTION")


@contextlib.contextmanager
def _reaching(url: str, doing: str) -> Iterator[None]:
    """Each store's package raises errors of its own; to us they are one."""
    try:
        yield
    except Exception as exc:
        raise _unreachable(url, doing, exc) from exc


def _unreachable(url: str, doing: str, exc: Exception) -> UnavailableError:
    return UnavailableError(
        f"cluster.state_url={url}: {doing} failed ({type(exc).__name__}: {exc}); see that the store is up, and that this "
        "user may read and write there",
        reason="STATE_UNAVAILABLE",
    )
