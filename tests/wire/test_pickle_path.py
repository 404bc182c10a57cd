"""The path finder blames the one thing that fails, by the path a person would type."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest

from hasfaas.wire.pickle_path import MAX_DEPTH, describe, find_unpicklable

LOCK = "cannot pickle '_thread.lock' object"


class Node:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slots:
    __slots__ = ("a", "lock")

    def __init__(self) -> None:
        self.a = 1
        self.lock = threading.Lock()


class Careful:
    """Leaves its lock out, as it should, and forgets its socket."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.socket = (letter for letter in "ab")

    def __getstate__(self) -> dict[str, Any]:
        return {"socket": self.socket}


class Odd:
    def __init__(self, state: object) -> None:
        self.state = state

    def __getstate__(self) -> object:
        return self.state


class OwnList(list[Any]):
    pass


class OwnDict(dict[str, Any]):
    pass


class CarriesLock(Exception):
    pass


def close_over(value: object) -> Callable[[], object]:
    return lambda: value


def in_script(source: str, **names: Any) -> Any:
    """A function `f` of a module that cannot be imported, as in a user's script."""
    module = types.ModuleType("__main__")
    vars(module).update(names)
    exec(source, vars(module))
    return vars(module)["f"]


def lock() -> Any:
    return threading.Lock()


def cases() -> dict[str, object]:
    a_set = {Node(lock=lock())}
    dynamic = type("Dynamic", (), {"lock": lock(), "__module__": "__main__"})
    own_list, own_dict = OwnList([1, lock()]), OwnDict(k=lock())
    return {
        "x": lock(),
        "x[1]": [1, lock()],
        "x['k'][0]": {"k": (lock(),)},
        "x.model.lock": Node(other=1, model=Node(lock=lock())),
        "x.lock": Slots(),
        "x.<state>[0]": Odd([lock()]),
        "x[1] ": own_list,
        "x['k']": own_dict,
        "x.<closure>.value": close_over(lock()),
        "x.<closure>.value.<closure>.value": close_over(close_over(lock())),
        "x.<global>.LOCK": in_script("def f(): return LOCK", LOCK=lock()),
        "x.<global>.h.lock": in_script("def f():\n def g(): return h.lock\n return g", h=Node(lock=lock())),
        "x.<default 0>": in_script("def f(a=LOCK): return a", LOCK=lock()),
        "x.<default b>": in_script("def f(*, b=LOCK): return b", LOCK=lock()),
        "x.__self__.lock": Node.__init__.__get__(Node(lock=lock())),
        "x.keywords['k']": functools.partial(print, k=lock()),
        "x.args[0]": functools.partial(print, lock()),
        "x.lock ": dynamic,
        "x.__class__.lock": dynamic(),
        "x.<reduce 1>": CarriesLock("text", lock()),
    } | {f"x.<item {str(item)[:37]}...>.lock": a_set for item in a_set}


CASES = cases()


@pytest.mark.parametrize("path", CASES)
def test_the_culprit_is_named(path: str) -> None:
    found = find_unpicklable(CASES[path], "x")
    if path == "x.<reduce 1>":  # exceptions hand their arguments over as a tuple of arguments
        assert found is not None and found.endswith(LOCK) and "<reduce" in found
    else:
        assert found == f"{path.strip()}: {LOCK}"


def test_what_can_be_pickled_is_not_blamed() -> None:
    assert find_unpicklable([1, Node(a=2), close_over(3), len], "x") is None


def test_an_attribute_that_is_left_out_of_the_state_is_not_blamed() -> None:
    assert find_unpicklable(Careful(), "x") == "x.socket: cannot pickle 'generator' object"


def test_cycles_end() -> None:
    a = Node()
    vars(a)["b"] = Node(a=a, lock=lock())
    assert find_unpicklable(a, "x") == f"x.b.lock: {LOCK}"
    ring: list[Any] = []
    ring += [ring, {"r": ring}, lock()]
    found = find_unpicklable(ring, "x")
    assert found is not None and found.endswith(LOCK)


def test_a_very_long_path_is_cut() -> None:
    value: Any = lock()
    for _ in range(3 * MAX_DEPTH):
        value = [value]
    found = find_unpicklable(value, "x")
    assert found == "x" + "[0]" * MAX_DEPTH + f": {LOCK}"


def test_an_unset_closure_variable_is_passed_over() -> None:
    def outer() -> Any:
        guard = lock()

        def inner() -> object:
            return late, guard

        if guard is None:
            late = 1
        return inner

    assert find_unpicklable(outer(), "x") == f"x.<closure>.guard: {LOCK}"


def test_another_pickler_can_judge() -> None:
    def refuse_two(value: object) -> None:
        if value == 2 or (isinstance(value, list) and 2 in value):
            raise ValueError("two")

    assert find_unpicklable([1, 2], "x", dump=refuse_two) == "x[1]: two"


def test_objects_that_fail_in_strange_ways() -> None:
    class Hostile:
        def __reduce_ex__(self, _protocol: Any) -> Any:
            raise RuntimeError("no")

        def __repr__(self) -> str:
            raise RuntimeError

    assert find_unpicklable({"k": Hostile()}, "x") == "x['k']: no"
    assert find_unpicklable({Hostile(): 1}, "x") == "x.<key <Hostile>>: no"

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe(MuteError()) == "MuteError"
    assert describe(ValueError()) == "ValueError"
