"""`hasfaas plan`: from a stored profile, from the graph of a file, and what no slice can keep."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hasfaas.core.errors import NotFoundError
from hasfaas.core.settings import Settings
from hasfaas.rapp.profile import Profile, ProfiledDevice
from hasfaas.rapp.surface import Surface
from hasfaas.sdk.cli import cli
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.fakes.shell_gateway import FakeClient, FakeGateway

Run = Callable[..., Result]
SURFACE = Surface((1, 4), (20.0, 50.0, 100.0), [[20.0, 10.0, 6.0], [50.0, 26.0, 16.0]], np.full((2, 3), 0.05))
APP = """
import numpy as np
import hasfaas
from hasfaas import function

def ones(batch):
    return np.ones((batch, 256), np.float32)

@function(slo_ms=150, memory="128MiB", batch=hasfaas.Batch(max_size=4), example=ones, name="app.embed")
def embed(x):
    import torch

    return torch.as_tensor(x) @ torch.ones(256, 256)

@function(slo_ms=150, memory="128MiB", name="app.other")
def other(x):
    return x
"""


class PlanningClient(FakeClient):
    """A gateway that knows profiles by function; versions are what a test says."""

    def __init__(self, made: FakeGateway, versions: dict[str, str]) -> None:
        super().__init__(made)
        self.versions = versions

    async def profile_of(self, name: str, *, device: str = "") -> dict[str, Any]:
        if name not in self.versions:
            raise NotFoundError(f"function {name!r} is not deployed")
        return Profile(name, self.versions[name], ProfiledDevice("sim", "sim0"), "few-shot", SURFACE).to_dict()

    async def gateway_status(self) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(window_ms=100.0, quantum_ms=10.0)

    async def status(self, name: str) -> pb.ListFunctionsResponse:
        return pb.ListFunctionsResponse(functions=[self.stub.functions[name]])


@pytest.fixture
def versions() -> dict[str, str]:
    return {"app.embed": "v-app.embed"}


@pytest.fixture
def made(tmp_path: Path) -> FakeGateway:
    made = FakeGateway(Settings(state_dir=tmp_path / "s", runtime_dir=tmp_path / "r"))
    function = made.add("app.embed", slo_ms=150.0, device="auto")
    function.spec.batch.max_size = 4
    return made


@pytest.fixture
def run(made: FakeGateway, versions: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    for name in ("HASFAAS_STATE_DIR", "HASFAAS_RUNTIME_DIR", "HASFAAS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "planned_app.py").write_text(APP)
    client = PlanningClient(made, versions)
    yield lambda *args: CliRunner().invoke(cli, args, obj=lambda _settings: client)
    sys.modules.pop("planned_app", None)


def planned(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_a_profile_gives_a_slice_its_latency_and_its_cost(run: Run) -> None:
    [found] = planned(run("plan", "app.embed", "--rps", "40", "--price", "2.5", "--json"))
    assert (found["function"], found["profile"], found["slo_ms"], found["rps"]) == (
        "app.embed",
        "few-shot",
        150.0,
        40.0,
    )
    assert found["capacity_rps"] >= 40.0
    assert found["sm_percent"] in (20.0, 50.0, 100.0)
    assert 6.0 < found["p95_ms"] <= 150.0
    area = found["replicas"] * found["sm_percent"] * found["quota_percent"] / 1e4
    assert found["devices"] == pytest.approx(area)
    assert found["cost_per_hour"] == pytest.approx(2.5 * area)
    assert found["cost_per_1000_requests"] == pytest.approx(2.5 * area / 3600.0 / 40.0 * 1000.0)


def test_more_load_never_costs_less(run: Run) -> None:
    costs = [planned(run("plan", "app.embed", "--rps", f"{rps}", "--json"))[0]["devices"] for rps in (5, 20, 80, 200)]
    assert costs == sorted(costs)
    assert costs[-1] > costs[0]


def test_people_get_a_table_and_costs_only_with_a_price(run: Run) -> None:
    head, row = run("plan", "app.embed").output.splitlines()
    assert "cost/h" not in head
    assert "device p95 ms" in head
    assert row.startswith("app.embed  few-shot, sim0")
    assert "cost/1000 calls" in run("plan", "app.embed", "--price", "1").output


def test_an_slo_that_no_slice_keeps_names_the_nearest_one(run: Run, made: FakeGateway) -> None:
    made.functions["app.embed"].spec.slo_ms = 3.0
    result = run("plan", "app.embed")
    assert result.exit_code == 2
    assert "app.embed: slo_ms=3 cannot be kept" in result.stderr
    nearest = float(result.stderr.split("the nearest SLO that can is ")[1].split(" ms")[0])
    made.functions["app.embed"].spec.slo_ms = nearest * 1.02
    assert run("plan", "app.embed", "--rps", "0.06").exit_code == 0


def test_a_rate_that_the_replicas_allowed_do_not_carry_is_refused(run: Run) -> None:
    result = run("plan", "app.embed", "--rps", "100000")
    assert result.exit_code == 2
    assert "8 replicas carry at most" in result.stderr
    assert run("plan", "app.embed", "--rps", "-1").exit_code == 2


def test_a_file_is_planned_from_its_profile_where_that_is_of_this_version(run: Run, versions: dict[str, str]) -> None:
    from hasfaas.sdk.cli_app import Reference

    function = Reference.parse("planned_app.py::embed")
    assert function is not None
    versions["app.embed"] = function.function().deployable().version
    [found] = planned(run("plan", "planned_app.py::embed", "--json"))
    assert (found["profile"], found["device"]["device_id"]) == ("few-shot", "sim0")
    versions["app.embed"] = "older"
    result = run("plan", "planned_app.py::embed")
    assert result.exit_code == 2
    assert "say --device" in result.stderr


def test_all_that_cannot_be_planned_are_named_with_their_cure(run: Run) -> None:
    for arguments in ((), ("--device", "H100", "--example", "[1]")):
        result = run("plan", "planned_app.py", *arguments)
        assert result.exit_code == 2
        assert "only functions that run torch can be planned from their graph" in result.stderr
        assert "`hasfaas profile app.other`" in result.stderr
        if not arguments:
            assert "`hasfaas profile app.embed`, `hasfaas profile app.other`" in result.stderr


def test_a_file_that_was_never_measured_is_planned_from_its_graph(run: Run, made: FakeGateway) -> None:
    pytest.importorskip("torch")
    made.up_now = False
    result = run("plan", "planned_app.py::embed", "--device", "H100", "--json")
    [found] = planned(result)
    assert found["device"]["description"] == "H100"
    assert found["profile"] in ("zero-shot", "roofline only")
    assert found["p95_ms"] < 150.0
    # All functions of a file are planned, and each needs an example.
    assert run("plan", "planned_app.py", "--device", "H100").exit_code == 2
