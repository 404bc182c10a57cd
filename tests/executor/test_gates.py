"""Gates in torch modules: placed by measurement, invisible in the results, and gone when they are taken back."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from hasfaas.devices.base import HostTimer  # noqa: E402
from hasfaas.executor.gates import PROFILED_CALLS, Calibration, calibrate, find_modules  # noqa: E402

pytestmark = pytest.mark.alone
MS = 1_000_000


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class ManualClock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class CountingGate:
    """Counts its calls; each one waits `wait_ms` on the clock."""

    def __init__(self, clock: ManualClock | None = None, wait_ms: float = 0.0) -> None:
        self.calls = 0
        self.clock = clock
        self.wait_ms = wait_ms

    def __call__(self) -> None:
        self.calls += 1
        if self.clock is not None:
            self.clock.now_ns += round(self.wait_ms * MS)


CLOCK = ManualClock()


class Work(nn.Module):
    """Takes a known time by the manual clock."""

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms

    def forward(self, x: Any, *, scale: float = 1.0) -> Any:
        CLOCK.now_ns += round(self.ms * MS)
        return x * scale


def works(*ms: float) -> nn.Sequential:
    return nn.Sequential(*map(Work, ms))


def watched(gate: CountingGate, **modules: nn.Module) -> Calibration:
    calibration = Calibration(gate, timer=HostTimer(CLOCK))
    calibration.watch(modules)
    return calibration


def doors(module: nn.Module) -> list[str]:
    """The submodules whose instance has a forward of its own."""
    return [name for name, inner in module.named_modules() if "forward" in vars(inner)]


def gates_of(calibration: Calibration) -> list[str]:
    return [path for report in calibration.reports for path in report.gates or ()]


X = torch.ones(2)


# -- placement over three calls


def test_three_calls_place_the_gates_and_remove_the_rest() -> None:
    gate = CountingGate()
    model = works(0.6, 0.3, 0.4, 2.0, 0.1)
    calibration = watched(gate, model=model)
    assert calibration.state == "watching 0/3"
    for done in range(PROFILED_CALLS):
        assert len(doors(model)) == 6, "all are watched"
        model(X)
        assert gate.calls == (done + 1) * 6, "a watched call passes a gate before each module"
        if done < 2:
            assert calibration.state == f"watching {done + 1}/3"
    # 0.6 + 0.3 | 0.4 | 2.0 | 0.1
    assert gates_of(calibration) == ["model.2", "model.3", "model.4"]
    assert calibration.state == "calibrated: 3 gates, max distance 2.0 ms" and calibration.gates == 3
    assert doors(model) == ["2", "3", "4"]
    gate.calls = 0
    model(X)
    assert gate.calls == 3
    calibration.uninstall()
    assert doors(model) == [] and calibration.gates == 0
    model(X)
    assert gate.calls == 3


def test_a_short_module_keeps_nothing() -> None:
    model = works(0.2, 0.3)
    calibration = watched(CountingGate(), model=model)
    for _ in range(PROFILED_CALLS):
        model(X)
    assert doors(model) == [] and calibration.state == "calibrated: 0 gates, max distance 0.5 ms"


def test_the_minimum_of_the_calls_counts() -> None:
    model = works(0.3, 0.3)
    calibration = watched(CountingGate(), model=model)
    for slow in (9.0, 0.3, 7.0):
        vars(model[0])["ms"] = slow
        model(X)
    assert calibration.state == "calibrated: 0 gates, max distance 0.6 ms"


def test_time_spent_in_the_gate_is_subtracted_from_all_around_it() -> None:
    gate = CountingGate(CLOCK, wait_ms=50.0)
    model = nn.Sequential(works(0.4, 0.5), works(0.3, 0.9))
    calibration = watched(gate, model=model)
    for _ in range(PROFILED_CALLS):
        model(X)
    assert gates_of(calibration) == ["model.1.0", "model.1.1"]
    assert calibration.reports[0].max_distance_ms == pytest.approx(0.9)


def test_arguments_and_signature_pass_through() -> None:
    model = works(3.0, 3.0)
    before = inspect.signature(model[0].forward)
    calibration = watched(CountingGate(), model=model)
    assert inspect.signature(model[0].forward) == before
    assert model[0](X, scale=3.0).tolist() == [3.0, 3.0]
    for _ in range(PROFILED_CALLS):
        model(X)
    assert doors(model) == ["1"] and inspect.signature(model[1].forward) == before
    assert calibration.gates == 1


class Loop(nn.Module):
    """Calls one module several times, from itself and from a child that shares it."""

    def __init__(self, step: nn.Module, times: int) -> None:
        super().__init__()
        self.step, self.times = step, times

    def forward(self, x: Any) -> Any:
        for _ in range(self.times):
            x = self.step(x)
        return x


def test_a_module_called_in_a_loop_is_gated_at_each_call() -> None:
    gate = CountingGate()
    model = Loop(Work(0.4), 10)
    calibration = watched(gate, model=model)
    for _ in range(PROFILED_CALLS):
        model(X)
    assert calibration.state == "calibrated: 1 gates, max distance 0.4 ms"
    gate.calls = 0
    model(X)
    assert gate.calls == 10


def test_a_shared_module_is_gated_wherever_it_is_called() -> None:
    gate = CountingGate()
    shared = Work(0.8)
    model = nn.Sequential(Work(0.9), shared, Loop(shared, 2))
    calibration = watched(gate, model=model)
    for _ in range(PROFILED_CALLS):
        model(X)
    assert gates_of(calibration) == ["model.1"]
    gate.calls = 0
    model(X)
    assert gate.calls == 3


class Recursive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.work = Work(0.6)

    def forward(self, x: Any, depth: int = 3) -> Any:
        return self.work(x) if depth == 0 else self(self.work(x), depth=depth - 1)


def test_a_module_that_calls_itself() -> None:
    model = Recursive()
    calibration = watched(CountingGate(), model=model)
    for _ in range(PROFILED_CALLS):
        model(X)
    assert gates_of(calibration) == ["model.work"]
    calibration.uninstall()
    assert doors(model) == []


class Fragile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Work(2.0), Work(2.0)
        self.broken = False

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        if self.broken:
            raise ValueError("broken")
        return self.second(x)


def test_a_call_that_raises_is_not_measured() -> None:
    model = Fragile()
    calibration = watched(CountingGate(), model=model)
    for broken in (True, False, True, False, True):
        model.broken = broken
        try:
            model(X)
        except ValueError:
            assert broken
    assert calibration.state == "watching 2/3"
    model.broken = False
    model(X)
    assert gates_of(calibration) == ["model.second"]


def test_a_gate_that_raises_stops_the_call_and_nothing_else() -> None:
    class Cancelling(CountingGate):
        def __call__(self) -> None:
            super().__call__()
            if self.calls == 2:
                raise RuntimeError("cancelled")

    model = works(2.0, 2.0)
    calibration = watched(Cancelling(), model=model)
    with pytest.raises(RuntimeError, match="cancelled"):
        model(X)
    for _ in range(PROFILED_CALLS):
        model(X)
    assert gates_of(calibration) == ["model.1"]


def test_calls_from_another_thread_run_but_are_neither_gated_nor_measured() -> None:
    gate = CountingGate()
    model = works(2.0, 2.0)
    calibration = watched(gate, model=model)
    results: list[Any] = []

    def elsewhere() -> None:
        thread = threading.Thread(target=lambda: results.append(model(X)))
        thread.start()
        thread.join()

    elsewhere()
    assert gate.calls == 0 and calibration.state == "watching 0/3"
    for _ in range(PROFILED_CALLS):
        model(X)
    gate.calls = 0
    elsewhere()
    assert gate.calls == 0 and len(results) == 2 and torch.equal(results[1], X)


def test_a_module_that_is_never_called_is_left_alone() -> None:
    model = Fragile()
    model.unused = Work(5.0)
    watched(CountingGate(), model=model)
    for _ in range(PROFILED_CALLS):
        model(X)
    assert doors(model) == ["second"]


def test_a_layer_that_is_added_later_is_watched_too() -> None:
    model = works(2.0)
    calibration = watched(CountingGate(), model=model)
    model.append(Work(2.0))
    for _ in range(PROFILED_CALLS):
        model(X)
    assert gates_of(calibration) == ["model.1"]


# -- several modules


def test_each_module_that_is_called_from_outside_is_calibrated_by_itself() -> None:
    """As when a function calls two towers of a model, and never the model."""
    towers = nn.ModuleDict({"image": works(2.0, 2.0), "text": works(0.1, 3.0)})
    calibration = watched(CountingGate(), clip=towers)
    for _ in range(PROFILED_CALLS):
        towers["image"](X)
    towers["text"](X)
    assert calibration.state == ("clip.image: calibrated: 1 gates, max distance 2.0 ms; clip.text: watching 1/3")
    for _ in range(2):
        towers["text"](X)
    assert doors(towers) == ["", "image.1", "text.1"], "the whole, which nobody has called, still waits"


def test_two_modules_that_share_a_part_are_both_measured_in_full() -> None:
    part = works(2.0, 2.0)
    first, second = nn.Sequential(part, Work(2.0)), nn.Sequential(Work(2.0), part)
    calibration = watched(CountingGate(), first=first, second=second)
    for _ in range(PROFILED_CALLS):
        first(X)
    assert gates_of(calibration) == ["first.0.1", "first.1"]
    for _ in range(PROFILED_CALLS):
        assert calibration.reports[-1].gates is None or calibration.reports[-1].path == "first"
        second(X)
    assert sorted(set(gates_of(calibration))) == ["first.0.0", "first.0.1", "first.1"]
    assert doors(second) == ["1.0", "1.1"]
    calibration.uninstall()
    assert doors(first) == doors(second) == []


def test_a_part_that_was_called_alone_once_does_not_stay_watched() -> None:
    model = works(0.1, 0.1)
    calibration = watched(CountingGate(), model=model)
    model[1](X)
    for _ in range(PROFILED_CALLS):
        model(X)
    assert doors(model) == [] and calibration.state == "calibrated: 0 gates, max distance 0.2 ms"


def test_a_root_inside_another_root_does_not_keep_its_parts_watched() -> None:
    whole = nn.Sequential(works(0.1, 0.1), Work(0.1))
    calibration = watched(CountingGate(), whole=whole, part=whole[0])
    for _ in range(PROFILED_CALLS):
        whole(X)
    assert doors(whole) == [] and calibration.gates == 0


def test_a_short_module_that_one_invocation_calls_in_a_loop_is_gated() -> None:
    gate = CountingGate()
    model = works(0.1, 0.1)
    calibration = watched(gate, model=model)
    calibration.begin()
    for _ in range(PROFILED_CALLS):
        model(X)
    assert gates_of(calibration) == ["model"]
    gate.calls = 0
    for _ in range(5):
        model(X)
    assert gate.calls == 5

    model = works(0.1, 0.1)
    calibration = watched(gate, model=model)
    for _ in range(PROFILED_CALLS):
        calibration.begin()
        model(X)
    assert gates_of(calibration) == []


def test_watching_again_measures_afresh() -> None:
    model = works(0.1, 0.1)
    calibration = watched(CountingGate(), model=model)
    for _ in range(PROFILED_CALLS):
        model(X)
    assert calibration.gates == 0
    for work in model:
        vars(work)["ms"] = 4.0  # a larger batch
    calibration.watch({"model": model})
    assert calibration.state == "watching 0/3"
    for _ in range(PROFILED_CALLS):
        model(X)
    assert gates_of(calibration) == ["model.1"]


def test_nothing_to_watch() -> None:
    calibration = watched(CountingGate())
    assert calibration.state == "no torch modules" and calibration.reports == ()
    calibration.uninstall()


# -- what was there before


def test_a_forward_of_the_instance_is_put_back_as_it_was() -> None:
    model = works(2.0, 2.0)

    def mine(x: Any) -> Any:
        CLOCK.now_ns += 2 * MS
        return x + 1

    model[1].forward = mine
    calibration = watched(CountingGate(), model=model)
    for _ in range(PROFILED_CALLS):
        assert model(X).tolist() == [2.0, 2.0]
    calibration.uninstall()
    assert vars(model[1])["forward"] is mine and doors(model) == ["1"]


def test_whoever_wraps_a_door_keeps_his_wrapper() -> None:
    gate = CountingGate()
    model = works(2.0, 2.0)
    calibration = watched(gate, model=model)
    inner = model[1].forward

    def outer(x: Any) -> Any:
        return inner(x) + 1

    model[1].forward = outer
    for _ in range(PROFILED_CALLS):
        model(X)
    calibration.uninstall()
    gate.calls = 0
    assert model(X).tolist() == [2.0, 2.0] and vars(model[1])["forward"] is outer and gate.calls == 0
    calibration.watch({"model": model})
    assert model(X).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("calls", [1, PROFILED_CALLS], ids=["watching", "calibrated"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copied_module_calls_itself_and_has_no_gates(how: Callable[[Any], Any], calls: int) -> None:
    gate = CountingGate()
    model = works(2.0, 2.0)
    watched(gate, model=model)
    for _ in range(calls):
        model(X)
    twin = how(model)
    for work in twin:
        work.ms = 7.0
    gate.calls, start_ns = 0, CLOCK.now_ns
    assert torch.equal(twin(X), X)
    assert gate.calls == 0 and CLOCK.now_ns - start_ns == 14 * MS
    assert torch.equal(how(twin)(X), X)


def test_a_saved_module_needs_nothing_of_ours() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    watched(CountingGate(), model=model)
    file = io.BytesIO()
    torch.save(model, file)
    assert b"hasfaas" not in file.getvalue()


# -- real models


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2, padding=3)
        self.stages = nn.ModuleList([nn.Sequential(Block(32), Block(32)) for _ in range(3)])
        self.head = nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()


@pytest.mark.parametrize(
    ("model", "x"),
    [(ResNet().eval(), torch.rand(1, 3, 64, 64)), (encoder(), torch.rand(2, 16, 64))],
    ids=["resnet", "encoder"],
)
def test_outputs_are_bit_equal_with_and_without_gates(model: nn.Module, x: Any) -> None:
    gate = CountingGate()
    with torch.inference_mode():
        plain = model(x)
        calibration = calibrate({"model": model}, lambda: model(x), gate, target_ms=0.02)
        (report,) = calibration.reports
        assert report.gates and calibration.gates == len(report.gates) > 0
        gate.calls = 0
        assert torch.equal(model(x), plain)
        assert gate.calls == len(report.gates), "each gate is passed once"
        calibration.uninstall()
        assert doors(model) == []
        gate.calls = 0
        assert torch.equal(model(x), plain) and gate.calls == 0


def test_the_fused_transformer_path_is_kept() -> None:
    """On that path a layer does not call its children, so each layer is one unit."""
    model, x = encoder(), torch.rand(2, 16, 64)
    with torch.inference_mode():
        calibration = calibrate({"e": model}, lambda: model(x), CountingGate(), target_ms=0.001)
        assert gates_of(calibration) == ["e.layers.1", "e.layers.2", "e.layers.3"]
        calibration.uninstall()
    model.train()  # here it does
    calibration = calibrate({"e": model}, lambda: model(x), CountingGate(), target_ms=0.001)
    assert "e.layers.0.linear1" in gates_of(calibration)


def test_gradients_flow_through_doors() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    x = torch.rand(3, 4)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    calibrate({"m": model}, lambda: model(x), CountingGate(), target_ms=0.0001)
    model(x).sum().backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))


# -- compiled and scripted modules


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_module_is_one_unit() -> None:
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.rand(1, 4))
    model = nn.Sequential(nn.Linear(4, 4), scripted)
    x = torch.rand(1, 4)
    plain = model(x)
    calibration = calibrate({"m": model}, lambda: model(x), CountingGate(), target_ms=0.0001)
    assert gates_of(calibration) == ["m.1"]
    assert torch.equal(model(x), plain)
    calibration.uninstall()
    assert doors(model) == [] and torch.equal(model(x), plain)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.linear(x))


@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "module.compile"])
def test_a_compiled_module_is_one_unit_and_is_not_disturbed(in_place: bool) -> None:
    graphs: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(len(list(graph.graph.nodes)))
        return graph.forward

    inner: Any = Dense()
    if in_place:
        inner.compile(backend=backend, fullgraph=True)
    else:
        inner = torch.compile(inner, backend=backend, fullgraph=True)
    model = nn.Sequential(nn.Linear(4, 4), inner)
    x = torch.rand(1, 4)
    plain = model(x)
    before = dict(vars(inner))
    gate = CountingGate()
    calibration = calibrate({"m": model}, lambda: model(x), gate, target_ms=0.0001)
    assert gates_of(calibration) == ["m.1"]
    gate.calls = 0
    assert torch.equal(model(x), plain) and gate.calls == 1
    assert len(graphs) == 1, "nothing was compiled anew"
    calibration.uninstall()
    assert {k: v for k, v in vars(inner).items() if k in before} == before
    assert vars(inner).keys() == before.keys() and torch.equal(model(x), plain)


def test_a_compiler_does_not_see_the_doors() -> None:
    """A function that the user compiles whole may call a module that is watched."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    x = torch.rand(1, 4)
    plain = model(x)
    watched(CountingGate(), m=model)
    compiled = torch.compile(lambda y: model(y) + 1, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), plain + 1)


