"""Where the settings come from: per key, the strongest source that has it.

    command line > HASFAAS_* > hasfaas.toml > [tool.hasfaas] in pyproject.toml > the user's file > defaults

Both files of a project are looked for from the working directory upwards, as far as the first folder that
holds a `.git`. HASFAAS_CONFIG names one file to read in place of that search. Whatever is not understood is
an error that names its source: nothing is skipped. `load` reads files and nothing else; the directory, the
variables and the user's own folders can all be handed in. Importing this reads nothing.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import platformdirs

from hasfaas.core import keys
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.keys import ANY, KeyPath, Leaves, Place, Source
from hasfaas.core.settings import (
    GATEWAY_SOCKET,
    SCHEMA,
    SOCKET_PATH_BYTES,
    DeviceSettings,
    LocalSettings,
    Settings,
    build,
    leaves_of,
)

__all__ = ["DeviceSettings", "LocalSettings", "Resolved", "Settings", "UserFolders", "load"]

PREFIX = "HASFAAS_"
CONFIG_VARIABLE = "HASFAAS_CONFIG"
PROJECT_FILE = "hasfaas.toml"
PYPROJECT = "pyproject.toml"

# A layer is one source with the keys that it sets.
Layer = tuple[Source, Leaves]


@attrs.frozen
class UserFolders:
    """What depends on the user and not on the project: the user's file, and the defaults of three folders."""

    config_file: Path
    state_dir: Path
    runtime_dir: Path
    home: Path

    @property
    def secrets_dir(self) -> Path:
        """Beside the user's file: what is in it the user puts there."""
        return self.config_file.parent / "secrets"

    @classmethod
    def of_this_user(cls, env: Mapping[str, str]) -> UserFolders:
        """The folders by the platform's conventions (on Linux, the XDG ones)."""
        return cls(
            config_file=platformdirs.user_config_path("hasfaas") / "config.toml",
            state_dir=platformdirs.user_state_path("hasfaas"),
            runtime_dir=_default_runtime_dir(env.get("XDG_RUNTIME_DIR", ""), os.getuid()),
            home=Path.home(),
        )


def _default_runtime_dir(xdg_runtime_dir: str, uid: int) -> Path:
    """`$XDG_RUNTIME_DIR/hasfaas` where that is ours and short enough for a socket, else a folder in /tmp."""
    preferred = Path(xdg_runtime_dir) / "hasfaas"
    fits = len(os.fsencode(preferred / GATEWAY_SOCKET)) < SOCKET_PATH_BYTES
    if preferred.is_absolute() and fits and _owner(preferred.parent) == uid:
        return preferred
    return Path(f"/tmp/hasfaas-{uid}")  # noqa: S108  (whoever makes it checks owner and mode)


def _owner(folder: Path) -> int | None:
    """The owner's uid; None for a folder that is not there or not to be seen."""
    try:
        return folder.stat().st_uid
    except OSError:
        return None


@attrs.frozen
class Resolved:
    """The settings, and for every key, as TOML writes it, the source that it came from."""

    settings: Settings
    origins: Mapping[str, str] = attrs.field(hash=False)

    def rows(self) -> Iterator[tuple[str, object, str]]:
        """(key, value, origin) of every key."""
        for path, value in leaves_of(self.settings).items():
            key = keys.dotted(path)
            yield key, value, self.origins[key]


def load(
    cli: Mapping[str, object] | None = None,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    user: UserFolders | None = None,
) -> Resolved:
    """The settings of this user in this directory, and where each key came from.

    `cli` maps keys to values: tables inside tables, or dotted keys (`"local.window_ms"`), or both; None is an
    option that was not given. What is left out of `cwd`, `env` and `user` is taken from the process.

    Raises InvalidRequestError: UNKNOWN_OPTION for a key or variable that does not exist, BAD_OPTION for a
    value or a file that cannot be read, each naming its source and the cure.
    """
    env = os.environ if env is None else env
    cwd = (Path.cwd() if cwd is None else cwd).absolute()
    user = UserFolders.of_this_user(env) if user is None else user
    layers = [
        _defaults(user),
        *_file_layers(cwd, env, user),
        *_variable_layers(cwd, env, user.home),
        _command_line(cli or {}, cwd, user.home),
    ]
    return _resolve(layers)


def _resolve(layers: list[Layer]) -> Resolved:
    """Weakest layer first: of each key the last value stays, with its origin."""
    values: Leaves = {}
    origins: dict[str, str] = {}
    for source, leaves in layers:
        values |= leaves
        origins |= {keys.dotted(path): source.origin for path in leaves}
    try:
        return Resolved(build(values), origins)
    except InvalidRequestError as exc:
        given = [f"{key} from {origin}" for key, origin in origins.items() if origin != "default"]
        raise InvalidRequestError(f"{exc.message}. Set: {'; '.join(given)}", reason=exc.reason) from exc


