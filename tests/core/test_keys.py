from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core import keys
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.keys import ANY, Place, Schema, Source

SCHEMA: Schema = {
    "name": keys.text("give a name"),
    "share": keys.number("a share", 0, 1),
    "count": keys.whole("things", 1),
    "on": keys.boolean(),
    "level": keys.choice("low", "high"),
    "room": keys.optional(keys.memory()),
    "folder": keys.path(),
    "inner": {"depth_m": keys.number("metres")},
    "functions": {ANY: {"slo_ms": keys.number("milliseconds")}},
}
FILE = Place(Source("/etc/app.toml", folder=Path("/etc"), home=Path("/home/ann")))
VARIABLE = Place(Source("env APP", folder=Path("/srv"), textual=True))


def test_a_table_becomes_checked_leaves() -> None:
    table = {"name": "x", "share": 1, "inner": {"depth_m": 2}, "functions": {"a.b": {"slo_ms": 3}}}
    assert keys.read_table(SCHEMA, FILE, table) == {
        ("name",): "x",
        ("share",): 1.0,
        ("inner", "depth_m"): 2.0,
        ("functions", "a.b", "slo_ms"): 3.0,
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 3),
        ("name", ""),
        ("share", "1"),
        ("share", True),
        ("share", 1.5),
        ("share", math.nan),
        ("count", 0),
        ("count", 1.0),
        ("count", True),
        ("on", 1),
        ("level", "medium"),
        ("level", ["low"]),
        ("room", "2G"),
        ("room", True),
        ("folder", ""),
        ("folder", "~bob/x"),
        ("folder", "a\0b"),
        ("folder", 3),
        ("inner", 3),
        ("functions", 3),
    ],
)
def test_a_bad_value_names_key_value_source_and_cure(key: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        keys.read_table(SCHEMA, FILE, {key: value})
    assert caught.value.reason == "BAD_OPTION"
    start, _, cure = str(caught.value).partition(" (from /etc/app.toml): ")
    assert start == f"{key}={value!r}"
    assert cure


@pytest.mark.parametrize(
    ("table", "meant"),
    [
        ({"nmae": 1}, "did you mean 'name'?"),
        ({"depth_m": 1}, "did you mean 'inner.depth_m'?"),
        ({"inner": {"depht_m": 1}}, "did you mean 'depth_m'?"),
        ({"zzz": 1}, "known here: name, share, count, on, level, room, folder, [inner], [functions]"),
    ],
)
def test_an_unknown_key_is_answered_with_what_was_meant(table: dict[str, object], meant: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        keys.read_table(SCHEMA, FILE, table)
    assert caught.value.reason == "UNKNOWN_OPTION"
    assert meant in str(caught.value)
    assert "(from /etc/app.toml)" in str(caught.value)


def test_a_function_name_without_its_quotes_is_explained() -> None:
    with pytest.raises(InvalidRequestError, match=r"a dot in it is quoted: \[functions.\"app.fn\"\]"):
        keys.read_table(SCHEMA, FILE, {"functions": {"app": {"fn": {"slo_ms": 1}}}})


def test_text_of_a_variable_is_taken_for_what_it_means_and_text_of_a_file_is_not() -> None:
    table = {"share": "0.5", "count": "3", "on": "true", "name": "3", "inner": '{"depth_m": 1}'}
    assert keys.read_table(SCHEMA, VARIABLE, table) == {
        ("share",): 0.5,
        ("count",): 3,
        ("on",): True,
        ("name",): "3",
        ("inner", "depth_m"): 1.0,
    }
    with pytest.raises(InvalidRequestError, match=r"share='0\.5'"):
        keys.read_table(SCHEMA, FILE, table)


def test_broken_json_in_a_variable_says_so() -> None:
    with pytest.raises(InvalidRequestError, match="not JSON"):
        keys.read_table(SCHEMA, VARIABLE, {"inner": '{"depth_m": '})


@pytest.mark.parametrize(
    ("text", "absolute"), [("x/y", "/etc/x/y"), ("/x", "/x"), ("~/x", "/home/ann/x"), ("~", "/home/ann")]
)
def test_a_path_starts_in_the_folder_of_its_source(text: str, absolute: str) -> None:
    assert keys.read_table(SCHEMA, FILE, {"folder": text}) == {("folder",): Path(absolute)}


def test_optional_lets_nothing_pass() -> None:
    assert keys.read_table(SCHEMA, FILE, {"room": None}) == {("room",): None}


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4).map(tuple))
def test_nest_is_the_reverse_of_taking_apart(path: tuple[str, ...]) -> None:
    table: object = keys.nest({path: 7})
    for part in path:
        assert isinstance(table, dict)
        table = table[part]
    assert table == 7


def test_a_key_is_shown_as_toml_writes_it() -> None:
    assert keys.dotted(("functions", "app.fn", "slo_ms")) == 'functions."app.fn".slo_ms'
    assert keys.dotted(("devices[0]", "sms")) == "devices[0].sms"


def test_a_name_beside_a_wildcard_does_not_hide_a_falsy_entry() -> None:
    nested: Schema = {ANY: {}}
    with pytest.raises(InvalidRequestError, match=r"unknown key 'a\.b'"):
        keys.read_table(nested, FILE, {"a": {"b": 1}})
