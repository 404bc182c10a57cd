"""Traces: what is read from each format, and what is said of a bad line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.simulator.trace import Trace
from hasfaas.simulator.trace_file import read_trace

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file and gives its path."""

    def to(text: str, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return to


# -- requests -----------------------------------------------------------------------------------------------------------


def test_seven_digits_of_fraction_are_kept(write: Write) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    path = write(head + "2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319613,3180,8")
    trace = read_trace(path, "requests")
    assert trace.times_s[0] == pytest.approx([0.0, 0.0520013], abs=1e-12)
    assert (trace.names, trace.duration_s, trace.requests) == (("trace",), 1.0, 2)


def test_zones_and_days_are_understood(write: Write) -> None:
    path = write("timestamp\n2024-02-28T23:59:59Z\n2024-02-29T01:00:00+01:00\n2024-02-29 00:00:02")
    assert read_trace(path, "requests").times_s[0].tolist() == [0.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("column", "cells"), [("time_s", "1.5 2 2"), ("timestamp", "1.5 2 2"), ("timestamp_ms", "1500 2000 2000")]
)
def test_numbers_count_from_the_first_request(write: Write, column: str, cells: str) -> None:
    path = write("\n".join([column, *cells.split()]))
    assert read_trace(path, "requests").times_s[0].tolist() == [0.0, 0.5, 0.5]


def test_functions_have_their_own_times_and_a_common_start(write: Write) -> None:
    trace = read_trace(write("time_s,function\n10,a\n11,b\n12,a\n"), "requests")
    assert trace.names == ("a", "b")
    assert [times.tolist() for times in trace.times_s] == [[0.0, 2.0], [1.0]]
    assert trace.of(("b",)).times_s[0].tolist() == [1.0]


def test_a_packed_file_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"time_s\n0\n1\n"))
    assert read_trace(path, "requests").requests == 2


# -- counts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["second,count\n5,3\n6,0\n7,2\n", "count\n3\n0\n2\n", "3\n0\n2\n\n"])
def test_counts_by_the_second(write: Write, text: str) -> None:
    trace = read_trace(write(text), "counts")
    assert trace.counts.tolist() == [[3, 0, 2]]
    assert (trace.interval_s, trace.duration_s, trace.names) == (1.0, 3.0, ("count",))


def test_counts_of_several_functions_every_ten_seconds(write: Write) -> None:
    trace = read_trace(write("second,cat,dog\n0,1,2\n10,3,4\n"), "counts")
    assert (trace.names, trace.interval_s, trace.duration_s) == (("cat", "dog"), 10.0, 20.0)
    assert trace.counts.tolist() == [[1, 3], [2, 4]]
    assert read_trace(write("minute,cat\n8,1\n9,3\n"), "counts").interval_s == 60.0


def test_stages_of_has_gpu_are_rates_of_five_seconds(write: Write) -> None:
    trace = read_trace(write(json.dumps({"processed_request_counts": [5, 15]}), "rps.json"), "counts")
    assert trace.counts.tolist() == [[25, 75]]
    assert trace.interval_s == 5.0


def test_k6_ramps_to_each_target(write: Write) -> None:
    trace = read_trace(write(json.dumps({"stage_s": 4, "targets_rps": [8, 8]}), "k6.json"), "counts")
    # From 0 to 8 in 4 s: the areas of the seconds are 1, 3, 5, 7; then 8 each.
    assert trace.counts.tolist() == [[1, 3, 5, 7, 8, 8, 8, 8]]


# -- azure-functions ----------------------------------------------------------------------------------------------------

AZURE = "HashOwner,HashApp,HashFunction,Trigger,480,481\no,a,quiet,http,0,1\no,a,busy,timer,50,60\no,a,mid,queue,5,5\n"


def test_functions_come_by_rank(write: Write) -> None:
    path = write(AZURE)
    assert read_trace(path, "azure-functions").names == ("rank1-busy", "rank2-mid", "rank3-quiet")
    assert read_trace(path, "azure-functions", top=2).counts.tolist() == [[50, 60], [5, 5]]
    chosen = read_trace(path, "azure-functions", ranks=(3,))
    assert (chosen.names, chosen.counts.tolist(), chosen.interval_s) == (("rank3-quiet",), [[0, 1]], 60.0)


