"""Sets a function's variables in the process that will run it, secrets by reading them on this very machine.

Law: a secret's value goes from its file into this process's environment, and nowhere else: not into a message, not to whoever
forked us. Processes that the user's code starts inherit it.
"""

from __future__ import annotations

import os
from pathlib import Path

from hasfaas.core.environment import MOST_SECRET_BYTES
from hasfaas.core.errors import AuthError, InvalidRequestError
from hasfaas.core.own_file import read_own
from hasfaas.core.settings import Settings
from hasfaas.executor.config import ReplicaConfig


def enter(config: ReplicaConfig) -> None:
    """Sets `env` and `secrets`. Raises InvalidRequestError for a secret that is not there or is none, and for a variable that
    the replica's device sets; AuthError for a secret that others can read or replace."""
    taken = sorted({*config.env, *config.secrets} & set(config.part.environment))
    if taken:
        raise InvalidRequestError(
            f"{config.function}: {taken[0]} is set by device {config.part.device_id}; take it out of env and secrets",
            reason="BAD_OPTION",
        )
    found = {name: value.encode() for name, value in config.env.items()}
    if config.secrets:
        folder = Settings.from_json(config.settings_json).secrets_dir
        found |= {name: read_secret(config.function, name, folder) for name in config.secrets}
    for name, value in found.items():
        os.environb[name.encode()] = value


def read_secret(function: str, name: str, folder: Path) -> bytes:
    """The content of the secret's file, without a line's end at its end. Raises as `enter` does."""
    path = folder / name
    noun = f"{function}: the secret {name}"
    where = f"{path} on {os.uname().nodename}"
    try:
        # More than it may have, with a line's end.
        content = read_own(path, noun, "put a new value there", most_bytes=MOST_SECRET_BYTES + 3)
    except AuthError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        why = f"{noun} is not there: put its value into the file {where}, with mode 600"
        raise InvalidRequestError(why, reason="SECRET_MISSING") from None
    except OSError as exc:
        why = f"{noun} cannot be read ({exc.strerror}): see to the file {where}"
        raise InvalidRequestError(why, reason="BAD_SECRET") from None
    value = content.removesuffix(b"\n").removesuffix(b"\r")
    if not value or len(value) > MOST_SECRET_BYTES or b"\0" in value:
        why = f"{noun} must have 1 to {MOST_SECRET_BYTES} bytes, none of them zero: see to the file {where}"
        raise InvalidRequestError(why, reason="BAD_SECRET")
    return value
