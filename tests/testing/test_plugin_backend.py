"""A backend from another package: installed, found by its name, and judged by the public suite in a session of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import ROOT

pytest.importorskip("hatchling", reason="hatchling, which builds the example, is not installed")
EXAMPLE = ROOT / "examples" / "plugin_backend"
# A verb, a stream, a batch, the signing key that it shares, and a restart: the rest is the local backend's, which has it all.
PART = (
    "test_plain_and_remote_give_the_same or test_all_items_in_order or test_a_bad_item_fails_alone or test_unsigned_altered "
    "or test_what_was_deployed_and_sized or test_a_backend_that_runs or test_another_project"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed example, made without a network."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(EXAMPLE)], check=True, timeout=100)
    return target


def python(installed: Path, *arguments: str, cwd: Path = ROOT) -> str:
    """What an interpreter prints that has the example installed."""
    path = os.pathsep.join([str(installed), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_keeps_its_part_of_the_contract(installed: Path) -> None:
    session = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(EXAMPLE / "pyproject.toml"))
    told = python(installed, *session, str(EXAMPLE / "tests"), "-k", PART)
    assert "7 passed" in told


def test_a_user_names_it_as_any_backend(installed: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from hasfaas.core.errors import InvalidRequestError\n"
        "from hasfaas.core.settings import Settings\n"
        "from hasfaas.sdk.backends import find_backend\n"
        "folders = dict(state_dir=Path('s'), runtime_dir=Path('r'))\n"
        "print(find_backend(Settings(backend='project', **folders)))\n"
        "try:\n"
        "    find_backend(Settings(backend='projects', **folders))\n"
        "except InvalidRequestError as exc:\n"
        "    print(exc)\n"
    )
    first, second = python(installed, "-c", code, cwd=tmp_path).splitlines()
    assert first.startswith("<hasfaas_project.ProjectBackend ")
    assert "'projects' is not installed" in second
    assert "project" in second.partition("installed: ")[2].split(", ")
    assert not list(tmp_path.iterdir())
