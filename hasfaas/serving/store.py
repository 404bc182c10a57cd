"""What is deployed, kept on this machine: SQLite for the facts, one file per bundle named by its content.

A gateway that is killed at any point leaves the last committed state; a bundle's file is complete before the row that
names it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from hasfaas.core.errors import NotFoundError
from hasfaas.core.spec import Batch, FunctionSpec, Kind
from hasfaas.serving.ports import FunctionRecord, Sizing

HALF = ".half"
SCHEMA = """
CREATE TABLE IF NOT EXISTS functions (
    name TEXT PRIMARY KEY,
    record TEXT NOT NULL,
    signature BLOB NOT NULL,
    deployed_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;
CREATE TABLE IF NOT EXISTS versions (
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    bundle_sha256 TEXT NOT NULL,
    deployed_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (name, version)
) STRICT;
CREATE TABLE IF NOT EXISTS profiles (
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    device TEXT NOT NULL,
    profile TEXT NOT NULL,
    PRIMARY KEY (name, version, device)
) STRICT;
"""


class LocalStore:
    """A store in one folder, made with mode 0700."""

    def __init__(self, folder: Path) -> None:
        self._bundles = folder / "bundles"
        self._bundles.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        for half in self._bundles.glob(f"*{HALF}"):
            half.unlink()  # of a gateway that was killed while it wrote; only one runs at a time
        # Autocommit off by default: `with self._db` is one transaction.
        self._db = sqlite3.connect(folder / "store.sqlite3")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(SCHEMA)
        # Every call asks for its function, and only this process writes: what is committed is also kept here.
        rows = self._db.execute("SELECT record, signature FROM functions").fetchall()
        records = [_from_json(json.loads(record), signature) for record, signature in rows]
        self._records = {record.name: record for record in records}

    def close(self) -> None:
        """Closes the database; everything committed is on disk."""
        self._db.close()

    async def commit(self, change: Callable[[], None]) -> None:
        """Here and now: a local disk is quick."""
        change()

    def put(self, record: FunctionRecord, bundle: bytes) -> None:
        """Remembers a function under its name, in place of what had that name."""
        self._write_bundle(record.bundle_sha256, bundle)
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO functions (name, record, signature) VALUES (?, ?, ?)",
                (record.name, json.dumps(_to_json(record)), record.signature),
            )
            self._db.execute(
                # A version that is deployed again may have another bundle: a pickle's bytes differ between processes.
                "INSERT OR REPLACE INTO versions (name, version, bundle_sha256) VALUES (?, ?, ?)",
                (record.name, record.version, record.bundle_sha256),
            )
        self._records[record.name] = record

    def get(self, name: str) -> FunctionRecord | None:
        """The function of that name, None when there is none."""
        return self._records.get(name)

    def all(self) -> Sequence[FunctionRecord]:
        """All functions, by name."""
        return [self._records[name] for name in sorted(self._records)]

    def delete(self, name: str) -> None:
        """Forgets a function and removes bundles that nothing names any more. NotFoundError when there is none."""
        with self._db:
            gone = self._db.execute("DELETE FROM functions WHERE name = ?", (name,)).rowcount
            self._db.execute("DELETE FROM versions WHERE name = ?", (name,))
            self._db.execute("DELETE FROM profiles WHERE name = ?", (name,))
        if not gone:
            raise NotFoundError(f"function {name!r} is not deployed")
        del self._records[name]
        kept = {row[0] for row in self._db.execute("SELECT DISTINCT bundle_sha256 FROM versions")}
        for path in self._bundles.glob("*.bundle"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    def resize(self, name: str, sizing: Sizing) -> None:
        """Remembers what an operator set by hand."""
        record = self.get(name)
        if record is None:
            raise NotFoundError(f"function {name!r} is not deployed")
        changed = attrs.evolve(record, sizing=sizing)
        with self._db:
            self._db.execute("UPDATE functions SET record = ? WHERE name = ?", (json.dumps(_to_json(changed)), name))
        self._records[name] = changed

    def put_profile(self, name: str, version: str, device_id: str, profile: str) -> None:
        """Remembers a profile of a deployed function. NotFoundError when there is no such function."""
        if name not in self._records:
            raise NotFoundError(f"function {name!r} is not deployed")
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO profiles (name, version, device, profile) VALUES (?, ?, ?, ?)",
                (name, version, device_id, profile),
            )

    def profiles(self, name: str, version: str) -> dict[str, str]:
        """The profiles of a version, by device: empty for one that nobody has measured."""
        found = self._db.execute(
            "SELECT device, profile FROM profiles WHERE name = ? AND version = ? ORDER BY device", (name, version)
        )
        return dict(found.fetchall())

    def bundle_path(self, sha256: str) -> Path:
        """The file of a bundle."""
        return self._bundles / f"{sha256}.bundle"

    def _write_bundle(self, sha256: str, bundle: bytes) -> None:
        assert hashlib.sha256(bundle).hexdigest() == sha256, "a bundle is stored under its own digest"
        path = self.bundle_path(sha256)
        if path.exists() and path.stat().st_size == len(bundle):
            return
        with tempfile.NamedTemporaryFile(dir=self._bundles, suffix=HALF, delete=False) as file:
            file.write(bundle)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)


def _to_json(record: FunctionRecord) -> dict[str, object]:
    fields = attrs.asdict(record, filter=lambda a, _: a.name != "signature")
    fields["kind"] = record.kind.value
    return fields


def _from_json(fields: dict[str, object], signature: bytes) -> FunctionRecord:
    spec = dict(fields["spec"])  # type: ignore[call-overload]
    batch = spec.pop("batch")
    return FunctionRecord(
        name=str(fields["name"]),
        version=str(fields["version"]),
        kind=Kind(fields["kind"]),
        spec=FunctionSpec(batch=Batch(**batch) if batch else None, **spec),
        python=str(fields["python"]),
        packages=tuple(fields["packages"]),  # type: ignore[arg-type]
        bundle_sha256=str(fields["bundle_sha256"]),
        signature=signature,
        sizing=Sizing(**fields["sizing"]),  # type: ignore[arg-type]
    )
