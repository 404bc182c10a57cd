"""Import analysis: which modules a function needs, found without running any of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.home import Home
from hasfaas.sdk.modules import Needed, needed_by
from hasfaas.wire.bundle import zip_files

Need = Callable[[Mapping[str, str]], Needed]
BOOM = "raise RuntimeError('this module was executed')\n"


@pytest.fixture
def need(tmp_path: Path) -> Need:
    """Writes files, and asks what `app.py` among them needs when it is run as a script."""

    def ask(files: Mapping[str, str]) -> Needed:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return needed_by(Home("__main__", "app", tmp_path / "app.py", "", tmp_path))

    return ask


def test_a_helper_beside_the_script_is_shipped_and_not_executed(need: Need) -> None:
    found = need({"app.py": "import qhelper\n" + BOOM, "qhelper.py": BOOM})
    assert found.files == {"qhelper.py": BOOM.encode()}
    assert found.modules == ("qhelper",)


def test_imports_are_followed_through_helpers_into_function_bodies(need: Need) -> None:
    found = need(
        {
            "app.py": "def f():\n    from qone import x\n",
            "qone.py": "class A:\n    def g(self):\n        import qtwo\n",
            "qtwo.py": "if True:\n    import qthree as three\n",
            "qthree.py": "",
            "unused.py": BOOM,
        }
    )
    assert found.modules == ("qone", "qthree", "qtwo")


def test_a_cycle_of_imports_ends(need: Need) -> None:
    assert need({"app.py": "import qa", "qa.py": "import qb", "qb.py": "import qa"}).modules == ("qa", "qb")


def test_packages_bring_their_parents_and_relative_imports(need: Need) -> None:
    found = need(
        {
            "app.py": "import qpkg.inner.leaf\n",
            "qpkg/__init__.py": "from . import extra\n",
            "qpkg/extra.py": "",
            "qpkg/inner/__init__.py": "",
            "qpkg/inner/leaf.py": "from .. import sibling\nfrom .near import thing\nfrom ..extra import x\n",
            "qpkg/inner/near.py": "thing = 1",
            "qpkg/sibling.py": "",
            "qpkg/unused.py": BOOM,
        }
    )
    assert sorted(found.files) == [
        "qpkg/__init__.py",
        "qpkg/extra.py",
        "qpkg/inner/__init__.py",
        "qpkg/inner/leaf.py",
        "qpkg/inner/near.py",
        "qpkg/sibling.py",
    ]


def test_from_package_import_takes_a_submodule_but_not_a_plain_name(need: Need) -> None:
    found = need({"app.py": "from qpkg import part, VALUE\n", "qpkg/__init__.py": "VALUE = 1", "qpkg/part.py": ""})
    assert found.modules == ("qpkg", "qpkg.part")


def test_a_star_import_takes_the_submodules_in_all(need: Need) -> None:
    files = {
        "app.py": "from qpkg import *\n",
        "qpkg/__init__.py": "__all__ = ['part', 'name']",
        "qpkg/part.py": "",
    }
    assert need(files | {"qpkg/other.py": ""}).modules == ("qpkg", "qpkg.part")


def test_a_literal_dynamic_import_is_seen(need: Need) -> None:
    app = "import importlib\ndef f():\n    importlib.import_module('qone')\n    __import__('qtwo')\n"
    assert need({"app.py": app, "qone.py": "", "qtwo.py": ""}).modules == ("qone", "qtwo")


def test_a_namespace_package_keeps_its_folder(need: Need) -> None:
    found = need({"app.py": "import qspace.deep.leaf\n", "qspace/deep/leaf.py": ""})
    assert sorted(found.files) == ["qspace/", "qspace/deep/", "qspace/deep/leaf.py"]
    assert found.modules == ("qspace.deep.leaf",)


def test_installed_and_standard_modules_stay_where_they_are(need: Need) -> None:
    found = need({"app.py": "import os, json.decoder, sys\nimport numpy.linalg\nfrom PIL import Image\nimport attrs\n"})
    assert found.files == {}
    assert found.installed == ("PIL", "attrs", "numpy")


def test_hasfaas_itself_is_neither_shipped_nor_compared(need: Need) -> None:
    found = need({"app.py": "import hasfaas\nfrom hasfaas.core import errors\n"})
    assert (found.files, found.installed) == ({}, ())


def test_an_optional_import_that_is_not_there_is_left_out(need: Need) -> None:
    found = need({"app.py": "try:\n    import no_such_thing\nexcept ImportError:\n    no_such_thing = None\n"})
    assert (found.files, found.installed) == ({}, ())


def test_the_script_itself_is_shipped_only_if_another_module_imports_it(need: Need) -> None:
    assert "app.py" not in need({"app.py": "import qback", "qback.py": ""}).files
    assert "app.py" in need({"app.py": "import qback", "qback.py": "from app import f"}).files


def test_a_helper_with_a_syntax_error_is_named(need: Need) -> None:
    with pytest.raises(InvalidRequestError, match=r"qbad\.py is no valid Python source"):
        need({"app.py": "import qbad", "qbad.py": "def ("})


def test_a_first_party_extension_module_is_refused_with_the_cure(need: Need) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    with pytest.raises(InvalidRequestError, match=r"qfast.*ships source only: install it"):
        need({"app.py": "import qfast", f"qfast{suffix}": ""})


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path`; what is imported from it is forgotten again."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("q"):
            del sys.modules[name]


def test_a_file_of_the_users_shadows_the_standard_library(
    need: Need, imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert need({"app.py": "import colorsys", "colorsys.py": "MINE = 1"}).modules == ("colorsys",)


def test_a_loaded_module_is_found_where_it_was_loaded_from(imported: Path, need: Need) -> None:
    elsewhere = imported / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "qloaded.py").write_text("FROM = 'elsewhere'")
    sys.path.insert(0, str(elsewhere))
    importlib.import_module("qloaded")
    sys.path.remove(str(elsewhere))
    assert need({"app.py": "import qloaded"}).files == {"qloaded.py": b"FROM = 'elsewhere'"}


def test_modules_inside_a_zip_are_shipped_too(imported: Path, need: Need) -> None:
    (imported / "lib.zip").write_bytes(zip_files({"qzipped.py": b"X = 1"}))
    sys.path.insert(0, str(imported / "lib.zip"))
    assert need({"app.py": "import qzipped"}).files == {"qzipped.py": b"X = 1"}


def test_an_editable_install_counts_as_first_party(imported: Path, need: Need) -> None:
    """Such an install is a finder on `sys.meta_path`; the other sort is a folder on `sys.path`."""
    source = imported / "src" / "qedit"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("X = 1")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            if name != "qedit":
                return None
            return importlib.util.spec_from_file_location(name, source / "__init__.py")

    sys.meta_path.append(Finder)  # type: ignore[arg-type]
    try:
        assert need({"app.py": "import qedit"}).modules == ("qedit",)
    finally:
        sys.meta_path.remove(Finder)  # type: ignore[arg-type]


def test_two_walks_give_the_same_answer(need: Need) -> None:
    files = {"app.py": "import qone, qtwo, numpy, attrs", "qone.py": "import qtwo", "qtwo.py": "import PIL"}
    assert need(files) == need(files)
    assert zip_files(need(files).files) == zip_files(need(files).files)
