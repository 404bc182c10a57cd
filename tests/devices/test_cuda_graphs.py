"""Graphs of a fake torch: cut where gates are reached in a capture, and played with a gate before each segment."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from hasfaas.devices.cuda_graphs import GraphGates
from tests.fakes import standin_cupy
from tests.fakes.torch_cuda import FakeTorch


@pytest.fixture
def torch() -> Iterator[FakeTorch]:
    with standin_cupy.imported() as cupy:
        yield FakeTorch(cupy)


@pytest.fixture
def gates(torch: FakeTorch) -> Iterator[GraphGates]:
    made = GraphGates(torch, lambda: torch.log.append("gate"))
    made.install()
    yield made
    made.uninstall()


def test_a_graph_without_gates_is_one_unit(torch: FakeTorch, gates: GraphGates) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.captured(graph):
        torch.launch("a")
        torch.launch("b")
    assert torch.log == []
    graph.replay()
    graph.replay()
    assert torch.log == ["gate", "a", "b"] * 2


def test_a_capture_is_cut_at_each_gate_and_replayed_in_order(torch: FakeTorch, gates: GraphGates) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.captured(graph, capture_error_mode="thread_local"):
        for name in ("a", "b", "c"):
            gates.cut()
            torch.launch(name)
    graph.replay()
    # The first gate came before anything was launched: an empty segment.
    assert torch.log == ["gate", "gate", "a", "gate", "b", "gate", "c"]


def test_segments_share_the_pool_the_mode_and_the_stream_of_their_graph(torch: FakeTorch, gates: GraphGates) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.captured(graph, pool="mine", capture_error_mode="relaxed"):
        torch.launch("a")
        gates.cut()
        torch.launch("b")
    (segment,) = gates._segments[graph]
    assert (graph.pool(), segment.pool(), segment.mode) == ("mine", "mine", "relaxed")
    assert segment.stream == graph.stream
    other = torch.cuda.CUDAGraph()
    with torch.captured(other):
        gates.cut()
        torch.launch("c")
    assert {other.pool(), gates._segments[other][0].pool()} == {other.pool()} != {"mine"}


def test_an_empty_segment_is_no_reason_to_warn_and_an_empty_graph_is(torch: FakeTorch, gates: GraphGates) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.captured(torch.cuda.CUDAGraph()):
            gates.cut()
            gates.cut()
    with pytest.warns(UserWarning, match="is empty"), torch.captured(torch.cuda.CUDAGraph()):
        pass


def test_a_graph_that_is_kept_whole_is_not_cut(torch: FakeTorch, gates: GraphGates) -> None:
    for graph in (torch.cuda.CUDAGraph(keep_graph=True), torch.cuda.CUDAGraph(True)):
        with torch.captured(graph):
            torch.launch("a")
            gates.cut()
            torch.launch("b")
        assert graph.nodes == ["a", "b"]
        graph.replay()
    assert torch.log == ["gate", "a", "b"] * 2


def test_on_a_side_stream_of_the_capture_nothing_is_cut(torch: FakeTorch, gates: GraphGates) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.captured(graph):
        with torch.stream(torch.side_stream()):
            gates.cut()
        torch.launch("a")
    assert graph.nodes == ["a"]


def test_outside_of_a_capture_there_is_nothing_to_cut(torch: FakeTorch, gates: GraphGates) -> None:
    gates.cut()
    with torch.captured(torch.cuda.CUDAGraph()):
        torch.launch("a")
    gates.cut()
    assert torch.log == []


def test_side_streams_that_are_not_joined_are_an_error_that_says_so(torch: FakeTorch, gates: GraphGates) -> None:
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError) as caught, torch.stream(torch.side_stream()):
        graph.capture_begin()
        torch.launch("unjoined")
        gates.cut()
    assert "join side streams" in "".join(caught.value.__notes__)
    # The next capture is none the worse.
    with torch.captured(torch.cuda.CUDAGraph()):
        gates.cut()


def test_a_graph_that_is_reset_forgets_its_segments(torch: FakeTorch, gates: GraphGates) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.captured(graph):
        torch.launch("a")
        gates.cut()
        torch.launch("b")
    (segment,) = gates._segments[graph]
    graph.reset()
    assert not segment.ended
    with torch.captured(graph):
        torch.launch("c")
    graph.replay()
    assert torch.log == ["gate", "c"]


def test_uninstalling_leaves_no_trace(torch: FakeTorch) -> None:
    before = dict(vars(torch.cuda.CUDAGraph))
    gates = GraphGates(torch, lambda: torch.log.append("gate"))
    gates.install()
    assert dict(vars(torch.cuda.CUDAGraph)) != before
    gates.uninstall()
    assert dict(vars(torch.cuda.CUDAGraph)) == before


def test_the_methods_that_are_replaced_are_those_of_torch_itself() -> None:
    """On a torch without CUDA the class is there, with the methods in Python and none of what is below them."""
    real = pytest.importorskip("torch")
    before = dict(vars(real.cuda.CUDAGraph))
    gates = GraphGates(real, lambda: None)
    gates.install()
    replaced = {name for name, plain in gates._plain.items() if plain is not None}
    gates.uninstall()
    assert replaced == {"capture_begin", "capture_end", "replay", "reset"}
    assert dict(vars(real.cuda.CUDAGraph)) == before