# -- finding the modules

GLOBAL = nn.Linear(1, 1)
HIDDEN = nn.Linear(1, 1)
UNUSED = nn.Linear(1, 1)


class Pipeline:
    def __init__(self) -> None:
        self.model = nn.Linear(1, 1)


PIPELINE = Pipeline()


def helper(x: Any) -> Any:
    return HIDDEN(x)


def uses_globals(x: Any) -> Any:
    def nested() -> Any:
        return GLOBAL(x)

    return nested() + helper(x) + PIPELINE.model(x)


def test_modules_of_a_function() -> None:
    assert find_modules(uses_globals, uses_globals) == {
        "GLOBAL": GLOBAL,
        "HIDDEN": HIDDEN,
        "PIPELINE.model": PIPELINE.model,
    }
    local, other = nn.Linear(1, 1), [nn.Linear(1, 1)]

    def closes_over(x: Any, default: Any = other) -> Any:
        return local(x)

    assert find_modules(closes_over, closes_over) == {"local": local, "default[0][0]": other[0]}
    bound = functools.partial(lambda m, x: m(x), local)
    assert list(find_modules(bound, bound).values()) == [local]


class Service:
    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(1, 1))
        self.heads = {"a": nn.Linear(1, 1)}
        self.stack = [nn.Linear(1, 1), "text"]
        self.pipeline = Pipeline()
        self.again = self.model
        self.me = self
        self.number = 3

    def decode(self, x: Any) -> Any:
        return HIDDEN(x)

    def __call__(self, x: Any) -> Any:
        return GLOBAL(self.model(x))


