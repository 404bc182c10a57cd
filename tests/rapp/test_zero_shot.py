"""Zero-shot: graphs x operator law -> surface; its uncertainty does not average out; the state is told."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp import coefficients
from hasfaas.rapp.description import describe
from hasfaas.rapp.operator import Operator, OperatorGraph
from hasfaas.rapp.zero_shot import (
    HOST_LAUNCH_MS,
    ROOFLINE_ONLY,
    SIGMA_GRAPH,
    SIGMA_HOST,
    SIGMA_ROOFLINE,
    TRAINED,
    Roofline,
    forecast,
    law_of,
    zero_shot_surface,
)

V100 = Roofline(describe("V100"), host_launch_ms=0.0)
SHARES = (10.0, 25.0, 50.0, 100.0)


def product(rows: int, count: int = 1, family: str = "linear") -> Operator:
    moved = 4.0 * (rows * 1024 + 1024 * 1024)
    return Operator(family, family, 2.0 * rows * 1024 * 1024, moved, 4.0 * rows * 1024, rows, 1024, 1024, count=count)


def graph(batch: int, *operators: Operator) -> OperatorGraph:
    return OperatorGraph(batch, operators)


@attrs.frozen
class Trained:
    """A law with a residual for each family."""

    sigmas: dict[str, float]
    host_launch_ms: float = 0.0
    trained: bool = True

    def latency_ms(self, operators: Sequence[Operator], sm_percent: float) -> np.ndarray[Any, Any]:
        return np.full(len(operators), 100.0 / sm_percent)

    def log_sigma(self, family: str) -> float:
        return self.sigmas[family]


def test_the_hold_is_the_sum_of_the_operators_and_falls_with_the_share() -> None:
    found = forecast({1: graph(1, product(4096, 3)), 4: graph(4, product(4 * 4096, 3))}, V100, SHARES)
    surface = found.surface
    assert (surface.batches, surface.sm_percents) == ((1, 4), SHARES)
    assert surface.hold_ms[0, -1] == pytest.approx(3 * V100.latency_ms([product(4096)], 100)[0])
    assert surface.hold_ms[0, -1] > 3 * 2 * 4096 * 1024 * 1024 / 15.7e12 * 1e3
    assert np.all(np.diff(surface.hold_ms, axis=1) < 0)
    assert np.all(surface.hold_ms[1] > surface.hold_ms[0])
    assert surface.hold_ms[1, 0] / surface.hold_ms[1, -1] == pytest.approx(10.0, rel=0.1)


def test_bandwidth_saturates_before_all_sms_do() -> None:
    copy = Operator("memory", "copy", 0.0, 4e8, 4e8, 10**5, 1000)
    holds = forecast({1: graph(1, copy)}, V100, SHARES).surface.hold_ms[0]
    assert holds[2] == pytest.approx(holds[3], rel=0.01)
    assert holds[0] > 4 * holds[3]


def test_many_small_kernels_take_the_time_that_the_host_needs_to_launch_them() -> None:
    law = attrs.evolve(V100, host_launch_ms=0.05)
    surface = forecast({1: graph(1, product(1, 200))}, law, SHARES).surface
    assert surface.hold_ms[0, -1] == pytest.approx(200 * 0.05)
    assert surface.log_sigma[0, -1] == pytest.approx(np.hypot(SIGMA_GRAPH, SIGMA_HOST))


def test_errors_of_operators_do_not_average_out() -> None:
    law = Trained({"linear": 0.2, "conv": 0.2, "bmm": 0.9})
    one = forecast({1: graph(1, product(8))}, law, [100]).surface.log_sigma[0, 0]
    many = forecast({1: graph(1, *[product(8)] * 400)}, law, [100]).surface.log_sigma[0, 0]
    two = forecast({1: graph(1, product(8), product(8, family="conv"))}, law, [100]).surface.log_sigma[0, 0]
    assert one == many == pytest.approx(np.hypot(SIGMA_GRAPH, 0.2))
    assert SIGMA_GRAPH < two < one  # different families err apart, in part
    worse = forecast({1: graph(1, product(8), product(8, family="bmm"))}, law, [100]).surface.log_sigma[0, 0]
    assert worse > one


def test_the_state_says_what_stands_behind_it() -> None:
    graphs = {1: graph(1, product(8))}
    trained = Trained(dict.fromkeys(("linear", "conv", "bmm"), 0.2))
    assert forecast(graphs, trained, [50]).state == TRAINED
    plain = forecast(graphs, V100, [50])
    assert plain.state == ROOFLINE_ONLY
    assert plain.surface.log_sigma[0, 0] > SIGMA_ROOFLINE


def test_a_traced_graph_says_so_in_the_forecast() -> None:
    traced = OperatorGraph(2, (product(8),), source="traced", note="export failed: why")
    found = forecast({2: traced}, V100, [50])
    assert (found.sources, found.notes) == (("traced",), ("export failed: why",))


@pytest.mark.parametrize("shares", [[], [0], [101], [float("nan")]])
def test_bad_shares(shares: list[float]) -> None:
    with pytest.raises(InvalidRequestError, match="above 0 to 100"):
        forecast({1: graph(1, product(8))}, V100, shares)


@pytest.mark.parametrize("graphs", [{}, {1: OperatorGraph(1, ())}])
def test_empty_graphs_are_sent_to_few_shot_or_refused(graphs: dict[int, OperatorGraph]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        forecast(graphs, V100, [50])
    assert caught.value.reason == "EMPTY_GRAPH"


@pytest.mark.parametrize("wrong", [np.nan, -1.0, 0.0])
def test_a_law_that_gives_no_time_is_refused(wrong: float) -> None:
    class Wrong(Trained):
        def latency_ms(self, operators: Sequence[Operator], sm_percent: float) -> np.ndarray[Any, Any]:
            return np.full(len(operators), wrong)

    with pytest.raises(InvalidRequestError, match="no finite times"):
        forecast({1: graph(1, product(8))}, Wrong({"linear": 0.1}), [50])


def test_from_a_module_and_from_a_class_of_a_user() -> None:
    torch = pytest.importorskip("torch")

    class Wide:
        def __init__(self) -> None:
            self.net = torch.nn.Linear(256, 256)

        def __call__(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            with torch.inference_mode():
                return self.net(torch.from_numpy(x)).numpy()  # type: ignore[no-any-return]

    by_class = zero_shot_surface(Wide, (np.zeros((1, 256), np.float32),), "V100", [1, 64], SHARES, V100)
    by_module = zero_shot_surface(Wide().net, (torch.zeros(1, 256),), "V100", [1, 64], SHARES, V100)
    assert (by_class.sources, by_module.sources) == (("traced",), ("export",))
    assert np.allclose(by_class.surface.hold_ms, by_module.surface.hold_ms)


def test_without_trained_coefficients_and_on_a_cpu_there_is_the_roofline_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu = attrs.evolve(V100.description, name="cpu")
    assert law_of(cpu) == Roofline(cpu, 0.0)  # a CPU runs what it launches
    monkeypatch.setattr(coefficients, "SHIPPED", tmp_path / "none.npz")
    law = law_of(V100.description)
    assert not law.trained and law.host_launch_ms == HOST_LAUNCH_MS


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        zero_shot_surface(np.tanh, (np.zeros((1, 4)),), "V1000", [1], SHARES)
    assert caught.value.reason == "UNKNOWN_DEVICE"


def test_a_function_without_torch_is_refused_and_pointed_to_few_shot() -> None:
    pytest.importorskip("torch")
    with pytest.raises(InvalidRequestError, match="hasfaas profile") as caught:
        zero_shot_surface(np.tanh, (np.zeros((1, 4)),), "V100", [1], SHARES)
    assert caught.value.reason == "NOT_TORCH"


def test_the_plain_roofline_finds_vgg11_on_a_v100_within_what_it_promises(data: Path) -> None:
    torch = pytest.importorskip("torch")
    nn, widths = torch.nn, (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # 0 is a pool
    layers, inputs = [], 3
    with torch.device("meta"):  # no weights are needed for a graph
        for width in widths:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
        head = [nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
        vgg11 = nn.Sequential(*layers, nn.Flatten(), *head).eval()
        image = torch.zeros(1, 3, 224, 224)
    with (data / "v100" / "v100_latency_sm_quota_batch.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "vgg11" and row["quota_pct"] == "100"]
    measured_ms = {(int(row["batch"]), float(row["sm_pct"])): float(row["latency_ms"]) for row in rows}
    floor_ms = median(value for (batch, share), value in measured_ms.items() if batch == 1 and share >= 40)
    found = zero_shot_surface(vgg11, (image,), "V100", [1, 8], sorted({share for _, share in measured_ms}), V100)
    surface = found.surface
    bound = [cell for cell, value in measured_ms.items() if value > 2 * floor_ms and cell[0] in surface.batches]
    errors = [abs(surface.hold(*cell) / measured_ms[cell] - 1) for cell in bound]
    assert len(bound) > 15
    assert median(errors) < 0.35
    for cell in bound:
        assert surface.hold(*cell, quantile=0.05) < measured_ms[cell] < surface.hold(*cell, quantile=0.95)
