"""The state of a cluster: what any store does, and what only one does that gateways take from each other."""

from __future__ import annotations

import hashlib
import json
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import fsspec  # type: ignore[import-untyped]
import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from hasfaas.backends.cluster import manifest as manifests
from hasfaas.backends.cluster import state_folder
from hasfaas.backends.cluster.shared_store import KEPT_DEVICES, MOST_FLUSHED, SharedStore
from hasfaas.core.errors import (
    AuthError,
    BackendError,
    HasFaasError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from hasfaas.serving.ports import Sizing
from tests.serving.test_store import (  # noqa: F401 - run here again, on the fixtures below
    record,
    test_a_bundle_is_addressed_by_its_content,
    test_a_bundle_under_another_digest_is_a_bug,
    test_a_later_version_takes_the_name_and_the_former_bundle_stays,
    test_a_version_that_comes_back_with_other_bytes_keeps_its_bundle,
    test_delete_removes_the_bundles_that_nobody_names_any_more,
    test_every_kind_and_option_is_kept,
    test_functions_come_by_name,
    test_nothing_is_there_at_first,
    test_profiles_belong_to_a_version_and_go_with_the_function,
    test_what_an_operator_set_is_kept_and_nothing_else_changes,
    test_what_is_not_there_cannot_be_sized_or_deleted,
    test_what_was_put_is_there_after_a_restart,
    test_zero_is_not_the_same_as_nothing,
)

ROOT = Path(__file__).parents[2]
SHA = record().bundle_sha256


@attrs.frozen
class Site:
    """A state folder, and nodes with a cache each that open it."""

    url: str
    folder: Path

    def open(self, node: str = "a", **options: Any) -> SharedStore:
        return SharedStore(self.url, self.cache(node), **options)

    def cache(self, node: str = "a") -> Path:
        return self.folder / "nodes" / node

    @property
    def files(self) -> state_folder.StateFolder:
        return state_folder.open_folder(self.url)

    def objects(self) -> set[str]:
        return set(self.files.names("objects"))


class Moving(MemoryFileSystem):  # type: ignore[misc]
    """A store that is no object store: files are written in place, and moved."""

    protocol = "moving"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("moving://")))


fsspec.register_implementation("moving", Moving, clobber=True)


