"""Rebuilds wrappers of the standard library that have no pickle of their own. Pickles name what is here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def cached_function(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Callable[..., Any]:
    """An empty `functools.lru_cache` of `function`."""
    return functools.lru_cache(maxsize=maxsize, typed=typed)(function)


def cached_property(function: Callable[[Any], Any], name: str | None) -> functools.cached_property[Any]:
    """A `functools.cached_property` that keeps its value under `name`, as in the class that it comes from."""
    made = functools.cached_property(function)
    if name is not None:
        made.__set_name__(object, name)
    return made
