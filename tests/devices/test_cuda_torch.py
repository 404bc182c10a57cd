"""Being told of a module when it is imported, now or later."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hasfaas.devices.cuda_torch import WhenImported


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    (tmp_path / "late_module.py").write_text(
        "import os\nif 'BREAK' in os.environ: raise ValueError('broken')\nVALUE = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    yield []
    sys.modules.pop("late_module", None)
    assert sys.meta_path == before


def test_a_module_that_is_there_is_told_at_once(told: list[Any]) -> None:
    module = importlib.import_module("late_module")
    WhenImported("late_module", told.append).start()
    assert told == [module]


def test_a_later_one_is_told_when_it_is_complete(told: list[Any]) -> None:
    WhenImported("late_module", lambda module: told.append(module.VALUE)).start()
    importlib.import_module("json")
    assert told == []
    importlib.import_module("late_module")
    assert told == [3]


def test_an_import_that_breaks_is_waited_for_again(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREAK", "1")
    WhenImported("late_module", told.append).start()
    with pytest.raises(ValueError, match="broken"):
        importlib.import_module("late_module")
    monkeypatch.delenv("BREAK")
    module = importlib.import_module("late_module")
    assert told == [module]


def test_a_module_that_does_not_exist_is_missed_as_ever(told: list[Any]) -> None:
    waiting = WhenImported("no_such_module_at_all", told.append)
    waiting.start()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_at_all")
    assert told == []
    waiting.stop()


def test_what_the_call_raises_fails_the_import(told: list[Any]) -> None:
    def refuse(_: Any) -> None:
        raise RuntimeError("the GPU refuses")

    WhenImported("late_module", refuse).start()
    with pytest.raises(RuntimeError, match="the GPU refuses"):
        importlib.import_module("late_module")


def test_nobody_is_told_after_the_end(told: list[Any]) -> None:
    waiting = WhenImported("late_module", told.append)
    waiting.start()
    waiting.stop()
    importlib.import_module("late_module")
    assert told == []