@pytest.fixture(params=["file", "memory"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    yield from sites(request.param, tmp_path)


@pytest.fixture(params=["file", "memory", "moving"])
def any_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    yield from sites(request.param, tmp_path)


def sites(scheme: str, folder: Path) -> Iterator[Site]:
    if scheme == "file":
        yield Site(f"file://{folder}/state", folder)
        return
    yield Site(f"{scheme}://{folder.name}/state", folder)
    for filesystem in (MemoryFileSystem, Moving):
        filesystem.store.clear()
        filesystem.pseudo_dirs[:] = [""]


@pytest.fixture
def reopen(site: Site) -> Iterator[Callable[[], SharedStore]]:
    """Opens the store, as a gateway does that starts anew on another node, where no bundle is yet."""
    opened: list[SharedStore] = []

    def again() -> SharedStore:
        for store in opened:
            store.close()
        opened[:] = [site.open(f"{len(list(site.folder.glob('nodes/*')))}")]
        return opened[0]

    yield again
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen: Callable[[], SharedStore]) -> SharedStore:
    return reopen()


@pytest.fixture
def kept(site: Site) -> Callable[[], set[str]]:
    return site.objects


# -- owners ------------------------------------------------------------------------------------------------------------


def test_each_opening_is_a_generation_and_has_what_the_last_one_had(site: Site) -> None:
    first = site.open()
    first.put(record(), b"bundle")
    first.close()
    second = site.open("b")
    assert (first.generation, second.generation) == (1, 2)
    assert second.get("app.f") == record()
    assert second.bundle_path(SHA).read_bytes() == b"bundle"


WRITES: dict[str, Callable[[SharedStore], None]] = {
    "put": lambda store: store.put(record("app.g", bundle=b"late"), b"late"),
    "delete": lambda store: store.delete("app.f"),
    "resize": lambda store: store.resize("app.f", Sizing(replicas=3)),
    "flush": lambda store: store.flush(),
}


@pytest.mark.parametrize("write", WRITES)
def test_an_owner_that_was_replaced_writes_nothing_and_says_so_for_good(site: Site, write: str) -> None:
    told: list[UnavailableError] = []
    old = site.open("old", on_lost=told.append)
    old.put(record(), b"bundle")
    old.put_profile("app.f", "v1", "sim0", "late")
    new = site.open("new")
    before = site.files.read("manifest.json")
    assert old.lost is None
    for _ in range(2):
        with pytest.raises(UnavailableError, match="generation 2, opened by this one as 1") as caught:
            WRITES[write](old)
        assert caught.value.reason == "STATE_TAKEN_OVER"
    assert site.files.read("manifest.json") == before
    assert [error.reason for error in told] == ["STATE_TAKEN_OVER"]
    assert old.lost is told[0]
    assert old.get("app.f") == record(), "calls that it still has end as they began"
    old.close()
    assert new.profiles("app.f", "v1") == {}
    new.put(record("app.h"), b"bundle")
    new.flush()


def test_of_two_that_open_at_once_one_owns_it(site: Site) -> None:
    opened: list[SharedStore] = []
    start = threading.Barrier(4)

    def run(node: str) -> None:
        start.wait()
        try:
            opened.append(site.open(node))
        except UnavailableError as exc:
            assert exc.reason == "STATE_TAKEN_OVER"

    threads = [threading.Thread(target=run, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owners = [store for store in opened if writes(store)]
    assert len(owners) == 1
    if site.files.exclusive:
        assert sorted(store.generation for store in opened) == [1, 2, 3, 4]


def writes(store: SharedStore) -> bool:
    try:
        store.put(record(), b"bundle")
    except UnavailableError:
        return False
    return True


def test_with_a_lock_nothing_that_was_answered_is_lost_however_often_it_changes_hands(tmp_path: Path) -> None:
    site = Site(f"file://{tmp_path}/state", tmp_path)
    done: set[str] = set()
    other: list[Exception] = []

    def run(node: str) -> None:
        for number in range(6):
            try:
                site.open(node).put(record(f"app.{node}{number}"), b"bundle")
                done.add(f"app.{node}{number}")
            except UnavailableError as exc:
                if exc.reason != "STATE_TAKEN_OVER":
                    other.append(exc)

    threads = [threading.Thread(target=run, args=(node,)) for node in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = site.open("last")
    assert other == []
    assert {found.name for found in last.all()} == done
    assert site.objects() == {f"{SHA}.bundle"}
    assert last.generation == 19


def test_an_owner_whose_manifest_an_old_write_has_replaced_ends_too(site: Site) -> None:
    """The race that stores without locks leave: it is found out at the next write."""
    old = site.open("old")
    sent = site.files.read("manifest.json")
    assert sent is not None
    new = site.open("new")
    site.files.write("manifest.json", sent)
    with pytest.raises(UnavailableError, match="generation 1, opened by this one as 2"):
        new.put(record(), b"bundle")
    old.put(record(), b"bundle")


@pytest.fixture
def unlocked(tmp_path: Path) -> Iterator[Site]:
    yield from sites("memory", tmp_path)


def test_without_locks_a_write_is_read_back_before_anything_is_removed(
    unlocked: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = unlocked.open("old")
    old.put(record(), b"bundle")
    sent = unlocked.files.read("manifest.json")
    assert sent is not None
    taken = manifests.write(manifests.read(sent, unlocked.url).owned_by("new"))
    write = old._folder.write

    def overtaken(name: str, content: bytes) -> None:
        write(name, content)
        write(name, taken)

    monkeypatch.setattr(old._folder, "write", overtaken)
    with pytest.raises(UnavailableError) as caught:
        old.delete("app.f")
    assert caught.value.reason == "STATE_TAKEN_OVER"
    assert unlocked.objects() == {f"{SHA}.bundle"}
    assert old.get("app.f") == record()


def test_without_locks_an_opening_that_is_overtaken_removes_nothing(
    unlocked: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = state_folder.RemoteFolder.names

    def overtaken(self: state_folder.RemoteFolder, folder: str) -> list[str]:
        if folder == "objects" and self.read("manifest.json") is not None:
            monkeypatch.undo()
            unlocked.open("new").put(record(), b"bundle")
        return names(self, folder)

    monkeypatch.setattr(state_folder.RemoteFolder, "names", overtaken)
    with pytest.raises(UnavailableError) as caught:
        unlocked.open("old")
    assert caught.value.reason == "STATE_TAKEN_OVER"
    assert unlocked.open("last").bundle_path(SHA).read_bytes() == b"bundle"


def test_a_write_that_was_taken_for_failed_does_not_lose_the_store(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    store = site.open()
    files = store._folder
    write = files.write

    def late(name: str, content: bytes) -> None:
        write(name, content)
        if name == "manifest.json":
            raise UnavailableError("timed out", reason="STATE_UNAVAILABLE")

    monkeypatch.setattr(files, "write", late)
    with pytest.raises(UnavailableError, match="timed out"):
        store.put(record(), b"bundle")
    assert store.get("app.f") is None
    monkeypatch.undo()
    store.put(record("app.g"), b"bundle")
    assert [found.name for found in site.open("b").all()] == ["app.g"]


# -- kills -------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing after this runs in the process that it stands for."""


class Killing:
    """A state folder that dies at the n-th write or removal: before it or, with `after`, when it is done."""

    def __init__(self, inner: state_folder.StateFolder, steps: int, *, after: bool) -> None:
        self._inner, self.left, self._after = inner, steps, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, name: str, content: bytes) -> None:
        self._step(lambda: self._inner.write(name, content))

    def remove(self, name: str) -> None:
        self._step(lambda: self._inner.remove(name))

    def _step(self, do: Callable[[], None]) -> None:
        self.left -= 1
        if self.left == 0 and not self._after:
            raise Killed
        if self.left >= 0:
            do()
        if self.left <= 0:
            raise Killed


CHANGES: dict[str, Callable[[SharedStore], None]] = {
    "first": lambda store: store.put(record("app.new", bundle=b"new"), b"new"),
    "again": lambda store: store.put(record(version="v2", bundle=b"two"), b"two"),
    "delete": lambda store: store.delete("app.f"),
    "resize": lambda store: store.resize("app.f", Sizing(replicas=3)),
    "profile": lambda store: profiled(store),
}


def profiled(store: SharedStore) -> None:
    store.put_profile("app.f", "v1", "sim0", "later")
    store.flush()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_any_step_it_leaves_what_was_committed(any_site: Site, change: str, after: bool) -> None:
    site = any_site
    first = site.open("first")
    first.put(record(), b"bundle")
    first.put(record("app.g", bundle=b"g"), b"g")
    first.put_profile("app.f", "v1", "sim0", "former")
    first.close()
    files = {name: site.files.read(name) for name in ("manifest.json", *(f"objects/{o}" for o in site.objects()))}
    CHANGES[change](first)
    outcomes = [seen(site.open("now")), seen_in(site, files)]
    for steps in range(1, 10):
        restore(site, files)
        store = site.open(f"{steps}")
        store._folder = Killing(store._folder, steps, after=after)
        try:
            CHANGES[change](store)
        except Killed:
            found = site.open(f"{steps}b")
            assert seen(found) in outcomes
            assert site.objects() == found._manifest.objects, "nothing that is named is missing, nothing else is left"
        else:
            assert seen(site.open("done")) == outcomes[0] != outcomes[1]
            assert steps > 1, "it was killed at least once"
            return
    pytest.fail("it never came to its end")


def restore(site: Site, files: dict[str, bytes | None]) -> None:
    for name in site.objects():
        site.files.remove(f"objects/{name}")
    for name, content in files.items():
        assert content is not None
        site.files.write(name, content)


def seen_in(site: Site, files: dict[str, bytes | None]) -> list[object]:
    restore(site, files)
    return seen(site.open("restored"))


def seen(store: SharedStore) -> list[object]:
    return [
        (found, store.bundle_path(found.bundle_sha256).read_bytes(), store.profiles(found.name, found.version))
        for found in store.all()
    ]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from hasfaas.backends.cluster.shared_store import SharedStore
from tests.serving.test_store import record
store = SharedStore({url!r}, Path({cache!r}))
for number in range(3):
    store.put(record(f"app.f{{number}}"), b"bundle")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_gateway_that_is_killed_leaves_what_it_has_deployed(tmp_path: Path) -> None:
    site = Site(f"file://{tmp_path}/state", tmp_path)
    code = KILLED.format(root=str(ROOT), url=site.url, cache=str(site.cache()))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [found.name for found in site.open("b").all()] == ["app.f0", "app.f1", "app.f2"]


def test_the_next_gateway_removes_what_was_left_half_written(tmp_path: Path) -> None:
    site = Site(f"file://{tmp_path}/state", tmp_path)
    site.open().put(record(), b"bundle")
    halves = [tmp_path / "state" / name for name in (".manifest.json.12ab", "objects/.1f.bundle.34cd")]
    for half in (*halves, site.cache("b") / ".1f.bundle.56ef"):
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(b"ha")
    site.open("b")
    assert not any(half.exists() for half in halves)
    assert list(site.cache("b").iterdir()) == []
    assert site.objects() == {f"{SHA}.bundle"}


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (b"", "STATE_DAMAGED"),
        (b"[]", "STATE_DAMAGED"),
        (b"7", "STATE_DAMAGED"),
        (b"half", "STATE_DAMAGED"),
        (b'{"format":1,"generation":3,"owner":"x","functions":{"a":{}}}', "STATE_DAMAGED"),
        (b'{"format":1,"generation":3,"owner":"x","functions":{},"more":1}', "STATE_DAMAGED"),
        (b'{"format":2,"generation":3}', "STATE_FORMAT"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named_and_kept(site: Site, damage: bytes, reason: str) -> None:
    store = site.open()
    store.put(record(), b"bundle")
    if damage == b"half":
        damage = manifests.write(store._manifest)[:-20]
    site.files.write("manifest.json", damage)
    for attempt in (lambda: site.open("b"), lambda: store.put(record("app.g"), b"bundle"), store.flush):
        with pytest.raises(BackendError, match=f"{site.url}/manifest.json") as caught:
            attempt()
        assert caught.value.reason == reason
    assert site.files.read("manifest.json") == damage
    assert site.objects() == {f"{SHA}.bundle"}


def test_a_manifest_that_is_gone_is_not_made_anew_over_its_objects(site: Site) -> None:
    store = site.open()
    store.put(record(), b"bundle")
    site.files.remove("manifest.json")
    for attempt in (lambda: site.open("b"), lambda: store.resize("app.f", Sizing(replicas=1)), store.flush):
        with pytest.raises(BackendError, match=site.url) as caught:
            attempt()
        assert caught.value.reason == "STATE_DAMAGED"
    assert site.files.read("manifest.json") is None
    assert site.objects() == {f"{SHA}.bundle"}


def test_an_object_that_somebody_changed_is_refused_until_it_is_deployed_again(site: Site) -> None:
    site.open().put(record(), b"bundle")
    site.files.write(f"objects/{SHA}.bundle", b"other!")
    store = site.open("b")
    with pytest.raises(AuthError, match="not what its name says"):
        store.bundle_path(SHA)
    assert list(site.cache("b").iterdir()) == []
    store.put(record(), b"bundle")
    assert site.open("c").bundle_path(SHA).read_bytes() == b"bundle"


def test_an_object_that_is_missing_is_named(site: Site) -> None:
    site.open().put(record(), b"bundle")
    site.files.remove(f"objects/{SHA}.bundle")
    with pytest.raises(NotFoundError, match=f"{SHA}.bundle is missing: deploy"):
        site.open("b").bundle_path(SHA)


def test_profiles_that_somebody_changed_are_none(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    store = site.open()
    store.put(record(), b"bundle")
    store.put_profile("app.f", "v1", "sim0", "{}")
    store.close()
    (name,) = (name for name in site.objects() if name.endswith(".profiles"))
    site.files.write(f"objects/{name}", b"{}")
    again = site.open("b")
    assert again.profiles("app.f", "v1") == {}
    assert "measured again" in caplog.text
    again.put_profile("app.f", "v1", "sim1", "new")
    again.close()
    assert site.open("c").profiles("app.f", "v1") == {"sim1": "new"}


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_bundle_is_fetched_once_and_a_damaged_copy_again(site: Site) -> None:
    site.open().put(record(), b"bundle")
    path = site.open("b").bundle_path(SHA)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"bun")
    assert site.open("b").bundle_path(SHA).read_bytes() == b"bundle"
    store = site.open("b")
    site.files.remove(f"objects/{SHA}.bundle")
    assert store.bundle_path(SHA).read_bytes() == b"bundle", "it is here"


def test_all_is_fetched_ahead_and_what_cannot_be_is_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    first = site.open()
    first.put(record(), b"bundle")
    first.put(record("app.g", bundle=b"g"), b"g")
    site.files.remove(f"objects/{record(bundle=b'g').bundle_sha256}.bundle")
    store = site.open("b")
    store.prefetch()
    assert [path.name for path in site.cache("b").iterdir()] == [f"{SHA}.bundle"]
    assert "app.g: " in caplog.text


# -- what is bounded ---------------------------------------------------------------------------------------------------


def test_of_many_versions_the_last_are_kept(site: Site) -> None:
    store = site.open()
    for number in range(12):
        bundle = b"%d" % number
        store.put(record(version=f"v{number}", bundle=bundle), bundle)
        store.put_profile("app.f", f"v{number}", "sim0", f"{number}")
    store.close()
    assert len(site.objects()) == 2 * manifests.KEPT_VERSIONS
    assert store.profiles("app.f", "v3") == {}
    assert store.profiles("app.f", "v4") == {"sim0": "4"}
    with pytest.raises(NotFoundError, match="no version 'v3'"):
        store.put_profile("app.f", "v3", "sim0", "late")
    assert site.open("b").get("app.f") == record(version="v11", bundle=b"11")


def test_a_flush_writes_a_bounded_number_and_close_the_rest(site: Site) -> None:
    store = site.open()
    for number in range(MOST_FLUSHED + 3):
        store.put(record(f"app.f{number:02}"), b"bundle")
        store.put_profile(f"app.f{number:02}", "v1", "sim0", f"{number}")
    store.flush()
    saved = [name for name in site.objects() if name.endswith(".profiles")]
    assert len(saved) == MOST_FLUSHED
    store.close()
    again = site.open("b")
    for number in range(MOST_FLUSHED + 3):
        assert again.profiles(f"app.f{number:02}", "v1") == {"sim0": f"{number}"}


def test_devices_that_come_and_go_do_not_pile_up(site: Site) -> None:
    store = site.open()
    store.put(record(), b"bundle")
    for number in range(KEPT_DEVICES + 2):
        store.put_profile("app.f", "v1", f"n{number}/sim0", "{}")
    assert len(store.profiles("app.f", "v1")) == KEPT_DEVICES
    assert "n1/sim0" not in store.profiles("app.f", "v1")


def test_profiles_wait_while_the_store_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    store = site.open()
    store.put(record(), b"bundle")
    store.put_profile("app.f", "v1", "sim0", "kept")

    def away(*_args: object) -> None:
        raise UnavailableError("away", reason="STATE_UNAVAILABLE")

    monkeypatch.setattr(store._folder, "write", away)
    for attempt in (store.flush, store.close):
        with pytest.raises(UnavailableError, match="away"):
            attempt()
    with pytest.raises(UnavailableError, match="away"):
        store.resize("app.f", Sizing(replicas=2))
    assert store.get("app.f") == record(), "what could not be written does not count"
    monkeypatch.undo()
    store.close()
    assert site.open("b").profiles("app.f", "v1") == {"sim0": "kept"}


def test_deploys_and_flushes_from_several_threads_lose_nothing(site: Site) -> None:
    store = site.open()
    names = [f"app.f{number}" for number in range(12)]

    def deploy(mine: list[str]) -> None:
        for name in mine:
            store.put(record(name), b"bundle")
            store.put_profile(name, "v1", "sim0", name)

    threads = [threading.Thread(target=deploy, args=(names[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        store.flush()
    store.close()
    again = site.open("b")
    assert {name: again.profiles(name, "v1") for name in names} == {name: {"sim0": name} for name in names}


def test_the_manifest_holds_names_of_objects_and_no_content(site: Site) -> None:
    store = site.open()
    store.put(record(), b"bundle")
    store.put_profile("app.f", "v1", "sim0", "a long profile")
    store.flush()
    text = site.files.read("manifest.json")
    assert text is not None
    assert b"long profile" not in text
    table = json.loads(text)
    assert (table["format"], table["generation"]) == (1, 1)
    (version,) = table["functions"]["app.f"]["versions"]
    stored = site.files.read(f"objects/{version['profiles_sha256']}.profiles")
    assert stored is not None
    assert hashlib.sha256(stored).hexdigest() == version["profiles_sha256"]


# -- URLs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nosuch://bucket/x", "fsspec knows no such store"),
        ("shared/x", "give one URL"),
        ("file://shared/x", "absolute path"),
        ("simplecache::memory://x", "without caches"),
    ],
)
def test_a_url_that_cannot_be_is_refused(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        SharedStore(url, tmp_path / "cache")
    assert "cluster.state_url" in caught.value.message
    assert not (tmp_path / "cache").exists()


def test_a_store_whose_package_is_not_installed_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"elsewhere": {"class": "no_such_package.Store", "err": "Install no_such_package to use it"}}
    monkeypatch.setattr(sys.modules["fsspec.registry"], "known_implementations", known)
    with pytest.raises(
        InvalidRequestError, match=r"package .* missing here and on every node: Install no_such_package"
    ):
        SharedStore("elsewhere://user:secret@host/x", tmp_path)


def test_without_fsspec_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'hasfaas\[cluster\]'") as caught:
        SharedStore("s3://user:secret@bucket/x", tmp_path)
    assert "secret" not in caught.value.message
    SharedStore(f"file://{tmp_path}/state", tmp_path / "cache")


def test_what_a_store_raises_is_one_error_of_ours(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    if site.files.exclusive:
        (site.folder / "state").write_text("a file where the folder should be")
    else:

        def broken(*_args: object) -> None:
            raise FileNotFoundError("no such bucket")

        monkeypatch.setattr(MemoryFileSystem, "pipe_file", broken)
    with pytest.raises(HasFaasError, match=site.url) as caught:
        site.open()
    assert caught.value.reason == "STATE_UNAVAILABLE"
