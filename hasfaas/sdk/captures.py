"""What a function takes along when it is pickled by value: closure, globals it names, defaults.

Law: this mirrors what cloudpickle ships, and which things it ships by name instead. The digest and the size
report both read it here, so that a version covers exactly what travels.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator

from hasfaas.sdk.home import MAIN

_GLOBAL_OPS = ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL")
_MODULE_FACTS = ("__name__", "__file__", "__package__", "__spec__", "__loader__", "__doc__", "__builtins__")
"""Globals that say where a module is, and differ between running a script and importing it."""


def captures(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """(label, value) of everything captured, in an order that depends on names only."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".<closure>.{name}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    values = function.__globals__
    for name in sorted(global_names(function.__code__)):
        if name in values and name not in _MODULE_FACTS:
            yield f".<global>.{name}", values[name]
    for index, value in enumerate(function.__defaults__ or ()):
        yield f".<default {index}>", value
    for name, value in sorted((function.__kwdefaults__ or {}).items()):
        yield f".<default {name}>", value


@functools.lru_cache(maxsize=4096)
def global_names(code: types.CodeType) -> frozenset[str]:
    """Names of the globals that `code`, or a function inside it, reads or writes."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in _GLOBAL_OPS}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= global_names(constant)
    return frozenset(names)


def imports_in(code: types.CodeType) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names taken from it) of the absolute imports that `code`, or code inside it, would run."""
    previous: object = None
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            # The compiler loads the tuple of names right before.
            yield step.argval, previous if isinstance(previous, tuple) else ()
        previous = step.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from imports_in(constant)


def reference(value: object, own: str) -> tuple[str, str] | None:
    """(module, qualname) when a function or class is shipped by name, None when its code is shipped.

    Code is shipped for the function's own module, for a script, and for what its module does not hold under
    its name.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module in (own, *MAIN):
        return None
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return (module, name) if found is value else None
