"""The file of tokens that a gateway accepts: JSON, mode 0600, hashes and no secret. The shell writes it, gateways read it.

`parse`, `text`, `added` and `removed` are the same without a file, for tokens that are kept elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hasfaas.core.errors import AuthError, InvalidRequestError, NotFoundError
from hasfaas.core.own_file import read_own, write_own
from hasfaas.core.tokens import SCOPES, Grant

FORMAT = 1
# About 400 bytes a token.
MOST_BYTES = 4 << 20


def read(path: Path) -> dict[str, Grant]:
    """The tokens by name. Raises AuthError for a file that others can read or that is damaged, OSError without one."""
    content = read_own(
        path, "the file of tokens", "make its tokens anew with `hasfaas token create`", most_bytes=MOST_BYTES
    )
    return parse(content, path)


def parse(content: bytes, where: object) -> dict[str, Grant]:
    """The tokens in such a text, by name. Raises AuthError that names `where` it is from when it is damaged."""
    try:
        table = json.loads(content)
        if table["format"] != FORMAT:
            raise ValueError(f"format {table['format']!r}, this hasfaas reads {FORMAT}")
        return {grant.name: grant for grant in map(_grant, table["tokens"])}
    except (ValueError, KeyError, TypeError) as exc:
        raise AuthError(
            f"the file of tokens {where} is damaged ({type(exc).__name__}: {exc}); put a copy back, or remove it and make "
            "its tokens anew with `hasfaas token create`",
            reason="UNSAFE_FILE",
        ) from exc


def text(grants: Mapping[str, Grant]) -> bytes:
    """The text of such a file."""
    table = {"format": FORMAT, "tokens": [_plain(grants[name]) for name in sorted(grants)]}
    return json.dumps(table, indent=1).encode()


def added(grants: Mapping[str, Grant], grant: Grant) -> dict[str, Grant]:
    """With one more token. Raises InvalidRequestError when its name is taken."""
    if grant.name in grants:
        raise InvalidRequestError(
            f"token {grant.name!r} is there already; give another name, or first `hasfaas token revoke {grant.name}`"
        )
    return {**grants, grant.name: grant}


def removed(grants: Mapping[str, Grant], name: str, where: object) -> dict[str, Grant]:
    """Without that token. NotFoundError when there is none of that name."""
    if name not in grants:
        known = ", ".join(sorted(grants)) or "none"
        raise NotFoundError(f"there is no token {name!r} in {where}; there are: {known}", reason="TOKEN_NOT_FOUND")
    return {other: grant for other, grant in grants.items() if other != name}


def add(path: Path, grant: Grant) -> None:
    """Adds a token; the file and its folder are made. Raises InvalidRequestError when its name is taken."""
    with _alone(path):
        write_own(path, text(added(read(path) if path.exists() else {}, grant)))


def remove(path: Path, name: str) -> None:
    """Takes a token out: gateways refuse it from then on. NotFoundError when there is none of that name."""
    with _alone(path):
        write_own(path, text(removed(read(path) if path.exists() else {}, name, path)))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two shells that change the file at once take turns. The folder is what is locked: the file itself is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _plain(grant: Grant) -> dict[str, object]:
    return {
        "name": grant.name,
        "scopes": list(grant.scopes),
        "salt": grant.salt.hex(),
        "digest": grant.digest.hex(),
        "signing_key": None if grant.signing_key is None else grant.signing_key.hex(),
        "created_s": grant.created_s,
        "expires_s": grant.expires_s,
    }


def _grant(entry: Mapping[str, Any]) -> Grant:
    scopes, key, expires_s = tuple(entry["scopes"]), entry["signing_key"], entry["expires_s"]
    if any(scope not in SCOPES for scope in scopes):
        raise ValueError(f"scopes {scopes!r}, known: {', '.join(SCOPES)}")
    return Grant(
        name=str(entry["name"]),
        scopes=scopes,
        salt=bytes.fromhex(entry["salt"]),
        digest=bytes.fromhex(entry["digest"]),
        created_s=float(entry["created_s"]),
        expires_s=None if expires_s is None else float(expires_s),
        signing_key=None if key is None else bytes.fromhex(key),
    )
