"""Who may import whom, and which files are pure. The tables below are the rule; sources are read, not run.

The standard library is free, except in pure files. `lazy` third parties may be imported inside functions only
(or for type checking); `special` gives some files of a room more. Imports inside a room are free.
"""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "hasfaas"


@attrs.frozen
class Room:
    """What the files of one room may import: rooms of ours, third parties anywhere, third parties lazily."""

    ours: str = ""
    third: str = ""
    lazy: str = ""
    special: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    special_lazy: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    files: str = ""  # single files of rooms that are closed otherwise
    root: bool = False  # the root package, as users import it

    def third_parties(self, file: str, *, lazy: bool) -> set[str]:
        """The third parties that `file` of this room may import, at its top or lazily."""
        now = f"{self.third} {_matching(self.special, file)}"
        later = f"{self.lazy} {_matching(self.special_lazy, file)}" if lazy else ""
        return {*now.split(), *later.split()}


def _matching(special: Mapping[str, str], file: str) -> str:
    return " ".join(names for glob, names in special.items() if fnmatch(file, glob))


# The root package re-exports what users need; it stands above the SDK, and no room imports it.
ROOMS = {
    "core": Room(third="attrs"),
    "wire": Room("core", third="attrs grpc google msgpack", lazy="numpy torch cloudpickle"),
    "devices": Room("core", third="attrs", lazy="torch cupy pynvml numpy"),
    "executor": Room(
        "core wire devices",
        third="attrs msgpack numpy",
        special={"loader.py": "cloudpickle"},
        special_lazy=dict.fromkeys(("runner.py", "gates.py", "doors.py", "modules.py", "zygote.py"), "torch"),
    ),
    "rapp": Room(
        "core executor",
        third="attrs numpy",
        special_lazy={"export.py": "torch", "train*.py": "statsmodels scipy"},
    ),
    "scaling": Room("core executor rapp", third="attrs numpy"),
    "scaling.baselines": Room("core executor rapp scaling", third="attrs numpy"),
    "serving": Room("core wire", third="attrs grpc google msgpack"),
    "node": Room("core wire devices executor", third="attrs psutil"),
    "simulator": Room(
        "core rapp scaling scaling.baselines",
        files="executor.quota node.lanes serving.policies serving.batching",
        third="attrs numpy",
        special_lazy={"kernel.py": "numba", "pictures.py": "matplotlib"},
    ),
    "backends": Room(
        "core wire devices executor serving node rapp scaling",
        third="attrs grpc google numpy",
        special_lazy={"authority.py": "cryptography"},
    ),
    "backends.local": Room("core wire serving node backends", third="attrs grpc"),
    "backends.cluster": Room(
        "core wire devices serving node backends",
        third="attrs cattrs fsspec",
        special_lazy=dict.fromkeys(("actors.py", "control_actor.py", "ray_cluster.py"), "ray"),
    ),
    "sdk": Room(
        "core wire",
        third="attrs numpy cloudpickle grpc google platformdirs",
        special_lazy={"user_file.py": "tomlkit"},
    ),
    "": Room("core wire sdk", third="attrs"),
    # Suites for others and for our own tests: what users import, and no room of a server. Nothing imports them.
    "testing": Room("core wire sdk", third="pytest psutil", root=True),
    "testing.apps": Room(third="numpy torch", root=True),
    "testing.backend_conformance": Room("core wire sdk testing testing.apps", third="attrs numpy pytest", root=True),
}
# A composition root sees anything, and nobody imports it (but `python -m hasfaas`, which is one itself).
COMPOSITION_ROOTS = ("sdk/cli.py", "sdk/cli_*.py", "__main__.py")
ROOT_ONLY_THIRD = ("click", "rich")
# Parts of one library that are packages of their own, by the name that the table uses.
FAMILIES = {"grpc_health": "grpc", "grpc_reflection": "grpc", "grpc_status": "grpc", "attr": "attrs"}

PURE = (
    "backends/cluster/members.py",
    "backends/cluster/reservation.py",
    "core/*.py",
    "executor/quota.py",
    "executor/gate_plan.py",
    "node/lanes.py",
    "node/seats.py",
    "rapp/*.py",
    "scaling/*.py",
    "serving/policies.py",
    "serving/batching.py",
    "simulator/*.py",
)
# Files that act, in a room that is pure otherwise.
EDGES = ("rapp/export.py", "rapp/cpu_description.py")
IMPURE_MODULES = frozenset(
    "time asyncio threading socket multiprocessing subprocess grpc ray torch".split()  # noqa: SIM905
)


@attrs.frozen
class Import:
    """One import statement: what it names, the line, and whether it runs only when a function does."""

    module: str
    line: int
    lazy: bool


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Every import of a source text; `file` (its path below the package) is where relative imports start."""
    yield from _walk(ast.parse(source), (PACKAGE, *Path(file).parent.parts), lazy=False)


def _walk(node: ast.AST, package: tuple[str, ...], *, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = list(package[: len(package) - child.level + 1]) if child.level else []
            module = ".".join([*base, *([child.module] if child.module else [])])
            yield from (Import(f"{module}.{alias.name}", child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.Call) and (name := _imported_by_call(child)):
            yield Import(name, child.lineno, lazy)
            yield from _walk(child, package, lazy=lazy)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, package, lazy=lazy or inside or _for_type_checking(child))


def _imported_by_call(call: ast.Call) -> str | None:
    """The module in `import_module("x")` and `__import__("x")` with a literal name."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    argument = call.args[0] if call.args else None
    if name in ("import_module", "__import__") and isinstance(argument, ast.Constant):
        return str(argument.value)
    return None


