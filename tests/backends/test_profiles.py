"""Functions are measured in replicas of their own, which leave no trace; profiles live with their version."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hasfaas
from hasfaas import InvalidRequestError, NotFoundError, PlacementError, function
from hasfaas.core.errors import ConflictError, FunctionError, UnavailableError
from hasfaas.core.settings import DeviceSettings
from hasfaas.rapp.profile import Profile
from hasfaas.wire.payload import encode_arguments
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.live import Gateway, eventually, gateway

pytestmark = pytest.mark.alone

TABLE = {"batches": [1, 8], "sm_percents": [25, 50, 100], "latency_ms": [[8, 4, 2], [36, 18, 9]]}
SHORT = [(1, 100.0, 100.0)]
Array = np.ndarray[Any, Any]


def double(x: Array) -> Array:
    return x * 2


def triple(x: Array) -> Array:
    return x * 3


def half(x: Array) -> Array:
    return x / 2


def ones(batch: int) -> Array:
    return np.ones((batch, 4))


def refuse(batch: int) -> Array:
    raise ValueError("no example today")


exampled = function(slo_ms=100, memory="128MiB", batch=hasfaas.Batch(8), name="prof.exampled", example=ones)(double)
plain = function(slo_ms=100, memory="128MiB", name="prof.plain")(triple)
batched = function(slo_ms=100, memory="128MiB", batch=hasfaas.Batch(4), name="prof.batched")(triple)
other = function(slo_ms=100, memory="128MiB", name="prof.other", replicas=(1, 2))(triple)


@pytest.fixture(scope="module")
def made() -> Iterator[Gateway]:
    with gateway(DeviceSettings(kind="sim", sms=4, profile=TABLE)) as running:
        yield running


@pytest.fixture(autouse=True)
def clean(made: Gateway) -> Iterator[None]:
    made.use()
    made.client._deployed.clear()
    yield
    made.delete()


def news(made: Gateway, name: str, **asked: Any) -> list[pb.ProfileResponse]:
    async def gathered() -> list[pb.ProfileResponse]:
        return [each async for each in made.client.profile(name, **asked)]

    return made.client.run(gathered())


def measured(found: list[pb.ProfileResponse]) -> list[pb.ProfileResponse.Measured]:
    return [each.measured for each in found if each.WhichOneof("news") == "measured"]


def profile_of(made: Gateway, name: str) -> Profile:
    return Profile.from_dict(made.client.run(made.client.profile_of(name)))


def gone(made: Gateway, name: str) -> bool:
    return not any(r.state == "profiling" for r in made.function(name).replicas)


def test_a_profile_is_measured_kept_and_belongs_to_its_version(made: Gateway) -> None:
    exampled.deploy(warm=False)
    with pytest.raises(NotFoundError, match="hasfaas profile") as caught:
        profile_of(made, "exampled")
    assert caught.value.reason == "UNPROFILED"
    assert made.function("prof.exampled").profile_state == "unprofiled"
    found = news(made, "prof.exampled", points=6)
    figures = measured(found)
    assert found[0].WhichOneof("news") == "plan"
    assert len(found[0].plan.points) == len(figures) == 6
    whole = {
        m.point.batch: m.hold_ms for m in figures if m.point.sm_percent == 100.0 and m.point.quota_percent == 100.0
    }
    assert whole[1] == pytest.approx(2.0, rel=0.25)
    assert whole[8] == pytest.approx(9.0, rel=0.25)
    profile = profile_of(made, "exampled")
    assert json.loads(found[-1].profile_json) == profile.to_dict()
    assert (profile.state, profile.version, profile.device.kind) == ("few-shot", exampled.version, "sim")
    assert profile.surface.hold(1, 25.0) == pytest.approx(8.0, rel=0.25)
    status = made.function("prof.exampled")
    assert (status.profile_state, status.drifted, status.unprofiled, list(status.replicas)) == (
        "few-shot",
        False,
        False,
        [],
    )
    # Another version has none, the first one still has.
    newer = function(slo_ms=99, memory="128MiB", batch=hasfaas.Batch(8), name="prof.exampled", example=ones)(double)
    newer.deploy(warm=False)
    assert made.function("prof.exampled").profile_state == "unprofiled"
    made.client.run(made.client.deploy(exampled.deployable(), warm=False))
    assert made.function("prof.exampled").profile_state == "few-shot"
    made.delete("prof.exampled")
    made.client.run(made.client.deploy(exampled.deployable(), warm=False))
    assert made.function("prof.exampled").profile_state == "unprofiled"


def test_responses_follow_the_quota(made: Gateway) -> None:
    exampled.deploy(warm=False)
    (full, half) = measured(news(made, "prof.exampled", at=[(1, 100.0, 100.0), (1, 100.0, 40.0)]))
    assert half.response_ms == pytest.approx(half.hold_ms / 0.4, rel=0.25)
    assert full.response_ms == pytest.approx(full.hold_ms, rel=0.25)
    with pytest.raises(NotFoundError):  # points that were asked for are not kept
        profile_of(made, "prof.exampled")


def test_arguments_are_those_of_a_call_that_was_answered_or_given(made: Gateway) -> None:
    plain.deploy(warm=False)
    with pytest.raises(InvalidRequestError, match=r"example=.*call it once.*hasfaas profile NAME -- ARGS") as caught:
        news(made, "prof.plain", at=SHORT)
    assert caught.value.reason == "NO_EXAMPLE"
    given = encode_arguments((np.zeros(3),), {})
    assert measured(news(made, "prof.plain", at=SHORT, arguments=given))[0].point.batch == 1
    plain.remote(np.zeros(3))
    assert measured(news(made, "prof.plain", at=SHORT))[0].runs > 1
    batched.remote(np.zeros(60_000))  # through a segment of shared memory
    assert measured(news(made, "prof.batched", at=[(4, 100.0, 100.0)]))[0].point.batch == 4


def test_what_the_code_raises_is_told(made: Gateway) -> None:
    plain.deploy(warm=False)
    with pytest.raises(FunctionError, match="unsupported operand"):
        news(made, "prof.plain", at=SHORT, arguments=encode_arguments((None,), {}))
    broken = function(slo_ms=100, memory="128MiB", name="prof.broken", example=refuse)(half)
    broken.deploy(warm=False)
    with pytest.raises(FunctionError, match="no example today"):
        news(made, "prof.broken", at=SHORT)
    assert gone(made, "prof.broken")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"points": 3}, r"points=3 must lie in \[4"),
        ({"at": [(9, 100.0, 100.0)]}, r"batch=9 must lie in \[1, 8\]"),
        ({"at": [(1, 0.0, 100.0)]}, "sm_percent=0 must"),
        ({"at": [(1, 100.0, 101.0)]}, "quota_percent=101 must"),
    ],
)
def test_points_that_cannot_be_measured_are_refused(made: Gateway, asked: dict[str, Any], words: str) -> None:
    exampled.deploy(warm=False)
    with pytest.raises(InvalidRequestError, match=words):
        news(made, "prof.exampled", **asked)


def test_an_unknown_device_is_named(made: Gateway) -> None:
    exampled.deploy(warm=False)
    with pytest.raises(NotFoundError, match=r"'gpu7' is not here; devices: sim0 \(sim\)"):
        news(made, "prof.exampled", device="gpu7")


def begun(made: Gateway, name: str) -> tuple[Any, Any]:
    """A measurement under way: its answers, and its replica."""
    stream = made.client.profile(name, points=16)

    async def first() -> None:
        while (await anext(stream)).WhichOneof("news") != "measured":
            pass

    made.client.run(first())
    (bench,) = [r for r in made.function(name).replicas if r.state == "profiling"]
    return stream, bench


def rest(made: Gateway, stream: Any) -> None:
    async def drained() -> None:
        async for _ in stream:
            pass

    made.client.run(drained())


def test_leaving_ends_the_replica_and_a_second_measurement_is_refused_until_then(made: Gateway) -> None:
    exampled.deploy(warm=False)
    stream, _ = begun(made, "prof.exampled")
    with pytest.raises(ConflictError, match="being profiled already") as caught:
        news(made, "prof.exampled")
    assert caught.value.reason == "PROFILE_RUNNING"
    made.client.run(stream.aclose())
    eventually(lambda: gone(made, "prof.exampled"))
    eventually(lambda: not made.status().devices[0].lanes)
    assert measured(eventually(lambda: news(made, "prof.exampled", at=SHORT)))


def test_a_replica_that_dies_is_told(made: Gateway) -> None:
    exampled.deploy(warm=False)
    stream, bench = begun(made, "prof.exampled")
    os.kill(bench.pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match=f"{bench.replica_id} died .*signal 9.* while it was measured"):
        rest(made, stream)
    assert gone(made, "prof.exampled")
    assert made.function("prof.exampled").profile_state == "unprofiled"


def test_a_function_deleted_meanwhile_is_told(made: Gateway) -> None:
    exampled.deploy(warm=False)
    stream, _ = begun(made, "prof.exampled")
    made.delete("prof.exampled")
    with pytest.raises(ConflictError, match="deployed anew, or deleted"):
        rest(made, stream)


def test_calls_are_served_beside_it_and_starts_wait_for_its_room(made: Gateway) -> None:
    """On the whole of the device nothing else has room: what is called meanwhile starts when the measurement goes."""
    exampled.deploy(warm=False)
    stream, _ = begun(made, "prof.exampled")
    call = plain.spawn(np.zeros(3))
    made.client.run(asyncio.sleep(0.3))
    assert not call.done()
    made.client.run(stream.aclose())
    assert call.result(timeout_s=20).shape == (3,)


def test_no_room_is_told_and_what_is_kept_stays(made: Gateway) -> None:
    other.deploy()
    exampled.deploy(warm=False)
    with pytest.raises(PlacementError):
        news(made, "prof.exampled", points=4)
    assert len(made.replicas("prof.other")) == 1


def test_a_profile_survives_the_gateway() -> None:
    with gateway(DeviceSettings(kind="sim", sms=2, profile=TABLE)) as own:
        exampled.deploy(warm=False)
        news(own, "prof.exampled", points=4)
        before = profile_of(own, "prof.exampled").to_dict()
        own.local.down()
        own.up()
        eventually(lambda: own.local.running())
        assert own.function("prof.exampled").profile_state == "few-shot"
        assert profile_of(own, "prof.exampled").to_dict() == before
