"""The form of a bundle on the wire and on disk: one zip with a manifest, an archive of modules, and a pickle.

Both ends meet here: the SDK packs, the replica reads. Law: the manifest is read without unpickling or
importing anything, and equal contents give equal bytes on every host.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Mapping

import attrs

from hasfaas.core.errors import IncompatibleError, InvalidRequestError
from hasfaas.core.fingerprint import Fingerprint

FORMAT = 1
_MANIFEST, _ARCHIVE, _PICKLE = "manifest.json", "modules.zip", "function.pickle"
_TEXTS = ("name", "version", "kind", "python", "archive_sha256", "pickle_sha256")


@attrs.frozen
class Manifest:
    """What a bundle says about itself.

    `kind` is the value of a `core.spec.Kind`; `python` is the interpreter
    that made it; `modules` are the first-party modules in its archive.
    """

    name: str
    version: str
    kind: str
    python: str
    fingerprint: Fingerprint
    archive_sha256: str
    pickle_sha256: str
    modules: tuple[str, ...] = ()
    format: int = FORMAT

    def to_json(self) -> bytes:
        """One line of JSON with sorted keys."""
        values = attrs.asdict(self, recurse=False) | {"fingerprint": self.fingerprint.to_dict()}
        return json.dumps(values, sort_keys=True, ensure_ascii=False).encode()


@attrs.frozen
class Contents:
    """A bundle taken apart; the hashes of both parts were checked."""

    manifest: Manifest
    archive: bytes
    pickle: bytes


def pack(manifest: Manifest, archive: bytes, pickle: bytes) -> bytes:
    """The one blob that is signed, stored by its hash, and sent."""
    return zip_files({_MANIFEST: manifest.to_json(), _ARCHIVE: archive, _PICKLE: pickle})


def read_manifest(blob: bytes) -> Manifest:
    """The manifest alone. Raises InvalidRequestError for no bundle, IncompatibleError for another format."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as outer:
            values = json.loads(outer.read(_MANIFEST))
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise _broken(f"its {_MANIFEST} cannot be read ({error})") from error
    return _manifest(values)


def unpack(blob: bytes) -> Contents:
    """Manifest, archive and pickle. Raises InvalidRequestError when a part is missing or not as hashed."""
    manifest = read_manifest(blob)
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as outer:
            archive, pickle = outer.read(_ARCHIVE), outer.read(_PICKLE)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError) as error:
        raise _broken(f"a part cannot be read ({error})") from error
    for part, data, wanted in (
        (_ARCHIVE, archive, manifest.archive_sha256),
        (_PICKLE, pickle, manifest.pickle_sha256),
    ):
        if hashlib.sha256(data).hexdigest() != wanted:
            raise _broken(f"{part} differs from the hash in the manifest")
    return Contents(manifest, archive, pickle)


def zip_files(files: Mapping[str, bytes]) -> bytes:
    """A zip with the same bytes on every host: sorted names, one date, one mode, stored.

    Nothing is compressed, since zlib's output differs between its versions. A name that ends in "/" is a
    folder: zip imports find a namespace package only when its folder has an entry of its own.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, on whatever host
            mode = stat.S_IFDIR | 0o700 if name.endswith("/") else stat.S_IFREG | 0o600
            info.external_attr = mode << 16
            out.writestr(info, files[name])
    return target.getvalue()


def _manifest(values: object) -> Manifest:
    if not isinstance(values, dict):
        raise _broken(f"{_MANIFEST} holds a {type(values).__name__}, not an object")
    number = values.get("format")
    if number != FORMAT:
        raise IncompatibleError(
            f"bundle format {number!r}: this hasfaas reads {FORMAT}; deploy again with the one that serves",
            reason="BUNDLE_FORMAT",
        )
    texts: dict[str, str] = {}
    for name in _TEXTS:
        text = values.get(name)
        if not isinstance(text, str):
            raise _broken(f"{_MANIFEST}: {name}={text!r} must be a string")
        texts[name] = text
    modules, fingerprint = values.get("modules"), values.get("fingerprint")
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise _broken(f"{_MANIFEST}: modules={modules!r} must be a list of names")
    if not isinstance(fingerprint, dict):
        raise _broken(f"{_MANIFEST}: fingerprint={fingerprint!r} must be an object")
    found = Fingerprint.from_dict(fingerprint)
    return Manifest(fingerprint=found, modules=tuple(modules), format=FORMAT, **texts)


def _broken(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"the bundle is broken: {what}; deploy it again", reason="BAD_BUNDLE")
