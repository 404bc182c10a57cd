"""The arithmetic of the probes, their order of work on a recorded CuPy, and the command line. What they find on a GPU is
checked there: `pytest -m gpu`."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import BackendError
from hasfaas.devices import kernels, probes
from hasfaas.devices.probes import Census, clock_mhz, counted

# -- arithmetic

BLOCKS = st.lists(st.tuples(st.integers(0, 143), st.integers(300_000, 310_000)), min_size=1, max_size=300)


@given(BLOCKS, st.integers(200, 3_000))
def test_the_census_counts_distinct_sms_and_the_clock(blocks: list[tuple[int, int]], mhz: int) -> None:
    sm_ids = [sm for sm, _ in blocks]
    cycles = [count for _, count in blocks]
    ns = [1024 * round(1e3 * count / mhz / 1024) for count in cycles]  # as a timer that steps in 1.024 us tells it
    found = counted(sm_ids, cycles, ns, 144)
    assert (found.sms, found.device_sms) == (len(set(sm_ids)), 144)
    assert found.sm_ids == tuple(sorted(set(sm_ids)))
    step = 512 / (1e3 * min(cycles) / mhz)  # half a step of the shortest stay
    assert abs(found.clock_mhz / mhz - 1) <= step / (1 - step) + 1e-9


@given(st.lists(st.integers(1, 10**9), min_size=1), st.integers(1, 1000))
def test_the_clock_does_not_depend_on_how_long_blocks_stay(ns: list[int], per_ns: int) -> None:
    assert clock_mhz([per_ns * span for span in ns], ns) == pytest.approx(1e3 * per_ns)


def test_one_block_that_was_interrupted_does_not_move_the_clock() -> None:
    assert clock_mhz([300_000] * 5, [200_000] * 4 + [90_000_000]) == pytest.approx(1500)
    assert clock_mhz([300_000] * 3, [200_000, 0, 200_000]) == pytest.approx(1500)  # a timer read backwards or not moved


@pytest.mark.parametrize(("cycles", "ns"), [([], []), ([300_000], [0]), ([0], [100])])
def test_a_timer_that_stands_still_is_an_error(cycles: list[int], ns: list[int]) -> None:
    with pytest.raises(BackendError) as raised:
        counted([0] * len(ns), cycles, ns, 8)
    assert raised.value.reason == "PROBE_FAILED"


@given(st.integers(0, 2**28))
def test_no_array_of_the_triad_fits_the_cache_and_none_is_much_larger_than_it_must_be(l2_bytes: int) -> None:
    each = probes.triad_bytes(probes.triad_blocks(l2_bytes)) // 3
    least = max(4 * l2_bytes, 64 * 2**20)
    assert least <= each < least + kernels.THREADS * kernels.TRIAD_WIDTH * 16


def test_work_that_is_counted() -> None:
    assert probes.triad_bytes(1) == 3 * 256 * 4 * 4 * 4
    assert probes.fma_flops(1) == 256 * 8 * 2048 * 2


# -- on a recorded CuPy

SMS, CYCLES_PER_NS = 20, 1.5
FLOPS_PER_S, BYTES_PER_S, EMPTY_S = 20e12, 1e12, 2e-6


@attrs.define(eq=False)
class Machine:
    """Device time and the order of what was done; the host takes `host_s` to queue a kernel."""

    host_s: float = 5e-6
    now_s: float = 0.0  # the host's time
    free_s: float = 0.0  # when the device has done all that was queued
    launched: list[tuple[str, int]] = attrs.field(factory=list)
    broken: str = ""

    def run(self, seconds: float) -> None:
        self.now_s += self.host_s
        self.free_s = max(self.now_s, self.free_s) + seconds

    def wait(self, until_s: float) -> None:
        self.now_s = max(self.now_s, until_s)


class Array:
    """Host memory that stands for the device's."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.host = np.zeros(shape if isinstance(shape, tuple) else 1, dtype)  # one element stands for a long array
        self.nbytes: int = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.data = types.SimpleNamespace(memset=self._memset)

    def _memset(self, value: int, size: int) -> None:
        assert size == self.nbytes
        self.host[:] = np.frombuffer(bytes([value]) * self.host.itemsize, self.host.dtype)

    def __getitem__(self, index: slice) -> Array:
        assert index == slice(-1, None)
        return self

    def get(self) -> Any:
        return self.host


