"""A user's file in the shell: imports it as `python app.py` would, and finds the decorated functions in it.

Law: a function has the same version whether its script runs, or the shell imports it. So the module gets the name of
its file, and its folder comes first on `sys.path`, as Python does for a script.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
import types
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from hasfaas.core.errors import HasFaasError, InvalidRequestError
from hasfaas.sdk.cli_shell import USER_CODE

if TYPE_CHECKING:
    from hasfaas.sdk.function import Remote


class ImportFailedError(click.ClickException):
    """The user's file raised while it was imported: its own traceback is the message."""

    exit_code = USER_CODE

    def show(self, file: Any = None) -> None:
        click.echo(self.message, file=file, err=file is None)


@attrs.frozen
class Reference:
    """APP.py or APP.py::NAME, as the user wrote it."""

    file: Path
    name: str | None

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """None for what is no reference to a file, but the name of a deployed function."""
        path, mark, name = text.partition("::")
        if not mark and not path.endswith(".py"):
            return None
        if mark and not (path and name):
            raise InvalidRequestError(f"{text!r} is not FILE.py::NAME")
        return cls(Path(path), name or None)

    def functions(self) -> list[Remote[Any]]:
        """Imports the file: the function named, or all that it defines. InvalidRequestError where it has none."""
        module = import_file(self.file)
        if self.name is not None:
            return [_named(self.file, module, self.name)]
        mine = [fn for fn in _functions(module).values() if fn.target.__module__ == module.__name__]
        if not mine:
            raise InvalidRequestError(f"{self.file} defines no decorated function{_others(module)}")
        return mine

    def function(self) -> Remote[Any]:
        """The one function meant. Raises InvalidRequestError where the file has several and none is named."""
        found = self.functions()
        if len(found) > 1:
            names = ", ".join(_functions(import_file(self.file)))
            raise InvalidRequestError(f"{self.file} has several functions: {names}; say {self.file}::NAME")
        return found[0]


def import_file(file: Path) -> types.ModuleType:
    """The module of a file, imported once. InvalidRequestError; ImportFailedError for what the file raises."""
    if not file.is_file():
        raise InvalidRequestError(f"there is no file {file}")
    file = file.absolute()
    name = file.stem
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(file):
            return known
        raise InvalidRequestError(
            f"{file} cannot be imported as module {name!r}: {getattr(known, '__file__', 'Python itself')} has that "
            "name already; rename the file"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InvalidRequestError(f"{file} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.resolve().parent))
    argv, sys.argv = sys.argv, [str(file)]
    try:
        spec.loader.exec_module(module)
    except BaseException as exc:
        del sys.modules[name]
        _reraise(exc, file)
    finally:
        sys.argv = argv
    return module


def _reraise(exc: BaseException, file: Path) -> None:
    own = [frame for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == str(file)]
    if isinstance(exc, HasFaasError) and own:
        # A bad option, say: the words are enough, with the place.
        exc.add_note(f'  File "{file}", line {own[-1].lineno}, in {own[-1].name}')
    if isinstance(exc, (HasFaasError, KeyboardInterrupt)):
        raise exc
    if isinstance(exc, SystemExit):
        raise ImportFailedError(
            f"hasfaas: {file} ended by sys.exit({exc.code!r}) while it was imported; "
            'put that below `if __name__ == "__main__":`'
        ) from exc
    raised_by = exc.__traceback__
    while raised_by is not None and raised_by.tb_frame.f_code.co_filename != str(file):
        raised_by = raised_by.tb_next
    text = "".join(traceback.format_exception(type(exc), exc, raised_by))
    raise ImportFailedError(f"{text}hasfaas: {file} could not be imported, it raised the above") from exc


def _functions(module: types.ModuleType) -> dict[str, Remote[Any]]:
    """The decorated functions that the module knows, by the first name that each has there."""
    from hasfaas.sdk.function import Remote

    found: dict[str, Remote[Any]] = {}
    for name, value in vars(module).items():
        if isinstance(value, Remote) and not any(value is other for other in found.values()):
            found[name] = value
    return found


def _named(file: Path, module: types.ModuleType, name: str) -> Remote[Any]:
    from hasfaas.sdk.function import Remote

    value = getattr(module, name, None)
    if isinstance(value, Remote):
        return value
    known = _functions(module)
    for function in known.values():
        if function.name == name:
            return function
    if callable(value):
        raise InvalidRequestError(f"{name} of {file} is not decorated: put @function(slo_ms=...) above it")
    raise InvalidRequestError(f"{file} has no decorated function {name!r}; it has: {', '.join(known) or 'none'}")


def _others(module: types.ModuleType) -> str:
    """What might have been meant: functions that the file takes from another one."""
    names: Iterable[str] = _functions(module)
    taken = ", ".join(f"{module.__name__}.py::{name}" for name in names)
    return f"; those that it imports must be named: {taken}" if taken else ": put @function(slo_ms=...) above one"
