"""Bad input is a typed, worded error, and nothing is lost: what was deployed before still answers."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from hasfaas import (
    AuthError,
    ConflictError,
    HasFaasError,
    IncompatibleError,
    InvalidRequestError,
    NotFoundError,
    SerializationError,
    function,
)
from hasfaas.core.fingerprint import Fingerprint, capture
from hasfaas.core.signing import load_or_create_key, sign
from hasfaas.sdk.client import KEY_FILE, Client, Deployable
from hasfaas.wire.bundle import pack, unpack
from hasfaas.wire.convert import spec_to_proto
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.live import Gateway, app, eventually

verbs = app("verbs")


@pytest.fixture
def still_answers(backend: Gateway) -> Iterator[None]:
    """What served before the test's mistake serves after it."""
    verbs.add.deploy()
    pid = backend.replica("verbs.add").pid
    yield
    assert verbs.add.remote(1) == 2
    assert backend.replica("verbs.add").pid == pid


def request(backend: Gateway, made: Deployable, **changes: Any) -> pb.DeployRequest:
    """A deploy request for a bundle, signed unless `changes` say otherwise."""
    key = load_or_create_key(backend.settings.state_dir / KEY_FILE)
    bundle = changes.pop("bundle", made.bundle)
    fields = {"name": made.name, "version": made.version, "signature": sign(key, bundle), **changes}
    return pb.DeployRequest(spec=spec_to_proto(made.spec), bundle=bundle, **fields)


def forged(made: Deployable, **changes: Any) -> bytes:
    """The bundle with another manifest."""
    contents = unpack(made.bundle)
    return pack(attrs.evolve(contents.manifest, **changes), contents.archive, contents.pickle)


def other_python(**changes: Any) -> Fingerprint:
    return attrs.evolve(capture([]), **changes)


