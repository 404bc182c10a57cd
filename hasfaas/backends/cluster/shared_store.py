"""What is deployed on a cluster, kept at `cluster.state_url`: `manifest.json`, and one file per bundle named by its content.

The gateway that opens it owns it: a generation higher than the last, and a fresh owner id in the manifest. Before each write
the manifest is read, and one that names another owner refuses this store for good, so a gateway that was cut off and replaced
changes nothing. Objects never change and are complete before the manifest that names them is written; what a kill leaves
behind are objects that nobody names, and the next opening removes them.

On a file system writers take turns by a lock, and there is no race between reading the manifest and writing it (over a
network as far as its file system locks files between hosts). A store without locks leaves one: a manifest that the old
gateway had read as its own and was just sending when the new one took over arrives later, and hides what the new one has
written in between. Each write there is read back, so whichever was overwritten finds out at its next write or `flush`, and
ends; what it had answered within that one request's time may be lost. Two that open at once end as one in the same way.

Calls read memory alone. `put`, `delete` and `resize` are in the store when they return; profiles wait in memory for `flush`.
All methods may be called from any thread; those that write take turns.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hasfaas.backends.cluster import manifest as manifests
from hasfaas.backends.cluster.manifest import Manifest, bundle_name, profiles_name
from hasfaas.backends.cluster.state_folder import StateFolder, open_folder
from hasfaas.core.errors import AuthError, BackendError, HasFaasError, NotFoundError, UnavailableError
from hasfaas.core.own_file import write_own
from hasfaas.serving.ports import FunctionRecord, Sizing

MANIFEST = "manifest.json"
OBJECTS = "objects"
TAKEN_OVER = "STATE_TAKEN_OVER"
# Of one flush: a deployment that comes meanwhile waits for no more than these.
MOST_FLUSHED = 16
# Of one version: nodes come and go, and each brings devices of new names.
KEPT_DEVICES = 256
log = logging.getLogger("hasfaas.state")


class SharedStore:
    """A store that outlives the node that it runs on. `cache` is a folder of this node, made with mode 0700.

    `on_lost` is told once, in whatever thread found out, that another gateway has taken over: this process should end.
    """

    def __init__(self, url: str, cache: Path, *, on_lost: Callable[[UnavailableError], None] | None = None) -> None:
        """Takes over. Raises InvalidRequestError for a URL that cannot be, BackendError (STATE_DAMAGED, STATE_FORMAT) for a
        manifest that cannot be read, UnavailableError."""
        self._folder = open_folder(url)
        self._cache = cache
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        cache.chmod(0o700)
        self._on_lost = on_lost
        self._lost: UnavailableError | None = None
        self._turn = threading.RLock()  # held by whoever writes, for as long as that takes
        self._memory = threading.Lock()  # held for microseconds
        self._profiles: dict[tuple[str, str], dict[str, str]] = {}
        self._unsaved: dict[tuple[str, str], None] = {}
        self._verified: set[str] = set()
        with self._turn, self._folder.alone():
            self._manifest = _stored(self._folder).owned_by(secrets.token_hex(16))
            self._text = manifests.write(self._manifest)
            self._folder.write(MANIFEST, self._text)
            self._sweep()

    @property
    def generation(self) -> int:
        """How many times this state has been opened."""
        return self._manifest.generation

    @property
    def lost(self) -> UnavailableError | None:
        """Why nothing is written any more, once another gateway has taken over."""
        return self._lost

    def close(self) -> None:
        """Writes what waits, unless that is another's to write now. Raises UnavailableError when it could not."""
        try:
            while self._unsaved:
                self.flush()
        except UnavailableError:
            if self._lost is None:
                raise

    # -- Store -------------------------------------------------------------------------------------------------------

    async def commit(self, change: Callable[[], None]) -> None:
        """In a thread: the store may be far away, and nodes wait for signs of life meanwhile."""
        await asyncio.to_thread(change)

    def put(self, record: FunctionRecord, bundle: bytes) -> None:
        """Remembers a function under its name, in place of what had that name."""
        assert hashlib.sha256(bundle).hexdigest() == record.bundle_sha256, "a bundle is stored under its own digest"
        name = bundle_name(record.bundle_sha256)
        write_own(self._cache / name, bundle)
        self._verified.add(record.bundle_sha256)
        self._commit(lambda before: before.put(record), {name: bundle})
        self._forget()

    def get(self, name: str) -> FunctionRecord | None:
        """The function of that name, None when there is none."""
        entry = self._manifest.functions.get(name)
        return entry.record if entry else None

    def all(self) -> Sequence[FunctionRecord]:
        """All functions, by name."""
        functions = self._manifest.functions
        return [functions[name].record for name in sorted(functions)]

    def delete(self, name: str) -> None:
        """Forgets a function and removes objects that nothing names any more. NotFoundError when there is none."""
        self._commit(lambda before: before.delete(name))
        self._forget()

    def resize(self, name: str, sizing: Sizing) -> None:
        """Remembers what an operator set by hand."""
        self._commit(lambda before: before.resize(name, sizing))

    def put_profile(self, name: str, version: str, device_id: str, profile: str) -> None:
        """Remembers a profile of a deployed function, for the next flush to write. NotFoundError when there is no such
        version any more."""
        self._manifest.entry(name)
        if self._manifest.version(name, version) is None:
            raise NotFoundError(f"function {name!r} has no version {version!r} here", reason="VERSION_NOT_FOUND")
        known = self.profiles(name, version)
        known.pop(device_id, None)
        kept = [*known.items(), (device_id, profile)][-KEPT_DEVICES:]
        with self._memory:
            self._profiles[name, version] = dict(kept)
            self._unsaved[name, version] = None

    def profiles(self, name: str, version: str) -> dict[str, str]:
        """The profiles of a version, by device: empty for one that nobody has measured."""
        with self._memory:
            if (name, version) in self._profiles:
                return dict(self._profiles[name, version])
        kept = self._manifest.version(name, version)
        if kept is None:
            return {}
        found = self._read_profiles(kept.profiles_sha256) if kept.profiles_sha256 else {}
        with self._memory:
            return dict(self._profiles.setdefault((name, version), found))

    def bundle_path(self, sha256: str) -> Path:
        """The bundle as a file of this node, fetched when it is not there. Raises AuthError when its content is not what its
        name says, NotFoundError when it is not in the store."""
        path = self._cache / bundle_name(sha256)
        if sha256 in self._verified and path.exists():
            return path
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            write_own(path, self._object(bundle_name(sha256)))
        self._verified.add(sha256)
        return path

    # -- beyond the port ---------------------------------------------------------------------------------------------
    def flush(self) -> None:
        """Writes profiles that wait, a bounded number of them, and sees whether this store is still the owner.

        For every few seconds, in a thread. Raises UnavailableError: STATE_TAKEN_OVER, or STATE_UNAVAILABLE and they wait on.
        """
        with self._turn:
            with self._memory:
                keys = list(self._unsaved)[:MOST_FLUSHED]
                texts = {key: json.dumps(self._profiles[key]).encode() for key in keys}
                for key in keys:
                    del self._unsaved[key]
            try:
                if not self._save(texts):
                    self._check()
            except BaseException:
                with self._memory:
                    self._unsaved |= {key: None for key in keys if key in self._profiles}
                raise

    def prefetch(self) -> None:
        """Fetches the bundles and profiles of all functions, so that starting one waits for this node's disk alone. What
        cannot be fetched is logged: whoever needs it is told then."""
        for record in self.all():
            try:
                self.bundle_path(record.bundle_sha256)
                self.profiles(record.name, record.version)
            except HasFaasError as exc:
                log.warning("%s: %s", record.name, exc)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drops profiles of versions that are not kept any more."""
        with self._memory:
            for key in [key for key in self._profiles if self._manifest.version(*key) is None]:
                del self._profiles[key]
                self._unsaved.pop(key, None)

    def _stand(self) -> None:
        if self._lost is not None:  # a new one each time: what is raised twice collects the frames of both
            raise UnavailableError(self._lost.message, reason=self._lost.reason)

    def _save(self, texts: Mapping[tuple[str, str], bytes]) -> bool:
        """Whether there was anything to write."""
        after, objects = self._manifest, {}
        for (name, version), text in texts.items():
            if after.version(name, version) is not None:
                sha256 = hashlib.sha256(text).hexdigest()
                after, objects[profiles_name(sha256)] = after.profiled(name, version, sha256), text
        if after == self._manifest:
            return False
        self._commit(lambda _before: after, objects)
        return True

    def _commit(self, change: Callable[[Manifest], Manifest], objects: Mapping[str, bytes] | None = None) -> None:
        with self._turn:
            self._stand()
            before = self._manifest
            after = change(before)
            text = manifests.write(after)
            with self._folder.alone():
                for name, content in (objects or {}).items():
                    self._folder.write(f"{OBJECTS}/{name}", content)
                self._check()
                self._folder.write(MANIFEST, text)
                if not self._folder.exclusive:
                    self._check(text)
                self._manifest, self._text = after, text
                self._remove(before.objects - after.objects)

    def _check(self, text: bytes | None = None) -> None:
        """Raises UnavailableError unless the manifest in the store is this store's."""
        self._stand()
        content = self._folder.read(MANIFEST)
        if content == (text or self._text):
            return
        if content is None:
            raise BackendError(
                f"{self._folder.url}/{MANIFEST} is gone: put a copy back; nothing is written before",
                reason="STATE_DAMAGED",
            )
        found, mine = manifests.read(content, self._folder.url), self._manifest
        if found.owner == mine.owner:
            return  # a write that we took for failed and that was not
        self._lost = UnavailableError(
            f"{self._folder.url} is another gateway's now (generation {found.generation}, opened by this one as "
            f"{mine.generation}): this one changes nothing any more and has to end",
            reason=TAKEN_OVER,
        )
        if self._on_lost is not None:
            self._on_lost(self._lost)
        raise self._lost

    def _sweep(self) -> None:
        """Removes what former gateways left that nobody names. It lists, then checks: so nothing of a later owner's goes."""
        stray = set(self._folder.names(OBJECTS)) - self._manifest.objects
        halves = [name for name in self._folder.names("") if name.startswith(f".{MANIFEST}.")]
        self._check()
        self._remove(stray)
        for name in halves:
            self._folder.remove(name)
        for path in self._cache.iterdir():
            if path.name not in self._manifest.objects:
                path.unlink()

    def _remove(self, names: frozenset[str] | set[str]) -> None:
        for name in names:
            (self._cache / name).unlink(missing_ok=True)
            try:
                self._folder.remove(f"{OBJECTS}/{name}")
            except UnavailableError as exc:
                log.warning("%s; the next gateway removes it", exc)  # nothing names it any more: that was committed

    def _read_profiles(self, sha256: str) -> dict[str, str]:
        try:
            profiles: dict[str, str] = json.loads(self._object(profiles_name(sha256)))
        except (AuthError, NotFoundError) as exc:
            log.error("profiles are lost, and will be measured again: %s", exc)
            return {}
        return profiles

    def _object(self, name: str) -> bytes:
        content = self._folder.read(f"{OBJECTS}/{name}")
        where = f"{self._folder.url}/{OBJECTS}/{name}"
        if content is None:
            raise NotFoundError(f"{where} is missing: deploy the function again", reason="OBJECT_NOT_FOUND")
        if hashlib.sha256(content).hexdigest() != name.partition(".")[0]:
            raise AuthError(
                f"{where} is not what its name says, somebody has changed it: see who may write there, and deploy again"
            )
        return content


def _stored(folder: StateFolder) -> Manifest:
    content = folder.read(MANIFEST)
    if content is not None:
        return manifests.read(content, folder.url)
    if folder.names(OBJECTS):
        raise BackendError(
            f"{folder.url} has objects and no {MANIFEST}: put a copy of that back, or name another cluster.state_url; "
            "nothing was changed",
            reason="STATE_DAMAGED",
        )
    return Manifest()
