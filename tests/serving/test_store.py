from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import attrs
import pytest

from hasfaas.core.errors import NotFoundError
from hasfaas.core.spec import Batch, FunctionSpec, Kind
from hasfaas.serving.ports import FunctionRecord, Sizing, Store
from hasfaas.serving.store import LocalStore

ROOT = Path(__file__).parents[2]
SPEC = FunctionSpec(
    slo_ms=12.5,
    slo_percentile=95.0,
    batch=Batch(4, 2.5),
    memory_bytes=2**31,
    device="sim0",
    min_replicas=1,
    max_replicas=3,
    idempotent=True,
    timeout_s=7.0,
    env={"MODE": "fast"},
    secrets=("API_KEY", "HF_TOKEN"),
)


def record(name: str = "app.f", version: str = "v1", bundle: bytes = b"bundle", **changes: Any) -> FunctionRecord:
    made = FunctionRecord(
        name=name,
        version=version,
        kind=Kind.GENERATOR_CLASS,
        spec=SPEC,
        python="/usr/bin/python3.11",
        packages=("numpy", "torch"),
        bundle_sha256=hashlib.sha256(bundle).hexdigest(),
        signature=b"\x00\xffsigned",
    )
    return attrs.evolve(made, **changes)


class Opened(Store, Protocol):
    """A store that a gateway has opened. `tests/backends/test_shared_store.py` runs many of these tests on another one."""

    def close(self) -> None: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def reopen(folder: Path) -> Iterator[Callable[[], LocalStore]]:
    """Opens the store, as a gateway does that starts anew."""
    opened: list[LocalStore] = []

    def again() -> LocalStore:
        for store in opened:
            store.close()
        opened[:] = [LocalStore(folder)]
        return opened[0]

    yield again
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen: Callable[[], Opened]) -> Opened:
    return reopen()


@pytest.fixture
def kept(folder: Path) -> Callable[[], set[str]]:
    """The bundles that there are."""
    return lambda: bundles(folder)


def bundles(folder: Path) -> set[str]:
    return {path.name for path in (folder / "bundles").iterdir()}


def test_what_was_put_is_there_after_a_restart(store: Opened, reopen: Callable[[], Opened]) -> None:
    store.put(record(), b"bundle")
    again = reopen()
    assert again.get("app.f") == record()
    assert list(again.all()) == [record()]
    assert again.bundle_path(record().bundle_sha256).read_bytes() == b"bundle"


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("batch", [None, Batch(1, 0.0), Batch(4096, 60_000.0)])
def test_every_kind_and_option_is_kept(store: Opened, kind: Kind, batch: Batch | None) -> None:
    made = record(kind=kind, spec=attrs.evolve(SPEC, batch=batch), packages=(), signature=b"")
    store.put(made, b"bundle")
    assert store.get("app.f") == made


def test_nothing_is_there_at_first(store: Opened) -> None:
    assert store.get("app.f") is None
    assert list(store.all()) == []


def test_functions_come_by_name(store: Opened) -> None:
    for name in ("c.f", "a.f", "b.f"):
        store.put(record(name), b"bundle")
    assert [found.name for found in store.all()] == ["a.f", "b.f", "c.f"]


def test_a_later_version_takes_the_name_and_the_former_bundle_stays(store: Opened) -> None:
    """A deployment that fails is taken back, and then the former bundle is needed."""
    store.put(record(), b"bundle")
    later = record(version="v2", bundle=b"other")
    store.put(later, b"other")
    assert list(store.all()) == [later]
    assert store.bundle_path(record().bundle_sha256).exists()


# -- sizing ------------------------------------------------------------------------------------------------------------


def test_what_an_operator_set_is_kept_and_nothing_else_changes(store: Opened, reopen: Callable[[], Opened]) -> None:
    sizing = Sizing(quota_percent=30.0, sm_percent=50.0, replicas=2)
    store.put(record(), b"bundle")
    store.put(record("app.g"), b"bundle")
    store.resize("app.f", sizing)
    again = reopen()
    assert again.get("app.f") == record(sizing=sizing)
    assert again.get("app.g") == record("app.g")


@pytest.mark.parametrize("sizing", [Sizing(), Sizing(quota_percent=0.0), Sizing(replicas=0)])
def test_zero_is_not_the_same_as_nothing(store: Opened, sizing: Sizing) -> None:
    store.put(record(), b"bundle")
    store.resize("app.f", sizing)
    found = store.get("app.f")
    assert found is not None
    assert found.sizing == sizing


