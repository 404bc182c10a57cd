"""Signatures and the key behind them."""

from __future__ import annotations

import hmac
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hasfaas.core.errors import AuthError
from hasfaas.core.signing import KEY_BYTES, load_or_create_key, sign, verify

KEY = bytes(range(32))


def test_a_signature_of_this_key_and_blob_passes() -> None:
    verify(KEY, b"blob", sign(KEY, b"blob"))


@pytest.mark.parametrize(
    ("key", "blob"),
    [(KEY, b"blub"), (KEY, b"blob\x00"), (KEY[::-1], b"blob")],
    ids=["altered", "longer", "other key"],
)
def test_anything_else_is_refused(key: bytes, blob: bytes) -> None:
    with pytest.raises(AuthError, match="deploy it again") as caught:
        verify(key, blob, sign(KEY, b"blob"))
    assert caught.value.reason == "SIGNATURE_INVALID"


def test_a_missing_signature_is_called_unsigned() -> None:
    with pytest.raises(AuthError, match="unsigned"):
        verify(KEY, b"blob", b"")


def test_a_plain_hmac_of_the_key_is_no_bundle_signature() -> None:
    with pytest.raises(AuthError):
        verify(KEY, b"blob", hmac.digest(KEY, b"blob", "sha256"))


def test_a_short_key_is_refused() -> None:
    with pytest.raises(AuthError, match="31 bytes instead of 32"):
        sign(KEY[1:], b"blob")


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "key"
    key = load_or_create_key(path)
    assert len(key) == KEY_BYTES
    assert load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["key"]


def test_two_keys_differ(tmp_path: Path) -> None:
    assert load_or_create_key(tmp_path / "a") != load_or_create_key(tmp_path / "b")


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hasfaas.core.signing import load_or_create_key; "
        "sys.stdin.readline(); print(load_or_create_key(Path(sys.argv[1])).hex())"
    )
    path = tmp_path / "new" / "key"
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    keys = {process.communicate(timeout=30)[0].strip() for process in started}
    assert keys == {path.read_bytes().hex()}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(AuthError, match=f"mode {mode:04o}.*chmod 600"):
        load_or_create_key(path)


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    load_or_create_key(folder / "key")
    folder.chmod(0o777)
    with pytest.raises(AuthError, match="chmod go-w"):
        load_or_create_key(folder / "key")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_file_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(bytes(length))
    with pytest.raises(AuthError, match="bytes instead of 32"):
        load_or_create_key(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    load_or_create_key(path)
    os.chown(path, 12345, -1)
    with pytest.raises(AuthError, match="belongs to user 12345"):
        load_or_create_key(path)
