"""A command's keys in the user's file: what was there stays as it is written."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.user_file import set_keys

KEYS = {"addresses": ["a:1", "b:2"], "ca_file": "/ca.pem"}
BEFORE = """# at the top
backend = "local"   # for now

[cluster]  # theirs
port = 7071
addresses = [
  "old:1",  # gone soon
]
# after it

[[devices]]
kind = "sim"
"""


def test_a_new_file_is_made_for_its_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "config.toml"
    assert set_keys(file, "cluster", KEYS)
    assert tomllib.loads(file.read_text()) == {"cluster": KEYS}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not set_keys(file, "cluster", KEYS)


def test_all_else_stays_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(BEFORE)
    file.chmod(0o664)
    assert set_keys(file, "cluster", KEYS)
    text = file.read_text()
    for line in ("# at the top", 'backend = "local"   # for now', "[cluster]  # theirs", "port = 7071", "# after it"):
        assert line in text
    assert tomllib.loads(text) == {
        "backend": "local",
        "cluster": {"port": 7071, **KEYS},
        "devices": [{"kind": "sim"}],
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o664


@pytest.mark.parametrize("before", ["cluster.port = 7071\n", "cluster = { port = 7071 }\n", '[cluster]\n"port" = 7071'])
def test_a_table_however_it_is_written(tmp_path: Path, before: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(before)
    set_keys(file, "cluster", KEYS)
    assert tomllib.loads(file.read_text()) == {"cluster": {"port": 7071, **KEYS}}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    target, link = tmp_path / "dotfiles" / "hasfaas.toml", tmp_path / "config.toml"
    target.write_text("")
    link.symlink_to(target)
    set_keys(link, "cluster", KEYS)
    assert link.is_symlink()
    assert tomllib.loads(target.read_text()) == {"cluster": KEYS}


def test_a_file_that_is_no_toml_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[cluster\n")
    with pytest.raises(InvalidRequestError, match=r"config\.toml cannot be changed.*ca_file = '/ca\.pem'"):
        set_keys(file, "cluster", KEYS)
    assert file.read_text() == "[cluster\n"
