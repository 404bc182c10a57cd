"""Bundles: what is in them, the version they get, and how what cannot be shipped is named."""

from __future__ import annotations

import functools
import importlib
import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import types
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from hasfaas.core.errors import InvalidRequestError, SerializationError
from hasfaas.core.fingerprint import capture
from hasfaas.core.spec import Kind
from hasfaas.sdk import bundle as bundles
from hasfaas.sdk.bundle import Bundle, build, function_name, kind_of
from hasfaas.sdk.home import target_of

ROOT = Path(__file__).parents[2]
OPTIONS: Mapping[str, object] = {"slo_ms": 50.0, "replicas": (0, 8)}
LOCK = threading.Lock()
TABLE = bytes(3 << 20)

Load = Callable[[Mapping[str, str]], types.ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Writes files and imports `qapp` among them, afresh each time; all of it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a second version within a second must not hit a .pyc

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("q") and name != "queue"]:
            del sys.modules[name]

    def fresh(files: Mapping[str, str]) -> types.ModuleType:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        forget()
        importlib.invalidate_caches()
        return importlib.import_module("qapp")

    yield fresh
    forget()


def built(target: object, options: Mapping[str, object] = OPTIONS) -> Bundle:
    return build(target, name=function_name(target), options=options)


# What is in it


def test_a_bundle_is_a_by_value_pickle_and_its_helpers(load: Load) -> None:
    app = load(
        {"qapp.py": "import numpy, qhelp\ndef f(x): return qhelp.twice(x)", "qhelp.py": "def twice(x): return 2 * x"}
    )
    made = built(app.f)
    assert (made.name, made.kind, made.python, made.modules) == ("qapp.f", "function", sys.executable, ("qhelp",))
    assert made.fingerprint == capture(["numpy", *(name for name, _ in made.fingerprint.packages)])
    assert "numpy" in dict(made.fingerprint.packages)
    assert zipfile.ZipFile(io.BytesIO(made.archive)).namelist() == ["qhelp.py"]
    del sys.modules["qapp"]  # by value: the module is not asked for
    assert pickle.loads(made.pickle)(4) == 8
    assert "qapp" not in sys.modules


def test_it_survives_its_bytes(load: Load) -> None:
    made = built(load({"qapp.py": "def f(): return 1"}).f)
    assert Bundle.from_bytes(made.to_bytes()) == made
    with pytest.raises(InvalidRequestError, match="broken"):
        Bundle.from_bytes(made.to_bytes()[:-40])


def test_other_modules_are_pickled_by_name(load: Load) -> None:
    app = load({"qapp.py": "from qhelp import Box\nBOX = Box()\ndef f(): return BOX", "qhelp.py": "class Box: pass"})
    made = built(app.f)
    assert made.modules == ("qhelp",)
    assert type(pickle.loads(made.pickle)()) is app.Box


def test_a_module_that_only_a_value_leads_to_is_shipped(load: Load) -> None:
    """Nothing in `qapp` names `qdeep`, but the captured value is an instance of its class."""
    app = load(
        {
            "qapp.py": "import importlib\nBOX = importlib.import_module('q' + 'deep').Box()\ndef f(): return BOX",
            "qdeep.py": "class Box: pass",
        }
    )
    assert built(app.f).modules == ("qdeep",)


def test_a_function_in_a_packages_init_leaves_its_submodules_by_name(load: Load) -> None:
    load(
        {
            "qapp.py": "",
            "qpack/__init__.py": "from qpack import sub\nfrom qpack.sub import Box\ndef f(): return sub.Box, Box",
            "qpack/sub.py": "import threading\nLOCK = threading.Lock()\nclass Box:\n    lock = LOCK",
        }
    )
    package = importlib.import_module("qpack")
    made = built(package.f)
    assert made.name == "qpack.f"
    assert made.modules == ("qpack", "qpack.sub")
    assert pickle.loads(made.pickle)() == (package.Box, package.Box)


def test_the_registry_of_cloudpickle_is_left_as_it_was(load: Load) -> None:
    app = load({"qapp.py": "import threading\nLOCK = threading.Lock()\ndef f(): return 1\ndef g(): return LOCK"})
    before = cloudpickle.list_registry_pickle_by_value()
    built(app.f)
    with pytest.raises(SerializationError):
        built(app.g)
    assert cloudpickle.list_registry_pickle_by_value() == before
    cloudpickle.register_pickle_by_value(app)
    try:
        built(app.f)
        assert "qapp" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(app)


