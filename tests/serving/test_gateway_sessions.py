"""Many calls on one stream, as the SDK makes them."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from hasfaas.core import errors
from hasfaas.core.spec import Kind
from hasfaas.serving import gateway as serving
from hasfaas.serving.gateway import CHUNK_BYTES
from hasfaas.serving.router import STREAM_CREDIT
from hasfaas.wire.frames import RawPayload
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.fakes.gateway_site import Session, Site, call, counting, echo, hang, message, until
from tests.fakes.replica import WorkingReplica


async def test_many_calls_on_one_stream_answer_as_they_end(site: Site, session: Session) -> None:
    site.deploy()
    gates = {b"first": asyncio.Event(), b"second": asyncio.Event()}

    async def work(_replica: WorkingReplica, _call_id: int, given: RawPayload) -> RawPayload:
        await gates[bytes(given.chunks[0])].wait()
        return given

    await site.serve(work)
    await session.send(11, start=call(b"first"))
    await session.send(12, start=call(b"second"))
    gates[b"second"].set()
    assert await session.answer() == (12, b"second")
    gates[b"first"].set()
    assert await session.answer() == (11, b"first")


async def test_large_arguments_and_results_come_in_chunks_and_others_overtake(site: Site, session: Session) -> None:
    site.deploy()
    await site.serve(echo)
    blob = bytes(range(256)) * (5 << 11) + b"the rest"
    start = pb.InvokeRequest(function="app.f", arguments=message(blob[:1000], sizes=[len(blob)]))
    await session.send(1, start=start)
    await session.send(2, start=call(b"small"))
    assert await session.answer() == (2, b"small")
    for offset in range(1000, len(blob), CHUNK_BYTES):
        await session.send(1, chunk=blob[offset : offset + CHUNK_BYTES])
    assert await session.answer() == (1, blob)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (call(function="nope"), "not deployed"),
        (call(version="v0"), "superseded"),
        (call(timeout_s=float("nan")), "timeout_s=nan"),
        (pb.InvokeRequest(function="app.f", arguments=message(sizes=[3])), "announces 3 bytes and holds 4"),
        (pb.InvokeRequest(function="app.f", arguments=message(sizes=[2**62])), "exceed the session's limit"),
    ],
    ids=["name", "version", "time", "too much", "too large"],
)
async def test_a_bad_call_is_answered_and_the_session_goes_on(
    site: Site, session: Session, start: pb.InvokeRequest, words: str
) -> None:
    site.deploy()
    await site.serve(echo)
    await session.send(5, start=start)
    call_id, error = await session.error()
    assert call_id == 5
    assert words in str(error)
    await session.send(6, start=call())
    assert await session.answer() == (6, b"blob")


async def test_more_chunks_than_were_announced(site: Site, session: Session) -> None:
    site.deploy()
    replica = await site.serve(echo)
    await session.send(5, start=pb.InvokeRequest(function="app.f", arguments=message(sizes=[6])))
    await session.send(5, chunk=b"too much")
    call_id, error = await session.error()
    assert call_id == 5
    assert "announces 6 bytes and holds 12" in str(error)
    await session.send(5, chunk=b"of a call that has ended")
    await session.send(6, start=call())
    assert await session.answer() == (6, b"blob")
    assert len(replica.started) == 1


async def test_an_id_that_is_in_use_is_refused_and_the_first_call_goes_on(site: Site, session: Session) -> None:
    site.deploy()
    replica = await site.serve(hang)
    await session.send(5, start=call())
    await session.send(5, start=call())
    call_id, error = await session.error()
    assert call_id == 5
    assert "in use" in str(error)
    await session.send(5, cancel=pb.SessionCall.Cancel())
    assert isinstance((await session.error())[1], errors.CancelledError)
    await replica.until(lambda: len(replica.cancelled) == 1)
    assert len(replica.started) == 1


async def test_half_received_arguments_are_bounded_in_all(
    site: Site, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MAX_PARTIAL_BYTES", 100)
    site.deploy()
    await site.serve(echo)

    def half(nbytes: int) -> pb.InvokeRequest:
        return pb.InvokeRequest(function="app.f", arguments=message(b"", sizes=[nbytes]))

    await session.send(1, start=half(60))
    await session.send(2, start=half(41))
    assert (await session.error())[0] == 2
    await session.send(1, cancel=pb.SessionCall.Cancel())
    await session.send(3, start=half(100))
    await session.send(3, chunk=bytes(50))
    await session.send(4, start=half(51))
    assert (await session.error())[0] == 4
    await session.send(5, start=half(50))
    await session.send(3, chunk=bytes(50))
    assert await session.answer() == (3, bytes(100))
    await session.send(5, chunk=bytes(50))
    assert await session.answer() == (5, bytes(50))


async def test_a_stream_on_a_session_with_credit(site: Site, session: Session) -> None:
    site.deploy(kind=Kind.GENERATOR)
    replica = await site.serve(counting(STREAM_CREDIT + 2))
    await session.send(1, start=call())
    got = await session.read(STREAM_CREDIT)
    await session.send(1, credit=pb.SessionCall.Credit(items=2))
    got += await session.read(2)
    assert [response.item.data for response in got] == [str(i).encode() for i in range(STREAM_CREDIT + 2)]
    (end,) = await session.read()
    assert end.WhichOneof("frame") == "end"
    assert replica.most_credit <= STREAM_CREDIT


async def test_a_client_that_leaves_takes_all_its_calls_back(site: Site, session: Session) -> None:
    site.deploy()
    replica = await site.serve(hang)
    for call_id in range(4):
        await session.send(call_id, start=call())
    await until(lambda: site.router.outstanding == 4)
    session.stream.cancel()
    await until(lambda: site.router.outstanding == 0)
    await replica.until(lambda: sorted(replica.cancelled) == sorted(replica.started))
    assert site.service.intake.clients == 0


async def test_a_client_that_says_no_more_still_gets_its_answers(site: Site, session: Session) -> None:
    site.deploy()
    go = asyncio.Event()

    async def work(_replica: WorkingReplica, _call_id: int, given: RawPayload) -> RawPayload:
        await go.wait()
        return given

    await site.serve(work)
    await session.send(1, start=call(b"one"))
    await session.send(2, start=call(b"two"))
    await session.send(3, start=pb.InvokeRequest(function="app.f", arguments=message(sizes=[100])))
    await session.stream.done_writing()
    await until(lambda: site.router.outstanding == 2)
    go.set()
    assert sorted([await session.answer(), await session.answer()]) == [(1, b"one"), (2, b"two")]
    assert await session.stream.read() == grpc.aio.EOF  # type: ignore[attr-defined]  # its stubs lack it
    assert await session.stream.code() == grpc.StatusCode.OK
