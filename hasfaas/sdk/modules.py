"""Which modules a user's function needs: the first-party ones with their source, the installed ones by name.

A module is first-party when its file lies neither in the standard library nor in site-packages, and it is not
hasfaas. Law: sources are read and parsed, never executed; a module is found the way Python would find it.
"""

from __future__ import annotations

import ast
import importlib.machinery
import os
import pkgutil
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, cast

import attrs

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.home import MAIN, Home

Spec = importlib.machinery.ModuleSpec


@attrs.frozen
class Needed:
    """`files`: archive path -> source. `modules`: dotted names of these. `installed`: top-level import names.

    All sorted. A path that ends in "/" is the folder of a namespace package.
    """

    files: dict[str, bytes]
    modules: tuple[str, ...]
    installed: tuple[str, ...]


@attrs.frozen
class _Import:
    """One import statement. `level` counts the leading dots."""

    module: str
    names: tuple[str, ...] = ()
    level: int = 0


@attrs.frozen
class _Found:
    """A module that exists. `place` is "standard", "installed", "ours" or "namespace" (our folder without
    code).
    """

    place: str
    origin: str = ""
    is_package: bool = False
    search: tuple[str, ...] | None = None
    loader: object = attrs.field(default=None, eq=False)


def needed_by(home: Home, also: Iterable[str] = ()) -> Needed:
    """Everything that the module at `home` imports, anywhere in its file, and what those import in turn.

    `also` are dotted names to start from as well. The module at `home` is itself in the result only when
    another one imports it. Raises InvalidRequestError for first-party code that cannot be shipped as source.
    """
    walk = _Walk(home)
    if home.file is not None:
        walk.read(home.file.read_bytes(), str(home.file), home.package)
    for name in sorted(also):
        walk.need(name)
    walk.run()
    return Needed(dict(sorted(walk.files.items())), tuple(sorted(walk.modules)), tuple(sorted(walk.installed)))


class _Loader(Protocol):
    def get_data(self, path: str) -> bytes: ...


