from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hasfaas.core import errors
from hasfaas.core.errors import FunctionError, HasFaasError, InvalidRequestError, RemoteFrame


def tree(root: type[HasFaasError] = HasFaasError) -> Iterator[type[HasFaasError]]:
    """Every class of core/errors.py."""
    if root.__module__ == errors.__name__:
        yield root
    for child in root.__subclasses__():
        yield from tree(child)


TREE = tuple(dict.fromkeys(tree()))

# What a caller that knows nothing of hasfaas would catch.
RESEMBLES: dict[type[HasFaasError], tuple[type[Exception], ...]] = {
    errors.InvalidRequestError: (ValueError,),
    errors.SerializationError: (ValueError, TypeError),
    errors.NotFoundError: (LookupError,),
    errors.MemoryLimitError: (MemoryError,),
    errors.DeadlineError: (TimeoutError, OSError),
    errors.DeadlineInfeasibleError: (TimeoutError,),
    errors.UnavailableError: (ConnectionError, OSError),
    errors.AuthError: (PermissionError, OSError),
}


def test_the_docstring_draws_the_tree_that_is_there() -> None:
    assert errors.__doc__ is not None
    drawn = {word for word in errors.__doc__.split() if word.endswith("Error")}
    assert {cls.__name__ for cls in TREE} <= drawn
    assert len(TREE) == 17


@pytest.mark.parametrize("cls", TREE)
def test_each_class_is_one_of_ours_and_of_the_builtins_it_resembles(cls: type[HasFaasError]) -> None:
    assert all(issubclass(cls, builtin) for builtin in RESEMBLES.get(cls, (Exception,)))
    if cls not in RESEMBLES:
        assert not issubclass(cls, (ValueError, TypeError, LookupError, OSError, MemoryError))


@pytest.mark.parametrize("cls", TREE)
def test_a_reason_is_upper_snake_and_can_be_another(cls: type[HasFaasError]) -> None:
    assert cls().reason == cls.default_reason
    assert cls.default_reason == cls.default_reason.upper()
    assert cls.default_reason.replace("_", "").isalpha()
    assert cls("text", reason="OWN_REASON").reason == "OWN_REASON"


def test_each_default_reason_belongs_to_one_class() -> None:
    reasons = [cls.default_reason for cls in TREE]
    assert sorted(reasons) == sorted(set(reasons))


@pytest.mark.parametrize("cls", TREE)
def test_the_text_is_the_message(cls: type[HasFaasError]) -> None:
    made = cls("memory='2G': give an amount")
    assert made.message == "memory='2G': give an amount"
    assert "memory='2G': give an amount" in str(made)
    assert made.args == ("memory='2G': give an amount",)
    assert made.retry_after_s is None


@pytest.mark.parametrize("copied", [lambda exc: pickle.loads(pickle.dumps(exc)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("cls", TREE)
def test_each_class_pickles_with_all_that_it_knows(cls: type[HasFaasError], copied: Callable[[Any], Any]) -> None:
    made = cls("text", reason="OWN_REASON", retry_after_s=1.5)
    made.add_note("a note")
    back = copied(made)
    assert type(back) is cls
    assert str(back) == str(made)
    assert (back.message, back.args) == ("text", ("text",))
    assert (back.reason, back.retry_after_s, back.__notes__) == ("OWN_REASON", 1.5, ["a note"])


class TwoArgumentError(InvalidRequestError):
    """A user's own kind of our error, with other arguments and an attribute."""

    def __init__(self, field: str, value: object) -> None:
        super().__init__(f"{field}={value!r}", reason="OWN_REASON")
        self.value = value


def test_a_users_subclass_with_other_arguments_pickles() -> None:
    back = pickle.loads(pickle.dumps(TwoArgumentError("size", 3)))
    assert type(back) is TwoArgumentError
    assert (back.value, back.reason, str(back)) == (3, "OWN_REASON", "size=3")


FRAMES = (RemoteFrame("app.py", 12, "embed", "return model(x)"), RemoteFrame("lib.py", 3, "f"))


def test_a_function_error_shows_the_remote_traceback_once_and_its_head_last() -> None:
    text = str(FunctionError("no such file", qualname="FileNotFoundError", frames=FRAMES))
    assert text.startswith("FileNotFoundError: no such file\n\nRemote traceback")
    assert '  File "app.py", line 12, in embed\n    return model(x)\n  File "lib.py", line 3, in f\n' in text
    assert text.endswith("\nFileNotFoundError: no such file")


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (FunctionError("why", qualname="KeyError"), "KeyError: why"),
        (FunctionError(qualname="KeyError"), "KeyError"),
        (FunctionError("why"), "Exception: why"),
    ],
)
def test_a_function_error_without_frames_is_one_line(made: FunctionError, text: str) -> None:
    assert str(made) == text


def test_a_function_error_pickles_with_its_traceback_and_notes() -> None:
    made = FunctionError("why", reason="OWN", qualname="KeyError", frames=FRAMES, notes=("one", "two"))
    back = pickle.loads(pickle.dumps(made))
    assert (back.frames, back.qualname, back.__notes__, back.reason) == (FRAMES, "KeyError", ["one", "two"], "OWN")
    assert str(back) == str(made)


def test_a_class_that_exists_here_only_pickles_as_a_plain_function_error() -> None:
    """A client mixes the user's class with FunctionError at run time; nobody else could import that."""
    mixed = type("KeyError", (FunctionError, KeyError), {})
    made = mixed("why", qualname="KeyError", frames=FRAMES)
    made.unpicklable = lambda: None
    back = pickle.loads(pickle.dumps(made))
    assert type(back) is FunctionError
    assert (back.qualname, back.frames, back.message) == ("KeyError", FRAMES, "why")
