"""The user's configuration file, as commands write into it: keys of one table are set, and all else stays as written."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

from hasfaas.core.errors import BackendError, InvalidRequestError
from hasfaas.core.own_file import write_own


def set_keys(file: Path, table: str, values: Mapping[str, object]) -> bool:
    """Sets keys of `[table]` in `file`, which is made if it is not there; whether anything was to be written.

    Comments, order and other keys stay. The file is replaced at once and keeps its mode; a link to it stays one. Raises
    InvalidRequestError for a file that is not TOML or cannot be written, BackendError without the package tomlkit.
    """
    target = file.resolve()
    try:
        text = target.read_text() if target.exists() else ""
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
        known = tomllib.loads(text).get(table, {})
        if isinstance(known, dict) and values.items() <= known.items():
            return False
        write_own(target, _changed(text, table, values).encode(), mode=mode)
        os.chmod(target, mode)  # noqa: PTH101 - a umask took bits of it
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InvalidRequestError(
            f"the configuration file {file} cannot be changed ({exc}); make it right, or set these keys of [{table}] there: "
            f"{', '.join(f'{key} = {value!r}' for key, value in values.items())}",
            reason="BAD_OPTION",
        ) from exc
    return True


def _changed(text: str, table: str, values: Mapping[str, object]) -> str:
    try:
        import tomlkit
    except ImportError as exc:
        raise BackendError(
            "writing into the configuration file needs the package tomlkit: pip install 'hasfaas[cluster]'",
            reason="TOMLKIT_NOT_INSTALLED",
        ) from exc
    document = tomlkit.parse(text)
    if table not in document:
        document[table] = tomlkit.table()
    for key, value in values.items():
        document[table][key] = list(value) if isinstance(value, tuple) else value
    return tomlkit.dumps(document)
