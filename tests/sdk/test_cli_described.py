"""`--device` of predict and plan: a GPU that was probed here before its data sheet, and a word about it on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import pytest
from click.testing import CliRunner, Result

from hasfaas.core.errors import InvalidRequestError, NotFoundError
from hasfaas.core.settings import Settings
from hasfaas.devices import probe_record
from hasfaas.devices.probe_record import ProbePoint, ProbeRecord
from hasfaas.rapp.description import describe
from hasfaas.sdk.cli import cli
from hasfaas.sdk.cli_described import Described, described
from hasfaas.sdk.cli_shell import Shell
from hasfaas.wire.v1 import functions_pb2 as pb
from tests.fakes.shell_gateway import FakeClient, FakeGateway

H100 = describe("H100")
UUID = "GPU-1a2b3c4d-0000-0000-0000-000000000001"
# Half of what the data sheet says, in all: predictions show which of the two was taken.
RECORD = ProbeRecord(
    uuid=UUID,
    name="NVIDIA H100 80GB HBM3",
    driver="580.159.04",
    date="2026-01-31T12:00:00",
    points=(ProbePoint(100.0, 132, H100.bandwidth_bytes_per_s / 2, H100.fp32_flops_per_s / 2),),
    launch_us=3.0,
    clock_mhz=1400.0,
)
APP = """
import torch
from hasfaas import Batch, function

@function(slo_ms=500, batch=Batch(max_size=8), example=lambda batch: (torch.ones(batch, 256),))
def project(x):
    return torch.as_tensor(x) @ torch.ones(256, 256)

@function(slo_ms=500, batch=Batch(max_size=8), example=lambda batch: (torch.ones(batch, 256),))
def again(x):
    return torch.as_tensor(x) @ torch.ones(256, 256)
"""
Run = Callable[..., Result]


class Client(FakeClient):
    """A client of a gateway with one GPU, that was never probed unless a record says so, and no profile."""

    async def profile_of(self, name: str, *, device: str = "") -> dict[str, object]:
        raise NotFoundError(f"function {name!r} is not deployed")

    async def gateway_status(self) -> pb.GetStatusResponse:
        facts = {"uuid": UUID, "name": "NVIDIA H100 80GB HBM3"}
        devices = [pb.DeviceStatus(device_id="cpu0"), pb.DeviceStatus(device_id="cuda0", facts=facts)]
        return pb.GetStatusResponse(window_ms=100.0, quantum_ms=10.0, devices=devices)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    for name in ("HASFAAS_RUNTIME_DIR", "HASFAAS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HASFAAS_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return Client(FakeGateway(Settings(state_dir=tmp_path / "s", runtime_dir=tmp_path / "r")))


@pytest.fixture
def run(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    pytest.importorskip("torch")
    (tmp_path / "described_app.py").write_text(APP)
    np.save(tmp_path / "x.npy", np.ones((1, 256), np.float32))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments, obj=lambda settings: client, catch_exceptions=False)

    yield run
    sys.modules.pop("described_app", None)


def _store(record: ProbeRecord = RECORD) -> Path:
    return probe_record.store(Path("s") / probe_record.FOLDER, record)


def _predict(run: Run, device: str) -> Result:
    size = ("--example", "@x.npy", "--batch", "1000000", "--sm", "100", "--json")
    return run("predict", "described_app.py::project", "--device", device, *size)


def _hold_ms(result: Result) -> float:
    assert result.exit_code == 0, result.output
    return float(json.loads(result.stdout)["hold_ms"][0][0])


def test_a_probed_gpu_is_predicted_as_measured(run: Run) -> None:
    by_data_sheet = _predict(run, RECORD.name)
    assert "measured" not in by_data_sheet.stderr
    _store()
    for device in (RECORD.name, "cuda0"):
        measured = _predict(run, device)
        assert _hold_ms(measured) == pytest.approx(2 * _hold_ms(by_data_sheet), rel=0.1)
        assert "NVIDIA H100 80GB HBM3 as measured on 2026-01-31" in measured.stderr
        assert json.loads(measured.stdout)["device"]["description"] == "NVIDIA H100 80GB HBM3, measured 2026-01-31"


def test_the_data_sheet_stays_to_be_had(run: Run) -> None:
    before = _hold_ms(_predict(run, "H100"))
    _store()
    after = _predict(run, "H100")
    assert _hold_ms(after) == before
    assert "measured" not in after.stderr


# -- which device a name stands for


Describe = Callable[[str], Described]


@pytest.fixture
def look_up(client: Client) -> Describe:
    return partial(described, Shell({}, lambda settings: client))  # type: ignore[arg-type, return-value]


def test_a_device_of_the_gateway_stands_for_its_gpu(look_up: Describe, capsys: pytest.CaptureFixture[str]) -> None:
    assert look_up("cuda0").description == H100
    assert f"cuda0 is NVIDIA H100 80GB HBM3 ({UUID}), which was never probed" in capsys.readouterr().err
    _store()
    found = look_up("cuda0")
    assert found == look_up(UUID)
    assert found.description.bandwidth_bytes_per_s == H100.bandwidth_bytes_per_s / 2
    assert UUID in found.description.source


@pytest.mark.parametrize("device", ["cuda7", "cpu0", "Nonsense 9000"])
def test_an_unknown_device_lists_the_known(look_up: Describe, device: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{device}.*H100-SXM"):
        look_up(device)


def test_nothing_is_started_to_look_a_device_up(look_up: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeGateway, "running", lambda self: None)
    _store()
    assert look_up(UUID).label == "NVIDIA H100 80GB HBM3, measured 2026-01-31"
    with pytest.raises(InvalidRequestError, match="cuda0"):
        look_up("cuda0")


def test_a_broken_record_is_not_passed_over(look_up: Describe) -> None:
    file = _store()
    file.write_text(file.read_text().replace('"launch_us": 3.0', '"launch_us": -3.0'))
    with pytest.raises(InvalidRequestError, match=f"{file.name}.*launch_us=-3.0"):
        look_up(UUID)


def test_two_gpus_of_a_name_are_told_apart(look_up: Describe) -> None:
    other = UUID[:-1] + "2"
    _store()
    _store(attrs.evolve(RECORD, uuid=other))
    with pytest.raises(InvalidRequestError, match=other):
        look_up(RECORD.name)
    assert other in look_up(other).description.source


# -- a whole plan


def test_a_plan_is_made_for_the_gpu_as_measured_and_says_so_once(run: Run) -> None:
    arguments = ("plan", "described_app.py", "--rps", "5")
    sheet = run(*arguments, "--device", "H100")
    _store()
    found = run(*arguments, "--device", UUID)
    assert (sheet.exit_code, found.exit_code) == (0, 0), sheet.output + found.output
    assert found.stderr.count("as measured on 2026-01-31") == 1
    assert found.stdout.count("NVIDIA H100 80GB HBM3, measured 2026-01-31") == 2
    assert "measured 2026" not in sheet.stdout
