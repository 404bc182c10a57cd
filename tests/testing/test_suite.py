"""The public suite itself: whole, without two tests of one name, and nothing that its user must have besides."""

from __future__ import annotations

import inspect
import pkgutil
from collections import Counter
from importlib import import_module

from hasfaas.testing import backend_conformance
from hasfaas.testing.backend_conformance import BackendConformance
from hasfaas.testing.backend_conformance.area import Area

PACKAGE = backend_conformance.__name__


def areas() -> list[type[Area]]:
    """Every area that a file of the suite defines."""
    files = [import_module(one.name) for one in pkgutil.iter_modules(backend_conformance.__path__, f"{PACKAGE}.")]
    found = [(file, value) for file in files for value in vars(file).values() if inspect.isclass(value)]
    own = [value for file, value in found if value.__module__ == file.__name__ and issubclass(value, Area)]
    return [area for area in own if area is not Area]


def names_in(area: type[Area]) -> list[str]:
    """The tests of one area."""
    return [name for name in vars(area) if name.startswith("test_")]


def test_the_contract_is_all_areas() -> None:
    assert set(areas()) == set(BackendConformance.__bases__)
    assert {area.__name__ for area in areas()} <= set(backend_conformance.__all__)


def test_no_test_hides_another() -> None:
    names = Counter(name for area in areas() for name in names_in(area))
    assert [name for name, count in names.items() if count > 1] == []


def test_it_needs_no_plug_in_for_coroutines_and_is_collected_by_its_subclass_alone() -> None:
    tests = [getattr(area, name) for area in areas() for name in names_in(area)]
    assert len(tests) > 80
    assert not [test for test in tests if inspect.iscoroutinefunction(test)]
    assert not [area for area in (*areas(), BackendConformance) if area.__name__.startswith("Test")]
