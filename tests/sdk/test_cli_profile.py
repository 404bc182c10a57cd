"""`hasfaas profile`: what is asked of the gateway, what is shown, and what is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hasfaas.core.errors import ConflictError
from hasfaas.core.settings import DeviceSettings, Settings
from hasfaas.rapp.probe import Point, Probe
from hasfaas.rapp.profile import Profile, ProfiledDevice
from hasfaas.sdk.cli import cli
from hasfaas.wire.convert import payload_from_proto
from hasfaas.wire.payload import decode_arguments
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.fakes.shell_gateway import FakeClient, FakeGateway
from tests.live import eventually, gateway

Run = Callable[..., Result]
APP = """
import numpy as np
import hasfaas
from hasfaas import function

@function(slo_ms=50, memory="128MiB", batch=hasfaas.Batch(max_size=4), example=lambda b: np.ones((b, 3)))
def twice(x):
    return 2 * x
"""


def a_profile() -> Profile:
    probes = [
        Probe(Point(batch, sm, quota), hold_ms, hold_ms * 104.0 / quota, 40, 0.01)
        for batch, sm, quota, hold_ms in ((1, 100, 100, 2), (8, 100, 100, 9), (8, 50, 100, 17), (1, 50, 30, 3.6))
    ]
    return Profile.fitted("app.f", "v1", ProfiledDevice("sim", "sim0"), probes, (1, 2, 4, 8), (50.0, 100.0))


class ProfilingClient(FakeClient):
    """Answers `profile` from a list, and remembers how it was asked."""

    def __init__(self, made: FakeGateway, news: list[pb.ProfileResponse], asked: list[dict[str, Any]]) -> None:
        super().__init__(made)
        self.news, self.asked = news, asked

    async def profile(self, name: str, **asked: Any) -> AsyncIterator[pb.ProfileResponse]:
        self.asked.append({"name": name, **asked})
        for each in self.news:
            yield each
        if self.stub.failure is not None:
            raise self.stub.failure


@pytest.fixture
def made(tmp_path: Path) -> FakeGateway:
    return FakeGateway(Settings(state_dir=tmp_path / "s", runtime_dir=tmp_path / "r"))


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("HASFAAS_STATE_DIR", "HASFAAS_RUNTIME_DIR", "HASFAAS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("profiled_app", None)


NEWS = [
    pb.ProfileResponse(plan=pb.ProfileResponse.Plan(points=[pb.ProfilePoint(batch=1)])),
    pb.ProfileResponse(note="SM 100 % left out: no room"),
    pb.ProfileResponse(measured=pb.ProfileResponse.Measured(hold_ms=2.0, response_ms=2.0, runs=40)),
    pb.ProfileResponse(profile_json=json.dumps(a_profile().to_dict())),
]


@pytest.fixture
def asked() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def run(made: FakeGateway, asked: list[dict[str, Any]]) -> Run:
    def run(*args: str) -> Result:
        client: Any = lambda settings: ProfilingClient(made, NEWS, asked)  # noqa: E731
        return CliRunner().invoke(cli, args, obj=client, catch_exceptions=False)

    return run


def test_a_table_of_probes_surface_and_trust(run: Run, made: FakeGateway, asked: list[dict[str, Any]]) -> None:
    made.add("app.f")
    result = run("profile", "app.f", "--points", "9", "--device", "sim")
    assert result.exit_code == 0
    assert result.stderr == "SM 100 % left out: no room\n"
    assert asked == [{"name": "app.f", "device": "sim", "points": 9, "arguments": None}]
    lines = result.stdout.splitlines()
    assert lines[0] == "app.f (version v1) on sim0: few-shot profile kept"
    assert lines[3].split() == ["1", "100", "100", "2", "1.0", "2.08", "2", "40"]
    assert "off by 3.8 % at the probes" in result.stdout
    assert "one run in twenty takes longer" in result.stdout
    surface = [line.split() for line in lines if "(<" in line]
    assert [row[0] for row in surface] == ["1", "2", "4", "8"]
    assert float(surface[0][-3]) == pytest.approx(2.0, rel=0.1)


def test_json_is_the_profile(run: Run, made: FakeGateway) -> None:
    made.add("app.f")
    assert json.loads(run("profile", "app.f", "--json").stdout) == a_profile().to_dict()


def test_a_file_is_deployed_first_and_arguments_are_taken_along(
    run: Run, made: FakeGateway, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "profiled_app.py").write_text(APP)
    assert run("profile", "profiled_app.py::twice", "-5").exit_code == 0
    assert list(made.functions) == ["profiled_app.twice"]
    (one,) = asked
    assert one["name"] == "profiled_app.twice"
    assert decode_arguments(one["arguments"], allow_pickle=False) == ((-5,), {})
    refused = run("profile", "profiled_app.py::twice", "1", "2")
    assert refused.exit_code == 2
    assert "was called with other arguments" in refused.stderr


@pytest.mark.parametrize("points", ["3", "many"])
def test_too_few_points_are_a_usage_error(run: Run, points: str) -> None:
    assert run("profile", "app.f", "--points", points).exit_code == 2


def test_what_goes_wrong_is_one_sentence(run: Run, made: FakeGateway) -> None:
    made.failure = ConflictError("app.f is being profiled already", reason="PROFILE_RUNNING")
    result = run("profile", "app.f")
    assert result.exit_code == 5
    assert "hasfaas: app.f is being profiled already" in result.stderr


def test_from_the_console_to_a_replica_and_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "profiled_app.py").write_text(APP)
    command = [sys.executable, "-m", "hasfaas", "profile", "profiled_app.py::twice"]
    with gateway(DeviceSettings(kind="sim", sms=2)) as real:
        done = subprocess.run(
            [*command, "--points", "4", "--json"],
            env=real.env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        profile = Profile.from_dict(json.loads(done.stdout))
        assert profile.to_dict() == real.client.run(real.client.profile_of("twice"))
        assert np.all(profile.surface.hold_ms > 0)
        assert real.function("profiled_app.twice").profile_state == "few-shot"
        process = subprocess.Popen([*command, "--points", "16"], env=real.env, cwd=tmp_path, stderr=subprocess.PIPE)
        eventually(lambda: real.replicas("profiled_app.twice", "profiling"))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130, process.stderr.read() if process.stderr else ""
        eventually(lambda: not real.function("profiled_app.twice").replicas)
        eventually(lambda: not real.status().devices[0].lanes)


def test_payloads_of_arguments_survive_the_message() -> None:
    from hasfaas.wire.convert import payload_to_proto
    from hasfaas.wire.payload import encode_arguments

    sent = payload_to_proto(encode_arguments((np.arange(3),), {"scale": 2}))
    args, kwargs = decode_arguments(payload_from_proto(sent), allow_pickle=False)
    assert (args[0].tolist(), kwargs) == ([0, 1, 2], {"scale": 2})  # type: ignore[attr-defined]