def _kernel(machine: Machine, name: str) -> Callable[..., None]:
    def census(blocks: int, seen: Array, spin: Any) -> float:
        assert isinstance(spin, np.int64)
        assert seen.host.shape == (3, blocks)
        seen.host[:] = [[index % SMS for index in range(blocks)], [spin] * blocks, [spin / CYCLES_PER_NS] * blocks]
        return int(spin) / CYCLES_PER_NS / 1e9

    def triad(blocks: int, a: Array, b: Array, c: Array, scale: Any) -> float:
        assert isinstance(scale, np.float32)  # a plain float would be passed as a double
        assert a.nbytes == b.nbytes == c.nbytes == blocks * 256 * 4 * 16
        a.host[:] = b.host + scale * c.host
        return 3 * a.nbytes / BYTES_PER_S

    def multiply_add(blocks: int, out: Array, scale: Any, shift: Any, rounds: Any) -> float:
        assert (type(scale), type(shift), type(rounds)) == (np.float32, np.float32, np.int32)
        assert out.nbytes == blocks * 256 * 4
        out.host[:] = 8 * shift / (1 - scale)
        return 2 * 8 * int(rounds) * blocks * 256 / FLOPS_PER_S

    def nothing(blocks: int) -> float:
        return EMPTY_S

    bodies: dict[str, Callable[..., float]] = {
        "census": census,
        "triad": triad,
        "multiply_add": multiply_add,
        "nothing": nothing,
    }
    body = bodies[name]

    def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        assert block == ((256,) if name in ("triad", "multiply_add") else (1,))
        machine.launched.append((name, grid[0]))
        machine.run(0.0 if name == machine.broken else body(grid[0], *arguments))
        if name == machine.broken:
            arguments[0].host[:] = 0

    return launch


