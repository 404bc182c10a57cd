"""`hasfaas predict` against a gateway with memory: tables, JSON, pictures, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hasfaas.core.errors import NotFoundError
from hasfaas.core.settings import Settings
from hasfaas.rapp.profile import Profile, ProfiledDevice, known
from hasfaas.rapp.surface import Surface
from hasfaas.sdk.cli import cli
from hasfaas.sdk.cli_predict import Values
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.fakes.shell_gateway import FakeClient, FakeGateway

Run = Callable[..., Result]
BATCHES, SHARES = (1, 4), (50.0, 100.0)
SURFACE = Surface(BATCHES, SHARES, [[10.0, 6.0], [30.0, 16.0]], np.full((2, 2), 0.1))
PROFILE = Profile("app.embed", "v1", ProfiledDevice("cpu", "cpu0"), "few-shot", SURFACE)


class Client(FakeClient):
    """A client whose gateway has stored profiles; None stands for a function that is unprofiled."""

    profiles: ClassVar[Mapping[str, Profile | None]] = {"app.embed": PROFILE, "app.new": None}
    quantum_ms = 10.0

    async def profile_of(self, name: str, *, device: str = "") -> dict[str, Any]:
        if name not in self.profiles:
            raise NotFoundError(f"function {name!r} is not deployed")
        found = known(self.profiles[name], name)
        if device not in ("", found.device.device_id):
            raise NotFoundError(f"function {name!r} has no profile on {device!r}")
        return found.to_dict()

    async def gateway_status(self) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(window_ms=100.0, quantum_ms=self.quantum_ms)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("HASFAAS_STATE_DIR", "HASFAAS_RUNTIME_DIR", "HASFAAS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    gateway = FakeGateway(Settings(state_dir=tmp_path / "s", runtime_dir=tmp_path / "r"))
    client = Client(gateway)

    def run(*args: str) -> Result:
        return CliRunner().invoke(cli, args, obj=lambda settings: client, catch_exceptions=False)

    return run


def _ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


# -- ranges


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,4", (1, 4)),
        ("10..100", tuple(range(10, 101, 10))),
        ("10..100/45", (10, 55, 100)),
        ("10..35", (10, 20, 30)),
        ("50, 5..10/5,5", (5, 10, 50)),
        ("12.5", (12.5,)),
    ],
)
def test_ranges(text: str, expected: tuple[float, ...]) -> None:
    assert Values(10).convert(text, None, None) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["", "x", "1..", "..4", "5..1", "1..5/0", "0", "nan", "1..1e9/0.1", "1,,2", "-5", "inf"]
)
def test_what_is_no_range(run: Run, text: str) -> None:
    result = run("predict", "app.embed", f"--quota={text}")
    assert result.exit_code == 2
    assert "--quota" in result.output


def test_batches_are_whole_and_shares_at_most_100(run: Run) -> None:
    assert run("predict", "app.embed", "--batch", "1.5").exit_code == 2
    assert run("predict", "app.embed", "--sm", "10..110").exit_code == 2
    assert "up to 100" in run("predict", "app.embed", "--sm", "10..110").output


# -- predictions


def test_json_holds_the_arrays(run: Run) -> None:
    shown = json.loads(_ok(run("predict", "app.embed", "--quota", "10,50,100", "--json")))
    assert (shown["function"], shown["state"], shown["law"], shown["drifted"]) == (
        "app.embed",
        "few-shot",
        "mean",
        False,
    )
    assert (shown["batches"], shown["sm_percents"]) == ([1, 4], [50.0, 100.0])
    assert shown["quota_percents"] == [10, 50, 100]
    assert np.allclose(shown["hold_ms"], SURFACE.hold_ms)
    assert np.allclose(shown["latency_ms"], SURFACE.hold_ms[..., None] / np.array([0.1, 0.5, 1.0]))
    assert shown["throughput_rps"][1][1][2] == pytest.approx(250.0)


def test_a_table_has_a_row_for_each_batch_and_share(run: Run) -> None:
    lines = _ok(run("predict", "app.embed", "--batch", "1,4", "--sm", "100", "--quota", "50..100/50")).splitlines()
    assert "app.embed on cpu0 (few-shot)" in lines[0]
    assert lines[1].split() == ["batch", "SM", "%", "quota", "50", "%", "quota", "100", "%"]
    assert [line.split() for line in lines[2:]] == [["1", "100", "12.0", "6.00"], ["4", "100", "32.0", "16.0"]]


def test_the_law_and_the_quantile_are_the_ones_asked_for(run: Run) -> None:
    def cell(*more: str) -> float:
        shown = json.loads(_ok(run("predict", "app.embed", "--batch=4", "--sm=50", "--quota=30", "--json", *more)))
        return float(shown["latency_ms"][0][0][0])

    assert cell() == pytest.approx(100.0)
    # Three leases of 10 ms, each started with an empty account.
    assert cell("--law", "worst") == pytest.approx(100.0)
    assert cell("--law", "idle") < cell("--law", "worst")
    assert cell("--quantile", "0.9") == pytest.approx(100.0 * np.exp(0.12816), rel=1e-3)
    assert run("predict", "app.embed", "--quantile", "1.0").exit_code == 2


def test_the_timing_is_that_of_the_gateway(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("predict", "app.embed", "--batch=1", "--sm=100", "--quota=10", "--law=worst", "--json")
    usual = json.loads(_ok(run(*arguments)))["latency_ms"][0][0][0]
    monkeypatch.setattr(Client, "quantum_ms", 1.0)
    shorter = json.loads(_ok(run(*arguments)))["latency_ms"][0][0][0]
    assert shorter < usual


def test_what_was_never_measured_is_pointed_out(run: Run) -> None:
    result = run("predict", "app.embed", "--sm", "10..100", "--batch", "1..16/15")
    assert result.exit_code == 0
    assert "SM shares below 50 % are shown as 50 %" in result.stderr
    assert "batches above 4 go on in a straight line" in result.stderr


def test_a_drifted_function_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drifted = PROFILE
    for _ in range(40):
        drifted = drifted.observed(4, 50.0, 45.0)
    monkeypatch.setattr(Client, "profiles", {"app.embed": drifted})
    result = run("predict", "app.embed", "--json")
    assert json.loads(_ok(result))["drifted"] is True
    assert "longer than the profile says" in result.stderr
    assert "corrected by 40 live batches" in _ok(run("predict", "app.embed"))


# -- pictures


def test_a_picture_is_drawn(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _ok(run("predict", "app.embed", "--picture", "p.png"))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    result = run("predict", "app.embed", "--picture", "no/such/folder/p.png")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_a_picture_without_matplotlib(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("predict", "app.embed", "--picture", "p.png")
    assert result.exit_code == 2
    assert "needs matplotlib" in result.stderr


# -- refusals


def test_unprofiled_and_unknown_functions_have_no_numbers(run: Run) -> None:
    for arguments in (("app.new",), ("app.new", "--json")):
        result = run("predict", *arguments)
        assert result.exit_code == 2
        assert not result.stdout
        assert "hasfaas profile app.new" in result.stderr
    result = run("predict", "app.nobody")
    assert result.exit_code == 2
    assert "not deployed" in result.stderr


def test_a_device_is_where_it_was_profiled(run: Run) -> None:
    _ok(run("predict", "app.embed", "--device", "cpu0"))
    result = run("predict", "app.embed", "--device", "gpu7")
    assert result.exit_code == 2
    assert "no profile on 'gpu7'" in result.stderr


def test_nothing_is_started_to_predict(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeGateway, "running", lambda self: None)
    assert run("predict", "app.embed").exit_code == 5


# -- from the graph alone


APP = """
import torch
from hasfaas import function

