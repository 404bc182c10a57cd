"""What the checks of a GPU do in their processes with torch, here on the CPU: times mean nothing, counting and scoring do."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import gpu_gates, gpu_models, gpu_rapp  # noqa: E402 - they need torch
from benchmarks.gpu_client import COUNTERS, Seat  # noqa: E402
from benchmarks.gpu_sheet import Sheet  # noqa: E402
from hasfaas.devices.base import HostTimer  # noqa: E402
from hasfaas.devices.cpu import SynchronousStream  # noqa: E402
from hasfaas.executor.quota import PPM  # noqa: E402
from hasfaas.executor.tokens import SlotLease, TokenTable  # noqa: E402
from hasfaas.rapp import export, zero_shot  # noqa: E402
from hasfaas.rapp.description import describe  # noqa: E402

SHARES = (25.0, 50.0, 100.0)


@pytest.fixture
def seat(tmp_path: Path) -> Iterator[Seat]:
    table = TokenTable.create(tmp_path / "tokens")
    slot = table.admit(0, PPM)
    table.attach(slot)
    stream = SynchronousStream()
    line, other = multiprocessing.Pipe()
    yield Seat(stream, SlotLease(table, slot, stream), multiprocessing.RawArray("q", COUNTERS), line, 0)
    line.close()
    other.close()
    table.close()


@pytest.mark.parametrize(("name", "millions"), [("resnet50", 25.6), ("bert_base", 108.9)])
def test_the_models_have_the_published_sizes(name: str, millions: float) -> None:
    """He et al. 2015, and torchvision's table: 25.6 M; Devlin et al. 2018: 110 M, of which the pooler is 0.6 M."""
    count = sum(parameter.numel() for parameter in gpu_models.model(name).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_gates_are_in_one_copy_at_a_time_and_in_none_afterwards(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_gates, "MOST_PAIRS", 8)
    one, two = (gpu_models.model("perceptron") for _ in range(2))
    with torch.inference_mode(), seat.lease:
        percents, _gates, plain_ms = gpu_gates.pairs(seat, one, two, gpu_models.example("perceptron", 8))
    assert len(percents) == len(plain_ms) == 8
    assert not any("forward" in vars(module) for model in (one, two) for module in model.modules())


def test_stretches_between_gates_add_up_to_the_forward(seat: Seat) -> None:
    model = gpu_models.model("perceptron")
    with torch.inference_mode(), seat.lease:
        apart_ms, planned_ms, forward_ms = gpu_gates.stretches(
            seat, model, gpu_models.example("perceptron", 256), HostTimer()
        )
    assert len(apart_ms) >= 2, "a forward of many ms has a gate"
    assert 0.0 < sum(apart_ms) <= forward_ms * 1.001
    assert planned_ms > 0.0


def truth_by(factor: Callable[[int], float]) -> dict[tuple[int, float], list[float]]:
    """Holds that are what zero-shot says of an H100, times a factor by batch."""
    graphs = export.graphs(
        gpu_models.model("perceptron"), lambda batch: gpu_models.example("perceptron", batch), gpu_rapp.BATCHES
    )
    surface = zero_shot.forecast(graphs, zero_shot.law_of(describe("H100")), SHARES).surface
    cells = ((batch, share) for batch in gpu_rapp.BATCHES for share in SHARES)
    return {(b, s): [surface.hold(b, s) * factor(b) * (1.0 + 0.001 * run) for run in range(-2, 3)] for b, s in cells}


@pytest.mark.parametrize("off", [1.0, 1.25])
def test_rapp_is_scored_by_what_was_measured(tmp_path: Path, off: float) -> None:
    sheet = Sheet(tmp_path / "lines")
    gpu_rapp.score(sheet, "perceptron", truth_by(lambda _batch: off), SHARES, describe("H100"))
    zero, few, few_on_zero = sheet.figures
    assert zero.median == pytest.approx(100.0 * (1.0 - 1.0 / off), abs=0.2)
    assert len(zero.values) == 12
    assert len(few.values) == len(few_on_zero.values) == 12 - gpu_rapp.PROBES
    assert few_on_zero.median < 2.0, "six probes see a factor that is the same everywhere"
    assert few.met is True
