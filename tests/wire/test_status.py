from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from hasfaas.core import errors
from hasfaas.core.errors import FunctionError, HasFaasError, RemoteFrame
from hasfaas.wire import payload, status
from hasfaas.wire.status import (
    CODES,
    RemoteFunctionError,
    UserFailure,
    from_status,
    to_status,
    user_exception_to_status,
)
from hasfaas.wire.v1 import errors_pb2


def tree(root: type[HasFaasError] = HasFaasError) -> Iterator[type[HasFaasError]]:
    """Every class of core/errors.py."""
    if root.__module__ == errors.__name__:
        yield root
    for child in root.__subclasses__():
        yield from tree(child)


TREE = tuple(dict.fromkeys(tree()))


def sent(message: status_pb2.Status) -> status_pb2.Status:
    """As it comes out of the wire."""
    return status_pb2.Status.FromString(message.SerializeToString())


# -- our own errors --------------------------------------------------------------------------------------------------


def test_the_table_holds_the_whole_tree_and_nothing_else() -> None:
    assert set(CODES) == set(TREE)


@pytest.mark.parametrize("cls", TREE)
def test_each_class_comes_back_as_itself(cls: type[HasFaasError]) -> None:
    back = from_status(sent(to_status(cls("memory='2G': give an amount", reason="OWN_REASON", retry_after_s=1.25))))
    assert type(back) is (RemoteFunctionError if cls is FunctionError else cls)
    assert (back.message, back.reason, back.retry_after_s) == ("memory='2G': give an amount", "OWN_REASON", 1.25)


@pytest.mark.parametrize("cls", TREE)
def test_each_class_keeps_its_default_reason_and_says_nothing_of_retrying(cls: type[HasFaasError]) -> None:
    made = to_status(cls("why"))
    back = from_status(sent(made))
    assert (back.reason, back.retry_after_s) == (cls.default_reason, None)
    assert made.code not in (code_pb2.OK, None)


def test_a_users_subclass_travels_as_the_class_it_is_made_from() -> None:
    class Busy(errors.OverloadedError):
        pass

    back = from_status(sent(to_status(Busy("later", retry_after_s=0.5))))
    assert type(back) is errors.OverloadedError
    assert (back.message, back.retry_after_s) == ("later", 0.5)


@pytest.mark.parametrize(("delay_s", "told_s"), [(0.0, 0.0), (-1.0, 0.0), (1e-9, 1e-9), (3600.5, 3600.5)])
def test_a_delay_is_exact_to_the_nanosecond_and_never_negative(delay_s: float, told_s: float) -> None:
    back = from_status(sent(to_status(errors.OverloadedError("full", retry_after_s=delay_s))))
    assert back.retry_after_s == told_s


def test_a_function_error_of_ours_keeps_what_it_knows() -> None:
    frames = (RemoteFrame("app.py", 12, "embed", "return model(x)"),)
    made = FunctionError("why", qualname="KeyError", frames=frames, notes=("a note",))
    back = from_status(sent(to_status(made)))
    assert isinstance(back, RemoteFunctionError)
    assert (back.qualname, back.message, back.frames, back.__notes__) == ("KeyError", "why", frames, ["a note"])
    assert str(back) == str(made)


def test_a_text_that_is_no_unicode_is_escaped() -> None:
    """A file name that is not UTF-8 comes from the system with lone surrogates, which protobuf refuses."""
    back = from_status(sent(to_status(errors.BackendError("no such file: caf\udce9"))))
    assert back.message == "no such file: caf\\udce9"


# -- servers that are not ours ---------------------------------------------------------------------------------------

BY_CODE = {
    code_pb2.CANCELLED: errors.CancelledError,
    code_pb2.UNKNOWN: errors.BackendError,
    code_pb2.INVALID_ARGUMENT: errors.InvalidRequestError,
    code_pb2.DEADLINE_EXCEEDED: errors.DeadlineError,
    code_pb2.NOT_FOUND: errors.NotFoundError,
    code_pb2.PERMISSION_DENIED: errors.AuthError,
    code_pb2.UNAUTHENTICATED: errors.AuthError,
    code_pb2.RESOURCE_EXHAUSTED: errors.OverloadedError,
    code_pb2.FAILED_PRECONDITION: errors.IncompatibleError,
    code_pb2.ABORTED: errors.ConflictError,
    code_pb2.UNIMPLEMENTED: errors.BackendError,
    code_pb2.INTERNAL: errors.BackendError,
    code_pb2.UNAVAILABLE: errors.UnavailableError,
    code_pb2.DATA_LOSS: errors.BackendError,
    code_pb2.OUT_OF_RANGE: errors.BackendError,
    code_pb2.ALREADY_EXISTS: errors.BackendError,
}


