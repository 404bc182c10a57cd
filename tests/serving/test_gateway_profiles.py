"""The verbs of profiles, on real gRPC: what is asked goes to whoever measures, and what it says comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from hasfaas.core import errors
from hasfaas.sdk.session import error_of
from hasfaas.serving.ports import Figures, Fitted, Note, Plan, Point, ProfileState
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.fakes.gateway_site import Site, echo, message, raw, rpc, until

POINT = Point(4, 50.0, 30.0)


async def test_a_measurement_is_told_as_it_goes(site: Site) -> None:
    site.deploy()
    site.profiling.news = [
        Plan((POINT,)),
        Note("no room"),
        Figures(POINT, 2.5, 2.6, 8.0, 40, 0.01),
        Fitted('{"form": 1}'),
    ]
    asked = pb.ProfileRequest(name="f", device="sim", at=[pb.ProfilePoint(batch=4, sm_percent=50, quota_percent=30)])
    plan, note, measured, fitted = [each async for each in site.stub.Profile(asked)]
    assert (plan.plan.points[0].batch, note.note, fitted.profile_json) == (4, "no room", '{"form": 1}')
    figures = measured.measured
    assert (figures.hold_ms, figures.mean_hold_ms, figures.response_ms, figures.runs) == (2.5, 2.6, 8.0, 40)
    assert figures.point.quota_percent == 30.0
    (heard,) = site.profiling.asked
    assert heard == {"name": "app.f", "device": "sim", "points": 16, "arguments": None, "at": [POINT]}


async def test_arguments_are_passed_on_unread(site: Site) -> None:
    site.deploy()
    async for _ in site.stub.Profile(pb.ProfileRequest(name="f", points=9, arguments=message(b"opaque"))):
        raise AssertionError
    (heard,) = site.profiling.asked
    assert (heard["points"], heard["arguments"]) == (9, raw(b"opaque"))


async def test_what_keeps_it_from_measuring_is_told(site: Site) -> None:
    async def fails(**asked: Any) -> errors.HasFaasError:
        try:
            async for _ in site.stub.Profile(pb.ProfileRequest(**asked)):
                pass
        except grpc.aio.AioRpcError as exc:
            return error_of(exc)
        raise AssertionError("it measured")

    assert isinstance(await fails(name="nope"), errors.NotFoundError)
    site.deploy()
    site.profiling.fails = errors.ConflictError("already", reason="PROFILE_RUNNING")
    found = await fails(name="f")
    assert isinstance(found, errors.ConflictError)
    assert found.reason == "PROFILE_RUNNING"


async def test_whoever_leaves_takes_the_measurement_along(site: Site) -> None:
    site.deploy()
    site.profiling.news, site.profiling.goes_on = [Plan((POINT,))], asyncio.Event()
    call = site.stub.Profile(pb.ProfileRequest(name="f"))
    await call.read()
    assert site.profiling.ended == 0
    call.cancel()
    await until(lambda: site.profiling.ended == 1)


async def test_the_profile_that_is_kept(site: Site) -> None:
    site.deploy()
    with pytest.raises(errors.NotFoundError) as caught:
        await rpc(site.stub.GetProfile(pb.GetProfileRequest(name="f")))
    assert caught.value.reason == "UNPROFILED"
    site.profiling.texts["app.f"] = '{"form": 1}'
    answer = await rpc(site.stub.GetProfile(pb.GetProfileRequest(name="f")))
    assert (answer.name, answer.version, answer.profile_json) == ("app.f", "v1", '{"form": 1}')
    await rpc(site.stub.DeleteFunction(pb.DeleteFunctionRequest(name="f")))
    assert not site.profiling.texts


async def test_the_state_is_listed(site: Site) -> None:
    site.deploy()
    site.profiling.shown = ProfileState("live", drifted=True, reason="batches hold longer")
    (shown,) = (await rpc(site.stub.ListFunctions(pb.ListFunctionsRequest()))).functions
    assert (shown.profile_state, shown.drifted, shown.drift_reason) == ("live", True, "batches hold longer")
    assert (shown.unprofiled, shown.sized) == (False, False)


async def test_the_arguments_of_an_answered_call_are_kept_to_measure_with(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasfaas.serving.router.MAX_SAMPLE_BYTES", 100)
    site.deploy()
    assert site.router.sample("app.f") is None
    await site.serve(echo)
    await rpc(site.stub.Invoke(pb.InvokeRequest(function="f", arguments=message(b"x" * 200))))
    assert site.router.sample("app.f") is None  # too much to keep
    await rpc(site.stub.Invoke(pb.InvokeRequest(function="f", arguments=message(b"first"))))
    await rpc(site.stub.Invoke(pb.InvokeRequest(function="f", arguments=message(b"second"))))
    assert site.router.sample("app.f") == raw(b"first")
    site.deploy(version="v2")
    assert site.router.sample("app.f") is None
