"""The decorator and what it makes, without a backend: kinds, options, names, typing, and the plain calls."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import cloudpickle
import pytest

from hasfaas import (
    Batch,
    ClassFunction,
    CoroutineFunction,
    Function,
    InvalidRequestError,
    StreamFunction,
    function,
)
from hasfaas.core.settings import Settings
from hasfaas.core.spec import Kind
from hasfaas.sdk.client import Client, set_default_client


def plain(x: int, *, by: int = 2) -> int:
    """Doubles."""
    return x * by


async def slow(x: int) -> int:
    return x + 1


def items(n: int) -> Iterator[int]:
    yield from range(n)


async def aitems(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


class Model:
    def __init__(self, start: int = 3) -> None:
        self.start = start

    def __call__(self, x: int) -> int:
        return self.start + x


class Hooked(Model):
    def decode(self, text: str) -> int:
        return int(text)


class Words:
    def __call__(self, text: str) -> Iterator[str]:
        yield from text.split()


decorate: Callable[[Any], Any] = function(slo_ms=50)


@pytest.mark.parametrize(
    ("target", "made", "kind"),
    [
        (plain, Function, Kind.FUNCTION),
        (slow, CoroutineFunction, Kind.COROUTINE),
        (items, StreamFunction, Kind.GENERATOR),
        (aitems, StreamFunction, Kind.ASYNC_GENERATOR),
        (Model, ClassFunction, Kind.CLASS),
        (Words, StreamFunction, Kind.GENERATOR_CLASS),
    ],
)
def test_each_kind_of_code_becomes_its_own_type(target: object, made: type[Any], kind: Kind) -> None:
    decorated: Any = decorate(target)
    assert type(decorated) is made
    assert decorated.kind is kind
    assert hasattr(decorated, "remote") is not hasattr(decorated, "stream")


def test_decorated_code_still_runs_as_plain_code() -> None:
    assert decorate(plain)(4, by=3) == 12
    assert asyncio.run(decorate(slow)(4)) == 5
    assert list(decorate(items)(3)) == [0, 1, 2]
    assert decorate(Model)(start=5)(1) == 6
    assert list(decorate(Words)()("a b")) == ["a", "b"]


def test_it_looks_like_what_it_decorates() -> None:
    decorated = decorate(plain)
    assert (decorated.__name__, decorated.__doc__, decorated.__module__) == ("plain", "Doubles.", __name__)
    assert decorated.name == "test_function.plain"
    assert repr(decorated) == "<Function test_function.plain slo_ms=50>"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slo_ms": 0}, ["slo_ms=0", "above 0"]),
        ({"slo_ms": -5}, ["slo_ms=-5"]),
        ({"slo_ms": float("nan")}, ["slo_ms=nan"]),
        ({"slo_ms": "50"}, ["slo_ms='50'"]),
        ({"slo_ms": 50, "bogus": 1}, ["no option bogus", "slo_percentile"]),
        (
            {"slo_ms": 50, "batchs": 1, "memery": "1GiB"},
            ["batchs (did you mean batch?)", "memery (did you mean memory?)"],
        ),
        ({"slo_ms": 50, "batch": 8}, ["batch=8", "hasfaas.Batch"]),
        ({"slo_ms": 50, "memory": "lots"}, ["memory='lots'", "2GiB"]),
        ({"slo_ms": 50, "memory": "1MiB"}, ["memory", "16 MiB"]),
        ({"slo_ms": 50, "replicas": 3}, ["replicas=3", "(least, most)"]),
        ({"slo_ms": 50, "replicas": (3, 2)}, ["replicas=(3, 2)"]),
        ({"slo_ms": 50, "timeout_s": 0}, ["timeout_s=0"]),
        ({"slo_ms": 50, "slo_percentile": 100}, ["slo_percentile=100"]),
        ({"slo_ms": 50, "device": ""}, ["device=''"]),
        ({"slo_ms": 50, "example": 3}, ["example=3", "callable"]),
    ],
)
def test_a_bad_option_is_named_with_its_value_and_the_cure(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        function(**options)
    assert isinstance(caught.value, ValueError)
    assert caught.value.reason in ("BAD_OPTION", "UNKNOWN_OPTION")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a\nb", "x" * 200, 3])
def test_a_name_that_is_no_file_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidRequestError, match="name="):
        function(slo_ms=50, name=name)(plain)


@pytest.mark.parametrize("name", ["app.f", "my app.f", "naïve", "main.<locals>.f", "_x"])
def test_a_name_that_can_be_one_is_kept(name: str) -> None:
    assert function(slo_ms=50, name=name)(plain).name == name


def test_what_cannot_be_served_is_refused_at_once() -> None:
    class Silent:
        pass

    for target, text in ((3, "only functions and classes"), (len, "wrap it in a `def`"), (Silent, "has no __call__")):
        with pytest.raises(InvalidRequestError, match=text):
            decorate(target)
    with pytest.raises(InvalidRequestError, match="does not go with the stream items"):
        function(slo_ms=50, batch=Batch())(items)


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (plain, (), {}),
        (plain, (1, 2), {}),
        (plain, (1,), {"other": 2}),
        (Model, (1, 2), {}),
        (Hooked, (), {}),
        (Words, (), {}),
    ],
)
def test_arguments_that_do_not_fit_are_refused_without_a_backend(
    target: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    decorated = decorate(target)
    verb = next(getattr(decorated, name) for name in ("spawn", "stream") if hasattr(decorated, name))
    with pytest.raises(InvalidRequestError, match="was called with other arguments"):
        found = verb(*args, **kwargs)
        next(found)  # a stream looks when it is begun


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A client that would not find a gateway: nothing here may need one."""
    made = Client(Settings(state_dir=tmp_path / "s", runtime_dir=tmp_path / "r"))
    set_default_client(made)
    yield made
    set_default_client(None)