def test_every_code_of_grpc_is_spoken_of() -> None:
    assert set(BY_CODE) == set(code_pb2.Code.values()) - {code_pb2.OK}


@pytest.mark.parametrize("code", BY_CODE, ids=code_pb2.Code.Name)
def test_a_status_without_details_is_read_by_its_code(code: code_pb2.Code.ValueType) -> None:
    back = from_status(status_pb2.Status(code=code, message="the proxy says no"))
    assert type(back) is BY_CODE[code]
    assert (back.message, back.reason) == ("the proxy says no", back.default_reason)


def with_details(code: code_pb2.Code.ValueType, *details: Any) -> status_pb2.Status:
    made = status_pb2.Status(code=code, message="why")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        made.details.append(packed)
    return made


def test_another_domains_details_still_give_reason_and_delay() -> None:
    info = error_details_pb2.ErrorInfo(reason="RATE_LIMIT", domain="proxy.example")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    back = from_status(with_details(code_pb2.RESOURCE_EXHAUSTED, retry, info))
    assert type(back) is errors.OverloadedError
    assert (back.reason, back.retry_after_s) == ("RATE_LIMIT", 1.5)


def test_a_class_of_a_later_version_is_read_by_its_code() -> None:
    info = error_details_pb2.ErrorInfo(reason="NEW", domain=status.DOMAIN, metadata={"class": "QuantumError"})
    back = from_status(with_details(code_pb2.NOT_FOUND, info))
    assert type(back) is errors.NotFoundError
    assert back.reason == "NEW"


@pytest.mark.parametrize("name", ["google.rpc.ErrorInfo", "google.rpc.RetryInfo", "hasfaas.wire.v1.UserError"])
def test_details_that_do_not_parse_count_as_absent(name: str) -> None:
    broken = any_pb2.Any(type_url=f"type.googleapis.com/{name}", value=b"\xff\xff\xff")
    back = from_status(status_pb2.Status(code=code_pb2.UNAVAILABLE, message="why", details=[broken]))
    assert type(back) is errors.UnavailableError
    assert (back.message, back.retry_after_s) == ("why", None)


# -- what the user's code raised -------------------------------------------------------------------------------------


def never(_path: str) -> bool:
    return False


def raised(exc: BaseException) -> BaseException:
    """The exception with a traceback of its own."""
    try:
        raise exc
    except BaseException as caught:
        return caught


def received(exc: BaseException, **options: Any) -> RemoteFunctionError:
    made = user_exception_to_status(raised(exc), **({"skip_file": never} | options))
    back = from_status(sent(made))
    assert isinstance(back, RemoteFunctionError)
    assert (made.code, back.reason) == (code_pb2.UNKNOWN, "USER_EXCEPTION")
    return back


def state_of(failure: UserFailure) -> Any:
    assert failure.state is not None
    return payload.decode(failure.state, allow_pickle=True)


class PairError(Exception):
    """Its __init__ wants two arguments, and its args hold one."""

    def __init__(self, field: str, value: int) -> None:
        super().__init__(f"{field}={value}")
        self.value = value


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class ArglessError(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no args for you")


def test_a_plain_exception() -> None:
    back = received(KeyError("missing", 3))
    assert (back.failure.module, back.failure.qualname) == ("builtins", "KeyError")
    assert back.failure.message == "('missing', 3)"
    assert state_of(back.failure) == (("missing", 3), {})


def test_the_frames_are_the_users_with_their_source() -> None:
    back = received(ValueError("why"))
    (frame,) = back.frames
    assert (frame.file, frame.function, frame.source) == (__file__, "raised", "raise exc")


def test_frames_of_ours_are_dropped() -> None:
    try:
        payload.decode(payload.Payload(payload.Codec.PLAIN, b"\xc1"), allow_pickle=False)
    except errors.SerializationError as exc:
        files = [frame.filename for frame in traceback.extract_tb(exc.__traceback__)]
        back = from_status(sent(user_exception_to_status(exc, skip_file=status.is_ours)))
    assert any(status.is_ours(file) for file in files)
    assert isinstance(back, FunctionError)
    assert [frame.file for frame in back.frames] == [__file__]


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        (status.__file__, True),
        (errors.__file__, True),
        ("<frozen importlib._bootstrap>", True),
        (__file__, False),
        ("<stdin>", False),
        ("/home/hasfaas/app.py", False),
        (f"{status._PACKAGE}-app/app.py", False),
        (f"{status._PACKAGE}/testing/apps/verbs.py", False),
    ],
)
def test_what_is_ours(path: str, ours: bool) -> None:
    assert status.is_ours(path) is ours


def test_an_exception_whose_init_wants_other_arguments() -> None:
    back = received(PairError("size", 3))
    assert (back.failure.qualname, back.failure.message) == ("PairError", "size=3")
    assert state_of(back.failure) == (("size=3",), {"value": 3})


