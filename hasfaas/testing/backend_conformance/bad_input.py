"""Bad input is a typed, worded error, and nothing is lost: what was deployed before still answers."""

from __future__ import annotations

import secrets
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
from hasfaas.sdk.client import Client, Deployable
from hasfaas.testing.apps import verbs
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.running import RunningBackend
from hasfaas.testing.waiting import eventually
from hasfaas.wire.bundle import pack, unpack
from hasfaas.wire.convert import spec_to_proto
from hasfaas.wire.v1 import functions_pb2 as pb


def request(backend: RunningBackend, made: Deployable, **changes: Any) -> pb.DeployRequest:
    """A deploy request as the client signs it, with other fields than those of the function."""
    fields: dict[str, Any] = {"name": made.name, "version": made.version, "bundle": made.bundle, **changes}
    asked = pb.DeployRequest(spec=spec_to_proto(made.spec), **fields)
    backend.client.run(backend.client.sign(asked))
    return asked


def forged(made: Deployable, **changes: Any) -> bytes:
    """The bundle with another manifest."""
    contents = unpack(made.bundle)
    return pack(attrs.evolve(contents.manifest, **changes), contents.archive, contents.pickle)


def other_python(**changes: Any) -> Fingerprint:
    return attrs.evolve(capture([]), **changes)


class BadInput(Area):
    """Forged bundles, wrong arguments, wrong sizes, other versions."""

    @pytest.fixture
    def still_answers(self, backend: RunningBackend) -> Iterator[None]:
        """What served before the test's mistake serves after it."""
        verbs.add.deploy()
        pid = backend.replica("verbs.add").pid
        yield
        assert verbs.add.remote(1) == 2
        assert backend.replica("verbs.add").pid == pid

    @pytest.mark.usefixtures("still_answers")
    def test_another_python_minor_is_refused_before_anything_is_loaded(self, backend: RunningBackend) -> None:
        made = verbs.add.deployable()
        fingerprint = other_python(cache_tag="cpython-312", magic="cb0d0d0a")
        bundle = forged(made, fingerprint=fingerprint, version="0" * 16)
        with pytest.raises(IncompatibleError, match=r"cpython-312|3\.12"):
            backend.deploy_raw(request(backend, made, bundle=bundle, version="0" * 16, warm=True))

    @pytest.mark.usefixtures("still_answers")
    def test_every_difference_is_listed(self, backend: RunningBackend) -> None:
        made = verbs.add.deployable()
        packages = (("absent-one", "1.0"), ("numpy", "0.1"), ("pytest", "0.2"))
        fingerprint = other_python(packages=packages, cloudpickle="0.3")
        bundle = forged(made, fingerprint=fingerprint, version="0" * 16)
        with pytest.raises(IncompatibleError) as caught:
            backend.deploy_raw(request(backend, made, bundle=bundle, version="0" * 16))
        for words in ("absent-one", "numpy", "0.1", "pytest", "0.2", "cloudpickle", "0.3", "install"):
            assert words in caught.value.message

    @pytest.mark.usefixtures("still_answers")
    def test_unsigned_altered_and_foreign_bundles_are_refused(self, backend: RunningBackend) -> None:
        made = verbs.add.deployable()
        unsigned, altered, foreign = (
            request(backend, made, bundle=forged(made, version="0" * 16), version="0" * 16) for _ in range(3)
        )
        unsigned.signature = b""
        altered.bundle = altered.bundle[:-40] + bytes([altered.bundle[-40] ^ 1]) + altered.bundle[-39:]
        foreign.signature = secrets.token_bytes(len(foreign.signature))
        for wrong in (unsigned, altered, foreign):
            with pytest.raises(AuthError, match=r"signature: .*(unsigned|signed with another)"):
                backend.deploy_raw(wrong)

    @pytest.mark.usefixtures("still_answers")
    @pytest.mark.parametrize("blob", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
    def test_what_is_no_bundle_is_told(self, backend: RunningBackend, blob: bytes) -> None:
        with pytest.raises(InvalidRequestError, match="bundle"):
            backend.deploy_raw(request(backend, verbs.add.deployable(), bundle=blob))

    @pytest.mark.usefixtures("still_answers")
    def test_a_name_that_is_no_file_name_is_told(self, backend: RunningBackend) -> None:
        made = verbs.add.deployable()
        bundle = forged(made, name="../../up", version="0" * 16)
        with pytest.raises(InvalidRequestError, match=r"name='\.\./\.\./up'"):
            backend.deploy_raw(request(backend, made, bundle=bundle, version="0" * 16, name="../../up"))

    def test_what_cannot_be_pickled_is_named_by_path(self, backend: RunningBackend) -> None:
        state = {"model": [1, {"lock": threading.Lock()}]}

        @function(slo_ms=50, memory="64MiB")
        def uses_a_lock(x: int) -> int:
            return x + len(state)

        with pytest.raises(
            SerializationError, match=r"<closure>\.state\['model'\]\[1\]\['lock'\].*inside the function"
        ):
            uses_a_lock.remote(1)
        with pytest.raises(SerializationError, match=r"args\[0\]\['model'\]\[1\]\['lock'\]"):
            verbs.add.remote(state)
        assert verbs.add.remote(1) == 2

    def test_a_version_that_cannot_start_leaves_the_old_one_serving(self, backend: RunningBackend) -> None:
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

    def test_another_version_takes_over_and_the_old_script_is_told(self, backend: RunningBackend) -> None:
        @function(slo_ms=50, memory="64MiB", name="app.same")
        def old(x: int) -> str:
            return f"old {x}"

        @function(slo_ms=50, memory="64MiB", name="app.same")
        def new(x: int) -> str:
            return f"new {x}"

        assert old.remote(1) == "old 1"
        before = backend.replica("app.same").pid
        somebody = Client(backend.client.settings)
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
    def test_sizes_that_make_no_sense_are_told(
        self, backend: RunningBackend, change: dict[str, Any], text: str
    ) -> None:
        before = backend.replica("verbs.add")
        with pytest.raises(InvalidRequestError, match=text):
            verbs.add.scale(**change)
        after = backend.replica("verbs.add")
        assert (after.quota_percent, after.sm_granted_percent) == (before.quota_percent, before.sm_granted_percent)

    def test_a_function_that_nobody_deployed_is_told(self, backend: RunningBackend) -> None:
        from hasfaas.wire.payload import encode_arguments

        verbs.add.deploy()
        with pytest.raises(NotFoundError, match=r"'absent' is not deployed; deployed: verbs\.add"):
            backend.client.run(backend.client.call_named("absent", encode_arguments((), {}), 5.0))
        with pytest.raises(NotFoundError):
            verbs.slowly.scale(quota=50)

    def test_a_device_that_is_not_there_is_told(self, backend: RunningBackend) -> None:
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

    def test_large_plain_data_is_told_to_be_an_array(self, backend: RunningBackend) -> None:
        with pytest.raises(SerializationError, match="at most 64 MiB may; send large data as numpy arrays") as caught:
            verbs.add.remote(list(range(15_000_000)))
        assert caught.value.reason == "PAYLOAD_TOO_LARGE"
        assert verbs.add.remote(1) == 2

    def test_a_replica_killed_by_hand_comes_back(self, backend: RunningBackend) -> None:
        assert verbs.add.remote(1) == 2
        before = backend.replica("verbs.add").pid
        backend.kill_process(before)
        eventually(lambda: backend.replicas("verbs.add") and backend.replica("verbs.add").pid != before)
        assert verbs.add.remote(1) == 2