def test_options_belong_to_the_version(client: Client) -> None:
    versions = {
        function(slo_ms=50)(plain).version,
        function(slo_ms=60)(plain).version,
        function(slo_ms=50, batch=Batch(max_size=4))(plain).version,
        function(slo_ms=50, memory="1GiB")(plain).version,
    }
    assert len(versions) == 4
    assert function(slo_ms=50)(plain).version in versions


def test_variables_and_names_of_secrets_belong_to_the_version_in_whatever_order(client: Client) -> None:
    def version(**options: Any) -> str:
        return function(slo_ms=50, **options)(plain).version

    first = version(env={"A": "1", "B": "2"}, secrets=("X", "Y"))
    assert version(env={"B": "2", "A": "1"}, secrets=["Y", "X"]) == first
    others = [
        version(),
        version(env={"A": "1", "B": "3"}, secrets=("X", "Y")),
        version(env={"A": "1", "C": "2"}, secrets=("X", "Y")),
        version(env={"A": "1", "B": "2"}, secrets=("X", "Z")),
    ]
    assert len({first, *others}) == 5


def test_the_configuration_adds_variables_and_replaces_secrets(client: Client) -> None:
    options: dict[str, object] = {"env": {"A": "2", "C": "3"}, "secrets": ("Z",)}
    client.settings = attrs.evolve(client.settings, functions={"test_function.plain": options})
    spec = function(slo_ms=50, env={"A": "1", "B": "1"}, secrets=("X",))(plain).deployable().spec
    assert (spec.env, spec.secrets) == ({"A": "2", "B": "1", "C": "3"}, ("Z",))


def test_the_configuration_overrides_options_and_nothing_else(client: Client) -> None:
    options: dict[str, object] = {"slo_ms": 70.0, "replicas": (1, 2), "batch": {"max_size": 2}, "timeout_s": 5.0}
    client.settings = attrs.evolve(client.settings, functions={"test_function.plain": options})
    spec = function(slo_ms=50, memory="1GiB", batch=Batch(max_wait_ms=3))(plain).deployable().spec
    assert (spec.slo_ms, spec.min_replicas, spec.max_replicas, spec.timeout_s) == (70.0, 1, 2, 5.0)
    assert (spec.batch, spec.memory_bytes) == (Batch(2, 3), 1 << 30)


def test_a_bundle_is_built_once(client: Client) -> None:
    decorated = function(slo_ms=50)(plain)
    assert decorated.built is None
    assert decorated.deployable() is decorated.deployable() is decorated.built


def test_a_function_travels_by_value_inside_another(client: Client) -> None:
    decorated = function(slo_ms=50, timeout_s=3, name="app.plain")(plain)
    twin = cloudpickle.loads(cloudpickle.dumps(decorated))
    assert (twin.name, twin.spec, twin(4)) == (decorated.name, decorated.spec, 8)


def test_map_refuses_a_width_below_one(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="max_in_flight=0"):
        next(function(slo_ms=50)(plain).map([1], max_in_flight=0))


TYPED = """
    from collections.abc import AsyncIterator, Iterator
    from hasfaas import function

    @function(slo_ms=50)
    def plain(x: int, y: str = "") -> float:
        return 1.0

    @function(slo_ms=50)
    async def slow(x: int) -> str:
        return ""

    @function(slo_ms=50)
    def items(n: int) -> Iterator[bytes]:
        yield b""

    @function(slo_ms=50)
    async def aitems(n: int) -> AsyncIterator[bytes]:
        yield b""

    class Model:
        def __call__(self, x: int) -> complex:
            return 1j

    model = function(slo_ms=50)(Model)

    reveal_type(plain(1))
    reveal_type(plain.remote(1, y="a"))
    reveal_type(plain.spawn(1).result())
    reveal_type(list(plain.map([1])))
    reveal_type(slow.remote(1))
    reveal_type(list(items.stream(1)))
    reveal_type(list(aitems.stream(1)))
    reveal_type(model.remote(1))
    plain.remote("no")
    plain.remote(1, 2)
    function(slo_ms=50, bogus=1)
"""
REVEALED = ["float", "float", "float", "list[float]", "str", "list[bytes]", "list[bytes]", "complex"]


def test_types_come_through_the_decorator(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "typed.py"
    script.write_text(textwrap.dedent(TYPED))
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    lines = done.stdout.splitlines()
    revealed = [line.split('"')[1] for line in lines if "Revealed type" in line]
    assert [one.replace("builtins.", "") for one in revealed] == REVEALED
    errors = [line for line in lines if ": error:" in line]
    assert len(errors) == 3, done.stdout
    assert 'Argument 1 to "remote"' in errors[0]
    assert 'Argument 2 to "remote"' in errors[1]
    assert 'Argument "bogus" to "function"' in errors[2]
