"""Streams: items as they come, early exit, errors half-way, and a reader that is slower than the maker."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from hasfaas import DeadlineError, InvalidRequestError
from hasfaas.testing.apps import streams, verbs
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.running import RunningBackend
from hasfaas.testing.waiting import eventually

# The replica may run ahead of a reader by its credit, and by what the session hands back in lots.
MOST_AHEAD = 100


class StreamVerbs(Area):
    """`stream` and `astream`, of generators."""

    def test_all_items_in_order(self, backend: RunningBackend) -> None:
        assert list(streams.count.stream(100)) == list(streams.count(100)) == list(range(100))
        assert list(streams.count.stream(0)) == []
        assert list(streams.acount.stream(50)) == list(range(50))

    def test_astream(self, backend: RunningBackend) -> None:
        async def items() -> list[list[int]]:
            return [[item async for item in each.astream(20)] for each in (streams.count, streams.acount)]

        assert asyncio.run(items()) == [list(range(20))] * 2

    def test_generator_classes_decode_and_encode(self, backend: RunningBackend) -> None:
        assert list(streams.Words.stream("to be")) == ["TO-", "BE-"]

    @pytest.mark.parametrize("name", ["count", "acount"])
    def test_leaving_early_closes_the_generator_in_the_replica(
        self, backend: RunningBackend, tmp_path: Path, name: str
    ) -> None:
        trace = tmp_path / "t"
        function = getattr(streams, name)
        for item in function.stream(100_000, str(trace)):
            if item == 3:
                break
        closed = eventually(lambda: trace.read_text() if trace.exists() else "")
        assert int(closed.split()[-1]) < MOST_AHEAD
        assert list(function.stream(3)) == [0, 1, 2]

    def test_leaving_astream_early_closes_it_too(self, backend: RunningBackend, tmp_path: Path) -> None:
        trace = tmp_path / "t"

        async def leaves() -> None:
            async for item in streams.count.astream(100_000, str(trace)):
                if item == 3:
                    break
            await asyncio.to_thread(eventually, trace.exists)

        asyncio.run(leaves())
        assert int(trace.read_text().split()[-1]) < MOST_AHEAD

    def test_a_slow_reader_holds_the_maker_back(self, backend: RunningBackend, tmp_path: Path) -> None:
        trace = tmp_path / "t"
        items = streams.count.stream(100_000, str(trace))
        assert next(items) == 0
        time.sleep(0.3)
        assert [next(items) for _ in range(40)] == list(range(1, 41))
        time.sleep(0.3)
        items.close()
        closed = eventually(lambda: trace.read_text() if trace.exists() else "")
        assert int(closed.split()[-1]) < 41 + MOST_AHEAD

    def test_a_stream_whose_time_is_over_ends_and_is_closed(self, backend: RunningBackend, tmp_path: Path) -> None:
        trace = tmp_path / "t"
        got = []
        with pytest.raises(DeadlineError):
            for item in streams.endless.stream(str(trace)):
                got.append(item)  # noqa: PERF402 - what came before the error counts
        assert got
        eventually(lambda: trace.exists() and trace.read_text() == "closed")

    def test_an_error_half_way_comes_after_the_items(self, backend: RunningBackend) -> None:
        items = streams.fails_at.stream(5)
        assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(RuntimeError, match="no more than 5"):
            next(items)
        assert list(streams.count.stream(2)) == [0, 1]

    def test_large_items(self, backend: RunningBackend) -> None:
        sums = [float(item[-1]) for item in streams.rows.stream(5, 4096)]
        assert sums == [0.0, 1.0, 2.0, 3.0, 4.0]

    def test_two_streams_at_once(self, backend: RunningBackend) -> None:
        one, two = streams.count.stream(30), streams.acount.stream(30)
        assert list(zip(one, two, strict=True)) == [(i, i) for i in range(30)]

    def test_a_stream_called_as_one_answer_is_told(self, backend: RunningBackend) -> None:
        assert not hasattr(streams.count, "remote")
        assert not hasattr(verbs.add, "stream")
        list(streams.count.stream(1))
        from hasfaas.wire.payload import encode_arguments

        with pytest.raises(InvalidRequestError, match="streams"):
            backend.client.run(backend.client.call_named("streams.count", encode_arguments((3,), {}), 10.0))
        assert list(streams.count.stream(2)) == [0, 1]
