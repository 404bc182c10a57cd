"""What users may import from hasfaas: `__all__` says it, and nothing else is there by accident."""

from __future__ import annotations

import types

import pytest

import hasfaas
from hasfaas.core import errors

# Needed while the package is read, and no name of ours.
INTERNAL = {"TYPE_CHECKING"}


def public_names() -> set[str]:
    """What `dir` shows without an underscore, rooms left out."""
    names = {name for name in dir(hasfaas) if not name.startswith("_")}
    return {name for name in names if not isinstance(getattr(hasfaas, name), types.ModuleType)} - INTERNAL


def test_all_is_what_is_there() -> None:
    assert public_names() == set(hasfaas.__all__) - {"__version__"}


@pytest.mark.parametrize("name", hasfaas.__all__)
def test_every_name_can_be_had_and_is_documented(name: str) -> None:
    value = getattr(hasfaas, name)
    if name != "__version__":
        assert value.__doc__, f"{name} has no docstring"


def test_all_is_sorted_and_says_nothing_twice() -> None:
    assert len(set(hasfaas.__all__)) == len(hasfaas.__all__)
    constants_last = sorted(hasfaas.__all__, key=lambda name: (name.startswith("_"), name))
    assert sorted(hasfaas.__all__) == sorted(constants_last)


def test_every_error_class_is_exported() -> None:
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.HasFaasError)
    }
    assert kinds <= set(hasfaas.__all__)
    assert {getattr(hasfaas, name) for name in kinds} == {getattr(errors, name) for name in kinds}


def test_star_gives_what_all_says() -> None:
    taken: dict[str, object] = {}
    exec("from hasfaas import *", taken)
    assert set(hasfaas.__all__) <= set(taken)


def test_an_unknown_name_is_an_attribute_error_that_says_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fonction'"):
        _ = hasfaas.fonction  # type: ignore[attr-defined]


def test_the_version_is_that_of_the_package() -> None:
    from importlib import metadata

    assert hasfaas.__version__ == metadata.version("hasfaas")
