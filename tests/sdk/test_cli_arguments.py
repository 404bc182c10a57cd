"""Arguments of `hasfaas invoke`, from text, files and standard input to values."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.cli_arguments import Given, parse


def _parse(*texts: str, stdin: bytes = b"") -> Given:
    return parse(texts, lambda: stdin)


def _one(text: str, stdin: bytes = b"") -> Any:
    given = _parse(text, stdin=stdin)
    assert not given.kwargs
    (value,) = given.args
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        (" -1.5", -1.5),
        ("true", True),
        ("null", None),
        ('{"a": [1, 2]}', {"a": [1, 2]}),
        ('"1"', "1"),
        ("word", "word"),
        ("two words", "two words"),
        ("[1, 2", "[1, 2"),
        ("", ""),
        ("@", "@"),
        ("@@file", "@file"),
        ('"a=b"', "a=b"),
        ("2x=3", "2x=3"),
        ("http://h/?a=b", "http://h/?a=b"),
    ],
)
def test_json_or_text(text: str, value: object) -> None:
    assert _one(text) == value
    assert type(_one(text)) is type(value)


def test_keywords() -> None:
    assert _parse("a=1", "x", "b=text", "c==", "_d=@@e") == Given(("x",), {"a": 1, "b": "text", "c": "=", "_d": "@e"})
    with pytest.raises(InvalidRequestError, match="argument a is given twice"):
        _parse("a=1", "a=2")


def test_files_by_their_endings(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "b.npz", x=np.arange(2), y=np.ones(1))
    (tmp_path / "c.json").write_text('{"k": [1]}')
    (tmp_path / "d.TXT").write_text("hé\n")
    (tmp_path / "e.bin").write_bytes(b"\x80\x01")
    assert np.array_equal(_one(f"@{tmp_path}/a.npy"), np.arange(6.0).reshape(2, 3))
    loaded = _one(f"@{tmp_path}/b.npz")
    assert {key: value.tolist() for key, value in loaded.items()} == {"x": [0, 1], "y": [1.0]}
    assert _one(f"@{tmp_path}/c.json") == {"k": [1]}
    assert _one(f"@{tmp_path}/d.TXT") == "hé\n"
    assert _one(f"@{tmp_path}/e.bin") == b"\x80\x01"
    assert _parse(f"key=@{tmp_path}/c.json").kwargs == {"key": {"k": [1]}}


@pytest.mark.parametrize(("mode", "ending"), [("L", "png"), ("RGBA", "png"), ("RGB", "jpg"), ("L", "jpeg")])
def test_images_are_bytes_of_height_width_and_three_colours(tmp_path: Path, mode: str, ending: str) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new(mode, (5, 4), color=0).save(tmp_path / f"i.{ending}")
    pixels = _one(f"@{tmp_path}/i.{ending}")
    assert (pixels.shape, pixels.dtype) == ((4, 5, 3), np.uint8)
    assert pixels.max() == 0


def test_images_without_pillow_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "i.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'hasfaas\[images\]'"):
        _one(f"@{tmp_path}/i.png")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("c.json", b"{", "ending says"),
        ("d.txt", b"\xff", "ending says"),
        ("a.npy", b"no array", "without pickle"),
        ("a.npy", b"", "without pickle"),
        ("b.npz", b"PK", "cannot be read|without pickle"),
        ("i.png", b"no image", "no image"),
    ],
)
def test_a_file_that_is_not_what_it_says(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidRequestError, match=said) as caught:
        _one(f"@{tmp_path}/{name}")
    assert f"{tmp_path}/{name}" in str(caught.value)


def test_a_missing_file_is_named_with_the_escape() -> None:
    with pytest.raises(InvalidRequestError, match=r"@nowhere\.npy cannot be read: No such file.*@@"):
        _one("@nowhere.npy")


def test_no_pickle_is_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object))
    np.savez(tmp_path / "b.npz", x=np.array([Bomb()], dtype=object))
    for text in (f"@{tmp_path}/a.npy", f"@{tmp_path}/b.npz"):
        with pytest.raises(InvalidRequestError, match="pickle"):
            _one(text)
    with pytest.raises(InvalidRequestError, match=r"standard input.*pickle"):
        _one("-", (tmp_path / "a.npy").read_bytes())
    assert not (tmp_path / "ran").exists()


def test_standard_input() -> None:
    array = io.BytesIO()
    np.save(array, np.arange(3, dtype=np.int16))
    assert _one("-", array.getvalue()).tolist() == [0, 1, 2]
    assert _one("-", b"[1, 2]\n") == [1, 2]
    assert _one("-", b"some text\n") == "some text\n"
    assert _one("-", b"\xff\xfe") == b"\xff\xfe"
    assert _parse("x=-", stdin=b"3").kwargs == {"x": 3}
    with pytest.raises(InvalidRequestError, match="one argument only"):
        _parse("-", "x=-")
