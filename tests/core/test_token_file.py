from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hasfaas.core import token_file, tokens
from hasfaas.core.errors import AuthError, InvalidRequestError, NotFoundError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "tokens.json"


def add(path: Path, name: str, *scopes: str, expires_s: float | None = None) -> tokens.Token:
    made, grant = tokens.create(name, scopes or ("invoke",), now_s=1.5, expires_s=expires_s)
    token_file.add(path, grant)
    return made


def test_what_was_added_is_read_again_as_it_was(path: Path) -> None:
    made, grant = tokens.create("a", ("deploy", "read"), now_s=1.5, expires_s=2.5)
    token_file.add(path, grant)
    add(path, "b")
    assert token_file.read(path)["a"] == grant
    assert set(token_file.read(path)) == {"a", "b"}
    assert tokens.check(token_file.read(path), made.text, now_s=2.0) == grant


def test_the_file_is_closed_to_others_and_holds_no_secret(path: Path) -> None:
    made = add(path, "a", "deploy")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    text = path.read_text()
    assert made.secret.hex() not in text
    assert made.text.rpartition(".")[2] not in text


def test_a_name_is_given_once_and_taken_back(path: Path) -> None:
    add(path, "a")
    with pytest.raises(InvalidRequestError, match="token revoke a"):
        add(path, "a")
    token_file.remove(path, "a")
    assert token_file.read(path) == {}
    with pytest.raises(NotFoundError, match="no token 'a'"):
        token_file.remove(path, "a")
    add(path, "a")


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_that_others_can_read_is_refused(path: Path, mode: int) -> None:
    add(path, "a")
    path.chmod(mode)
    with pytest.raises(AuthError, match=f"mode {mode:04o}.*chmod 600") as caught:
        token_file.read(path)
    assert caught.value.reason == "UNSAFE_FILE"


def test_a_folder_that_others_can_write_is_refused(path: Path) -> None:
    add(path, "a")
    path.parent.chmod(0o777)
    with pytest.raises(AuthError, match="chmod go-w"):
        token_file.read(path)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 2, "tokens": []}', '{"format": 1, "tokens": [{}]}'])
def test_a_damaged_file_is_refused_and_not_overwritten(path: Path, damage: str) -> None:
    add(path, "a")
    path.write_text(damage)
    with pytest.raises(AuthError, match="damaged"):
        token_file.read(path)
    with pytest.raises(AuthError, match="damaged"):
        add(path, "b")
    assert path.read_text() == damage


def test_a_scope_that_nobody_knows_is_damage(path: Path) -> None:
    add(path, "a")
    table = json.loads(path.read_text())
    table["tokens"][0]["scopes"] = ["invoke", "all"]
    path.write_text(json.dumps(table))
    with pytest.raises(AuthError, match="damaged"):
        token_file.read(path)


def test_shells_that_write_at_once_lose_nothing(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hasfaas.core import token_file, tokens\n"
        "sys.stdin.readline()\n"
        "for i in range(5):\n"
        "    _, grant = tokens.create(f'{sys.argv[2]}-{i}', ('read',), now_s=0.0)\n"
        "    token_file.add(Path(sys.argv[1]), grant)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=ROOT, stdin=subprocess.PIPE, text=True)
        for name in ("a", "b", "c")
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert len(token_file.read(path)) == 15
