"""Calls back once torch is there: at once if it has been imported already, else at the end of its import.

A replica enters its device before the user's code is loaded, and torch may come with that code.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class WhenImported(MetaPathFinder):
    """Waits for a module. `call` is given it; what that raises fails the import."""

    def __init__(self, name: str, call: Callable[[Any], None]) -> None:
        self._name = name
        self._call = call

    def start(self) -> None:
        """Calls now, or waits."""
        module = sys.modules.get(self._name)
        if module is not None:
            self._call(module)
        else:
            self._wait()

    def _wait(self) -> None:
        sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """Waits no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds the module as it would be found without us, and stands at the end of its loading."""
        if fullname != self._name:
            return None
        self.stop()
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            self._wait()  # not there now; a later import may find it
            return None
        loader: Any = spec.loader
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            try:
                load(module)
            except BaseException:
                self._wait()
                raise
            self._call(module)

        loader.exec_module = exec_module
        return spec
