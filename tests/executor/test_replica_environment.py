from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from hasfaas.core.environment import MOST_SECRET_BYTES
from hasfaas.core.errors import AuthError, InvalidRequestError
from hasfaas.core.own_file import write_own
from hasfaas.core.settings import Settings
from hasfaas.devices.base import DeviceSlice
from hasfaas.executor import environment
from hasfaas.executor.config import ReplicaConfig


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """An environment in place of this process's."""
    found: dict[bytes, bytes] = {b"OLD": b"1"}
    monkeypatch.setattr(os, "environb", found)
    return found


def config(folder: Path, **given: Any) -> ReplicaConfig:
    settings = Settings(state_dir=folder / "s", runtime_dir=Path("/r"), secrets_dir=folder / "secrets")
    made = ReplicaConfig(
        replica_id="r",
        function="app.f",
        version="v",
        bundle_path="b",
        signature_hex="",
        key_path="k",
        work_dir="w",
        part=DeviceSlice("sim0", "sim", 0, (0,), 100.0),
        token_path="t",
        slot=0,
        batch_max=None,
        cold_start_s=0.0,
        settings_json=settings.to_json(),
    )
    return attrs.evolve(made, **given)


def secret(folder: Path, name: str, content: bytes, *, mode: int = 0o600) -> Path:
    path = folder / "secrets" / name
    write_own(path, content, mode=mode)
    return path


def test_both_are_set_and_the_rest_stays(tmp_path: Path, ours: dict[bytes, bytes]) -> None:
    secret(tmp_path, "TOKEN", b"\xff a b\n")
    environment.enter(config(tmp_path, env={"MODE": "ü"}, secrets=("TOKEN",)))
    assert ours == {b"OLD": b"1", b"MODE": "ü".encode(), b"TOKEN": b"\xff a b"}


def test_a_configuration_comes_back_as_it_was_told(tmp_path: Path) -> None:
    told = config(tmp_path, env={"MODE": "fast"}, secrets=("A", "B"))
    fields = told.to_dict()
    assert ReplicaConfig.from_dict({**fields, "secrets": list(told.secrets)}) == told


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"a", b"a"), (b"a\n", b"a"), (b"a\r\n", b"a"), (b"a\n\n", b"a\n"), (b" a ", b" a "), (b"k=\nv\n", b"k=\nv")],
)
def test_the_end_of_a_line_is_no_part_of_it(tmp_path: Path, content: bytes, value: bytes) -> None:
    path = secret(tmp_path, "TOKEN", content)
    assert environment.read_secret("app.f", "TOKEN", path.parent) == value


@pytest.mark.parametrize("folder_there", [True, False])
def test_a_missing_one_is_named_with_its_place(tmp_path: Path, ours: dict[bytes, bytes], folder_there: bool) -> None:
    if folder_there:
        secret(tmp_path, "OTHER", b"x")
    with pytest.raises(InvalidRequestError, match=r"app\.f: the secret TOKEN is not there") as caught:
        environment.enter(config(tmp_path, env={"MODE": "fast"}, secrets=("TOKEN",)))
    assert caught.value.reason == "SECRET_MISSING"
    assert str(tmp_path / "secrets" / "TOKEN") in str(caught.value)
    assert ours == {b"OLD": b"1"}, "nothing is set by halves"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"a\0b", b"x" * (MOST_SECRET_BYTES + 1), b"x" * MOST_SECRET_BYTES + b"\r\n9"]
)
def test_a_content_that_cannot_be_is_told_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = secret(tmp_path, "TOKEN", content)
    with pytest.raises(InvalidRequestError, match=f"must have 1 to {MOST_SECRET_BYTES} bytes") as caught:
        environment.read_secret("app.f", "TOKEN", path.parent)
    assert caught.value.reason == "BAD_SECRET"
    assert "xx" not in str(caught.value)
    secret(tmp_path, "TOKEN", b"x" * MOST_SECRET_BYTES + b"\r\n")
    assert len(environment.read_secret("app.f", "TOKEN", path.parent)) == MOST_SECRET_BYTES


def test_one_that_others_can_read_or_replace_is_not_used(tmp_path: Path) -> None:
    path = secret(tmp_path, "TOKEN", b"x-value", mode=0o640)
    with pytest.raises(AuthError, match="chmod 600") as caught:
        environment.read_secret("app.f", "TOKEN", path.parent)
    path.chmod(0o600)
    path.parent.chmod(0o770)
    with pytest.raises(AuthError, match="chmod go-w") as again:
        environment.read_secret("app.f", "TOKEN", path.parent)
    assert "x-value" not in f"{caught.value}{again.value}"


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "secrets" / "TOKEN").mkdir(parents=True, mode=0o700)
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        environment.read_secret("app.f", "TOKEN", tmp_path / "secrets")


def test_a_variable_of_the_replicas_device_is_not_overwritten(tmp_path: Path, ours: dict[bytes, bytes]) -> None:
    part = DeviceSlice("npu0", "npu", 0, (0,), 100.0, environment={"NPU_LANE": "3"})
    for given in ({"env": {"NPU_LANE": "0"}}, {"secrets": ("NPU_LANE",)}):
        with pytest.raises(InvalidRequestError, match="NPU_LANE is set by device npu0"):
            environment.enter(config(tmp_path, part=part, **given))
    assert ours == {b"OLD": b"1"}
