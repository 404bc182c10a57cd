from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.memory import format_memory, parse_memory

ANY_SIZE = st.integers(1, 2**63 - 1)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2GiB", 2 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("3tib", 3 * 2**40),
        ("7kB", 7_000),
        ("4096", 4096),
        ("4096B", 4096),
        (" 1KiB ", 1024),
        (4096, 4096),
        ("0.3KiB", 307),  # 307.2 bytes, rounded down
        ("9007199254740993B", 2**53 + 1),  # a float would lose the last byte
    ],
)
def test_what_people_write_is_read(text: str | int, size_bytes: int) -> None:
    assert parse_memory(text) == size_bytes


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "GiB",
        "2G",
        "2 gigs",
        "-1GiB",
        "1e9",
        "1.GiB",
        ".5GiB",
        "2GiB2",
        "0",
        "0.1B",
        "²GiB",
        "9" * 5000,
        "99999999TiB",
    ],
)
def test_what_is_not_an_amount_is_refused_with_the_value_and_the_cure(bad: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_memory(bad)
    assert caught.value.reason == "BAD_OPTION"
    assert repr(bad) in str(caught.value)
    assert '"2GiB"' in str(caught.value)


@pytest.mark.parametrize("bad", [0, -1, True, 2**63])
def test_a_number_outside_the_range_is_refused(bad: int) -> None:
    with pytest.raises(InvalidRequestError):
        parse_memory(bad)
    with pytest.raises(InvalidRequestError):
        format_memory(bad)


@pytest.mark.parametrize("bad", [None, 1.5, ["2GiB"]])
def test_another_type_is_refused(bad: object) -> None:
    with pytest.raises(InvalidRequestError, match="not an amount of memory"):
        parse_memory(bad)  # type: ignore[arg-type]


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="unknown unit 'G'"):
        parse_memory("2G")


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(2**31, "2GiB"), (3 * 2**29, "1536MiB"), (1500, "1500B"), (1024, "1KiB")]
)
def test_the_largest_unit_that_divides_is_used(size_bytes: int, text: str) -> None:
    assert format_memory(size_bytes) == text


@given(ANY_SIZE)
def test_round_trip_loses_no_byte(size_bytes: int) -> None:
    assert parse_memory(format_memory(size_bytes)) == size_bytes


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused_with_our_error(text: str) -> None:
    try:
        assert parse_memory(text) >= 1
    except InvalidRequestError:
        pass
