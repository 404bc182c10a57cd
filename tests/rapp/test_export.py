"""Operator graphs: torch's own counter agrees, both ways of finding them agree, and nothing is left changed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hasfaas.core.errors import InvalidRequestError
from hasfaas.rapp.export import export_graph, graph_of_callable, graphs, scaled
from hasfaas.rapp.operator import FAMILIES, OperatorGraph
from tests.rapp.architectures import ARCHITECTURES

BATCH = 3
# Their matrix products copy the same, but torch's fused attention layer is only taken apart by export.
SAME_BOTH_WAYS = sorted(set(ARCHITECTURES) - {"torch encoder layer", "conditional"})


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    architecture = ARCHITECTURES[name]
    return architecture.make().eval(), architecture.arguments(BATCH)


def counted_by_torch(module: nn.Module, arguments: tuple[Any, ...]) -> int:
    """Torch's count. It knows neither oneDNN's recurrent layers (0 for an LSTM on a CPU), nor the CPU's fused attention,
    nor the fused encoder layer: all three are switched off, so that it sees the products that they are made of."""
    counter = FlopCounterMode(display=False)
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    torch.backends.mha.set_fastpath_enabled(False)
    onednn = torch.backends.mkldnn.flags(enabled=not recurrent)
    try:
        with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH), onednn:
            module(*arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flops_agree_with_torchs_own_counter(name: str) -> None:
    module, arguments = made(name)
    graph = export_graph(module, arguments, batch=BATCH)
    assert graph.product_flops == pytest.approx(counted_by_torch(module, arguments), rel=0.01)
    assert graph.source == ("traced" if name == "conditional" else "export")
    assert {operator.family for operator in graph.operators} <= set(FAMILIES)
    assert all(operator.bytes_written > 0 for operator in graph.operators)


@pytest.mark.parametrize("name", SAME_BOTH_WAYS)
def test_a_run_gives_the_graph_that_the_export_gave(name: str) -> None:
    module, arguments = made(name)
    exported = export_graph(module, arguments, batch=BATCH)
    traced = graph_of_callable(lambda *given: module(*given), arguments, BATCH)
    assert (exported.source, traced.source) == ("export", "traced")
    for key in ("flops", "bytes_moved", "kernels", "activation_bytes", "parameters"):
        assert getattr(exported, key) == getattr(traced, key), key


def test_torchs_counter_sees_no_lstm_and_the_formula_does() -> None:
    lstm, x = nn.LSTM(12, 16, batch_first=True), torch.randn(BATCH, 9, 12)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        lstm(x)
    by_hand = 2 * BATCH * 9 * 4 * 16 * (12 + 16)
    assert export_graph(lstm, (x,), batch=BATCH).product_flops == by_hand
    assert counter.get_total_flops() in (0, by_hand)


@pytest.mark.parametrize(
    ("layer", "by_hand"),
    [
        (nn.GRU(6, 10, bidirectional=True), 2 * 2 * 7 * 2 * 3 * 10 * (6 + 10)),
        (nn.RNN(6, 10, num_layers=2), 2 * 7 * 2 * 10 * (6 + 10 + 10 + 10)),
        (nn.LSTM(6, 10, proj_size=4), 2 * 7 * 2 * (4 * 10 * (6 + 4) + 10 * 4)),
    ],
)
def test_recurrent_layers_by_hand(layer: nn.Module, by_hand: int) -> None:
    x = torch.randn(7, 2, 6)  # steps first
    assert export_graph(layer, (x,), batch=2).product_flops == by_hand
    assert graph_of_callable(lambda given: layer(given), (x,), 2).product_flops == by_hand


def test_packed_sequences_count_their_real_steps() -> None:
    lstm = nn.LSTM(6, 10)
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 6), torch.randn(3, 6)])
    graph = graph_of_callable(lambda: lstm(packed), (), 2)
    assert graph.product_flops == pytest.approx(2 * 8 * 4 * 10 * (6 + 10))


@pytest.mark.parametrize(
    ("layer", "shape", "dimensions"),
    [
        (nn.Conv2d(4, 6, 3, stride=2), (4, 9, 9), (1, BATCH * 16, 36, 6)),
        (nn.Conv2d(4, 8, 3, groups=4), (4, 9, 9), (4, BATCH * 49, 9, 2)),
        (nn.Conv1d(4, 6, 5, padding="same"), (4, 9), (1, BATCH * 9, 20, 6)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 5, 5), (2, BATCH * 25, 2, 12)),
        (nn.Linear(5, 7), (2, 5), (1, BATCH * 2, 5, 7)),
    ],
)
def test_dimensions_of_products(layer: nn.Module, shape: tuple[int, ...], dimensions: tuple[int, ...]) -> None:
    graph = export_graph(layer, (torch.randn(BATCH, *shape),), batch=BATCH)
    [product] = [operator for operator in graph.operators if operator.family in ("conv", "linear")]
    assert (product.batch, product.rows, product.reduction, product.columns) == dimensions


def run(fn: Any, *arguments: Any) -> OperatorGraph:
    return graph_of_callable(fn, arguments, BATCH)


def test_views_are_free_and_copies_are_not() -> None:
    x = torch.randn(4, 6)
    viewed = run(lambda x: x.view(2, 2, 6).transpose(0, 2)[1:].unsqueeze(0) + 1, x)
    assert [operator.name for operator in viewed.operators] == ["add"]
    moved = run(lambda x: x.t().contiguous(), x)
    assert [operator.family for operator in moved.operators] == ["memory"]
    assert (moved.operators[0].bytes_read, moved.operators[0].bytes_written) == (96, 96)
    exported = export_graph(nn.Flatten(), (torch.randn(BATCH, 2, 2),), batch=BATCH)
    assert exported.kernels == 0


def test_bytes_of_single_operators() -> None:
    x, table = torch.randn(4, 6), torch.randn(1000, 8)
    [added] = run(lambda x: x + torch.ones(1, 1).expand(4, 6), x).operators[1:]
    assert (added.bytes_read, added.bytes_written) == (96 + 4, 96)  # an expanded axis lies in memory once
    [in_place] = run(lambda x: x.relu_(), x).operators
    assert (in_place.family, in_place.bytes_read, in_place.bytes_written) == ("elementwise", 96, 96)
    [gathered] = run(lambda i: nn.functional.embedding(i, table), torch.arange(3)).operators
    assert (gathered.family, gathered.bytes_read) == ("memory", 3 * 8 * 4 + 3 * 8)
    [values] = run(lambda x: x.topk(2), x).operators
    assert (values.family, values.bytes_written) == ("reduction", 4 * 2 * (4 + 8))
    [half] = run(lambda x: x @ x.t(), x.to(torch.bfloat16)).operators
    assert (half.element_bytes, half.bytes_read, half.bytes_written) == (2, 2 * 48, 4 * 4 * 2)
    [doubled] = run(lambda x: x + x, x).operators
    assert doubled.bytes_read == 96  # the same tensor is read once


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["resnet", "recurrent", "conditional", "decoder"])
def test_the_module_is_left_as_it_was(name: str, training: bool) -> None:
    module, arguments = made(name)
    module.train(training)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    attributes = [dict(vars(part)) for part in module.modules()]
    given = [argument.clone() for argument in arguments]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    export_graph(module, arguments, batch=BATCH)
    run(lambda *given: module(*given), *arguments)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    for part, kept in zip(module.modules(), attributes, strict=True):
        assert vars(part).keys() == kept.keys()
        assert all(vars(part)[key] is value for key, value in kept.items())
    assert all(type(p) is nn.Parameter and p.requires_grad and p.grad is None for p in module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(arguments, given, strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[index]
    module(*arguments)


def test_attributes_that_a_run_sets_are_put_back() -> None:
    runs: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.runs, self.seen = 0, list[int]()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            runs.append(self.runs)
            self.runs += 1
            self.seen.append(int(x.sum().item()))
            self.cache = x
            return x * self.layer.bias

    module = Counting()
    graph = export_graph(module, (torch.randn(BATCH, 4),), batch=BATCH)
    assert graph.source == "traced"
    assert (module.runs, module.seen, hasattr(module, "cache")) == (0, [], False)
    assert runs == [0, 0]  # once by the export that failed, once traced, each from the start


def test_training_normalises_and_evaluation_only_scales() -> None:
    norm, x = nn.BatchNorm2d(4), torch.randn(BATCH, 4, 5, 5)
    families = [export_graph(norm.train(mode), (x,), batch=BATCH).operators[-1].family for mode in (True, False)]
    assert families == ["norm", "elementwise"]


def test_the_fallback_says_why() -> None:
    module, arguments = made("conditional")
    graph = export_graph(module, arguments, batch=BATCH)
    assert graph.source == "traced"
    assert "torch.export failed" in graph.note and "data-dependent" in graph.note


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x + 1
        out: torch.Tensor = torch.cond(x.sum() > 1e9, self.wide, lambda x: x * 2, (x,))
        return out


def test_of_two_branches_an_export_takes_the_costlier_and_a_run_the_one_it_took() -> None:
    module, x = Branching().eval(), torch.randn(BATCH, 8)
    exported = export_graph(module, (x,), batch=BATCH)
    assert (exported.source, exported.product_flops) == ("export", 2 * BATCH * 2 * 8 * 32)
    assert run(lambda x: module(x), x).product_flops == 0


def test_an_operator_that_is_not_torchs_own_is_told() -> None:
    @torch.library.custom_op("hasfaas_test::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    mystery.register_fake(torch.empty_like)
    graph = run(lambda x: mystery(x) + 1, torch.randn(4, 6))
    assert "hasfaas_test::mystery" in graph.note
    assert [operator.family for operator in graph.operators] == ["memory", "elementwise"]


def test_weights_are_read_once_a_launch() -> None:
    module, arguments = made("mlp")
    graph = export_graph(module, arguments, batch=BATCH)
    assert graph.parameters == sum(parameter.numel() for parameter in module.parameters())
    first = graph.operators[0]
    assert first.bytes_read == 4 * (BATCH * 40 + 40 * 80 + 80)


def test_what_can_neither_be_exported_nor_run_is_named_with_its_cause() -> None:
    with pytest.raises(
        InvalidRequestError, match=r"Linear.*torch.export failed.*running it.*shapes cannot be"
    ) as caught:
        export_graph(nn.Linear(3, 3), (torch.randn(2, 5),), batch=2)
    assert caught.value.reason == "GRAPH_FAILED"


# ---- callables, as users of hasfaas write them


class Classifier:
    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()

    def decode(self, pixels: bytes) -> np.ndarray[Any, Any]:
        return np.frombuffer(pixels, np.uint8).astype(np.float32)

    def __call__(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            return self.net(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]


class TwoModules(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.LSTM(10, 8)

    def __call__(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits = torch.from_numpy(super().__call__(images))
        with torch.no_grad():
            return self.second(logits[None])[0].numpy()  # type: ignore[no-any-return]


NET = nn.Linear(8, 8)


def embed(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.tanh(NET(torch.as_tensor(x, dtype=torch.float32)).numpy())  # type: ignore[no-any-return]


async def embed_later(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return embed(x)


def words(x: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    for _ in range(3):
        yield embed(x)


async def words_later(x: np.ndarray[Any, Any]) -> Any:
    yield embed(x)
    yield embed(x)


def test_classes_of_users_are_traced_as_a_whole() -> None:
    images = np.zeros((4, 64), np.float32)
    for fn in (Classifier, Classifier()):
        graph = graph_of_callable(fn, (images,), 4)
        assert graph.product_flops == 2 * 4 * (64 * 256 + 256 * 10)
        assert graph.parameters == 64 * 256 + 256 + 256 * 10 + 10
        assert [operator.family for operator in graph.operators] == ["linear", "elementwise", "linear"]
    both = graph_of_callable(TwoModules(), (images,), 4)
    assert both.product_flops == 2 * 4 * (64 * 256 + 256 * 10 + 4 * 8 * (10 + 8))
    assert both.source == "traced"


@pytest.mark.parametrize(("fn", "runs"), [(embed, 1), (embed_later, 1), (words, 3), (words_later, 2)])
def test_functions_coroutines_and_generators_run_to_their_end(fn: Any, runs: int) -> None:
    graph = graph_of_callable(fn, (np.zeros((2, 8)),), 2)
    assert graph.product_flops == runs * 2 * 2 * 8 * 8
    assert graph.parameters == 72


def test_a_function_without_torch_is_sent_to_few_shot() -> None:
    with pytest.raises(InvalidRequestError, match=r"runs no torch operator.*hasfaas profile") as caught:
        graph_of_callable(lambda x: np.tanh(x), (np.zeros(3),), 1)
    assert caught.value.reason == "NOT_TORCH"


def test_a_function_or_class_that_raises_is_named_with_its_cause() -> None:
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no CUDA here")

    with pytest.raises(InvalidRequestError, match=r"Broken.*ValueError: no CUDA here"):
        graph_of_callable(Broken, (), 1)
    with pytest.raises(InvalidRequestError, match=r"lambda.*ZeroDivisionError"):
        graph_of_callable(lambda x: 1 // 0, (np.zeros(3),), 1)


# ---- several batch sizes


def test_graphs_at_several_batch_sizes_from_one_example() -> None:
    module, arguments = made("convnet")
    found = graphs(module, arguments, [1, 2, 8])
    assert [graph.batch for graph in found.values()] == list(found) == [1, 2, 8]
    assert found[8].product_flops == 8 * found[1].product_flops
    drawn = graphs(module, lambda batch: torch.randn(batch, 3, 32, 32), [2])
    assert drawn[2] == found[2]


def test_a_class_is_made_once_for_all_batch_sizes() -> None:
    made: list[int] = []

    class Counted(Classifier):
        def __init__(self) -> None:
            super().__init__()
            made.append(1)

    assert list(graphs(Counted, (np.zeros((1, 64), np.float32),), [1, 2])) == [1, 2]
    assert made == [1]


def test_scaling_repeats_or_cuts_axis_0_of_what_is_as_long_as_the_first_array() -> None:
    first, mask = np.arange(6).reshape(2, 3), torch.ones(5, 5)
    x, kept, inner, number = scaled((first, mask, {"ids": torch.arange(2)}, 7), 5)
    assert x[:, 0].tolist() == [0, 3, 0, 3, 0]
    assert kept is mask and number == 7
    assert inner["ids"].tolist() == [0, 1, 0, 1, 0]
    assert scaled((first,), 1)[0].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("batches", [[], [0], [1.5], [True], [-1]])
def test_bad_batch_sizes(batches: list[Any]) -> None:
    with pytest.raises(InvalidRequestError, match="whole numbers from 1"):
        graphs(nn.Identity(), (torch.zeros(1),), batches)


def test_an_example_without_an_axis_to_scale() -> None:
    with pytest.raises(InvalidRequestError, match="function of the batch size"):
        graphs(nn.Identity(), (3, "text"), [1])