@pytest.mark.usefixtures("still_answers")
class TestForgedBundles:
    def test_another_python_minor_is_refused_before_anything_is_loaded(self, backend: Gateway) -> None:
        made = verbs.add.deployable()
        fingerprint = other_python(cache_tag="cpython-312", magic="cb0d0d0a")
        bundle = forged(made, fingerprint=fingerprint, version="0" * 16)
        with pytest.raises(IncompatibleError, match=r"cpython-312|3\.12"):
            backend.deploy_raw(request(backend, made, bundle=bundle, version="0" * 16, warm=True))

    def test_every_difference_is_listed(self, backend: Gateway) -> None:
        made = verbs.add.deployable()
        packages = (("absent-one", "1.0"), ("numpy", "0.1"), ("pytest", "0.2"))
        fingerprint = other_python(packages=packages, cloudpickle="0.3")
        bundle = forged(made, fingerprint=fingerprint, version="0" * 16)
        with pytest.raises(IncompatibleError) as caught:
            backend.deploy_raw(request(backend, made, bundle=bundle, version="0" * 16))
        for words in ("absent-one", "numpy", "0.1", "pytest", "0.2", "cloudpickle", "0.3", "install"):
            assert words in caught.value.message

    def test_an_interpreter_that_is_not_there_is_told(self, backend: Gateway) -> None:
        made = verbs.add.deployable()
        for python in ("/no/such/python3", "/bin/false"):
            bundle = forged(made, python=python, version="0" * 16)
            with pytest.raises(HasFaasError, match=python):
                backend.deploy_raw(request(backend, made, bundle=bundle, version="0" * 16))

    def test_unsigned_altered_and_foreign_bundles_are_refused(self, backend: Gateway) -> None:
        made = verbs.add.deployable()
        with pytest.raises(AuthError, match="unsigned"):
            backend.deploy_raw(request(backend, made, signature=b""))
        altered = bytearray(forged(made, version="0" * 16))
        altered[-40] ^= 1
        good = sign(load_or_create_key(backend.settings.state_dir / KEY_FILE), forged(made, version="0" * 16))
        with pytest.raises(HasFaasError):
            backend.deploy_raw(request(backend, made, bundle=bytes(altered), version="0" * 16, signature=good))
        with pytest.raises(AuthError, match="another key"):
            foreign = sign(secrets.token_bytes(32), made.bundle)
            backend.deploy_raw(request(backend, made, signature=foreign))

    @pytest.mark.parametrize("blob", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
    def test_what_is_no_bundle_is_told(self, backend: Gateway, blob: bytes) -> None:
        with pytest.raises(InvalidRequestError, match="bundle"):
            backend.deploy_raw(request(backend, verbs.add.deployable(), bundle=blob))

    def test_a_name_that_is_no_file_name_is_told(self, backend: Gateway) -> None:
        made = verbs.add.deployable()
        bundle = forged(made, name="../../up", version="0" * 16)
        with pytest.raises(InvalidRequestError, match=r"name='\.\./\.\./up'"):
            backend.deploy_raw(request(backend, made, bundle=bundle, version="0" * 16, name="../../up"))


def test_a_bundle_altered_on_the_disk_is_not_loaded(backend: Gateway) -> None:
    verbs.slowly.deploy()
    made = verbs.slowly.deployable()
    [path] = [
        one for one in backend.settings.state_dir.joinpath("bundles").iterdir() if one.read_bytes() == made.bundle
    ]
    path.write_bytes(forged(made, kind="function"))
    verbs.slowly.scale(replicas=0)
    with pytest.raises(AuthError, match="altered"):
        verbs.slowly.remote(1)
    path.write_bytes(made.bundle)
    eventually(lambda: not backend.replicas("verbs.slowly"))
    verbs.slowly.deploy()
    assert verbs.slowly.remote(1) == 2


def test_what_cannot_be_pickled_is_named_by_path(backend: Gateway) -> None:
    state = {"model": [1, {"lock": threading.Lock()}]}

    @function(slo_ms=50, memory="64MiB")
    def uses_a_lock(x: int) -> int:
        return x + len(state)

    with pytest.raises(SerializationError, match=r"<closure>\.state\['model'\]\[1\]\['lock'\].*inside the function"):
        uses_a_lock.remote(1)
    with pytest.raises(SerializationError, match=r"args\[0\]\['model'\]\[1\]\['lock'\]"):
        verbs.add.remote(state)
    assert verbs.add.remote(1) == 2


def test_a_version_that_cannot_start_leaves_the_old_one_serving(backend: Gateway) -> None:
    @function(slo_ms=50, memory="64MiB", name="app.same")
    def good(x: int) -> int:
        return x + 1

    class Broken:
        def __init__(self) -> None:
            raise LookupError("no weights")

        def __call__(self, x: int) -> int:
            return x

    broken = function(slo_ms=50, memory="64MiB", name="app.same")(Broken)
    for replicas in (1, 0):
        good.deploy()
        good.scale(replicas=replicas)
        with pytest.raises(LookupError, match="no weights"):
            broken.deploy()
        assert good.remote(1) == 2
        assert backend.function("app.same").version == good.version


def test_another_version_takes_over_and_the_old_script_is_told(backend: Gateway) -> None:
    @function(slo_ms=50, memory="64MiB", name="app.same")
    def old(x: int) -> str:
        return f"old {x}"

    @function(slo_ms=50, memory="64MiB", name="app.same")
    def new(x: int) -> str:
        return f"new {x}"

    assert old.remote(1) == "old 1"
    before = backend.replica("app.same").pid
    somebody = Client(backend.settings)
    backend.use(somebody)
    assert list(new.map(range(40))) == [f"new {i}" for i in range(40)]
    assert backend.replica("app.same").pid != before
    backend.use()
    with pytest.raises(ConflictError, match="superseded"):
        old.remote(1)
    old.deploy()
    assert old.remote(2) == "old 2"


@pytest.mark.usefixtures("still_answers")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"quota": -1}, "quota=-1 is not a percentage"),
        ({"quota": 101}, "quota=101 is not a percentage"),
        ({"quota": float("nan")}, "quota=nan is not a percentage"),
        ({"sm": 0}, "sm=0 is not a percentage"),
        ({"replicas": 99}, "replicas=99 is above the function's most, 8"),
    ],
)
def test_sizes_that_make_no_sense_are_told(backend: Gateway, change: dict[str, Any], text: str) -> None:
    before = backend.replica("verbs.add")
    with pytest.raises(InvalidRequestError, match=text):
        verbs.add.scale(**change)
    after = backend.replica("verbs.add")
    assert (after.quota_percent, after.sm_granted_percent) == (before.quota_percent, before.sm_granted_percent)


def test_a_function_that_nobody_deployed_is_told(backend: Gateway) -> None:
    from hasfaas.wire.payload import encode_arguments

    verbs.add.deploy()
    with pytest.raises(NotFoundError, match=r"'absent' is not deployed; deployed: verbs\.add"):
        backend.client.run(backend.client.call_named("absent", encode_arguments((), {}), 5.0))
    with pytest.raises(NotFoundError):
        verbs.slowly.scale(quota=50)


def test_a_device_that_is_not_there_is_told(backend: Gateway) -> None:
    @function(slo_ms=50, memory="64MiB", device="tpu")
    def elsewhere(x: int) -> int:
        return x

    @function(slo_ms=50, memory="100TiB")
    def huge(x: int) -> int:
        return x

    with pytest.raises(HasFaasError, match="is not 'tpu'"):
        elsewhere.remote(1)
    with pytest.raises(HasFaasError, match="MiB of memory left"):
        huge.remote(1)


def test_large_plain_data_is_told_to_be_an_array(backend: Gateway) -> None:
    with pytest.raises(SerializationError, match="at most 64 MiB may; send large data as numpy arrays") as caught:
        verbs.add.remote(list(range(15_000_000)))
    assert caught.value.reason == "PAYLOAD_TOO_LARGE"
    assert verbs.add.remote(1) == 2


def test_a_replica_killed_by_hand_comes_back(backend: Gateway) -> None:
    assert verbs.add.remote(1) == 2
    before = backend.replica("verbs.add").pid
    os.kill(before, signal.SIGKILL)
    eventually(lambda: backend.replicas("verbs.add") and backend.replica("verbs.add").pid != before)
    assert verbs.add.remote(1) == 2
