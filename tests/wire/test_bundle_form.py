"""The form of a bundle: a blob whose manifest can be read alone, and whose bytes depend on contents only."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from hasfaas.core.errors import IncompatibleError, InvalidRequestError
from hasfaas.core.fingerprint import Fingerprint
from hasfaas.wire.bundle import Manifest, pack, read_manifest, unpack, zip_files

ARCHIVE = zip_files({"helper.py": b"X = 1\n"})
PICKLE = pickle.dumps([1, 2])
MANIFEST = Manifest(
    name="app.embed",
    version="0123456789abcdef",
    kind="function",
    python="/usr/bin/python3",
    fingerprint=Fingerprint("cpython-311", "a70d0d0a", "3.1.2", (("numpy", "2.4.6"),)),
    archive_sha256=hashlib.sha256(ARCHIVE).hexdigest(),
    pickle_sha256=hashlib.sha256(PICKLE).hexdigest(),
    modules=("helper",),
)
BLOB = pack(MANIFEST, ARCHIVE, PICKLE)


def with_manifest(values: Mapping[str, object]) -> bytes:
    return zip_files({"manifest.json": json.dumps(values).encode(), "modules.zip": ARCHIVE, "function.pickle": PICKLE})


def test_what_is_packed_comes_out() -> None:
    contents = unpack(BLOB)
    assert (contents.manifest, contents.archive, contents.pickle) == (MANIFEST, ARCHIVE, PICKLE)


def test_equal_contents_give_equal_bytes() -> None:
    assert pack(attrs.evolve(MANIFEST), bytes(ARCHIVE), bytes(PICKLE)) == BLOB
    assert zip_files({"b.py": b"2", "a.py": b"1"}) == zip_files({"a.py": b"1", "b.py": b"2"})


def test_a_zip_carries_nothing_of_its_host() -> None:
    with zipfile.ZipFile(io.BytesIO(ARCHIVE)) as made:
        (entry,) = made.infolist()
    assert entry.date_time == (1980, 1, 1, 0, 0, 0)
    assert entry.external_attr >> 16 == 0o100600
    assert (entry.create_system, entry.compress_type) == (3, zipfile.ZIP_STORED)


def test_the_manifest_is_read_without_unpickling() -> None:
    bomb = b"\x80\x04cno_such_module\nboom\n."
    blob = pack(attrs.evolve(MANIFEST, pickle_sha256=hashlib.sha256(bomb).hexdigest()), ARCHIVE, bomb)
    assert read_manifest(blob).name == "app.embed"
    assert unpack(blob).pickle == bomb


def test_a_namespace_package_can_be_imported_from_the_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "modules.zip"
    path.write_bytes(zip_files({"bundle_form_ns/": b"", "bundle_form_ns/part.py": b"X = 5\n"}))
    monkeypatch.syspath_prepend(path)
    assert importlib.import_module("bundle_form_ns.part").X == 5
    for name in ("bundle_form_ns", "bundle_form_ns.part"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("blob", [b"", b"not a zip", BLOB[:-30], zip_files({"other.json": b"{}"})])
def test_what_is_no_bundle_is_refused(blob: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="the bundle is broken") as caught:
        read_manifest(blob)
    assert caught.value.reason == "BAD_BUNDLE"


@pytest.mark.parametrize("part", ["modules.zip", "function.pickle"])
def test_a_part_that_differs_from_its_hash_is_named(part: str) -> None:
    parts = {"manifest.json": MANIFEST.to_json(), "modules.zip": ARCHIVE, "function.pickle": PICKLE} | {part: b"?"}
    with pytest.raises(InvalidRequestError, match=f"{part} differs from the hash"):
        unpack(zip_files(parts))


@pytest.mark.parametrize("part", ["modules.zip", "function.pickle"])
def test_a_missing_part_is_named(part: str) -> None:
    parts = {"manifest.json": MANIFEST.to_json(), "modules.zip": ARCHIVE, "function.pickle": PICKLE}
    del parts[part]
    with pytest.raises(InvalidRequestError, match=part):
        unpack(zip_files(parts))


@pytest.mark.parametrize(
    "field",
    ["name", "version", "kind", "python", "archive_sha256", "pickle_sha256", "modules", "fingerprint"],
)
def test_a_manifest_without_a_field_names_it(field: str) -> None:
    values = json.loads(MANIFEST.to_json())
    del values[field]
    with pytest.raises(InvalidRequestError, match=f"{field}=None"):
        read_manifest(with_manifest(values))


def test_another_format_is_incompatible_and_names_both() -> None:
    values = json.loads(MANIFEST.to_json()) | {"format": 2}
    with pytest.raises(IncompatibleError, match="bundle format 2: this hasfaas reads 1"):
        read_manifest(with_manifest(values))


def test_a_manifest_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="holds a list"):
        read_manifest(zip_files({"manifest.json": b"[]"}))
