"""Deploying, sizing, listing and reading logs, over real gRPC."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import attrs
import grpc
import pytest

from hasfaas.core import errors
from hasfaas.core.errors import InvalidRequestError
from hasfaas.core.fingerprint import Fingerprint
from hasfaas.core.spec import Kind
from hasfaas.sdk.session import error_of
from hasfaas.serving.ports import FunctionRecord, Sizing
from hasfaas.wire.bundle import Manifest, pack, zip_files
from hasfaas.wire.convert import spec_to_proto
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.fakes.gateway_site import SPEC, Site, call, echo, rpc

# -- functions ---------------------------------------------------------------------------------------------------------


def bundle(name: str = "app.f", version: str = "v1", kind: str = "function", pickle: bytes = b"pickle") -> bytes:
    archive = zip_files({})
    manifest = Manifest(
        name=name,
        version=version,
        kind=kind,
        python=sys.executable,
        fingerprint=Fingerprint("cpython-311", "a70d0d0a", "3.1.2", (("numpy", "2.0"),)),
        archive_sha256=hashlib.sha256(archive).hexdigest(),
        pickle_sha256=hashlib.sha256(pickle).hexdigest(),
    )
    return pack(manifest, archive, pickle)


def deploy(blob: bytes | None = None, name: str = "app.f", version: str = "v1", **fields: Any) -> pb.DeployRequest:
    blob = bundle(name, version) if blob is None else blob
    options: dict[str, Any] = {"spec": spec_to_proto(SPEC)} | fields
    return pb.DeployRequest(name=name, version=version, bundle=blob, signature=b"signed", **options)


@pytest.mark.parametrize("warm", [False, True])
async def test_a_deployment_is_stored_and_carried_out(site: Site, warm: bool) -> None:
    answer = await rpc(site.stub.Deploy(deploy(warm=warm)))
    assert (answer.name, answer.version, answer.changed) == ("app.f", "v1", True)
    record = site.store.get("app.f")
    assert record is not None
    assert (record.kind, record.spec, record.packages, record.signature) == (Kind.FUNCTION, SPEC, ("numpy",), b"signed")
    assert site.store.bundle_path(record.bundle_sha256).read_bytes() == bundle()
    assert site.control.asked == [("deploy", (record, warm))]


async def test_the_same_version_again_changes_nothing(site: Site) -> None:
    await rpc(site.stub.Deploy(deploy()))
    assert not (await rpc(site.stub.Deploy(deploy()))).changed
    assert (await rpc(site.stub.Deploy(deploy(version="v2")))).changed
    options = spec_to_proto(attrs.evolve(SPEC, slo_ms=99))
    assert (await rpc(site.stub.Deploy(deploy(version="v2", spec=options)))).changed


async def test_what_an_operator_set_outlives_a_new_version(site: Site) -> None:
    await rpc(site.stub.Deploy(deploy()))
    await rpc(site.stub.ScaleFunction(pb.ScaleFunctionRequest(name="app.f", quota_percent=30.0)))
    await rpc(site.stub.Deploy(deploy(version="v2")))
    record = site.store.get("app.f")
    assert record is not None
    assert (record.version, record.sizing) == ("v2", Sizing(quota_percent=30.0))


async def test_an_untrusted_bundle_is_refused_before_anything_is_stored(site: Site) -> None:
    site.control.distrusts = errors.AuthError("signature: it does not belong to this bundle")
    with pytest.raises(errors.AuthError, match="signature"):
        await rpc(site.stub.Deploy(deploy()))
    assert list(site.store.all()) == []
    assert site.control.asked == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (deploy(b"no zip"), "the bundle is broken"),
        (deploy(bundle("app.g")), r"the bundle is of app\.g v1, the request of app\.f v1"),
        (deploy(bundle(version="v9")), r"the bundle is of app\.f v9, the request of app\.f v1"),
        (deploy(bundle(kind="coprogram")), "kind 'coprogram' is unknown"),
        (deploy(spec=pb.FunctionSpec()), "slo_ms="),
    ],
    ids=["no bundle", "name", "version", "kind", "options"],
)
async def test_a_bad_deployment_is_refused_and_leaves_nothing(
    site: Site, request_: pb.DeployRequest, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        await rpc(site.stub.Deploy(request_))
    assert list(site.store.all()) == []
    assert site.control.asked == []


async def test_what_cannot_start_is_not_left_behind(site: Site, folder: Path) -> None:
    site.control.refuses = errors.PlacementError("no room")
    with pytest.raises(errors.PlacementError, match="no room"):
        await rpc(site.stub.Deploy(deploy()))
    assert site.store.get("app.f") is None
    assert list((folder / "state" / "bundles").iterdir()) == []


async def test_a_version_that_cannot_start_leaves_the_former_one(site: Site) -> None:
    await rpc(site.stub.Deploy(deploy()))
    before = site.store.get("app.f")
    site.control.refuses = errors.IncompatibleError("another Python")
    with pytest.raises(errors.IncompatibleError):
        await rpc(site.stub.Deploy(deploy(version="v2")))
    assert site.store.get("app.f") == before
    assert before is not None
    assert site.store.bundle_path(before.bundle_sha256).exists()


async def test_a_deleted_function_is_gone(site: Site) -> None:
    await rpc(site.stub.Deploy(deploy()))
    await rpc(site.stub.DeleteFunction(pb.DeleteFunctionRequest(name="f")))
    assert site.store.get("app.f") is None
    assert site.control.asked[-1] == ("delete", "app.f")
    with pytest.raises(errors.NotFoundError):
        await rpc(site.stub.DeleteFunction(pb.DeleteFunctionRequest(name="f")))


async def test_scaling_names_only_what_was_given(site: Site) -> None:
    await rpc(site.stub.Deploy(deploy()))
    answer = await rpc(site.stub.ScaleFunction(pb.ScaleFunctionRequest(name="f", quota_percent=0.0, replicas=0)))
    assert site.control.asked[-1] == ("scale", ("app.f", Sizing(quota_percent=0.0, replicas=0)))
    assert answer.applied_ms == 12.5
    assert answer.function.name == "app.f"
    assert not answer.function.unprofiled
    site.control.refuses = errors.PlacementError("the lane is full", reason="QUOTA_EXCEEDED")
    with pytest.raises(errors.PlacementError) as caught:
        await rpc(site.stub.ScaleFunction(pb.ScaleFunctionRequest(name="f", quota_percent=90.0)))
    assert caught.value.reason == "QUOTA_EXCEEDED"


async def test_the_list_shows_functions_with_replicas_and_counts(site: Site) -> None:
    await rpc(site.stub.Deploy(deploy()))
    await site.serve(echo)
    await rpc(site.stub.Invoke(call()))
    site.deploy("b.g")
    listed = await rpc(site.stub.ListFunctions(pb.ListFunctionsRequest()))
    assert [function.name for function in listed.functions] == ["app.f", "b.g"]
    shown = listed.functions[0]
    assert (shown.kind, shown.unprofiled, shown.queue_depth) == ("function", True, 0)
    assert (shown.calls.accepted, shown.calls.completed) == (1, 1)
    (replica,) = shown.replicas
    assert (replica.state, replica.lane, replica.pid, replica.usage.used_ns) == ("ready", 2, 77, 7)
    one = await rpc(site.stub.ListFunctions(pb.ListFunctionsRequest(name="g")))
    assert [function.name for function in one.functions] == ["b.g"]
    assert one.at_ns > listed.at_ns
    with pytest.raises(errors.NotFoundError):
        await rpc(site.stub.ListFunctions(pb.ListFunctionsRequest(name="nope")))


async def test_a_function_without_a_replica_is_listed_with_what_keeps_it_from_one(site: Site) -> None:
    for name in ("app.f", "b.g"):
        site.deploy(name)
    site.router.why_none = lambda name: f"no room for {name}"
    site.control.without.add("b.g")
    listed = await rpc(site.stub.ListFunctions(pb.ListFunctionsRequest()))
    assert {one.name: (len(one.replicas), one.why_none) for one in listed.functions} == {
        "app.f": (1, ""),
        "b.g": (0, "no room for b.g"),
    }


async def test_a_function_whose_deployment_is_under_way_can_be_listed(site: Site) -> None:
    """The store has it before the router does."""
    sha = hashlib.sha256(b"bundle").hexdigest()
    site.store.put(FunctionRecord("app.f", "v1", Kind.FUNCTION, SPEC, "python", (), sha, b""), b"bundle")
    listed = await rpc(site.stub.ListFunctions(pb.ListFunctionsRequest()))
    assert listed.functions[0].calls == pb.CallCounts()


async def test_the_status_shows_the_devices(site: Site) -> None:
    shown = await rpc(site.stub.GetStatus(pb.GetStatusRequest()))
    assert (shown.embedded, shown.window_ms, shown.quantum_ms) == (True, 100.0, 10.0)
    (device,) = shown.devices
    assert (device.device_id, device.units, device.occupancy) == ("cpu0", 2, 0.15)
    assert list(device.lanes[0].units) == [0]


# -- logs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "shown"), [(0, ["one", "two", "three"]), (2, ["two", "three"]), (9, ["one", "two", "three"])]
)
async def test_the_last_lines_of_each_log(site: Site, folder: Path, tail: int, shown: list[str]) -> None:
    site.deploy()
    (folder / "a.log").write_text("one\ntwo\nthree\nnot yet who")
    site.control.log_files = [("f-1", folder / "a.log"), ("f-2", folder / "gone.log")]
    lines = site.stub.StreamLogs(pb.StreamLogsRequest(name="f", tail=tail))
    assert [(line.replica_id, line.line) async for line in lines] == [("f-1", text) for text in shown]


async def test_following_a_log_through_its_emptying(site: Site, folder: Path) -> None:
    site.deploy()
    log = folder / "a.log"
    log.write_text("an old and long line\n")
    site.control.log_files = [("f-1", log)]
    lines = site.stub.StreamLogs(pb.StreamLogsRequest(name="f", follow=True))
    assert (await lines.read()).line == "an old and long line"
    with log.open("a") as file:
        file.write("more\n")
    assert (await lines.read()).line == "more"
    log.write_text("anew\n")
    assert (await lines.read()).line == "anew"
    lines.cancel()


async def test_logs_of_an_unknown_function(site: Site) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.stub.StreamLogs(pb.StreamLogsRequest(name="nope")).read()
    assert isinstance(error_of(caught.value), errors.NotFoundError)
