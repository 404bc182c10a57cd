"""The backend keeps the contract of all backends, and projects apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hasfaas.sdk.client import Client
from hasfaas.testing.backend_conformance import BackendConformance, RunningBackend, started


@pytest.fixture(scope="module")
def running() -> Iterator[RunningBackend]:
    with started("project") as made:
        yield made


class TestProjectBackend(BackendConformance):
    """The contract."""


def test_another_project_has_another_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started("project") as here:
        found = here.client.backend.running()
        assert found is not None
        (tmp_path / "hasfaas.toml").touch()
        monkeypatch.chdir(tmp_path)
        there = Client(here.settings).backend
        assert there.running() is None
        assert not there.down()
        assert here.client.backend.running() == found
