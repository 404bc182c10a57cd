"""A user's file in the shell: found, imported as a script would be, and told apart from a function's name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.cli_app import ImportFailedError, Reference, import_file

HEAD = "from hasfaas import function\n"
TWICE = "@function(slo_ms=50)\ndef twice(x):\n    return 2 * x\n"


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def _write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("app.py", Reference(Path("app.py"), None)),
        ("a/b.py::f", Reference(Path("a/b.py"), "f")),
        ("script::f", Reference(Path("script"), "f")),
        ("app.f", None),
        ("f", None),
    ],
)
def test_a_file_is_told_from_a_name(text: str, expected: Reference | None) -> None:
    assert Reference.parse(text) == expected


@pytest.mark.parametrize("text", ["::f", "app.py::", "::"])
def test_half_a_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"FILE\.py::NAME"):
        Reference.parse(text)


def test_the_module_is_what_a_script_would_be(tmp_path: Path) -> None:
    _write(tmp_path / "deep", "shellhelper.py", "K = 3\n")
    text = "import sys\nimport shellhelper\nargv = sys.argv\nname = __name__\nfirst = sys.path[0]\n"
    file = _write(tmp_path / "deep", "shell_script.py", text)
    argv = list(sys.argv)
    module = import_file(file)
    assert module.name == "shell_script"
    assert module.argv == [str(file)]
    assert module.first == str((tmp_path / "deep").resolve())
    assert sys.argv == argv
    assert import_file(file) is module


def test_a_link_is_followed_as_python_does(tmp_path: Path) -> None:
    _write(tmp_path / "real", "shellhelper2.py", "K = 3\n")
    file = _write(tmp_path / "real", "shell_target.py", "import shellhelper2\n")
    link = tmp_path / "shell_link.py"
    link.symlink_to(file)
    assert import_file(link).__name__ == "shell_link"


def test_what_is_imported_is_not_what_the_file_defines(tmp_path: Path) -> None:
    _write(tmp_path, "shell_parts.py", HEAD + TWICE)
    file = _write(
        tmp_path, "shell_whole.py", HEAD + "from shell_parts import twice\n@function(slo_ms=9)\ndef own(): ...\n"
    )
    assert [fn.name for fn in Reference(file, None).functions()] == ["shell_whole.own"]
    assert Reference(file, "twice").function().name == "shell_parts.twice"
    only = _write(tmp_path, "shell_only.py", "from shell_parts import twice\n")
    with pytest.raises(InvalidRequestError, match=r"defines no decorated function.*shell_only\.py::twice"):
        Reference(only, None).functions()


def test_a_function_goes_by_both_of_its_names_and_is_deployed_once(tmp_path: Path) -> None:
    file = _write(tmp_path, "shell_names.py", HEAD + '@function(slo_ms=9, name="given")\ndef f(): ...\nalias = f\n')
    assert [fn.name for fn in Reference(file, None).functions()] == ["given"]
    assert Reference(file, "given").function() is Reference(file, "f").function()


def test_a_file_without_functions_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="defines no decorated function: put @function"):
        Reference(_write(tmp_path, "shell_none.py", "x = 1\n"), None).functions()


def test_a_name_that_a_module_has_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="rename the file"):
        import_file(_write(tmp_path, "click.py", ""))
    assert sys.modules["click"].__file__ != str(tmp_path / "click.py")


@pytest.mark.parametrize("name", ["absent.py", "notes.txt"])
def test_what_is_no_python_file_is_refused(tmp_path: Path, name: str) -> None:
    _write(tmp_path, "notes.txt", "x")
    with pytest.raises(InvalidRequestError, match=name):
        import_file(tmp_path / name)


def test_the_traceback_of_a_failed_import_is_the_user_s_alone(tmp_path: Path) -> None:
    file = _write(tmp_path, "shell_raises.py", "def f():\n    raise KeyError('k')\nf()\n")
    with pytest.raises(ImportFailedError) as caught:
        import_file(file)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith(f'Traceback (most recent call last):\n  File "{file}", line 3, in <module>')
    assert "KeyError: 'k'" in caught.value.message
    assert "cli_app" not in caught.value.message
    assert "shell_raises" not in sys.modules


@pytest.mark.parametrize(
    ("text", "said"),
    [("def (:\n", "SyntaxError"), ("raise SystemExit(4)\n", r"sys\.exit\(4\)"), ("import nope9\n", "nope9")],
)
def test_other_ways_to_fail(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ImportFailedError, match=said) as caught:
        import_file(_write(tmp_path, "shell_fails.py", text))
    assert caught.value.exit_code == 3


def test_a_bad_option_is_worded_and_placed(tmp_path: Path) -> None:
    file = _write(tmp_path, "shell_option.py", HEAD + "\n@function(slo_ms=-1)\ndef f(): ...\n")
    with pytest.raises(InvalidRequestError, match="slo_ms=-1") as caught:
        import_file(file)
    assert caught.value.__notes__ == [f'  File "{file}", line 3, in <module>']
