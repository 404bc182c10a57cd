"""How one key of the configuration is read, and how it is refused.

A `Schema` says what keys exist; `read_table` takes one source's table apart into leaves, each checked where
it stands, so that an error can name the key, the value, the file or variable that it came from, and the cure.
Nothing here touches a file or the environment.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.memory import format_memory, parse_memory

ANY = "*"  # as a key of a schema: any name may stand here (the functions of an app)
_BARE = re.compile(r"[A-Za-z0-9_-]+(\[[0-9]+\])?", re.ASCII)

KeyPath: TypeAlias = tuple[str, ...]
Leaves: TypeAlias = dict[KeyPath, object]
Schema: TypeAlias = "Mapping[str, Reader | Schema]"


def dotted(path: KeyPath) -> str:
    """The key as TOML writes it; a part that holds a dot is quoted: `functions."app.fn".slo_ms`."""
    return ".".join(part if _BARE.fullmatch(part) else json.dumps(part) for part in path)


_QUOTE_HINT = '. A function name with a dot in it is quoted: [functions."app.fn"]'


@attrs.frozen
class Source:
    """Where a table came from.

    `folder` is where its relative paths start, `home` is what "~" stands for. A `textual` source (variables,
    the command line) may hold any value as text, which is then read as JSON.
    """

    origin: str = ""
    folder: Path | None = None
    home: Path | None = None
    textual: bool = False


@attrs.frozen
class Place:
    """One key in one source."""

    source: Source = Source()
    path: KeyPath = ()

    def inside(self, name: str) -> Place:
        """The key `name` of this table."""
        return Place(self.source, (*self.path, name))

    @property
    def _from(self) -> str:
        return f" (from {self.source.origin})" if self.source.origin else ""

    def refuse(self, value: object, cure: str) -> InvalidRequestError:
        """The error for a value that this key cannot take."""
        return InvalidRequestError(f"{dotted(self.path)}={value!r}{self._from}: {cure}", reason="BAD_OPTION")

    def refuse_unshown(self, cure: str) -> InvalidRequestError:
        """As `refuse`, for a value that may be a secret."""
        return InvalidRequestError(f"{dotted(self.path)}{self._from}: {cure}", reason="BAD_OPTION")

    def unknown(self, schema: Schema, hint: str = "") -> InvalidRequestError:
        """The error for this key, which `schema`, the table that it stands in, does not have."""
        name = self.path[-1]
        elsewhere = (dotted(path) for path in paths_of(schema) if path[-1] == name)
        near = [*difflib.get_close_matches(name, schema, n=1), *elsewhere]
        known = ", ".join(key if isinstance(entry, Reader) else f"[{key}]" for key, entry in schema.items())
        meant = f"did you mean {near[0]!r}? Rename it" if near else f"known here: {known}. Rename it"
        return InvalidRequestError(
            f"unknown key {dotted(self.path)!r}{self._from}: {meant} or take it out{hint}",
            reason="UNKNOWN_OPTION",
        )


@attrs.frozen
class Reader:
    """What one key takes. `read` returns the value in its own type or raises the place's error.

    It is an attrs validator too, so that a class built in code is held to the same rules as a file.
    """

    read: Callable[[Place, object], object]
    is_text: bool = False

    def __call__(self, _instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        self.read(Place(path=(attribute.name,)), value)

    def read_at(self, place: Place, value: object) -> object:
        """`read`, after text of a textual source has been taken for what it means."""
        return self.read(place, value if self.is_text else _meaning(place, value))


def _meaning(place: Place, value: object) -> object:
    """Text of a textual source as JSON. A bare word stays itself: the reader then refuses it and shows it."""
    if not place.source.textual or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as exc:
        if value.lstrip().startswith(("[", "{")):
            raise place.refuse(value, f"this is not JSON: {exc}") from exc
        return value


def paths_of(schema: Schema) -> Iterator[KeyPath]:
    """Every leaf of the schema."""
    for name, entry in schema.items():
        if isinstance(entry, Reader):
            yield (name,)
        else:
            yield from ((name, *rest) for rest in paths_of(entry))


def read_table(schema: Schema, place: Place, table: object) -> Leaves:
    """The checked leaves of one source's table.

    Raises InvalidRequestError: UNKNOWN_OPTION for a key that does not exist, BAD_OPTION for a value.
    """
    table = _meaning(place, table)
    if not isinstance(table, Mapping):
        cure = 'give a table for each function, such as [functions."app.fn"]'
        raise place.refuse(table, cure if place.path == ("functions",) else "give a table of keys")
    leaves: Leaves = {}
    for name, value in table.items():
        here = place.inside(str(name))
        entry = schema.get(here.path[-1]) or schema.get(ANY)
        if entry is None:
            nested = isinstance(value, Mapping) and here.path[0] == "functions"
            raise here.unknown(schema, _QUOTE_HINT if nested else "")
        if isinstance(entry, Reader):
            leaves[here.path] = entry.read_at(here, value)
        else:
            leaves |= read_table(entry, here, value)
    return leaves


def nest(leaves: Leaves) -> dict[str, object]:
    """The leaves as tables inside tables."""
    root: dict[str, object] = {}
    for path, value in leaves.items():
        table = root
        for part in path[:-1]:
            inner = table.setdefault(part, {})
            assert isinstance(inner, dict), f"{dotted(path)} is both a value and a table"
            table = inner
        table[path[-1]] = value
    return root


def number(noun: str, low: float = -math.inf, high: float = math.inf) -> Reader:
    """A finite number from `low` to `high`, both included; read as a float."""
    cure = _bounds(f"give {noun}", low, high)

    def read(place: Place, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise place.refuse(value, cure)
        if not math.isfinite(value) or not low <= value <= high:
            raise place.refuse(value, cure)
        return float(value)

    return Reader(read)


def whole(noun: str, low: float = -math.inf, high: float = math.inf) -> Reader:
    """A whole number from `low` to `high`, both included."""
    cure = _bounds(f"give a whole number of {noun}", low, high)

    def read(place: Place, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise place.refuse(value, cure)
        return value

    return Reader(read)


def _bounds(cure: str, low: float, high: float) -> str:
    if high < math.inf:
        return f"{cure} from {low:g} to {high:g}"
    return f"{cure}, at least {low:g}" if low > -math.inf else cure


def text(cure: str, pattern: str = r"\S.*") -> Reader:
    """Text that matches `pattern` as a whole."""
    compiled = re.compile(pattern)

    def read(place: Place, value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise place.refuse(value, cure)
        return value

    return Reader(read, is_text=True)


def choice(*options: str) -> Reader:
    """One of a few words."""

    def read(place: Place, value: object) -> str:
        if not isinstance(value, str) or value not in options:
            raise place.refuse(value, f"give one of {', '.join(options)}")
        return value

    return Reader(read, is_text=True)


def boolean() -> Reader:
    """True or false."""

    def read(place: Place, value: object) -> bool:
        if not isinstance(value, bool):
            raise place.refuse(value, "give true or false")
        return value

    return Reader(read)


def memory() -> Reader:
    """An amount of memory, checked and kept as text (`parse_memory` makes bytes of it)."""

    def read(place: Place, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise place.refuse(value, 'give an amount such as "2GiB"')
        try:
            size_bytes = parse_memory(value)
        except InvalidRequestError as exc:
            raise place.refuse(value, exc.message) from exc
        return value if isinstance(value, str) else format_memory(size_bytes)

    return Reader(read, is_text=True)


def path() -> Reader:
    """A path, made absolute: from the folder of its source, "~/" from the user's home."""
    return Reader(read_path, is_text=True)


def read_path(place: Place, value: object) -> Path:
    """See `path`. A class built in code keeps its paths as they are."""
    if isinstance(value, str) and (not value or "\0" in value):
        raise place.refuse(value, "give the path of a folder or file")
    if not isinstance(value, str | Path):
        raise place.refuse(value, "give a path, as text")
    found = Path(value)
    if found.parts and found.parts[0].startswith("~"):
        if found.parts[0] != "~" or place.source.home is None:
            raise place.refuse(value, 'give a whole path; only "~/" stands for your own home')
        found = place.source.home.joinpath(*found.parts[1:])
    return place.source.folder / found if place.source.folder else found


def optional(reader: Reader) -> Reader:
    """The same, or nothing at all. (TOML cannot say nothing; code and JSON can.)"""

    def read(place: Place, value: object) -> object:
        return None if value is None else reader.read(place, value)

    return Reader(read, is_text=reader.is_text)
