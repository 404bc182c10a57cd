"""Where a user's function lives: its module, the file, and the names it goes by.

A script is `__main__` while it runs and a plain module when somebody imports it. Everything shipped or hashed
goes by the file, so that both ways give the same bundle.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path

import attrs

from hasfaas.core.errors import InvalidRequestError

Target = types.FunctionType | type
MAIN = ("__main__", "__mp_main__")
"""What Python calls the module it was started with; `multiprocessing` uses the second for its children."""


@attrs.frozen
class Home:
    """`module` is the name in `__module__`, `name` the dotted name under which other modules would import it.

    `file` is its source, None in a REPL or a notebook. `package` is where relative imports start, and
    `folder` is what has to be on the path for `name` to be importable.
    """

    module: str
    name: str
    file: Path | None = None
    package: str = ""
    folder: Path | None = None


def target_of(value: object) -> Target:
    """`value` if it is a plain function or a class. Raises InvalidRequestError for anything else."""
    if isinstance(value, (types.FunctionType, type)):
        return value
    raise InvalidRequestError(
        f"target={value!r} is a {type(value).__name__}; only functions and classes can be deployed: "
        "wrap it in a `def`, or give the class itself"
    )


def home_of(target: Target) -> Home:
    """The home of a function or class."""
    values = _globals(target)
    module = target.__module__ or str(values.get("__name__", "__main__"))
    file = _source_file(values.get("__file__"))
    name = _import_name(module, values.get("__spec__"), file)
    if file is None:
        return Home(module, name)
    is_package = file.name == "__init__.py"
    package = name if is_package else name.rpartition(".")[0]
    return Home(module, name, file, package, _folder(name, file, is_package))


def function_name(target: object) -> str:
    """The default name to deploy under: "<file stem>.<qualname>", or "main.<qualname>" without a file."""
    target = target_of(target)
    home = home_of(target)
    if home.file is None:
        stem = "main" if home.module in MAIN else home.name.rpartition(".")[2]
    else:
        # `pkg/__init__.py` and `python -m pkg` are both known as the package.
        inside = home.file.stem in ("__init__", "__main__")
        stem = home.file.parent.name if inside else home.file.stem
    return f"{stem}.{target.__qualname__}"


def _globals(target: Target) -> Mapping[str, object]:
    module = sys.modules.get(target.__module__)
    if module is not None:
        return vars(module)
    functions = [target, *vars(target).values()]
    return next((f.__globals__ for f in functions if isinstance(f, types.FunctionType)), {})


def _source_file(file: object) -> Path | None:
    if not isinstance(file, str) or file.endswith((".pyc", ".so")):
        return None
    path = Path(file).absolute()
    return path if path.is_file() else None


def _import_name(module: str, spec: object, file: Path | None) -> str:
    if module not in MAIN:
        return module
    name = getattr(spec, "name", None)  # `python -m pkg.app`
    if isinstance(name, str) and name not in MAIN:
        return name
    return file.stem if file is not None else module


def _folder(name: str, file: Path, is_package: bool) -> Path:
    parts = name.split(".")
    above = file.parent if is_package else file.with_suffix("")
    if tuple(parts) == above.parts[-len(parts) :]:
        return above.parents[len(parts) - 1]
    return file.parent  # a script loaded by its path, under a name of the loader's choice