# -- what is wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "text", "line", "said"),
    [
        ("requests", "time_s\n2\n1\n", 3, "before the line above"),
        ("requests", "time_s\n1\nnan\n", 3, "no time"),
        ("requests", "time_s\n1\n\n2\n", 3, "is empty"),
        ("requests", "time_s\n1\nsoon\n", 3, "no time"),
        ("requests", "time_s\n1\n1e300\n", 3, "no time"),
        ("requests", "TIMESTAMP\n2023-11-16 18:17:03\n5\n", 3, "no time"),
        ("requests", "TIMESTAMP\n2023-13-16 18:17:03\n", 2, "no time"),
        ("requests", "time_s,colour\n1,red\n", 1, "unknown columns colour"),
        ("requests", "when\n1\n", 1, "exactly one"),
        ("requests", "time_s,timestamp\n1,1\n", 1, "exactly one"),
        ("requests", "time_s,time_s\n1,1\n", 1, "twice"),
        ("requests", "time_s,function\n1,\n", 2, "function is empty"),
        ("requests", "time_s,function\n1\n", 2, "1 fields"),
        ("requests", "1.5\n2.5\n", 1, "exactly one"),
        ("counts", "second,count\n0,1\n1,-2\n", 3, "negative"),
        ("counts", "second,count\n0,1\n1,2\n4,2\n", 4, "gaps"),
        ("counts", "second,count\n0,1\n0,2\n", 3, "sort"),
        ("counts", "second,count\n0,1\n1,nan\n", 3, "no whole number"),
        ("counts", "second,count\n0,1\n1,1.5\n", 3, "no whole number"),
        ("counts", "second,count\n0,1\n1,1e300\n", 3, "no whole number"),
        ("counts", "second,count\n0,1\n1,\n", 3, "no number"),
        ("counts", "1\n2\n\n3\n", 3, "is empty"),
        ("counts", "second,count\nnan,1\n", 2, "no finite number"),
        ("counts", "when,count\n0,1\n", 1, "the first shall be"),
        ("counts", "1,2\n3,4\n", 1, "no names"),
        ("counts", '{"processed_request_counts": [1,\n2', 2, "no JSON"),
        ("counts", '{"rates": [1]}', 1, "it needs"),
        ("azure-functions", AZURE.replace("50,60", "50,-6"), 3, "minute 481"),
        ("azure-functions", AZURE.replace("50,60", "50,"), 3, "no number"),
        ("azure-functions", AZURE.replace("480,481", "480,482"), 1, "rise by one"),
        ("azure-functions", AZURE.replace("Trigger", "Colour"), 1, "unknown columns Colour"),
        ("azure-functions", AZURE.replace("mid", "busy"), 4, "line 3 already"),
    ],
)
def test_a_bad_line_is_named(write: Write, format: str, text: str, line: int, said: str) -> None:
    path = write(text)
    with pytest.raises(InvalidRequestError) as caught:
        read_trace(path, format)
    assert caught.value.reason == "BAD_TRACE"
    assert f"{str(path)!r}, line {line}:" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("format", "text", "said"),
    [
        ("requests", "", "is empty"),
        ("requests", "time_s\n", "no requests"),
        ("counts", "second,count\n", "no counts"),
        ("counts", '{"processed_request_counts": [1, "x"]}', "processed_request_counts[1]: 'x' is no rate"),
        ("azure-functions", AZURE.splitlines()[0], "no functions"),
        ("parquet", "1", "known are requests, counts, azure-functions"),
    ],
)
def test_a_bad_file_is_named(write: Write, format: str, text: str, said: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_trace(write(text), format)
    assert caught.value.reason == "BAD_TRACE"
    assert said in str(caught.value)


def test_options_of_another_format_are_refused(write: Write, tmp_path: Path) -> None:
    path = write(AZURE)
    for options in ({"top": 3}, {"ranks": (1,)}):
        with pytest.raises(InvalidRequestError, match="leave them out"):
            read_trace(path, "counts", **options)
    with pytest.raises(InvalidRequestError, match="leave them out"):
        read_trace(path, "azure-functions", ignore=("x",))
    with pytest.raises(InvalidRequestError, match="rank 1 to 3"):
        read_trace(path, "azure-functions", ranks=(2, 4))
    with pytest.raises(InvalidRequestError, match="does not exist"):
        read_trace(tmp_path / "none.csv", "counts")


# -- the value ----------------------------------------------------------------------------------------------------------


def test_a_window_is_a_trace_of_its_own() -> None:
    requests = Trace.of_requests((np.array([0.0, 1.0, 2.5, 4.0]),), ("a",))
    assert requests.window(1.0, 2.0).times_s[0].tolist() == [0.0, 1.5]
    counts = Trace.of_counts(np.array([[1, 2, 3, 4]]), 5.0, ("a",))
    assert counts.window(5.0, 6.0).counts.tolist() == [[2, 3]]
    for start_s, duration_s in ((0.0, 21.0), (-1.0, 2.0), (3.0, 0.0)):
        with pytest.raises(InvalidRequestError, match="does not lie in the trace"):
            counts.window(start_s, duration_s)


def test_copies_begin_at_other_parts_and_lose_nothing() -> None:
    two = Trace.of_counts(np.array([[1, 2, 3, 4], [5, 0, 0, 0]]), 60.0, ("a", "b"))
    counts = two.repeated(4)
    assert counts.names == ("a", "b", "a@2", "b@2")
    assert counts.counts.tolist() == [[1, 2, 3, 4], [5, 0, 0, 0], [3, 4, 1, 2], [0, 0, 5, 0]]
    times = Trace.of_requests((np.array([0.5, 1.0, 7.0]),), ("a",), duration_s=8.0).repeated(2)
    assert [each.tolist() for each in times.times_s] == [[0.5, 1.0, 7.0], [3.0, 4.5, 5.0]]
    assert two.repeated(2).counts.tolist() == two.counts.tolist()
    assert two.repeated(3).names == ("a", "b", "a@2")
    with pytest.raises(InvalidRequestError, match="functions=3 are fewer than the 4"):
        counts.repeated(3)


def test_requests_and_counts_of_the_same_load_agree() -> None:
    requests = Trace.of_requests((np.array([0.0, 0.2, 2.5]), np.array([1.0])), ("a", "b"))
    assert requests.per_second().tolist() == [[2, 0, 1], [0, 1, 0]]
    counts = Trace.of_counts(np.array([[2, 4]]), 2.0, ("a",))
    assert counts.per_second().tolist() == [[1, 1, 2, 2]]
    assert counts.mean_rps == 1.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: Trace.of_requests((np.array([2.0, 1.0]),), ("a",), duration_s=3.0),
        lambda: Trace.of_requests((np.array([1.0, 4.0]),), ("a",), duration_s=3.0),
        lambda: Trace.of_requests((np.array([1.0]),), ("a", "b")),
        lambda: Trace.of_counts(np.array([[1, -1]]), 1.0, ("a",)),
        lambda: Trace.of_counts(np.array([[0.5]]), 1.0, ("a",)),
        lambda: Trace.of_counts(np.array([[1], [1]]), 1.0, ("a", "a")),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(make: Callable[[], Trace]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert caught.value.reason == "BAD_TRACE"


def test_the_public_traces_are_read(data: Path) -> None:
    traces = data / "traces"
    code = read_trace(traces / "azure_llm_2023/AzureLLMInferenceTrace_code.csv", "requests")
    assert (code.requests, code.per_second().max()) == (8_819, 67)
    rps = read_trace(traces / "hasgpu_workload/rps.json", "counts")
    assert (rps.requests, rps.duration_s) == (2_690, 250.0)
    azure = read_trace(traces / "azure_functions_2019_dirigent500/invocations_500.csv", "azure-functions")
    assert (azure.counts.shape, azure.requests) == ((500, 480), 3_037_902)
    # Means of ranks 10, 20 and 50, by the trace's SOURCE.md.
    assert azure.per_second().mean(axis=1)[[9, 19, 49]] == pytest.approx([1.0, 0.25, 0.033], rel=0.05)