def test_an_exception_whose_text_cannot_be_made() -> None:
    back = received(MuteError("x"))
    assert "could not be made" in back.message
    assert state_of(back.failure) == (("x",), {})


def test_an_exception_with_an_attribute_that_cannot_be_sent_keeps_its_args() -> None:
    exc = ValueError("why")
    exc.lock = threading.Lock()  # type: ignore[attr-defined]
    assert state_of(received(exc).failure) == (("why",), {})


def test_an_exception_of_which_nothing_can_be_sent_travels_as_text() -> None:
    back = received(ValueError("why", threading.Lock()))
    assert back.failure.state is None
    assert back.message.startswith("('why', <unlocked _thread.lock")


def test_a_state_beyond_a_mebibyte_is_left_out() -> None:
    back = received(ValueError(b"x" * (2 << 20)))
    assert back.failure.state is None
    assert len(back.message) == 65_536


def test_an_exception_whose_args_raise() -> None:
    assert received(ArglessError()).failure.qualname == "ArglessError"


def test_notes_travel() -> None:
    exc = ValueError("why")
    exc.add_note("the first")
    exc.add_note("caf\udce9")
    assert received(exc).__notes__ == ["the first", "caf\\udce9"]


@pytest.mark.parametrize("notes", [None, 3, [3, None]])
def test_notes_that_are_none_break_nothing(notes: object) -> None:
    exc = ValueError("why")
    exc.__notes__ = notes  # type: ignore[assignment]
    assert received(exc).failure.notes == ()


def test_a_text_with_lone_surrogates_is_escaped() -> None:
    assert received(FileNotFoundError("caf\udce9")).message == "caf\\udce9"


def test_a_class_made_inside_a_function_is_named_in_full() -> None:
    class InnerError(Exception):
        pass

    name = received(InnerError("why")).failure.qualname
    assert name == "test_a_class_made_inside_a_function_is_named_in_full.<locals>.InnerError"


def test_one_that_is_no_exception_but_a_base_exception() -> None:
    assert received(SystemExit(3)).failure.qualname == "SystemExit"


def test_a_bottomless_recursion_keeps_the_innermost_200_frames() -> None:
    def deeper(level: int) -> int:
        return deeper(level + 1) + 1

    with pytest.raises(RecursionError) as caught:
        deeper(0)
    back = from_status(sent(user_exception_to_status(caught.value, skip_file=never)))
    assert isinstance(back, FunctionError)
    assert len(back.frames) == 200
    assert back.frames[-1].function == "deeper"


def test_a_state_whose_sizes_lie_is_left_out() -> None:
    """A replica's user code can write to its socket; reading such a status must give an error, not raise one."""
    user = errors_pb2.UserError(qualname="KeyError", message="why")
    user.state.codec, user.state.data = 1, b"abc"  # type: ignore[assignment]
    info = error_details_pb2.ErrorInfo(domain=status.DOMAIN, metadata={"class": "FunctionError"})
    back = from_status(with_details(code_pb2.UNKNOWN, info, user))
    assert isinstance(back, RemoteFunctionError)
    assert back.failure.state is None


# -- as a header -----------------------------------------------------------------------------------------------------


def test_a_small_status_is_not_trimmed() -> None:
    made = to_status(errors.OverloadedError("full", retry_after_s=1.0))
    assert status.trimmed(made, 4096) == made


@pytest.mark.parametrize("text", ["x" * 100_000, "€" * 100_000, "short"])
@pytest.mark.parametrize("depth", [0, 300])
def test_a_large_status_is_trimmed_and_still_says_what_it_was(text: str, depth: int) -> None:
    frames = tuple(RemoteFrame(f"app{i}.py", i, "f" * 100, "source" * 20) for i in range(depth))
    notes = tuple(f"note {i} {'n' * 500}" for i in range(20))
    exc = FunctionError(text, qualname="KeyError", frames=frames, notes=notes)
    small = sent(status.trimmed(to_status(exc), 4096))
    assert small.ByteSize() <= 4096
    back = from_status(small)
    assert isinstance(back, FunctionError)
    assert (back.qualname, back.reason) == ("KeyError", "USER_EXCEPTION")
    assert back.message.startswith(text[:100])
    if depth:
        assert back.frames[-1] == frames[-1], "the innermost frame says most"


def test_trimming_keeps_class_reason_and_delay_of_our_own_errors() -> None:
    exc = errors.IncompatibleError("\n".join(f"  - package{i} differs" for i in range(1000)), retry_after_s=2.0)
    back = from_status(sent(status.trimmed(to_status(exc), 4096)))
    assert type(back) is errors.IncompatibleError
    assert back.retry_after_s == 2.0
    assert back.message.endswith("...")
