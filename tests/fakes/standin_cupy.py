"""How tests reach the stand-in for CuPy: in their own process, or in those that they start."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "standins"


def environment() -> dict[str, str]:
    """What a process needs so that `import cupy` finds the stand-in."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH", ""))))}


@contextlib.contextmanager
def imported(*, hide_torch: bool = True) -> Iterator[Any]:
    """A fresh stand-in as this process's `cupy`, in place of the real one, until the end.

    Torch looks as if nobody had imported it, since one that has CUDA knows no stand-in; what a test puts in its place goes
    at the end. Code that needs the real one says `hide_torch=False`.
    """
    torch = sys.modules.pop("torch", None) if hide_torch else None
    before = _take_out()
    sys.path.insert(0, str(FOLDER))
    try:
        importlib.invalidate_caches()
        yield importlib.import_module("cupy")
    finally:
        sys.path.remove(str(FOLDER))
        _take_out()
        sys.modules.update(before)
        if hide_torch:
            sys.modules.pop("torch", None)
        if torch is not None:
            sys.modules["torch"] = torch


def _take_out() -> dict[str, Any]:
    names = [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends")]
    return {name: sys.modules.pop(name) for name in names}
