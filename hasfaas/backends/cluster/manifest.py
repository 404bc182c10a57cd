"""What is deployed on a cluster, as one value and as the text of `manifest.json`: who owns it, and which objects it names.

Pure. It stays small: of each function the last few versions, of each version the names of two objects (its bundle, and its
profiles), and no content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property

import attrs
from cattrs.preconf.json import make_converter

from hasfaas.core.errors import BackendError, NotFoundError
from hasfaas.serving.ports import FunctionRecord, Sizing

FORMAT = 1
# A deployment that fails needs the version before it; older ones are for people who look back.
KEPT_VERSIONS = 8

_converter = make_converter(forbid_extra_keys=True)


@attrs.frozen
class Version:
    """One version of a function, and its objects by their digests. `profiles_sha256` is empty for one never measured."""

    version: str
    bundle_sha256: str
    profiles_sha256: str = ""


@attrs.frozen
class Entry:
    """A function as it serves, and its versions, the latest deployed last."""

    record: FunctionRecord
    versions: tuple[Version, ...]

    @cached_property
    def text(self) -> str:
        """It as JSON, made once: of thousands a write changes one."""
        return json.dumps(_converter.unstructure(self), separators=(",", ":"))


@attrs.frozen
class Manifest:
    """Everything that is deployed. Each gateway that opens it owns it from then on, as the next generation."""

    generation: int = 0
    owner: str = ""
    functions: Mapping[str, Entry] = attrs.field(factory=dict, hash=False)

    @property
    def objects(self) -> frozenset[str]:
        """The names of the objects that it needs."""
        versions = [version for entry in self.functions.values() for version in entry.versions]
        profiles = {profiles_name(v.profiles_sha256) for v in versions if v.profiles_sha256}
        return frozenset({bundle_name(v.bundle_sha256) for v in versions} | profiles)

    def entry(self, name: str) -> Entry:
        """NotFoundError when there is none."""
        if name not in self.functions:
            raise NotFoundError(f"function {name!r} is not deployed")
        return self.functions[name]

    def version(self, name: str, version: str) -> Version | None:
        """That version of a function, if it is kept."""
        entry = self.functions.get(name)
        return next((v for v in entry.versions if v.version == version), None) if entry else None

    def owned_by(self, owner: str) -> Manifest:
        """The same, taken over."""
        return attrs.evolve(self, generation=self.generation + 1, owner=owner)

    def put(self, record: FunctionRecord) -> Manifest:
        """With a function under its name, in place of what had that name."""
        entry = self.functions.get(record.name)
        others = [v for v in entry.versions if v.version != record.version] if entry else []
        # A version that is deployed again may have another bundle: a pickle's bytes differ between processes.
        again = self.version(record.name, record.version) or Version(record.version, "")
        latest = attrs.evolve(again, bundle_sha256=record.bundle_sha256)
        return self._with(Entry(record, (*others, latest)[-KEPT_VERSIONS:]))

    def delete(self, name: str) -> Manifest:
        """Without a function."""
        self.entry(name)
        return attrs.evolve(self, functions={other: e for other, e in self.functions.items() if other != name})

    def resize(self, name: str, sizing: Sizing) -> Manifest:
        """With what an operator has set."""
        entry = self.entry(name)
        return self._with(attrs.evolve(entry, record=attrs.evolve(entry.record, sizing=sizing)))

    def profiled(self, name: str, version: str, sha256: str) -> Manifest:
        """With other profiles of a version."""
        entry = self.entry(name)
        versions = tuple(attrs.evolve(v, profiles_sha256=sha256) if v.version == version else v for v in entry.versions)
        return self._with(attrs.evolve(entry, versions=versions))

    def _with(self, entry: Entry) -> Manifest:
        return attrs.evolve(self, functions={**self.functions, entry.record.name: entry})


def bundle_name(sha256: str) -> str:
    """The file of a bundle."""
    return f"{sha256}.bundle"


def profiles_name(sha256: str) -> str:
    """The file of a version's profiles: JSON, by device."""
    return f"{sha256}.profiles"


def write(manifest: Manifest) -> bytes:
    """The text."""
    head = json.dumps(
        {"format": FORMAT, "generation": manifest.generation, "owner": manifest.owner}, separators=(",", ":")
    )
    entries = ",".join(f"{json.dumps(name)}:{entry.text}" for name, entry in manifest.functions.items())
    return f'{head[:-1]},"functions":{{{entries}}}}}'.encode()


def read(content: bytes, url: str) -> Manifest:
    """The manifest back. Raises BackendError that names `url`: STATE_FORMAT for another format's, STATE_DAMAGED."""
    try:
        table = json.loads(content)
        found = table.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as exc:
        raise _damaged(url, exc) from exc
    if found != FORMAT:
        raise BackendError(
            f"{url}/manifest.json has format {found!r}, and this hasfaas reads {FORMAT}: start the cluster with the hasfaas "
            "that wrote it, or name another cluster.state_url; nothing was changed",
            reason="STATE_FORMAT",
        )
    try:
        return _converter.structure(table, Manifest)
    except Exception as exc:  # cattrs groups whatever the values' own classes raise
        raise _damaged(url, exc) from exc


def _damaged(url: str, exc: Exception) -> BackendError:
    return BackendError(
        f"{url}/manifest.json is damaged ({type(exc).__name__}: {exc}): put a copy back, or name another cluster.state_url "
        "and deploy again; nothing was changed",
        reason="STATE_DAMAGED",
    )
