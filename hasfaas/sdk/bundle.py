"""Builds a bundle: what a replica needs to run a user's function, and the version that it goes by.

Law: the version is a hash of the modules, the function's source and captured values, the options and the
fingerprint. It is never a hash of pickle bytes, so two runs of one script have one version.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping

import attrs

from hasfaas.core.fingerprint import Fingerprint, capture
from hasfaas.core.spec import Kind
from hasfaas.sdk.digest import stable_digest
from hasfaas.sdk.home import Target, function_name, home_of, target_of
from hasfaas.sdk.modules import needed_by
from hasfaas.sdk.pickling import MIB, pickle_by_value, too_large
from hasfaas.wire.bundle import Contents, Manifest, pack, unpack, zip_files

__all__ = ["LIMIT_BYTES", "Bundle", "build", "function_name", "kind_of"]

LIMIT_BYTES = 64 * MIB
"""The largest bundle: more than this is data, and data belongs into a file."""


@attrs.frozen
class Bundle:
    """A function ready to be signed and sent.

    `pickle` is the user's raw function or class by value; `archive` a zip of the first-party `modules` it
    needs; `python` the interpreter that made both; `kind` the value of a `core.spec.Kind`.
    """

    name: str
    version: str
    kind: str
    python: str
    fingerprint: Fingerprint
    modules: tuple[str, ...]
    archive: bytes = attrs.field(repr=False)
    pickle: bytes = attrs.field(repr=False)

    @property
    def manifest(self) -> Manifest:
        """What can be read of the bundle without unpickling it."""
        return Manifest(
            name=self.name,
            version=self.version,
            kind=self.kind,
            python=self.python,
            fingerprint=self.fingerprint,
            modules=self.modules,
            archive_sha256=hashlib.sha256(self.archive).hexdigest(),
            pickle_sha256=hashlib.sha256(self.pickle).hexdigest(),
        )

    def to_bytes(self) -> bytes:
        """The one blob that is signed, stored and sent."""
        return pack(self.manifest, self.archive, self.pickle)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Bundle:
        """The reverse of `to_bytes`; nothing is unpickled. Raises InvalidRequestError for a broken bundle."""
        return _assemble(unpack(blob))


def _assemble(contents: Contents) -> Bundle:
    said = contents.manifest
    return Bundle(
        name=said.name,
        version=said.version,
        kind=said.kind,
        python=said.python,
        fingerprint=said.fingerprint,
        modules=said.modules,
        archive=contents.archive,
        pickle=contents.pickle,
    )


def build(target: object, *, name: str, options: Mapping[str, object]) -> Bundle:
    """The bundle of a raw function or class, to be deployed as `name` with these decorator options.

    Raises InvalidRequestError (not a function, larger than 64 MiB, modules that cannot be shipped) and
    SerializationError (a captured value that cannot be pickled or hashed, named by its path).
    """
    target = target_of(target)
    home = home_of(target)
    pickled = pickle_by_value(target, home, limit_bytes=LIMIT_BYTES)
    needed = needed_by(home, pickled.modules)
    archive = zip_files(needed.files)
    if len(archive) + len(pickled.data) > LIMIT_BYTES:
        raise too_large(target, home, LIMIT_BYTES)
    fingerprint = capture(needed.installed)
    return Bundle(
        name=name,
        version=_version(target, home.module, options, archive, fingerprint),
        kind=kind_of(target).value,
        python=sys.executable,
        fingerprint=fingerprint,
        modules=needed.modules,
        archive=archive,
        pickle=pickled.data,
    )


def kind_of(target: Target) -> Kind:
    """How the target is called; a class by what its `__call__` gives."""
    if isinstance(target, type):
        call = getattr(target, "__call__", None)  # noqa: B004 - the function itself is looked at
        streams = inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call)
        return Kind.GENERATOR_CLASS if streams else Kind.CLASS
    if inspect.isasyncgenfunction(target):
        return Kind.ASYNC_GENERATOR
    if inspect.iscoroutinefunction(target):
        return Kind.COROUTINE
    return Kind.GENERATOR if inspect.isgeneratorfunction(target) else Kind.FUNCTION


def _version(target: Target, own: str, options: Mapping[str, object], archive: bytes, fingerprint: Fingerprint) -> str:
    """The first 16 hex digits: 64 bits, for a name that has a few thousand versions at most."""
    state = hashlib.sha256(b"hasfaas/version/v1")
    state.update(hashlib.sha256(archive).digest())
    state.update(stable_digest(target, own=own, root=target.__qualname__))
    state.update(stable_digest(dict(options), own=own, root="options"))
    state.update(stable_digest(fingerprint.to_dict(), root="fingerprint"))
    return state.hexdigest()[:16]