@function(slo_ms=50)
def project(x):
    return torch.as_tensor(x) @ torch.ones(256, 256)

@function(slo_ms=50)
def plain(x):
    return x.sum()
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("torch")
    file = tmp_path / "predicted_app.py"
    file.write_text(APP)
    np.save(tmp_path / "x.npy", np.ones((1, 256), np.float32))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield file.name
    sys.modules.pop("predicted_app", None)


def test_a_file_needs_a_device_and_an_example(run: Run, app: str) -> None:
    assert "needs --device" in run("predict", f"{app}::project").output
    result = run("predict", f"{app}::project", "--device", "Nonsense 9000", "--example", "@x.npy")
    assert result.exit_code == 2
    assert "Nonsense 9000" in result.stderr
    result = run("predict", f"{app}::project", "--device", "H100")
    assert result.exit_code == 2
    assert "--example" in result.stderr


def test_a_file_is_predicted_from_its_graph(run: Run, app: str) -> None:
    arguments = ("--device", "H100", "--example", "@x.npy", "--batch", "1,200000", "--sm", "50,100", "--json")
    shown = json.loads(_ok(run("predict", f"{app}::project", *arguments)))
    assert shown["state"] in ("zero-shot", "roofline only")
    assert shown["device"]["description"] == "H100"
    assert np.shape(shown["latency_ms"]) == (2, 2, 10)
    # 2 x 200,000 x 256 x 256 operations of fp32 at no more than 67e12 a second, on half of the SMs.
    assert shown["hold_ms"][1][0] > 2 * 200_000 * 256**2 / 67e12 * 2 * 1e3
    assert shown["hold_ms"][1][0] > shown["hold_ms"][1][1] > shown["hold_ms"][0][1]


def test_a_device_by_its_name_is_known_by_its_data_sheet(run: Run, app: str) -> None:
    def hold_ms(device: str) -> float:
        arguments = ("--device", device, "--example", "@x.npy", "--batch", "100000", "--sm", "100", "--json")
        return float(json.loads(_ok(run("predict", f"{app}::project", *arguments)))["hold_ms"][0][0])

    assert hold_ms("H100") < hold_ms("V100") < hold_ms("T4")


def test_a_function_without_torch_must_be_measured(run: Run, app: str) -> None:
    result = run("predict", f"{app}::plain", "--device", "H100", "--example", "@x.npy")
    assert result.exit_code == 2
    assert "hasfaas profile" in result.stderr
