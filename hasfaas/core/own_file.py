"""Files with secrets: readable by this user alone, checked before a byte of them is used, and written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from hasfaas.core.errors import AuthError


def read_own(path: Path, noun: str, cure: str, *, most_bytes: int) -> bytes:
    """The first `most_bytes` of a file that only this user can read or replace.

    Raises AuthError that names the file as `noun`, and `cure` or another command that helps; OSError where it cannot be read
    (an AuthError is one too, so catch that first).
    """
    folder_mode = path.parent.stat().st_mode
    if folder_mode & 0o022 and not folder_mode & stat.S_ISVTX:
        raise AuthError(
            f"{noun} folder {path.parent} can be written by others, who could replace it: chmod go-w {path.parent}",
            reason="UNSAFE_FILE",
        )
    with open(path, "rb") as file:  # noqa: PTH123 - the checks must be about the file that is read
        status = os.fstat(file.fileno())
        content = file.read(most_bytes)
    if status.st_uid != os.geteuid():
        raise AuthError(
            f"{noun} {path} belongs to user {status.st_uid}, not to {os.geteuid()}: {cure}", reason="UNSAFE_FILE"
        )
    if status.st_mode & 0o077:
        raise AuthError(
            f"{noun} {path} has mode {stat.S_IMODE(status.st_mode):04o}, so others can read it: {cure}, "
            f"or `chmod 600 {path}` if nobody has seen it",
            reason="UNSAFE_FILE",
        )
    return content


def write_own(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Puts a file in the place of what has that name, whole at once; a folder that is missing is made with mode 0700."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