def test_modules_of_an_instance_and_its_methods() -> None:
    service = Service()
    found = find_modules(service, Service)
    assert found == {
        "self.model": service.model,
        "self.heads['a']": service.heads["a"],
        "self.stack[0]": service.stack[0],
        "self.pipeline.model": service.pipeline.model,
        "HIDDEN": HIDDEN,
        "GLOBAL": GLOBAL,
    }
    assert find_modules(service, service.__call__) == found


def test_an_instance_that_is_a_module_is_the_root() -> None:
    model = works(1.0)
    assert find_modules(model, type(model)) == {"self": model}


def test_strange_objects_are_survived() -> None:
    class Proxy:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("not here")

    class Odd:
        def __init__(self) -> None:
            self.proxy = Proxy()
            self.many = list(range(100_000))
            self.model = GLOBAL

    assert find_modules(Odd(), Odd)["self.model"] is GLOBAL


def test_torch_is_not_imported_to_look() -> None:
    code = (
        "import sys; from hasfaas.executor.gates import find_modules;"
        "assert find_modules(print, print) == {}; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Counting:
    """A device's clock that stands still while the host waits in a gate for it: marks count what was launched."""

    def __init__(self) -> None:
        self.device_ns = 0

    def mark(self) -> object:
        return self.device_ns

    def elapsed_ns(self, start: object, end: object) -> int:
        assert isinstance(start, int) and isinstance(end, int)
        return end - start


def test_on_an_asynchronous_device_what_the_host_waits_in_gates_is_the_devices_work() -> None:
    """Layers of 6 ms are launched at once; a gate waits for the one before. By the host's clock they take no time."""
    timer = Counting()

    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            timer.device_ns += 6_000_000
            return x

    model = nn.Sequential(*(Layer() for _ in range(10)))
    calibration = Calibration(CountingGate(), timer=timer)
    calibration.watch({"model": model})
    for _ in range(PROFILED_CALLS):
        calibration.begin()
        model(torch.zeros(1))
    [report] = calibration.reports
    assert report.gates is not None and len(report.gates) == 9
    assert report.max_distance_ms == pytest.approx(6.0)


def test_a_lease_that_is_renewed_in_a_gate_is_no_time_of_a_module() -> None:
    """The device is idle meanwhile, and its clock goes on."""
    timer = Counting()

    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            timer.device_ns += 400_000
            return x

    def gate() -> None:
        timer.device_ns += 50_000_000

    model = nn.Sequential(*(Layer() for _ in range(10)))
    calibration = Calibration(gate, timer=timer)
    calibration.watch({"model": model})
    for _ in range(PROFILED_CALLS):
        model(torch.zeros(1))
    [report] = calibration.reports
    assert report.max_distance_ms == pytest.approx(0.8)