def _cupy(machine: Machine) -> Any:
    """The few calls of CuPy that the probes make: a recording, not CuPy."""

    class Event:
        def __init__(self) -> None:
            self.at_s = 0.0

        def record(self, stream: object) -> None:
            assert stream is current
            self.at_s = max(machine.free_s, machine.now_s)

        @property
        def done(self) -> bool:
            return machine.now_s >= self.at_s

        def synchronize(self) -> None:
            machine.wait(self.at_s)

    class RawModule:
        def __init__(self, code: str, options: tuple[str, ...]) -> None:
            assert (code, options) == (kernels.SOURCE, kernels.OPTIONS)

        def get_function(self, name: str) -> Callable[..., None]:
            return _kernel(machine, name)

    current = types.SimpleNamespace(synchronize=lambda: machine.wait(machine.free_s))
    attributes = {1: SMS, 2: 6 * 2**20}
    runtime = types.SimpleNamespace(
        cudaDevAttrMultiProcessorCount=1,
        cudaDevAttrL2CacheSize=2,
        getDevice=lambda: 3,
        deviceGetAttribute=lambda attribute, device: attributes[attribute] if device == 3 else 0,
        free=lambda pointer: None,
        deviceSynchronize=lambda: machine.wait(machine.free_s),
        memGetInfo=lambda: (1, 16 * 10**9),
    )
    cuda = types.SimpleNamespace(
        runtime=runtime,
        Event=Event,
        get_current_stream=lambda: current,
        get_elapsed_time=lambda begin, end: 1e3 * (end.at_s - begin.at_s),
    )
    pool = types.SimpleNamespace(free_all_blocks=lambda: None)
    return types.SimpleNamespace(
        cuda=cuda, RawModule=RawModule, empty=Array, get_default_memory_pool=lambda: pool, __name__="cupy"
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setitem(sys.modules, "cupy", _cupy(made))
    monkeypatch.setattr(probes, "WARM_S", 0.0)
    return made


def test_a_census_is_one_launch_of_one_thread_blocks_that_fill_every_sm(machine: Machine) -> None:
    assert probes.census() == Census(SMS, SMS, pytest.approx(1500), tuple(range(SMS)))  # type: ignore[arg-type]
    assert machine.launched == [("census", 32 * SMS)]


def test_bandwidth_and_flops_are_work_over_device_time(machine: Machine) -> None:
    assert probes.triad() == pytest.approx(BYTES_PER_S, rel=1e-6)
    assert probes.fma(sms=5) == pytest.approx(FLOPS_PER_S, rel=1e-6)
    assert ("multiply_add", 5 * 96) in machine.launched


def test_the_host_is_not_in_the_figures(machine: Machine) -> None:
    machine.host_s = 50e-6  # a quarter of what one triad takes
    assert probes.triad() == pytest.approx(BYTES_PER_S, rel=1e-6)


def test_a_launch_is_timed_behind_a_spin_that_outlasts_the_host(machine: Machine) -> None:
    assert probes.launch() == pytest.approx(EMPTY_S * 1e6, rel=1e-6)
    machine.host_s = 200e-6  # 256 launches take 51 ms, the first spin 13 ms
    assert probes.launch() == pytest.approx(EMPTY_S * 1e6, rel=1e-6)
    spins = [index for index, (name, _) in enumerate(machine.launched) if name == "census"]
    assert len(spins) == 7 + 7 + 2  # seven that count each time, two that were too short


def test_a_host_that_never_keeps_up_is_an_error(machine: Machine) -> None:
    machine.host_s = 1e6
    with pytest.raises(BackendError, match="less load") as raised:
        probes.launch()
    assert raised.value.reason == "PROBE_FAILED"


@pytest.mark.parametrize(("kernel", "probe"), [("triad", probes.triad), ("multiply_add", probes.fma)])
def test_a_kernel_that_did_not_do_its_work_gives_no_figure(
    machine: Machine, kernel: str, probe: Callable[[], float]
) -> None:
    machine.broken = kernel
    with pytest.raises(BackendError, match="did not do its work"):
        probe()


def test_what_cupy_raises_is_typed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class CompileException(Exception):
        """As CuPy's: below Exception alone."""

    def refuse(**_: object) -> None:
        raise CompileException("no such architecture")

    monkeypatch.setattr(sys.modules["cupy"], "RawModule", refuse)
    with pytest.raises(BackendError, match=r"CompileException: no such architecture.*hasfaas doctor") as raised:
        probes.census()
    assert raised.value.reason == "PROBE_FAILED"
    assert isinstance(raised.value.__cause__, CompileException)


def test_without_cupy_the_cure_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it raises ImportError
    with pytest.raises(BackendError, match="pip install") as raised:
        probes.census()
    assert raised.value.reason == "NO_CUPY"


# -- command line


def test_all_prints_one_line(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert probes.main(["all"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["sms"] == found["device_sms"] == SMS
    assert found["launch_us"] == pytest.approx(2, rel=1e-6)
    assert found["triad_bytes_per_s"] == pytest.approx(BYTES_PER_S, rel=1e-6)
    assert found["fma_flops_per_s"] == pytest.approx(FLOPS_PER_S, rel=1e-6)
    assert (found["l2_bytes"], found["memory_bytes"]) == (6 * 2**20, 16 * 10**9)
    assert found["clock_mhz"] == pytest.approx(1500)
    assert found["context_ms"] >= 0
    assert machine.launched[-1][0] == "census"  # the clock is that under load


def test_census_prints_one_line_and_holds_until_its_input_closes(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def until_closed() -> str:
        read.append(capsys.readouterr().out)  # what was out by then
        return ""

    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(read=until_closed))
    assert probes.main(["census"]) == 0
    assert read == []
    assert set(json.loads(capsys.readouterr().out)) == {"sms", "device_sms", "clock_mhz", "sm_ids", "context_ms"}
    assert probes.main(["census", "--hold"]) == 0
    assert json.loads(read[0])["sms"] == SMS


def test_importing_the_probes_imports_no_library() -> None:
    code = "import sys, hasfaas.devices.probes; print(sorted({'cupy', 'numpy', 'torch', 'pynvml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_a_process_without_a_driver_says_why_in_one_line() -> None:
    runtime = pytest.importorskip("cupy").cuda.runtime
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError:
        pass
    else:
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "hasfaas.devices.probes", "census"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("PROBE_FAILED: probe context: CUDARuntimeError")
