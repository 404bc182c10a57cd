"""What must be equal on both ends before a bundle is unpickled: interpreter, cloudpickle, imported packages.

A by-value pickle from another Python minor loads without complaint and then crashes the process at its first
call, where no `try` can catch it. So fingerprints are compared first. Law: everything here is a function of
values, except `capture`, which reads this interpreter's installed metadata; nothing here imports what it
looks at.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import attrs

from hasfaas.core.errors import InvalidRequestError

PYTHON = "Python: "
"""How the line about another interpreter starts; the other lines start with a package's name."""


def _in_order(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, version) for name, version in pairs))


@attrs.frozen
class Fingerprint:
    """`cache_tag` names the interpreter ("cpython-311"), `magic` its bytecode (hex), `cloudpickle` the
    pickler.

    `packages`: (import name, version) of each imported third-party package, sorted. A package without a known
    version has "" as its version.
    """

    cache_tag: str
    magic: str
    cloudpickle: str
    packages: tuple[tuple[str, str], ...] = attrs.field(converter=_in_order)

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            "cache_tag": self.cache_tag,
            "magic": self.magic,
            "cloudpickle": self.cloudpickle,
            "packages": dict(self.packages),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Fingerprint:
        """The reverse of `to_dict`. Raises InvalidRequestError that names a missing or ill-typed field."""
        packages = values.get("packages")
        if not isinstance(packages, Mapping) or not all(isinstance(v, str) for v in packages.values()):
            raise InvalidRequestError(f"fingerprint: packages={packages!r} must map import names to versions")
        texts = {}
        for name in ("cache_tag", "magic", "cloudpickle"):
            text = values.get(name)
            if not isinstance(text, str):
                raise InvalidRequestError(f"fingerprint: {name}={text!r} must be a string")
            texts[name] = text
        return cls(packages=tuple((str(name), version) for name, version in packages.items()), **texts)


def differences(wanted: Fingerprint, found: Fingerprint) -> tuple[str, ...]:
    """Every difference that forbids loading, a sentence each with its cure; empty when the bundle may be
    loaded.

    `wanted` comes from the bundle, `found` from the interpreter that would load it. Packages that only
    `found` has do not matter.
    """
    return (*_python(wanted, found), *_cloudpickle(wanted, found), *_packages(wanted, found))


def _python(wanted: Fingerprint, found: Fingerprint) -> Iterable[str]:
    cure = "deploy again from that interpreter, or run the replica with the one that made the bundle"
    if wanted.cache_tag != found.cache_tag:
        yield (
            f"{PYTHON}the bundle was made by {wanted.cache_tag} (bytecode {wanted.magic}), "
            f"this interpreter is {found.cache_tag} (bytecode {found.magic}): {cure}"
        )
    elif wanted.magic != found.magic:
        yield (
            f"{PYTHON}both are {wanted.cache_tag}, but the bundle has bytecode {wanted.magic} "
            f"and this interpreter runs {found.magic}: {cure}"
        )


def _cloudpickle(wanted: Fingerprint, found: Fingerprint) -> Iterable[str]:
    if wanted.cloudpickle != found.cloudpickle:
        yield _package("cloudpickle", wanted.cloudpickle, found.cloudpickle or None)


def _packages(wanted: Fingerprint, found: Fingerprint) -> Iterable[str]:
    present = dict(found.packages)
    for name, version in wanted.packages:
        if present.get(name) != version:
            yield _package(name, version, present.get(name))


def _package(name: str, wanted: str, found: str | None) -> str:
    made = f"version {wanted}" if wanted else "a version that carries no number"
    if found is None:
        return f"{name}: the bundle was made with {made}, this interpreter has none: install it there"
    has = f"version {found}" if found else "one that carries no number"
    return (
        f"{name}: the bundle was made with {made}, this interpreter has {has}: "
        f"install {wanted or 'the same one'} there, or deploy again from where {found or 'this one'} is"
    )


def capture(import_names: Iterable[str]) -> Fingerprint:
    """The fingerprint of this interpreter for these top-level import names; what is not installed is left
    out.
    """
    versions = {name: _version(name) for name in import_names}
    return Fingerprint(
        cache_tag=sys.implementation.cache_tag or sys.implementation.name,
        magic=importlib.util.MAGIC_NUMBER.hex(),
        cloudpickle=_version("cloudpickle") or "",
        packages=tuple((name, version) for name, version in versions.items() if version is not None),
    )


def _version(name: str) -> str | None:
    """The version of the package behind an import name, "" if it carries none, None if there is none."""
    try:
        return metadata.version(name) or ""
    except metadata.PackageNotFoundError:
        pass
    owners = sorted(set(_owners().get(name, ())))
    if len(owners) == 1:
        return metadata.version(owners[0]) or ""
    if owners:  # a namespace such as `google`, shared by several distributions
        return ", ".join(f"{owner}=={metadata.version(owner)}" for owner in owners)
    return _written_version(name)


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    # About 60 ms with a hundred packages, so it is read once, and only when an import name is no
    # distribution's name.
    return metadata.packages_distributions()


def _written_version(name: str) -> str | None:
    """The literal `__version__` in the source of a package without metadata. It is read, never imported."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # loaded, but without a spec
        return ""
    if spec is None:
        return None
    if spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    for node in ast.parse(Path(spec.origin).read_bytes()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__version__")], value=ast.Constant(value=str(text))):
                return text
    return ""
