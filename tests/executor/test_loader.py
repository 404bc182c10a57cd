"""Loading in the replica: what is refused, in which order, and that nothing runs before it may."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from hasfaas.core.errors import AuthError, IncompatibleError, InvalidRequestError, SerializationError
from hasfaas.core.fingerprint import Fingerprint, capture
from hasfaas.core.signing import sign
from hasfaas.executor.loader import check, load
from hasfaas.sdk.bundle import build
from hasfaas.wire.bundle import Manifest, pack, read_manifest, zip_files

ROOT = Path(__file__).parents[2]
KEY = bytes(range(32))


class Bomb:
    """Unpickling it makes a folder, so that a test can see whether it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "unpickled"


@pytest.fixture(autouse=True)
def same_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`sys.path` and the loaded modules are put back."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith("q"):
            del sys.modules[name]


def blob_of(data: bytes, *, fingerprint: Fingerprint | None = None, files: Mapping[str, bytes] | None = None) -> bytes:
    archive = zip_files(files or {})
    manifest = Manifest(
        name="app.embed",
        version="0123456789abcdef",
        kind="function",
        python=sys.executable,
        fingerprint=fingerprint or capture(["numpy"]),
        archive_sha256=hashlib.sha256(archive).hexdigest(),
        pickle_sha256=hashlib.sha256(data).hexdigest(),
        modules=tuple(name.removesuffix(".py") for name in files or {}),
    )
    return pack(manifest, archive, data)


def test_a_signed_bundle_of_this_interpreter_is_loaded(tmp_path: Path, mark: Path) -> None:
    """The control of the tests below: with nothing wrong, the pickle is loaded."""
    blob = blob_of(pickle.dumps(Bomb(mark)))
    loaded = load(blob, sign(KEY, blob), KEY, tmp_path / "work")
    assert mark.exists()
    assert (loaded.name, loaded.kind, loaded.version) == ("app.embed", "function", "0123456789abcdef")


@pytest.mark.parametrize(
    ("signature", "words"),
    [(b"", "unsigned"), (sign(KEY, b"another"), "does not belong"), (sign(KEY[::-1], b"x"), "does not belong")],
)
def test_an_unsigned_bundle_is_refused(tmp_path: Path, mark: Path, signature: bytes, words: str) -> None:
    with pytest.raises(AuthError, match=words):
        load(blob_of(pickle.dumps(Bomb(mark))), signature, KEY, tmp_path / "work")
    assert not mark.exists()


