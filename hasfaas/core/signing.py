"""Who may put code into a replica: HMAC-SHA256 over a bundle, with a key that only this user can read.

A deployer on another machine has no such key, and proves with a key made of its token that a deploy is its own. Law: a bundle
is verified before a byte of it is interpreted, in constant time, and an unsafe key file is never used.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from hasfaas.core.errors import AuthError
from hasfaas.core.own_file import read_own

KEY_BYTES = 32
KEY_FILE = "signing.key"
"""Where a state folder keeps the key."""
# Domain separation: a tag made for a bundle is of no use anywhere else that this key may sign one day.
_DOMAIN = b"hasfaas/bundle/v1\x00"
_PROOF_DOMAIN = b"hasfaas/deploy/v1\x00"


def sign(key: bytes, blob: bytes) -> bytes:
    """The 32-byte tag of `blob`. Raises AuthError when the key is shorter than 32 bytes."""
    _check_length(key, "the signing key")
    tag = hmac.new(key, _DOMAIN, "sha256")
    tag.update(blob)
    return tag.digest()


def verify(key: bytes, blob: bytes, signature: bytes) -> None:
    """Returns when `signature` is this key's tag of `blob`. Raises AuthError when it is missing or wrong."""
    if not signature:
        raise AuthError("signature: the bundle is unsigned; deploy it with `hasfaas deploy`, which signs it")
    if not hmac.compare_digest(sign(key, blob), signature):
        raise AuthError(
            "signature: it does not belong to this bundle and key, so nothing of the bundle was read; it "
            "was altered, or signed with another key: deploy it again as the user who runs the replicas"
        )


def prove(key: bytes, parts: Sequence[bytes]) -> bytes:
    """The 32-byte proof that whoever holds `key` asks for a deploy made of these parts, each counted with its length."""
    _check_length(key, "a token's signing key")
    tag = hmac.new(key, _PROOF_DOMAIN, "sha256")
    for part in parts:
        tag.update(len(part).to_bytes(8, "big"))
        tag.update(part)
    return tag.digest()


def check_proof(key: bytes, parts: Sequence[bytes], proof: bytes) -> None:
    """Returns when `proof` is that of `prove`. Raises AuthError when it is missing or wrong."""
    if not hmac.compare_digest(prove(key, parts), proof):
        raise AuthError(
            "signature: it does not belong to this deploy and token, so nothing of the bundle was read; it was altered on "
            "its way, or signed with another token: deploy it again"
        )


def load_or_create_key(path: Path) -> bytes:
    """The 32-byte key at `path`, made on the first call (file 0600, a new folder 0700).

    Safe when several processes make it at once: all get the same key. Raises AuthError when others can read
    the file, can replace it, or own it, naming the cure.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.path.lexists(path):
        _create(path)
    return _read(path)


def _create(path: Path) -> None:
    # Written aside and then linked: the name appears with its whole content, and the first of two writers
    # wins.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:  # another process was quicker: its key is the key
            pass
    finally:
        aside.unlink()


def _read(path: Path) -> bytes:
    key = read_own(path, "signing key", "remove it and deploy again (a new one is made)", most_bytes=KEY_BYTES + 1)
    _check_length(key, f"signing key {path}", exact=True)
    return key


def _check_length(key: bytes, name: str, *, exact: bool = False) -> None:
    if len(key) < KEY_BYTES or (exact and len(key) != KEY_BYTES):
        raise AuthError(f"{name} has {len(key)} bytes instead of {KEY_BYTES}: remove the key file and deploy again")
