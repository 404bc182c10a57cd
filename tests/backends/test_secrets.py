"""Secrets by name, on a real gateway: a replica has the value before the user's code runs, and nothing else ever holds it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasfaas import AuthError, InvalidRequestError
from hasfaas.core.own_file import write_own
from hasfaas.wire.convert import spec_to_proto
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.live import Gateway, app, eventually, gateway

surroundings = app("surroundings")

VALUE = b"s3cr3t-\xff-which-nobody-may-find"
HASH = hashlib.sha256(VALUE).hexdigest()
MODE = surroundings.ENV["APP_MODE"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Gateway]:
    with gateway() as made:
        write_own(made.settings.secrets_dir / "APP_TOKEN", VALUE + b"\n")
        yield made


def places(made: Gateway, needle: bytes) -> list[str]:
    """Where it can be read: files of the gateway, shared memory, command lines and first environments of its processes."""
    folders = (made.settings.state_dir, made.settings.runtime_dir)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if made.settings.secrets_dir not in path.parents]
    files += made.shm(made.pid())
    files += [Path(f"/proc/{one.pid}/{name}") for one in made.family() for name in ("cmdline", "environ")]
    return [str(path) for path in files if needle in path.read_bytes()]


def test_a_replica_has_them_and_nothing_else_holds_a_secret(shared: Gateway) -> None:
    assert surroundings.Built.remote() == (MODE, HASH)
    assert surroundings.child.remote() == HASH
    assert surroundings.Shared.remote() == ((MODE, HASH), (MODE, HASH))
    assert surroundings.bystander.remote() == [], "a fork of the same zygote"
    assert len(shared.family()) >= 6, "all of them still run"
    status = shared.status().SerializeToString()
    bundle = surroundings.Built.deployable().bundle
    answers = [surroundings.Built.remote() for _ in range(3)]
    assert VALUE not in status + bundle + str(answers).encode()
    # This search finds: a plain value is where plain values are, in what is stored of the function.
    assert any("store.sqlite3" in place for place in places(shared, MODE.encode()))
    assert places(shared, VALUE) == []
    assert places(shared, VALUE[:7]) == []


def test_a_new_value_is_read_by_the_next_replica(shared: Gateway) -> None:
    assert surroundings.Built.remote()[1] == HASH
    file = shared.settings.secrets_dir / "APP_TOKEN"
    write_own(file, b"another")
    try:
        assert surroundings.Built.remote()[1] == HASH, "the one that runs keeps what it has"
        before = surroundings.Built.version
        shared.delete("surroundings.Built")
        assert surroundings.Built.remote()[1] == hashlib.sha256(b"another").hexdigest()
        assert shared.function("surroundings.Built").version == before
    finally:
        write_own(file, VALUE + b"\n")
        shared.delete("surroundings.Built")


def test_a_missing_secret_is_told_with_its_place_and_may_come_later(shared: Gateway) -> None:
    place = shared.settings.secrets_dir / "APP_ABSENT"
    with pytest.raises(InvalidRequestError, match="the secret APP_ABSENT is not there") as caught:
        surroundings.lacking.deploy()
    assert caught.value.reason == "SECRET_MISSING"
    assert str(place) in caught.value.message
    write_own(place, b"12345")

    def answer() -> int:
        try:
            found: int = surroundings.lacking.remote()
        except InvalidRequestError:
            return 0  # what failed a moment ago is not tried at once
        return found

    assert eventually(answer) == 5


def test_a_secret_that_others_can_read_is_not_used(shared: Gateway) -> None:
    write_own(shared.settings.secrets_dir / "APP_OPEN", VALUE, mode=0o644)
    with pytest.raises(AuthError, match="chmod 600") as caught:
        surroundings.careless.remote()
    assert caught.value.reason == "UNSAFE_FILE"
    assert "which-nobody" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pb.FunctionSpec(env={"LD_PRELOAD": "/x.so"}), "env: LD_PRELOAD is set"),
        (pb.FunctionSpec(secrets=["../signing.key"]), "secrets: one of them is no name"),
    ],
)
def test_options_of_somebody_elses_client_are_checked(shared: Gateway, given: pb.FunctionSpec, words: str) -> None:
    made = surroundings.bystander.deployable()
    spec = spec_to_proto(made.spec)
    spec.MergeFrom(given)
    request = pb.DeployRequest(name=made.name, version=made.version, spec=spec, bundle=made.bundle)
    shared.client.run(shared.client.sign(request))
    with pytest.raises(InvalidRequestError, match=words) as caught:
        shared.deploy_raw(request)
    assert caught.value.reason == "BAD_OPTION"