def _for_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING"


def room_of(parts: tuple[str, ...]) -> str:
    """The room that a path or a dotted name below the package belongs to: the longest one that begins it."""
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in ROOMS:
            return ".".join(parts[:length])
    return ""


def is_root(file: str) -> bool:
    """Whether the file is a composition root."""
    return any(fnmatch(file, glob) for glob in COMPOSITION_ROOTS)


def violations(source: str, file: str) -> list[str]:
    """What is wrong with the imports of one file, by line. `file` is its path below the package."""
    room = room_of(Path(file).with_suffix("").parts)
    found = []
    for entry in imports_of(source, file):
        top, *rest = entry.module.split(".")
        if top == PACKAGE:
            wrong = _wrong_of_ours(room, file, tuple(rest))
        else:
            wrong = _wrong_of_others(room, file, FAMILIES.get(top, top), lazy=entry.lazy)
        if not wrong and file not in EDGES and top in IMPURE_MODULES and any(fnmatch(file, glob) for glob in PURE):
            wrong = f"is pure and may not import {top}"
        if wrong:
            found.append(f"{PACKAGE}/{file}:{entry.line} {wrong} ({entry.module})")
    return found


def _wrong_of_ours(room: str, file: str, target: tuple[str, ...]) -> str:
    path = "/".join(target)
    if not is_root(file) and any(is_root(name) for name in (f"{path}.py", f"{path.rpartition('/')[0]}.py")):
        return "imports a composition root, which nobody may"
    other = room_of(target)
    if is_root(file) or other == room or other in ROOMS[room].ours.split() or (not other and ROOMS[room].root):
        return ""
    if ".".join(target[:2]) in ROOMS[room].files.split():
        return ""
    return f"({room or 'the root package'}) may not import {other or 'the root package'}"


def _wrong_of_others(room: str, file: str, name: str, *, lazy: bool) -> str:
    if name in sys.stdlib_module_names or (is_root(file) and (lazy or name in ROOT_ONLY_THIRD)):
        return ""
    if name in ROOMS[room].third_parties(Path(file).name, lazy=lazy):
        return ""
    at_top = "" if lazy else " at its top"
    return f"({room or 'the root package'}) may not import {name}{at_top}"