def test_every_altered_byte_is_noticed(tmp_path: Path, mark: Path) -> None:
    blob = blob_of(pickle.dumps(Bomb(mark)))
    signature = sign(KEY, blob)
    for position in range(0, len(blob), max(1, len(blob) // 50)):
        altered = bytearray(blob)
        altered[position] ^= 1
        with pytest.raises(AuthError):
            load(bytes(altered), signature, KEY, tmp_path / "work")
    assert not mark.exists()


def test_the_signature_comes_before_everything_else(tmp_path: Path) -> None:
    with pytest.raises(AuthError):
        load(b"not even a zip", b"", KEY, tmp_path)
    with pytest.raises(InvalidRequestError, match="broken"):
        load(b"not even a zip", sign(KEY, b"not even a zip"), KEY, tmp_path)


def test_another_minor_is_refused_before_anything_is_loaded(tmp_path: Path, mark: Path) -> None:
    made = attrs.evolve(capture([]), cache_tag="cpython-399", magic="ffff0d0a")
    blob = blob_of(pickle.dumps(Bomb(mark)), fingerprint=made, files={"qmark.py": b""})
    with pytest.raises(IncompatibleError, match=r"made by cpython-399.*this interpreter is") as caught:
        load(blob, sign(KEY, blob), KEY, tmp_path / "work")
    assert caught.value.reason == "PYTHON_MISMATCH"
    assert not mark.exists()
    assert not (tmp_path / "work").exists()


def test_every_difference_is_listed(tmp_path: Path, mark: Path) -> None:
    made = Fingerprint("cpython-399", "ffff0d0a", "0.1", (("numpy", "0.2"), ("no_such_package", "0.3")))
    blob = blob_of(pickle.dumps(Bomb(mark)), fingerprint=made)
    with pytest.raises(IncompatibleError) as caught:
        load(blob, sign(KEY, blob), KEY, tmp_path / "work")
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert [line[4:].partition(":")[0] for line in lines] == ["Python", "cloudpickle", "no_such_package", "numpy"]
    assert list(check(read_manifest(blob))) == [line[4:] for line in lines]
    assert not mark.exists()


def test_another_package_alone_is_a_mismatch_of_dependencies(tmp_path: Path) -> None:
    blob = blob_of(pickle.dumps(1), fingerprint=attrs.evolve(capture([]), packages=(("numpy", "0.2"),)))
    with pytest.raises(IncompatibleError) as caught:
        load(blob, sign(KEY, blob), KEY, tmp_path)
    assert caught.value.reason == "DEPENDENCY_MISMATCH"


def test_check_says_nothing_about_a_bundle_that_fits() -> None:
    assert check(read_manifest(blob_of(b"never loaded"))) == ()


def test_the_archive_is_placed_once_privately_and_first_on_the_path(tmp_path: Path) -> None:
    blob = blob_of(b"cqplaced\nX\n.", files={"qplaced.py": b"X = 41\n"})
    work = tmp_path / "work"
    assert load(blob, sign(KEY, blob), KEY, work).target == 41
    (placed,) = work.iterdir()
    assert sys.path[0] == str(placed)
    assert stat.S_IMODE(placed.stat().st_mode) == 0o600
    assert stat.S_IMODE(work.stat().st_mode) == 0o700
    before = placed.stat()
    load(blob, sign(KEY, blob), KEY, work)
    assert [(entry.name, entry.stat().st_ino) for entry in work.iterdir()] == [(placed.name, before.st_ino)]


def test_an_archive_that_was_altered_on_disk_is_replaced(tmp_path: Path) -> None:
    blob = blob_of(b"cqaltered\nX\n.", files={"qaltered.py": b"X = 41\n"})
    name = read_manifest(blob).archive_sha256
    (tmp_path / f"{name}.zip").write_bytes(zip_files({"qaltered.py": b"X = 666\n"}))
    assert load(blob, sign(KEY, blob), KEY, tmp_path).target == 41


def test_a_module_that_is_missing_is_worded_with_the_cure(tmp_path: Path) -> None:
    blob = blob_of(b"cqmissing\nX\n.")
    with pytest.raises(SerializationError, match="No module named 'qmissing'; import that module") as caught:
        load(blob, sign(KEY, blob), KEY, tmp_path)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_pickle_that_raises_is_worded_with_the_cure(tmp_path: Path, mark: Path) -> None:
    mark.mkdir()
    blob = blob_of(pickle.dumps(Bomb(mark)))
    with pytest.raises(SerializationError, match=r"app.embed cannot be rebuilt.*FileExistsError.*__init__") as caught:
        load(blob, sign(KEY, blob), KEY, tmp_path)
    assert isinstance(caught.value.__cause__, FileExistsError)


def test_build_and_load_fit_together(tmp_path: Path) -> None:
    offset = 5

    def add(x: int) -> int:
        return x + offset

    made = build(add, name="add", options={})
    blob = made.to_bytes()
    loaded = load(blob, sign(KEY, blob), KEY, tmp_path)
    assert (loaded.target(2), loaded.version) == (7, made.version)  # type: ignore[operator]


DEPLOY = """
import sys
from pathlib import Path
from qlib import scale
from qlib.shapes import Square
import qspace.part

LOOKUP = {"one": Square(1)}

class Model:
    '''Loads once, serves often.'''
    def __init__(self):
        self.square = Square(3)
    def __call__(self, x):
        import qlate
        return scale(self.square.area()) + LOOKUP["one"].area() + qspace.part.X + qlate.late(x)

if __name__ == "__main__":
    from hasfaas.sdk.bundle import build, function_name
    made = build(Model, name=function_name(Model), options={})
    Path(sys.argv[1]).write_bytes(made.to_bytes())
"""
FILES = {
    "qapp.py": DEPLOY,
    "qlib/__init__.py": "from .numbers_ import FACTOR\ndef scale(x): return x * FACTOR\n",
    "qlib/numbers_.py": "FACTOR = 10\n",
    "qlib/shapes.py": "class Square:\n    def __init__(self, a): self.a = a\n    def area(self): return self.a ** 2\n",
    "qlate.py": "def late(x): return x / 2\n",
    "qspace/part.py": "X = 1000\n",
}
SERVE = """
import json, sys
from pathlib import Path
from hasfaas.core.signing import sign
from hasfaas.executor.loader import load
blob, key = Path(sys.argv[1]).read_bytes(), bytes(range(32))
before = set(sys.modules)
loaded = load(blob, sign(key, blob), key, Path(sys.argv[2]))
model = loaded.target()
source = __import__("inspect").getsource(type(model.square))
print(json.dumps([loaded.name, loaded.kind, model(4), source, "qapp" in sys.modules]))
"""


def test_an_app_of_several_files_deployed_from_another_folder_runs_in_a_bare_process(tmp_path: Path) -> None:
    app, away = tmp_path / "app", tmp_path / "away"
    away.mkdir()
    for name, text in FILES.items():
        path = app / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=away,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    blob = tmp_path / "bundle"
    python(str(app / "qapp.py"), str(blob))
    (app / "qapp.py").rename(tmp_path / "gone.py")
    for name in FILES:
        (app / name).unlink(missing_ok=True)
    name, kind, result, source, imported = json.loads(python("-c", SERVE, str(blob), str(tmp_path / "work")))
    assert (name, kind, result) == ("qapp.Model", "class", 90 + 1 + 1000 + 2)
    assert source.startswith("class Square")  # tracebacks in the replica show source lines
    assert imported is False