def _defaults(user: UserFolders) -> Layer:
    # The default runtime_dir joins last, unchecked: it may be too deep as long as another source replaces it.
    leaves = leaves_of(Settings(state_dir=user.state_dir, runtime_dir=Path("/"), secrets_dir=user.secrets_dir))
    return Source(origin="default"), leaves | {("runtime_dir",): user.runtime_dir}


def _file_layers(cwd: Path, env: Mapping[str, str], user: UserFolders) -> Iterator[Layer]:
    """The user's file, then the project's, weakest first."""
    if user.config_file.is_file():
        yield _file_layer(user.config_file, user.home)
    if CONFIG_VARIABLE in env:
        named = keys.read_path(Place(Source(f"env {CONFIG_VARIABLE}", cwd, user.home)), env[CONFIG_VARIABLE])
        yield _file_layer(named, user.home)
        return
    for name in (PYPROJECT, PROJECT_FILE):
        found = _search(name, cwd)
        if found is not None:
            yield _file_layer(found, user.home)


def _search(name: str, cwd: Path) -> Path | None:
    """The first `name` from `cwd` upwards, as far as a folder with a `.git`.

    A pyproject.toml without our table is not one of ours, so the search goes on above it.
    """
    for folder in (cwd, *cwd.parents):
        candidate = folder / name
        if candidate.is_file() and (name != PYPROJECT or _tool_table(candidate) is not None):
            return candidate
        if (folder / ".git").exists():
            return None
    return None


def _file_layer(file: Path, home: Path) -> Layer:
    if file.name == PYPROJECT:
        source = Source(f"{file} [tool.hasfaas]", file.parent, home)
        return source, keys.read_table(SCHEMA, Place(source), _tool_table(file) or {})
    source = Source(str(file), file.parent, home)
    return source, keys.read_table(SCHEMA, Place(source), _toml(file))


def _tool_table(pyproject: Path) -> object | None:
    tools = _toml(pyproject).get("tool", {})
    return tools.get("hasfaas") if isinstance(tools, Mapping) else None


def _toml(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_bytes().decode())
    except OSError as exc:
        why, cure = exc.strerror or str(exc), "make it readable, or take it out of the way"
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        why, cure = f"not valid TOML: {exc}", "correct it"
    raise InvalidRequestError(f"cannot read the configuration file {file}: {why}; {cure}", reason="BAD_OPTION")


def _variables() -> dict[str, KeyPath]:
    """The variable of each key. All functions' options share one: a function's name fits in no variable."""
    paths = {path if ANY not in path else path[: path.index(ANY)] for path in keys.paths_of(SCHEMA)}
    return {PREFIX + "_".join(path).upper(): path for path in paths}


def _variable_layers(cwd: Path, env: Mapping[str, str], home: Path) -> Iterator[Layer]:
    known = _variables()
    for name in sorted(env):
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE:
            continue
        if name not in known:
            raise _unknown_variable(name, known)
        source = Source(f"env {name}", cwd, home, textual=True)
        table = keys.nest({known[name]: env[name]})
        yield source, keys.read_table(SCHEMA, Place(source), table)


def _unknown_variable(name: str, known: Mapping[str, KeyPath]) -> InvalidRequestError:
    near = difflib.get_close_matches(name, [*known, CONFIG_VARIABLE], n=1)
    meant = f"did you mean {near[0]}? Rename it" if near else f"known: {', '.join(sorted(known))}. Rename it"
    return InvalidRequestError(f"unknown environment variable {name}: {meant} or unset it", reason="UNKNOWN_OPTION")


def _command_line(cli: Mapping[str, object], cwd: Path, home: Path) -> Layer:
    source = Source("command line", cwd, home, textual=True)
    leaves: Leaves = {}
    for key, value in cli.items():
        if value is not None:
            table = keys.nest({_path_of(key): value})
            leaves |= keys.read_table(SCHEMA, Place(source), table)
    return source, leaves


def _path_of(key: str) -> KeyPath:
    """The parts of a dotted key, by TOML's own grammar of keys."""
    try:
        table: object = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError as exc:
        raise InvalidRequestError(
            f"{key!r} (from command line) is not a key: {exc}; write it as local.window_ms",
            reason="UNKNOWN_OPTION",
        ) from exc
    path: list[str] = []
    while isinstance(table, dict):
        path.append(next(iter(table)))
        table = table[path[-1]]
    return tuple(path)