def test_threads_may_build_at_once(load: Load) -> None:
    app = load({"qapp.py": "def f(x): return x + 1"})
    versions: list[str] = []
    threads = [threading.Thread(target=lambda: versions.append(built(app.f).version)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(versions) == 8
    assert len(set(versions)) == 1


CACHED = """
import functools
@functools.lru_cache(maxsize=16)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
class Lazy:
    @functools.cached_property
    def value(self): return fib(10)
def f(): return Lazy().value, fib.cache_info().maxsize, fib.__name__
"""


def test_caches_of_functools_travel(load: Load) -> None:
    made = built(load({"qapp.py": CACHED}).f)
    del sys.modules["qapp"]
    assert pickle.loads(made.pickle)() == (55, 16, "fib")


class Handle:
    """Stands for another decorated function: it has a way of its own to be pickled."""

    def __init__(self, target: Callable[..., object]) -> None:
        self.target = target
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return Handle, (self.target,)


def test_decorated_functions_that_refer_to_each_other_are_shipped(load: Load) -> None:
    source = """
        from handles import Handle
        @Handle
        def f(n): return n and g.target(n - 1)
        @Handle
        def g(n): return n and f.target(n - 1)
    """
    handles = types.ModuleType("handles")
    handles.__dict__["Handle"] = Handle
    sys.modules["handles"] = handles
    try:
        made = built(load({"qapp.py": source}).f.target)
    finally:
        del sys.modules["handles"]
    assert pickle.loads(made.pickle)(5) == 0


# Names and kinds


def test_names_come_from_the_file(load: Load) -> None:
    app = load({"qapp.py": "def f(): ...\nclass C:\n    def __call__(self): ..."})
    assert (function_name(app.f), function_name(app.C)) == ("qapp.f", "qapp.C")
    assert function_name(test_names_come_from_the_file) == "test_bundle.test_names_come_from_the_file"


INTERACTIVE = """
def f(x):
    def inner():
        import numpy.linalg
        from qpack import part
        return part.twice(x)
    return inner()
from hasfaas.sdk.bundle import build, function_name
made = build(f, name=function_name(f), options={})
print(made.name, made.modules, "numpy" in dict(made.fingerprint.packages), made.version)
"""


def test_without_a_file_the_name_starts_with_main_and_imports_are_found(tmp_path: Path) -> None:
    """As in a REPL or a notebook: there is no source, so the imports are read from the code."""
    (tmp_path / "qpack").mkdir()
    (tmp_path / "qpack" / "__init__.py").touch()
    (tmp_path / "qpack" / "part.py").write_text(HELP)
    found = output("-c", INTERACTIVE, seed="1", cwd=tmp_path)
    assert found.startswith("main.f ('qpack', 'qpack.part') True")
    assert output("-c", "# moved\n" + INTERACTIVE, seed="2", cwd=tmp_path) == found


def test_kinds() -> None:
    def function() -> None: ...

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    class Plain:
        def __call__(self) -> None: ...

    class Streaming:
        def __call__(self) -> Iterator[int]:
            yield 1

    assert [kind_of(target_of(target)) for target in (function, coroutine, generator, async_generator)] == [
        Kind.FUNCTION,
        Kind.COROUTINE,
        Kind.GENERATOR,
        Kind.ASYNC_GENERATOR,
    ]
    assert (kind_of(Plain), kind_of(Streaming)) == (Kind.CLASS, Kind.GENERATOR_CLASS)


@pytest.mark.parametrize("target", [functools.partial(print), 3, len, Handle(print)])
def test_only_functions_and_classes_are_bundled(target: object) -> None:
    with pytest.raises(InvalidRequestError, match="only functions and classes"):
        build(target, name="x", options={})


# What cannot be shipped


def test_an_unpicklable_closure_is_named_by_its_path() -> None:
    lock = threading.Lock()

    def embed() -> object:
        return lock

    with pytest.raises(SerializationError) as caught:
        build(embed, name="embed", options={})
    text = str(caught.value)
    assert "embed.<closure>.lock: cannot pickle '_thread.lock' object" in text
    assert text.endswith("create it inside the function, or in __init__ of a class")
    assert caught.value.__cause__ is not None


def test_an_unpicklable_global_deep_inside_a_value_is_named() -> None:
    with pytest.raises(SerializationError, match=r"uses_holder\.<global>\.HOLDER\['deep'\]\[1\]: cannot pickle"):
        build(uses_holder, name="x", options={})


HOLDER = {"deep": [1, LOCK]}


def uses_holder() -> object:
    return HOLDER


def test_the_culprit_in_a_class_is_named_though_its_methods_refer_back_to_it() -> None:
    class Model:
        def __init__(self) -> None:
            super().__init__()

        def __call__(self) -> object:
            return LOCK

    with pytest.raises(SerializationError, match=r"Model\.__call__\.<global>\.LOCK: cannot pickle"):
        build(Model, name="x", options={})


def test_an_option_that_has_no_digest_is_named() -> None:
    with pytest.raises(SerializationError, match=r"options\['example'\]: cannot pickle"):
        build(test_kinds, name="x", options={"example": LOCK})


def uses_table() -> object:
    return TABLE, nested()


def nested(default: bytes = bytes(1 << 20)) -> bytes:
    return default


def test_a_bundle_beyond_its_limit_names_the_largest_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "LIMIT_BYTES", 2 << 20)
    with pytest.raises(InvalidRequestError) as caught:
        build(uses_table, name="x", options={})
    text = str(caught.value)
    assert "larger than 2 MiB" in text
    assert "uses_table.<global>.TABLE with 3.0 MiB" in text
    assert "load it in __init__" in text
    assert caught.value.reason == "BUNDLE_TOO_LARGE"


def test_the_limit_counts_the_archive_too(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    app = load({"qapp.py": "import qhelp\ndef f(): return 1", "qhelp.py": f"X = '{'x' * (1 << 20)}'"})
    monkeypatch.setattr(bundles, "LIMIT_BYTES", 1 << 20)
    with pytest.raises(InvalidRequestError, match="larger than 1 MiB"):
        built(app.f)


# Versions

APP = "import qhelp\nSCALE = 3\ndef f(x):\n    return qhelp.twice(x) * SCALE\n"
HELP = "def twice(x): return 2 * x\n"


def version(load: Load, app: str = APP, help_: str = HELP, options: Mapping[str, object] = OPTIONS) -> str:
    return built(load({"qapp.py": app, "qhelp.py": help_}).f, options).version


def test_the_same_thing_has_the_same_version(load: Load) -> None:
    first = version(load)
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert version(load) == first
    assert version(load, options={"replicas": (0, 8), "slo_ms": 50.0}) == first


@pytest.mark.parametrize(
    "app",
    [
        "\n\n# moved\nUNUSED = 7\n\n" + APP,
        APP + "\ndef unused(): return 1\n",
        APP.replace("SCALE = 3", "SCALE = 1 + 2"),
    ],
    ids=["moved", "neighbour", "same value"],
)
def test_what_does_not_reach_the_function_does_not_count(load: Load, app: str) -> None:
    assert version(load, app) == version(load)


@pytest.mark.parametrize(
    "change",
    [
        {"app": APP.replace("* SCALE", "+ SCALE")},
        {"app": APP.replace("SCALE = 3", "SCALE = 4")},
        {"app": APP.replace("f(x)", "f(x, y=1)")},
        {"help_": HELP.replace("2 *", "3 *")},
        {"options": {"slo_ms": 51.0, "replicas": (0, 8)}},
        {"options": {"slo_ms": 50.0}},
        {"app": "import PIL\n" + APP},
    ],
    ids=["body", "captured value", "signature", "helper", "option", "option gone", "package"],
)
def test_what_reaches_the_function_counts(load: Load, change: dict[str, Any]) -> None:
    assert version(load, **change) != version(load)


SCRIPT = """
import logging, qhelp, attrs
log = logging.getLogger(__name__)
WORDS = {"alpha", "beta", "gamma"}
@attrs.frozen
class Item:
    x: int = 1
class Model:
    def __call__(self, x):
        return f(x)
def f(x):
    log.info("%s", Item())
    return qhelp.twice(x) if x in {"a", "b"} else WORDS
def report():
    from hasfaas.sdk.bundle import build, function_name
    for target in (f, Model):
        made = build(target, name=function_name(target), options={"slo_ms": 50})
        print(made.name, made.version, *made.modules)
if __name__ == "__main__":
    report()
"""


def output(*arguments: str, seed: str, cwd: Path, path: Path | None = None) -> str:
    places = [str(ROOT)] + ([str(path)] if path is not None else [])
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_runs_of_one_script_have_one_version(tmp_path: Path) -> None:
    """Other hash seeds, another working folder, a moved line, another folder, `-m`, and imported by somebody else."""
    here, moved, elsewhere = (tmp_path / name for name in ("here", "moved", "elsewhere"))
    for folder in (here, moved, elsewhere):
        folder.mkdir()
    for folder, start in ((here, ""), (moved, "# a line\n\nX = 1\n")):
        (folder / "qapp.py").write_text(start + SCRIPT)
        (folder / "qhelp.py").write_text(HELP)
    found = [
        output("qapp.py", seed="1", cwd=here),
        output(str(here / "qapp.py"), seed="2", cwd=elsewhere),
        output(str(moved / "qapp.py"), seed="3", cwd=elsewhere),
        output("-m", "qapp", seed="4", cwd=here),
        output("-c", "import qapp; qapp.report()", seed="5", cwd=elsewhere, path=here),
    ]
    assert len(set(found)) == 1, found
    names = [line.split() for line in found[0].splitlines()]
    assert [(name, *modules) for name, _, *modules in names] == [("qapp.f", "qhelp"), ("qapp.Model", "qhelp")]
