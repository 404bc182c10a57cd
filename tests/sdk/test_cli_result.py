"""Results on their way to the terminal or a file."""

from __future__ import annotations

import base64
import enum
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.sdk.cli_result import SUMMARISED_ABOVE, Output


class Colour(enum.Enum):
    RED = 1


def _shown(value: object, capsys: pytest.CaptureFixture[str]) -> Any:
    output = Output(None)
    output.begin(streams=False)
    output.write(value)
    output.end()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (1 << 70, 1 << 70),
        ("é", "é"),
        ((1, [2.5]), [1, [2.5]]),
        ({1: "a", None: "b", (2, 3): "c", False: "d"}, {"1": "a", "null": "b", "(2, 3)": "c", "false": "d"}),
        ({3, 1, 2}, [1, 2, 3]),
        (b"\x00\xff", {"base64": base64.b64encode(b"\x00\xff").decode()}),
        (Colour.RED, "<Colour.RED: 1>"),
        (np.float32(0.5), 0.5),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array(3), 3),
        ([np.array([True])], [[True]]),
        (np.array(["a", "b"]), ["a", "b"]),
    ],
)
def test_json(value: object, shown: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert _shown(value, capsys) == shown


def test_a_large_array_is_summarised_and_a_note_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(None)
    output.write({"x": np.full((2, SUMMARISED_ABOVE), 3, np.float16), "y": np.zeros(SUMMARISED_ABOVE)})
    output.end()
    out, err = capsys.readouterr()
    shown = json.loads(out)
    assert shown["x"] == {"dtype": "float16", "shape": [2, SUMMARISED_ABOVE], "min": 3.0, "max": 3.0, "mean": 3.0}
    assert shown["y"] == [0.0] * SUMMARISED_ABOVE
    assert "--out FILE" in err


def test_a_large_array_of_words_has_no_mean(capsys: pytest.CaptureFixture[str]) -> None:
    shown = _shown(np.full(SUMMARISED_ABOVE + 1, "word"), capsys)
    assert (shown["dtype"], shown["min"], shown["mean"]) == ("<U4", None, None)


def test_tensors_are_shown_as_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    assert _shown([torch.ones(2), torch.ones(1, dtype=torch.bfloat16)], capsys) == [[1.0, 1.0], [1.0]]
    assert _shown(torch.ones(2, requires_grad=True), capsys) == [1.0, 1.0]


def test_a_file_holds_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = np.arange(SUMMARISED_ABOVE + 1, dtype=np.int32)
    Output(tmp_path / "x.npy").write(big)
    Output(tmp_path / "x.json").write({"big": big})
    assert np.array_equal(np.load(tmp_path / "x.npy"), big)
    assert json.loads((tmp_path / "x.json").read_text())["big"] == big.tolist()
    out, err = capsys.readouterr()
    assert out == ""
    assert "int32 (1001,)" in err


def test_a_file_is_written_anew_by_each_call(tmp_path: Path) -> None:
    for value in (1, 2):
        Output(tmp_path / "x.json").write(value)
    assert (tmp_path / "x.json").read_text() == "2\n"


def test_what_is_no_array_goes_into_no_npy(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no array but dict"):
        Output(tmp_path / "x.npy").write({})
    with pytest.raises(InvalidRequestError, match=r"\.npy"):
        Output(tmp_path / "x.npy").begin(streams=True)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(InvalidRequestError, match=r"x\.json cannot be written"):
        Output(tmp_path / "x.json").write(1)