def test_what_is_not_there_cannot_be_sized_or_deleted(store: Opened) -> None:
    with pytest.raises(NotFoundError, match=r"'app\.f' is not deployed"):
        store.resize("app.f", Sizing(replicas=1))
    with pytest.raises(NotFoundError, match=r"'app\.f' is not deployed"):
        store.delete("app.f")


# -- bundles -----------------------------------------------------------------------------------------------------------


def test_a_bundle_is_addressed_by_its_content(store: Opened, kept: Callable[[], set[str]]) -> None:
    store.put(record("app.f"), b"bundle")
    store.put(record("app.g"), b"bundle")
    assert kept() == {f"{hashlib.sha256(b'bundle').hexdigest()}.bundle"}


def test_a_bundle_under_another_digest_is_a_bug(store: Opened) -> None:
    with pytest.raises(AssertionError, match="its own digest"):
        store.put(record(), b"another")
    assert store.get("app.f") is None


def test_delete_removes_the_bundles_that_nobody_names_any_more(store: Opened, kept: Callable[[], set[str]]) -> None:
    store.put(record("app.f"), b"bundle")
    store.put(record("app.f", "v2", b"two"), b"two")
    store.put(record("app.g"), b"bundle")
    store.delete("app.f")
    assert store.get("app.f") is None
    assert kept() == {f"{record().bundle_sha256}.bundle"}, "app.g has the same one"
    store.delete("app.g")
    assert kept() == set()


def test_a_version_that_comes_back_with_other_bytes_keeps_its_bundle(store: Opened) -> None:
    """A version is a hash of sources and values; the bytes of its pickle may differ between two processes."""
    store.put(record("app.f", "v1", b"one"), b"one")
    store.put(record("app.f", "v2", b"two"), b"two")
    again = record("app.f", "v1", b"one, pickled elsewhere")
    store.put(again, b"one, pickled elsewhere")
    store.put(record("app.g"), b"bundle")
    store.delete("app.g")
    assert store.get("app.f") == again
    assert store.bundle_path(again.bundle_sha256).read_bytes() == b"one, pickled elsewhere"


def test_half_a_bundle_does_not_count(store: Opened) -> None:
    path = store.bundle_path(record().bundle_sha256)
    path.write_bytes(b"bun")
    store.put(record(), b"bundle")
    assert path.read_bytes() == b"bundle"


def test_a_bundle_appears_whole_or_not_at_all(
    store: Opened, reopen: Callable[[], Opened], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.put(record(), b"bundle")
    assert store.get("app.f") is None
    assert not store.bundle_path(record().bundle_sha256).exists()
    assert len(bundles(folder)) == 1
    reopen()
    assert bundles(folder) == set(), "what was left half written is removed by the next gateway"


def test_the_folders_are_the_users_alone(store: Opened, folder: Path) -> None:
    store.put(record(), b"bundle")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "bundles").stat().st_mode) == 0o700
    assert stat.S_IMODE(store.bundle_path(record().bundle_sha256).stat().st_mode) == 0o600


def test_profiles_belong_to_a_version_and_go_with_the_function(store: Opened, reopen: Callable[[], Opened]) -> None:
    with pytest.raises(NotFoundError):
        store.put_profile("app.f", "v1", "cpu0", "{}")
    store.put(record(), b"bundle")
    store.put_profile("app.f", "v1", "sim0", "first")
    store.put_profile("app.f", "v1", "sim0", "second")
    store.put_profile("app.f", "v1", "cpu0", "other")
    assert store.profiles("app.f", "v2") == {}
    store = reopen()
    assert store.profiles("app.f", "v1") == {"cpu0": "other", "sim0": "second"}
    store.delete("app.f")
    assert store.profiles("app.f", "v1") == {}
    assert reopen().profiles("app.f", "v1") == {}


KILLED = """
import sys; sys.path.insert(0, {tests!r}); sys.path.insert(0, {root!r})
import os, signal
from pathlib import Path
from test_store import LocalStore, record
store = LocalStore(Path({folder!r}))
for number in range(3):
    store.put(record(f"app.f{{number}}"), b"bundle")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_gateway_that_is_killed_leaves_what_it_has_committed(folder: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(ROOT), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = LocalStore(folder)
    assert [found.name for found in store.all()] == ["app.f0", "app.f1", "app.f2"]
    store.close()