def sources() -> Iterator[tuple[str, str]]:
    """(path below the package, text) of every source file of ours."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        yield path.relative_to(ROOT / PACKAGE).as_posix(), path.read_text()


def test_every_import_is_allowed() -> None:
    found = [line for file, text in sources() for line in violations(text, file)]
    assert not found, "\n".join(found)


def test_every_folder_is_a_room() -> None:
    folders = {file.rpartition("/")[0] for file, _ in sources()} - {"", "wire/v1"}
    assert {folder.replace("/", ".") for folder in folders} <= set(ROOMS)


def test_the_table_has_an_order() -> None:
    order = list(graphlib.TopologicalSorter(_depends(ROOMS)).static_order())  # raises CycleError
    assert order[0] == "core"
    assert set(order) == set(ROOMS)
    looped = ROOMS | {"core": Room("node")}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(_depends(looped)).prepare()


def _depends(rooms: Mapping[str, Room]) -> dict[str, list[str]]:
    return {
        name: [
            *room.ours.split(),
            *(file.rpartition(".")[0] for file in room.files.split()),
            *([""] if room.root else []),
        ]
        for name, room in rooms.items()
    }


@pytest.mark.parametrize("glob", PURE)
def test_a_pure_file_is_where_the_table_looks(glob: str) -> None:
    """A renamed file must not slip out of the list: once there is a gateway, each room has its pure part."""
    room = glob.partition("/")[0]
    if not (ROOT / PACKAGE / "serving/gateway.py").exists() or list((ROOT / PACKAGE).glob(glob)):
        return
    others = [other for other in PURE if other.startswith(f"{room}/")]
    assert any(list((ROOT / PACKAGE).glob(other)) for other in others), f"{room} has none of {others}"


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("core/spec.py", "import time", "is pure and may not import time"),
        ("core/spec.py", "def f():\n    import socket", "is pure and may not import socket"),
        ("core/spec.py", "from asyncio import run", "is pure and may not import asyncio"),
        ("core/spec.py", "from importlib import import_module\nimport_module('time')", "may not import time"),
        ("core/spec.py", "import torch", "(core) may not import torch at its top"),
        ("core/spec.py", "from hasfaas.wire import convert", "(core) may not import wire"),
        ("core/spec.py", "from ..wire import convert", "(core) may not import wire"),
        ("core/spec.py", "import hasfaas.wire.convert", "(core) may not import wire"),
        ("core/spec.py", "from hasfaas import function", "(core) may not import the root package"),
        ("serving/router.py", "from hasfaas.executor import quota", "(serving) may not import executor"),
        ("serving/policies.py", "class A:\n    import grpc.aio", "is pure and may not import grpc"),
        ("node/agent.py", "from hasfaas.serving.router import Router", "(node) may not import serving"),
        (
            "node/agent.py",
            "if TYPE_CHECKING:\n    from hasfaas.serving import x",
            "(node) may not import serving",
        ),
        ("wire/payload.py", "import numpy", "(wire) may not import numpy at its top"),
        ("executor/runner.py", "import torch", "(executor) may not import torch at its top"),
        ("executor/tokens.py", "def f():\n    import torch", "(executor) may not import torch"),
        ("executor/runner.py", "def f():\n    import cloudpickle", "(executor) may not import cloudpickle"),
        (
            "backends/local/backend.py",
            "from hasfaas.sdk import client",
            "(backends.local) may not import sdk",
        ),
        (
            "backends/local/backend.py",
            "from hasfaas.executor import x",
            "(backends.local) may not import executor",
        ),
        (
            "backends/lookup.py",
            "from hasfaas.backends.local import backend",
            "(backends) may not import backends.local",
        ),
        ("simulator/engine.py", "from hasfaas.serving.router import Router", "(simulator) may not import serving"),
        ("simulator/engine.py", "import time", "is pure and may not import time"),
        ("simulator/engine.py", "import numba", "(simulator) may not import numba at its top"),
        ("sdk/client.py", "import rich", "(sdk) may not import rich at its top"),
        ("sdk/client.py", "from hasfaas.sdk import cli", "imports a composition root"),
        ("sdk/client.py", "from hasfaas.sdk.cli_show import table", "imports a composition root"),
        ("sdk/cli.py", "import pandas", "(sdk) may not import pandas at its top"),
        ("__init__.py", "from hasfaas.serving import gateway", "(the root package) may not import serving"),
        ("sdk/client.py", "from hasfaas.testing.running import started", "(sdk) may not import testing"),
        ("testing/running.py", "from hasfaas.backends.local import backend", "(testing) may not import backends.local"),
        ("testing/apps/verbs.py", "from hasfaas.sdk import client", "(testing.apps) may not import sdk"),
    ],
)
def test_a_planted_violation_is_found(file: str, source: str, complaint: str) -> None:
    found = violations(source, file)
    assert len(found) == 1, found
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "core/spec.py",
            "import attrs\nimport json\nfrom hasfaas.core.errors import HasFaasError\nfrom . import errors",
        ),
        (
            "wire/payload.py",
            "from hasfaas.wire.v1 import payload_pb2\nimport grpc\nfrom google.rpc import code_pb2",
        ),
        ("wire/payload.py", "def f():\n    import torch"),
        ("wire/payload.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy"),
        ("executor/zygote.py", "import time\ndef f():\n    import torch.nn"),
        ("serving/gateway.py", "from grpc_health.v1 import health\nimport asyncio"),
        (
            "backends/local/nodes.py",
            "from hasfaas.backends.base import Backend\nfrom hasfaas.node.agent import Agent",
        ),
        (
            "sdk/cli.py",
            "import click\nimport rich\ndef f():\n    import PIL\n    from hasfaas.serving import gateway",
        ),
        ("sdk/cli_show.py", "from hasfaas.sdk import cli\nfrom rich.table import Table"),
        ("simulator/engine.py", "from hasfaas.serving import batching\nfrom hasfaas.executor.quota import Timing"),
        ("__main__.py", "from hasfaas.sdk.cli import main"),
        ("__init__.py", "from hasfaas.sdk.function import function"),
        ("testing/apps/verbs.py", "import numpy as np\nfrom hasfaas import function"),
    ],
)
def test_what_the_table_allows_passes(file: str, source: str) -> None:
    assert violations(source, file) == []


# grpc itself imports the empty tops of grpc_health and grpc_reflection; their services lie below.
HEAVY = "torch ray cupy click rich sklearn matplotlib PIL grpc_health.v1 grpc_reflection.v1alpha"
SERVER_ROOMS = "serving node executor devices backends.local backends.cluster"
no_package_yet = pytest.mark.skipif(
    not (ROOT / PACKAGE / "__init__.py").exists(), reason="the package has no __init__.py yet"
)


def _in_a_fresh_interpreter(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@no_package_yet
def test_importing_hasfaas_is_light_and_starts_nothing() -> None:
    code = "import json, sys, threading, hasfaas; print(json.dumps([*sys.modules, threading.active_count()]))"
    *modules, threads = json.loads(_in_a_fresh_interpreter(code))
    unwanted = set(HEAVY.split()) | {f"{PACKAGE}.{room}" for room in SERVER_ROOMS.split()}
    assert sorted(unwanted & set(modules)) == []
    assert threads == 1


@no_package_yet
def test_every_public_name_is_there() -> None:
    code = "import hasfaas; print([name for name in hasfaas.__all__ if not hasattr(hasfaas, name)])"
    assert _in_a_fresh_interpreter(code) == "[]\n"