class _Walk:
    def __init__(self, home: Home) -> None:
        self._extra = [str(home.folder)] if home.folder is not None else []
        self._found: dict[str, _Found | None] = {}
        self._queue: list[str] = []
        self.files: dict[str, bytes] = {}
        self.modules: set[str] = set()
        self.installed: set[str] = set()

    def need(self, name: str) -> None:
        if name not in self._queue:
            self._queue.append(name)

    def run(self) -> None:
        for name in self._queue:  # it grows while it is read
            self._visit(name)

    def read(self, source: bytes, origin: str, package: str) -> None:
        """Queues what this source imports."""
        for found in _imports(source, origin):
            base = _absolute(found, package)
            if not base:
                continue
            self.need(base)
            for name in found.names:
                if name == "*":
                    self._star(base)
                else:
                    self.need(f"{base}.{name}")

    def _star(self, base: str) -> None:
        # `from package import *` imports the submodules that its __all__ lists.
        found = self._locate(base)
        if found is not None and found.place == "ours" and found.is_package:
            for name in _listed(_read(base, found), found.origin):
                self.need(f"{base}.{name}")

    def _visit(self, name: str) -> None:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            prefix = ".".join(parts[:depth])
            found = self._locate(prefix)
            if found is None or found.place == "standard":
                return  # a plain name of its parent, an optional import that is not there, or part of Python
            if found.place == "installed":
                self.installed.add(parts[0])
                return
            if found.place == "ours" and prefix not in self.modules:
                self._take(prefix, found)

    def _take(self, name: str, found: _Found) -> None:
        source = _read(name, found)
        self.modules.add(name)
        path = name.replace(".", "/")
        self.files[f"{path}/__init__.py" if found.is_package else f"{path}.py"] = source
        for parent in _parents(name):
            above = self._locate(parent)
            if above is not None and above.place == "namespace":
                self.files[parent.replace(".", "/") + "/"] = b""
        self.read(source, found.origin, name if found.is_package else name.rpartition(".")[0])

    def _locate(self, name: str) -> _Found | None:
        if name not in self._found:
            self._found[name] = self._search(name)
        return self._found[name]

    def _search(self, name: str) -> _Found | None:
        top = name.partition(".")[0]
        if not name or top in MAIN or top == "hasfaas":
            return None
        module = sys.modules.get(name)
        if module is not None:
            return _loaded(module)
        parent = name.rpartition(".")[0]
        if not parent:
            return _located(_find_top(name) or importlib.machinery.PathFinder.find_spec(name, self._extra))
        above = self._locate(parent)
        return _located(_find_inside(name, above.search or ())) if above is not None else None


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _find_top(name: str) -> Spec | None:
    """As `import` would find it, editable installs included, but nothing is loaded."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, None)
        if spec is not None:
            return spec
    return None


def _find_inside(name: str, search: Iterable[str]) -> Spec | None:
    """A submodule. The finders of `sys.meta_path` cannot be asked: they want its parent to be imported."""
    folders: list[str] = []
    for entry in search:
        finder = pkgutil.get_importer(entry)
        spec = finder.find_spec(name) if finder is not None else None
        if spec is not None and spec.loader is not None:
            return spec
        if spec is not None:
            folders += spec.submodule_search_locations or ()
    if not folders:
        return None
    space = Spec(name, None, is_package=True)
    space.submodule_search_locations = folders
    return space


def _loaded(module: types.ModuleType) -> _Found | None:
    spec = getattr(module, "__spec__", None)
    if isinstance(spec, Spec):
        return _located(spec)
    file = getattr(module, "__file__", None)  # made by hand: only its file tells where it is from
    search = getattr(module, "__path__", None)
    if not isinstance(file, str):
        return None
    return _Found(_place(file), file, search is not None, tuple(search) if search is not None else None)


def _located(spec: Spec | None) -> _Found | None:
    if spec is None:
        return None
    search = tuple(spec.submodule_search_locations) if spec.submodule_search_locations is not None else None
    if spec.origin in ("built-in", "frozen"):
        return _Found("standard")
    if spec.has_location and spec.origin is not None:
        return _Found(_place(spec.origin), spec.origin, search is not None, search, spec.loader)
    if search is None:
        return None  # exists in memory only
    places = {_place(folder) for folder in search}
    return _Found("namespace" if "ours" in places else places.pop() if places else "standard", search=search)


def _place(file: str) -> str:
    path = Path(os.path.abspath(file))  # noqa: PTH100 - symlinks stay: a linked package is where it is linked
    if {"site-packages", "dist-packages"} & set(path.parts):
        return "installed"
    real = Path(os.path.realpath(file))
    return "standard" if any(one.is_relative_to(root) for one in (path, real) for root in _STANDARD) else "ours"


def _standard_folders() -> frozenset[str]:
    names = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    # An interpreter may also carry its library as one zip.
    names.append(f"{sys.base_prefix}/lib/python{sys.version_info.major}{sys.version_info.minor}.zip")
    return frozenset(names) | {os.path.realpath(name) for name in names}


_STANDARD = _standard_folders()


def _read(name: str, found: _Found) -> bytes:
    if not found.origin.endswith(".py"):
        raise InvalidRequestError(
            f"module {name} ({found.origin}) is first-party but no Python source, and a bundle ships source "
            "only: install it into site-packages of the interpreter that serves"
        )
    path = Path(found.origin)
    try:
        return path.read_bytes() if path.is_file() else cast(_Loader, found.loader).get_data(found.origin)
    except (OSError, AttributeError) as error:
        raise InvalidRequestError(f"module {name}: its source {found.origin} cannot be read ({error})") from error


def _imports(source: bytes, origin: str) -> Iterator[_Import]:
    for node in ast.walk(_parse(source, origin)):
        match node:
            case ast.Import(names=names):
                yield from (_Import(alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                yield _Import(module or "", tuple(alias.name for alias in names), level)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ) if not name.startswith("."):
                yield _Import(name)
            case _:
                continue


def _parse(source: bytes, origin: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise InvalidRequestError(f"{origin} is no valid Python source, so its imports are unknown: {error}") from error


def _absolute(found: _Import, package: str) -> str:
    if not found.level:
        return found.module
    parts = package.split(".") if package else []
    base = parts[: len(parts) - found.level + 1]
    return ".".join([*base, found.module] if found.module else base)


def _listed(source: bytes, origin: str) -> Iterable[str]:
    for node in _parse(source, origin).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List(elts=items) | ast.Tuple(elts=items)):
                return [i.value for i in items if isinstance(i, ast.Constant) and isinstance(i.value, str)]
    return []
