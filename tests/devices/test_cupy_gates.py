"""CuPy's raw kernels and graphs behind a gate: the real CuPy as far as it goes without a driver, and the stand-in."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hasfaas.devices.cupy_gates import CupyGates
from tests.fakes import standin_cupy

CODE = 'extern "C" __global__ void f() {}'
Install = Callable[[Any], list[str]]


@pytest.fixture
def install() -> Iterator[Install]:
    """Gates in a CuPy, as long as the test lasts; what they noted."""
    made: list[CupyGates] = []

    def installed(cupy: Any) -> list[str]:
        noted: list[str] = []
        made.append(CupyGates(cupy, lambda: noted.append("gate")))
        made[-1].install()
        return noted

    yield installed
    for gates in made:
        gates.uninstall()


@pytest.fixture
def real() -> Any:
    return pytest.importorskip("cupy")


@pytest.fixture
def standin() -> Iterator[Any]:
    with standin_cupy.imported() as cupy:
        yield cupy


def test_a_kernel_of_the_real_cupy_is_gated_and_still_one_of_its_own(real: Any, install: Install) -> None:
    plain = real.RawKernel
    noted = install(real)
    kernel = real.RawKernel(CODE, "f", options=("-DX",), backend="nvrtc")
    assert isinstance(kernel, plain)
    assert (kernel.name, kernel.code, kernel.options, kernel.backend) == ("f", CODE, ("-DX",), "nvrtc")
    assert type(kernel).__name__ == "RawKernel" and type(kernel).__doc__ == plain.__doc__
    if not real.is_available():
        with pytest.raises(RuntimeError, match="InsufficientDriver"):
            kernel((1,), (1,), ())
        assert noted == ["gate"]  # before CuPy asked for a device


def test_a_module_of_the_real_cupy_is_one_of_its_own(real: Any, install: Install) -> None:
    plain = real.RawModule
    install(real)
    module = real.RawModule(code=CODE, options=("-DX",))
    assert isinstance(module, plain) and module.code == CODE
    with pytest.raises(TypeError, match="Exactly one"):
        real.RawModule()


def test_a_kernel_that_a_bundle_brings_is_gated(real: Any, install: Install) -> None:
    blob = pickle.dumps(real.RawKernel(CODE, "f"))
    install(real)
    found = pickle.loads(blob)
    assert type(found) is real.RawKernel and found.name == "f"
    again = pickle.loads(pickle.dumps(found))
    assert type(again) is real.RawKernel


def test_a_kernel_made_of_anothers_state_is_the_same_kernel(real: Any, install: Install) -> None:
    """How functions of a module become gated ones."""
    plain = real.RawKernel(CODE, "f", options=("-DX",), enable_cooperative_groups=True)
    install(real)
    made = real.RawKernel.__new__(real.RawKernel)
    made.__setstate__(plain.__getstate__())
    assert made.__getstate__() == plain.__getstate__()


@pytest.mark.parametrize("home", ["cupy", "cupy._core", "cupy._core.raw"])
def test_uninstalling_leaves_no_trace_in_the_real_cupy(real: Any, home: str) -> None:
    module = importlib.import_module(home)
    before = dict(vars(module))
    streams = dict(vars(real.cuda.stream._BaseStream))
    gates = CupyGates(real, lambda: None)
    gates.install()
    assert module.RawKernel is not before["RawKernel"]
    assert vars(real.cuda.stream._BaseStream)["end_capture"] is not streams["end_capture"]
    gates.uninstall()
    assert dict(vars(module)) == before
    assert dict(vars(real.cuda.stream._BaseStream)) == streams


def test_a_launch_comes_after_its_gate(standin: Any, install: Install) -> None:
    noted = install(standin)
    seen: list[list[str]] = []
    standin.standin.define("f", 0.0, lambda: seen.append(list(noted)))
    stream = standin.cuda.Stream(non_blocking=True).use()
    standin.RawKernel(CODE, "f")((1,), (1,), ())
    stream.synchronize()
    standin.RawModule(code=CODE).get_function("f")((1,), (1,), ())
    stream.synchronize()
    assert seen == [["gate"], ["gate", "gate"]]
    assert standin.standin.launches() == 2


def test_a_graph_is_launched_as_one_unit(standin: Any, install: Install) -> None:
    done: list[int] = []
    noted = install(standin)
    stream = standin.cuda.Stream(non_blocking=True).use()
    stream.begin_capture()
    standin.standin.launch(1, lambda: done.append(1))
    standin.standin.launch(1, lambda: done.append(2))
    graph = stream.end_capture()
    assert noted == [] and len(graph.work) == 2  # what the graph itself has is still to be had
    graph.launch()
    graph.launch(stream)
    stream.synchronize()
    assert noted == ["gate"] * 2
    assert done == [1, 2, 1, 2]


def test_a_gate_that_raises_keeps_the_kernel_from_running(standin: Any) -> None:
    def refuse() -> None:
        raise KeyboardInterrupt

    gates = CupyGates(standin, refuse)
    gates.install()
    kernel = standin.RawKernel(CODE, "f")
    with pytest.raises(KeyboardInterrupt):
        kernel((1,), (1,), ())
    assert standin.standin.launches() == 0
    gates.uninstall()
