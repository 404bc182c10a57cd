"""Calls and streams of simple clients, over real gRPC."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from hasfaas.core import errors
from hasfaas.core.errors import FunctionError, InvalidRequestError, RemoteFrame
from hasfaas.core.spec import Kind
from hasfaas.sdk.session import error_of
from hasfaas.serving.router import STREAM_CREDIT
from hasfaas.wire.frames import RawPayload
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.fakes.gateway_site import Site, call, counting, echo, failing, hang, items_of, message, raw, rpc, stream
from tests.fakes.replica import WorkingReplica

# -- one call, one answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blob", [b"", b"blob", bytes(3 << 20)])
async def test_payloads_go_through_unread(site: Site, blob: bytes) -> None:
    site.deploy()
    await site.serve(echo)
    answer = await rpc(site.stub.Invoke(call(blob)))
    assert answer.result == message(blob)


async def test_several_buffers_and_their_padding(site: Site) -> None:
    site.deploy()
    await site.serve(echo)
    arguments = message(b"a" + bytes(63) + b"bc", sizes=[1, 2])
    answer = await rpc(site.stub.Invoke(pb.InvokeRequest(function="app.f", arguments=arguments)))
    assert answer.result == arguments


@pytest.mark.parametrize("sizes", [[], [3], [5], [4, 1]])
async def test_a_payload_whose_sizes_lie_is_refused(site: Site, sizes: list[int]) -> None:
    site.deploy()
    replica = await site.serve(echo)
    bad = pb.InvokeRequest(function="app.f", arguments=message(sizes=sizes))
    with pytest.raises(InvalidRequestError, match=r"announces \d+ bytes and holds 4"):
        await rpc(site.stub.Invoke(bad))
    with pytest.raises(InvalidRequestError, match=r"announces \d+ bytes and holds 4"):
        await items_of(site.stub.InvokeStream(pb.InvokeStreamRequest(call=bad)))
    assert replica.started == []


async def test_the_users_exception_comes_back_typed(site: Site) -> None:
    site.deploy()
    frames = (RemoteFrame("app.py", 12, "f", "return 1 / x"),)
    await site.serve(failing(FunctionError("division by zero", qualname="ZeroDivisionError", frames=frames)))
    with pytest.raises(FunctionError, match="division by zero") as caught:
        await rpc(site.stub.Invoke(call()))
    assert (caught.value.qualname, caught.value.frames) == ("ZeroDivisionError", frames)


async def test_an_error_larger_than_a_header_still_comes_back_typed(site: Site) -> None:
    """A status travels in the trailing metadata, of which gRPC takes about 8 KiB."""
    site.deploy()
    frames = tuple(RemoteFrame(f"app{i}.py", i, "f" * 80, "x = " + "y" * 80) for i in range(150))
    await site.serve(failing(FunctionError("why " * 20_000, qualname="KeyError", frames=frames)))
    with pytest.raises(FunctionError, match="why why") as caught:
        await rpc(site.stub.Invoke(call()))
    assert caught.value.qualname == "KeyError"
    assert caught.value.frames[-1] == frames[-1]


async def test_a_delay_reaches_the_caller(site: Site) -> None:
    site.deploy()
    site.router._max_queue = 0
    with pytest.raises(errors.OverloadedError) as caught:
        await rpc(site.stub.Invoke(call()))
    assert caught.value.retry_after_s == 0.05


# -- names and versions ------------------------------------------------------------------------------------------------


async def test_a_name_that_nobody_deployed(site: Site) -> None:
    site.deploy("app.f")
    with pytest.raises(errors.NotFoundError, match=r"'nope' is not deployed; deployed: app\.f"):
        await rpc(site.stub.Invoke(call(function="nope")))


async def test_an_ending_is_enough_where_it_is_the_only_one(site: Site) -> None:
    site.deploy("app.f")
    site.deploy("other.ff")
    await site.serve(echo)
    assert (await rpc(site.stub.Invoke(call(function="f")))).result == message()


async def test_an_ambiguous_ending_names_all_that_it_could_be(site: Site) -> None:
    site.deploy("app.f")
    site.deploy("other.f")
    with pytest.raises(InvalidRequestError, match=r"'f' is ambiguous: app\.f, other\.f"):
        await rpc(site.stub.Invoke(call(function="f")))


async def test_a_whole_name_is_never_ambiguous(site: Site) -> None:
    site.deploy("f")
    site.deploy("other.f")
    await site.serve(echo, "f")
    assert (await rpc(site.stub.Invoke(call(function="f")))).result == message()


@pytest.mark.parametrize("version", ["", "v1"])
async def test_the_version_that_serves_or_whichever_does(site: Site, version: str) -> None:
    site.deploy()
    await site.serve(echo)
    assert (await rpc(site.stub.Invoke(call(version=version)))).result == message()


async def test_a_superseded_version_is_a_conflict_and_does_not_run(site: Site) -> None:
    site.deploy(version="v2")
    replica = await site.serve(echo)
    with pytest.raises(errors.ConflictError, match="version v1 was superseded by v2"):
        await rpc(site.stub.Invoke(call(version="v1")))
    assert replica.started == []


# -- time and taking back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [-1.0, float("nan")])
async def test_a_time_that_is_none_is_refused(site: Site, timeout_s: float) -> None:
    site.deploy()
    replica = await site.serve(echo)
    with pytest.raises(InvalidRequestError, match="timeout_s="):
        await rpc(site.stub.Invoke(call(timeout_s=timeout_s)))
    assert replica.started == []


async def test_a_calls_own_time(site: Site) -> None:
    site.deploy()
    replica = await site.serve(hang)
    with pytest.raises(errors.DeadlineError) as caught:
        await rpc(site.stub.Invoke(call(timeout_s=0.05)))
    assert caught.value.reason == "DEADLINE_IN_EXECUTION"
    await replica.until(lambda: replica.cancelled == replica.started)


async def test_the_deadline_of_the_rpc_is_taken_over(site: Site) -> None:
    site.deploy()
    replica = await site.serve(hang)
    with pytest.raises(errors.DeadlineError):
        await rpc(site.stub.Invoke(call(timeout_s=1000), timeout=0.2))
    await replica.until(lambda: replica.cancelled == replica.started)


async def test_a_caller_who_leaves_takes_the_call_back(site: Site) -> None:
    site.deploy()
    replica = await site.serve(hang)
    under_way = site.stub.Invoke(call())
    await replica.until(lambda: bool(replica.started))
    under_way.cancel()
    await replica.until(lambda: replica.cancelled == replica.started)


async def test_a_call_that_was_taken_back_leaves_its_place_to_the_next(site: Site) -> None:
    site.deploy()
    replica = await site.serve(hang)
    for _ in range(5):
        with pytest.raises(errors.DeadlineError):
            await rpc(site.stub.Invoke(call(timeout_s=0.02)))
    await replica.until(lambda: len(replica.started) == 5)


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_the_items_of_a_stream_come_in_order_and_credit_keeps_up(site: Site) -> None:
    site.deploy(kind=Kind.GENERATOR)
    replica = await site.serve(counting(100))
    assert await items_of(stream(site)) == [str(i).encode() for i in range(100)]
    assert replica.most_credit <= STREAM_CREDIT


async def test_a_stream_that_fails_gives_its_items_first(site: Site) -> None:
    site.deploy(kind=Kind.GENERATOR)
    await site.serve(counting(3, then=FunctionError("enough", qualname="KeyError")))
    got = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for response in stream(site):
            got.append(response.item.data)  # noqa: PERF401 - what came before the error counts
    assert got == [b"0", b"1", b"2"]
    assert "enough" in str(error_of(caught.value))


async def test_a_reader_who_leaves_early_ends_the_stream(site: Site) -> None:
    site.deploy(kind=Kind.GENERATOR)
    replica = await site.serve(counting(10_000))
    reading = stream(site)
    async for _ in reading:
        break
    reading.cancel()
    await replica.until(lambda: replica.cancelled == replica.started)


async def test_a_slow_reader_holds_the_stream_up(site: Site) -> None:
    site.deploy(kind=Kind.GENERATOR)
    sent = 0

    async def work(replica: WorkingReplica, call_id: int, _given: RawPayload) -> None:
        nonlocal sent
        for _ in range(10_000):
            await replica.item(call_id, raw(bytes(1 << 16)))
            sent += 1

    await site.serve(work)
    reading = stream(site)
    await asyncio.wait_for(reading.read(), 20)
    await asyncio.sleep(0.2)
    assert sent < 10_000 / 10, "beyond the credit there is only what gRPC itself buffers"
    reading.cancel()


async def test_a_function_that_answers_once_is_a_stream_of_one(site: Site) -> None:
    site.deploy()
    await site.serve(echo)
    assert await items_of(stream(site)) == [b"blob"]


async def test_a_stream_that_is_called_for_one_answer_is_refused_and_ended(site: Site) -> None:
    site.deploy(kind=Kind.GENERATOR)
    replica = await site.serve(counting(1000))
    with pytest.raises(InvalidRequestError, match="this function streams"):
        await rpc(site.stub.Invoke(call()))
    await replica.until(lambda: replica.cancelled == replica.started)


async def test_a_stream_of_an_unknown_function_is_not_found(site: Site) -> None:
    with pytest.raises(errors.NotFoundError):
        await items_of(stream(site, "nope"))
