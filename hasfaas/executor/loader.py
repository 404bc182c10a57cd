"""Turns a signed bundle into the user's function, inside the replica and nowhere else.

Law, in this order: signature, manifest, fingerprint, hashes, and only then the archive goes on the path and
the pickle is loaded. Whatever stands before that last step imports and unpickles nothing.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import attrs
import cloudpickle

from hasfaas.core.errors import AuthError, IncompatibleError, SerializationError
from hasfaas.core.fingerprint import PYTHON, capture, differences
from hasfaas.core.signing import verify
from hasfaas.wire.bundle import Contents, Manifest, read_manifest, unpack


@attrs.frozen
class Loaded:
    """The user's raw function or class, as the decorator saw it. `kind` is the manifest's."""

    target: object
    kind: str
    name: str
    version: str


def check(manifest: Manifest) -> tuple[str, ...]:
    """Why this interpreter may not load the bundle, one sentence each with its cure; empty when it may."""
    wanted = manifest.fingerprint
    return differences(wanted, capture(name for name, _ in wanted.packages))


def load(blob: bytes, signature: bytes, key: bytes, workdir: Path, *, named: tuple[str, str] | None = None) -> Loaded:
    """The function in `blob`; its first-party modules are left in `workdir` and put first on `sys.path`. `named` is the
    function and version that it must be of, where that matters.

    Raises AuthError (unsigned, altered, another's), IncompatibleError (every difference listed), InvalidRequestError
    (broken), and SerializationError when the pickle itself cannot be rebuilt.
    """
    verify(key, blob, signature)
    manifest = read_manifest(blob)
    if named is not None and named != (manifest.name, manifest.version):
        # Signed once, and put under this name by somebody who may write the store and has no key.
        raise AuthError(
            f"the bundle kept for {' '.join(named)} is of {manifest.name} {manifest.version}: see who may write to the "
            "store, and deploy it again",
            reason="TAMPERED",
        )
    _refuse(manifest, check(manifest))
    contents = unpack(blob)
    if manifest.modules:
        sys.path.insert(0, str(_place(contents, workdir)))
    return Loaded(_unpickle(contents), manifest.kind, manifest.name, manifest.version)


def _refuse(manifest: Manifest, found: tuple[str, ...]) -> None:
    if found:
        lines = "".join(f"\n  - {line}" for line in found)
        raise IncompatibleError(
            f"{manifest.name} (version {manifest.version}) was not loaded by {sys.executable}; "
            f"the bundle differs in:{lines}",
            reason="PYTHON_MISMATCH" if found[0].startswith(PYTHON) else "DEPENDENCY_MISMATCH",
        )


def _place(contents: Contents, workdir: Path) -> Path:
    """The archive as a file, named by its hash, so that replicas of one version share it."""
    path = workdir / f"{contents.manifest.archive_sha256}.zip"
    if path.exists() and path.read_bytes() == contents.archive:
        return path
    workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = workdir / f".{path.name}.{secrets.token_hex(8)}"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(contents.archive)
    aside.replace(path)
    return path


def _unpickle(contents: Contents) -> object:
    name = contents.manifest.name
    try:
        return cloudpickle.loads(contents.pickle)
    except ImportError as error:
        raise SerializationError(
            f"{name} cannot be rebuilt in the replica: {error}; import that module by a plain `import` "
            "statement in the function's own file, so that the bundle takes it along, or install it there"
        ) from error
    except Exception as error:  # rebuilding runs the user's modules and classes: they may raise anything
        raise SerializationError(
            f"{name} cannot be rebuilt in the replica: {type(error).__name__}: {error}; make what raised "
            "inside the function, or in __init__ of a class"
        ) from error
