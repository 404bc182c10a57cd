"""What user code does wrong is an error of that call, in its own words; the function goes on answering."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hasfaas import (
    BackendError,
    DeadlineError,
    FunctionError,
    HasFaasError,
    MemoryLimitError,
    SerializationError,
    UnavailableError,
)
from hasfaas.testing.apps import failures
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.running import RunningBackend
from hasfaas.testing.waiting import eventually


def pid_of(backend: RunningBackend, name: str) -> int:
    return backend.replica(f"failures.{name}").pid


class FailingCode(Area):
    """Exceptions, exits, crashes, memory, deadlines."""

    @pytest.mark.parametrize(
        ("how", "qualname", "text"),
        [
            ("exit", "SystemExit", "3"),
            ("interrupt", "KeyboardInterrupt", "as if by hand"),
            ("halt", "Halt", "stop everything"),
            ("generator_exit", "GeneratorExit", ""),
            ("stop", "StopIteration", ""),
            ("cancelled", "CancelledError", ""),
            ("stubborn", "Stubborn", "second"),
            ("holding", "Holding", "held"),
            ("local", "wrong.<locals>.Inner", "from inside"),
            ("mute", "Mute", "text could not be made"),
            ("deep", "RecursionError", "maximum recursion depth"),
        ],
    )
    def test_whatever_is_raised_is_an_error_of_that_call(
        self, backend: RunningBackend, how: str, qualname: str, text: str
    ) -> None:
        assert failures.wrong.remote("fine") == "fine"
        before = pid_of(backend, "wrong")
        with pytest.raises(FunctionError) as caught:
            failures.wrong.remote(how)
        assert caught.value.qualname == qualname
        assert text in caught.value.message
        assert caught.value.frames[0].function == "wrong"
        assert failures.wrong.remote("fine") == "fine"
        assert pid_of(backend, "wrong") == before

    def test_exceptions_that_allow_it_come_back_as_their_type(self, backend: RunningBackend) -> None:
        with pytest.raises(failures.Holding, match="held"):
            failures.wrong.remote("holding")
        with pytest.raises(RecursionError):
            failures.wrong.remote("deep")

    @pytest.mark.parametrize(("how", "path"), [("lock", r"result\['deep'\]\[1\]\['er'\]"), ("generator", "result")])
    def test_a_result_that_cannot_be_sent_is_named(self, backend: RunningBackend, how: str, path: str) -> None:
        with pytest.raises(SerializationError, match=path):
            failures.wrong.remote(how)
        assert failures.wrong.remote("fine") == "fine"

    def test_printing_goes_to_the_log(self, backend: RunningBackend) -> None:
        assert failures.wrong.remote("print") == "printed"
        lines = backend.printed("failures.wrong")
        assert len(lines) == 4_002
        assert {"an error line", "straight to the descriptor"} <= set(lines)
        assert failures.wrong.remote("closed") == "closed"
        assert failures.wrong.remote("fine") == "fine"

    @pytest.mark.parametrize(("how", "cause"), [("exit", "exit code 7"), ("segfault", "signal 11")])
    def test_a_dead_replica_is_replaced(self, backend: RunningBackend, how: str, cause: str) -> None:
        assert failures.dies.remote("fine") == "fine"
        before = pid_of(backend, "dies")
        with pytest.raises(UnavailableError, match=cause) as caught:
            failures.dies.remote(how)
        assert caught.value.reason == "EXECUTOR_CRASHED"
        assert failures.dies.remote("fine") == "fine"
        assert pid_of(backend, "dies") != before

    def test_a_stream_whose_replica_dies_fails_after_its_items(self, backend: RunningBackend) -> None:
        items = failures.dies_in_a_stream.stream(3)
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(UnavailableError) as caught:
            next(items)
        assert caught.value.reason == "EXECUTOR_CRASHED"

    @pytest.mark.parametrize("how", ["numpy", "torch"])
    def test_the_memory_wall_is_an_error_of_that_call(self, backend: RunningBackend, how: str) -> None:
        pytest.importorskip(how)
        assert failures.hungry.remote(8, how) == 8 << (17 if how == "numpy" else 18)
        with pytest.raises(MemoryLimitError, match=r"failures\.hungry.*memory of 128MiB.*memory="):
            failures.hungry.remote(1024, how)
        assert failures.hungry.remote(8, how) == 8 << (17 if how == "numpy" else 18)

    def test_arguments_larger_than_the_memory_are_told(self, backend: RunningBackend) -> None:
        assert failures.takes.remote(np.zeros(1 << 20, np.uint8)) == 1 << 20
        with pytest.raises(MemoryLimitError, match="memory"):
            failures.takes.remote(np.zeros(300 << 20, np.uint8))
        assert failures.takes.remote(np.zeros(1 << 20, np.uint8)) == 1 << 20

    def test_what_init_raises_comes_at_deploy_and_at_each_call(self, backend: RunningBackend) -> None:
        for _ in range(3):
            with pytest.raises(LookupError, match="no weights here") as caught:
                failures.Unborn.remote(1)
            assert isinstance(caught.value, FunctionError)
            assert caught.value.frames[-1].function == "__init__"
        with pytest.raises(LookupError, match="no weights here"):
            failures.Unborn.deploy()

    def test_an_init_that_exits_or_dies_is_told(self, backend: RunningBackend) -> None:
        with pytest.raises(FunctionError, match="cannot begin") as caught:
            failures.Quitter.remote(1)
        assert caught.value.qualname == "SystemExit"
        with pytest.raises(BackendError, match=r"(?s)exit code 9.*about to crash"):
            failures.Crasher.remote(1)
        with pytest.raises(BackendError, match="exit code 9"):
            failures.Crasher.deploy()

    @pytest.mark.parametrize("hook", ["decode", "encode"])
    def test_hooks_that_raise_are_the_users_errors(self, backend: RunningBackend, hook: str) -> None:
        assert failures.BadHooks.remote("fine") == "fine"
        with pytest.raises(ValueError, match=f"cannot {hook}") as caught:
            failures.BadHooks.remote(hook)
        assert isinstance(caught.value, FunctionError)
        with pytest.raises(FunctionError) as exit_error:
            failures.BadHooks.remote(f"{hook} exit")
        assert exit_error.value.qualname == "SystemExit"
        assert failures.BadHooks.remote("fine") == "fine"

    @pytest.mark.parametrize(
        ("how", "qualname"), [("encode", "ValueError"), ("finally", "ValueError"), ("exit", "SystemExit")]
    )
    def test_hooks_of_a_stream_that_raise_are_the_users_errors(
        self, backend: RunningBackend, how: str, qualname: str
    ) -> None:
        assert list(failures.BadStreamHooks.stream("fine")) == [1, "fine"]
        before = pid_of(backend, "BadStreamHooks")
        items = failures.BadStreamHooks.stream(how)
        assert next(items) == 1
        with pytest.raises(FunctionError) as caught:
            list(items)
        assert caught.value.qualname == qualname
        assert list(failures.BadStreamHooks.stream("fine")) == [1, "fine"]
        assert pid_of(backend, "BadStreamHooks") == before

    def test_leaving_a_stream_whose_end_raises_hurts_nobody(self, backend: RunningBackend) -> None:
        items = failures.BadStreamHooks.stream("finally")
        assert next(items) == 1
        items.close()
        assert list(failures.BadStreamHooks.stream("fine")) == [1, "fine"]

    def test_a_call_whose_time_is_over_never_runs(self, backend: RunningBackend, tmp_path: Path) -> None:
        trace = str(tmp_path / "t")
        assert failures.brief.remote(trace, "warm", 0.0) == "warm"
        long = failures.brief.spawn(trace, "long", 1.5)
        eventually(lambda: "long" in Path(trace).read_text())
        late = [failures.brief.spawn(trace, f"late{i}", 0.0) for i in range(4)]
        for call in [long, *late]:
            with pytest.raises(DeadlineError, match="ran out") as caught:
                call.result(timeout_s=20)
            assert isinstance(caught.value, TimeoutError)
        eventually(lambda: backend.replica("failures.brief").in_flight == 0)
        assert failures.brief.remote(trace, "after", 0.0) == "after"
        assert Path(trace).read_text().split() == ["warm", "long", "after"]
        assert backend.function("failures.brief").calls.expired == 5

    def test_every_error_is_of_our_tree(self, backend: RunningBackend) -> None:
        for how in ("exit", "interrupt", "stop", "lock"):
            with pytest.raises(HasFaasError):
                failures.wrong.remote(how)
            with pytest.raises(HasFaasError):
                failures.wrong.spawn(how).result(timeout_s=20)
            with pytest.raises(HasFaasError):
                next(failures.wrong.map([how]))
        assert failures.wrong.remote("fine") == "fine"
