"""What a GPU really gives to this process, found out by kernels on it: its SMs, clock, bandwidth, FLOP/s, launch latency.

    python -m hasfaas.devices.probes census|all [--hold]    one line of JSON; with --hold it stays until its input closes

Everything goes through CuPy, on the current device, context and stream, and is timed by the device's events. Nothing is
imported or started before a probe is called. Not yet run on a GPU.

Laws: the SMs counted are a lower bound while neighbours fill some of them; bandwidth and FLOP/s are what this process gets
beside whatever else runs, so calibrate on a GPU that is idle otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from hasfaas.core.errors import BackendError, HasFaasError
from hasfaas.devices import kernels

# An SM of sm_70 to sm_120 holds at most 32 blocks (CUDA programming guide, compute capabilities). That many one-thread
# blocks for each SM, all spinning, can only be resident together if every SM has some: the count does not rest on how
# blocks are spread.
BLOCKS_PER_SM = 32
# Long against the launch of all blocks (tens of microseconds) and a step of the nanosecond timer (about 1 us): 150 to
# 300 us at 2 to 1 GHz. A tenth of the SMs takes ten waves of it.
SPIN_CYCLES = 300_000

RUNS = 7
"""Timed runs of which the median counts."""
WARM_S = 0.2
"""Load before the first timed run: an idle GPU takes a while to raise its clock."""
TRIAD_LAUNCHES = 10
# Each of the three arrays is at least four times the L2 cache, so a run finds next to nothing of the last one there.
TRIAD_L2S, TRIAD_BYTES_MIN = 4, 64 << 20
TRIAD_SCALE = 0.5
FMA_LAUNCHES = 4
FMA_BLOCKS_PER_SM = 96  # whole multiples of what an SM holds (4, 6 or 8 blocks of 256 threads)
FMA_ROUNDS = 2048
# The spin must outlast the host's work of queueing the launches; it is doubled until it does.
EMPTY_LAUNCHES, EMPTY_SPIN_CYCLES, EMPTY_TRIES = 256, 20_000_000, 24


@attrs.frozen
class Census:
    """`sms` SMs ran work of this process, their numbers are `sm_ids`, their clock meanwhile was `clock_mhz`. `device_sms` is
    what CUDA says the device has; a client of MPS may be told its own share instead (NVIDIA's MPS documentation)."""

    sms: int
    device_sms: int
    clock_mhz: float
    sm_ids: tuple[int, ...] = ()


# -- arithmetic -------------------------------------------------------------------------------------------------------


def counted(sm_ids: Sequence[int], cycles: Sequence[int], ns: Sequence[int], device_sms: int) -> Census:
    """The census of blocks: for each the SM it ran on, and how many clock cycles and nanoseconds it stayed.

    Raises BackendError (PROBE_FAILED) for no block, or a timer that stood still.
    """
    seen = tuple(sorted(set(sm_ids)))
    return Census(len(seen), device_sms, clock_mhz(cycles, ns), seen)


def clock_mhz(cycles: Sequence[int], ns: Sequence[int]) -> float:
    """The clock in MHz: the median over blocks of cycles per microsecond. Raises BackendError (PROBE_FAILED)."""
    rates = [1e3 * count / span for count, span in zip(cycles, ns, strict=True) if span > 0 and count > 0]
    if not rates:
        raise BackendError(
            f"census: the clocks of {len(ns)} blocks did not advance; the GPU's timer is not usable",
            reason="PROBE_FAILED",
        )
    return statistics.median(rates)


def triad_blocks(l2_bytes: int) -> int:
    """Blocks of one triad launch: the fewest that fill arrays larger than the cache by TRIAD_L2S."""
    return -(-max(TRIAD_L2S * l2_bytes, TRIAD_BYTES_MIN) // _TRIAD_BLOCK_BYTES)


def triad_bytes(blocks: int) -> int:
    """Bytes that one triad launch moves: two arrays read, one written."""
    return 3 * blocks * _TRIAD_BLOCK_BYTES


def fma_flops(blocks: int) -> int:
    """Floating-point operations of one launch: a multiply and an add for each step of each chain."""
    return 2 * kernels.CHAINS * FMA_ROUNDS * kernels.THREADS * blocks


_TRIAD_BLOCK_BYTES = kernels.THREADS * kernels.TRIAD_WIDTH * 16


# -- probes -----------------------------------------------------------------------------------------------------------


def census() -> Census:
    """Counts the SMs that this process is given, and their clock; takes a few ms once the kernel is compiled.

    Raises BackendError (PROBE_FAILED; NO_CUPY where CuPy is missing).
    """
    with _probing("census") as cupy:
        device_sms = _attribute(cupy, "MultiProcessorCount")
        blocks = BLOCKS_PER_SM * device_sms
        sm_ids, cycles, ns = _spun(cupy, blocks, SPIN_CYCLES).get().tolist()
        return counted(sm_ids, cycles, ns, device_sms)


def triad() -> float:
    """Bytes per second of the GPU's memory: a = b + s c over arrays that no cache holds. Needs 12 times the L2's size, at
    least 192 MiB, for as long as it runs. Raises BackendError."""
    with _probing("triad") as cupy:
        import numpy

        blocks = triad_blocks(_attribute(cupy, "L2CacheSize"))
        floats = blocks * _TRIAD_BLOCK_BYTES // 4
        a, b, c = (cupy.empty(floats, dtype=numpy.float32) for _ in range(3))
        for array in (b, c):
            array.data.memset(_PATTERN, array.nbytes)  # a number, and no kernel to compile for it
        cupy.cuda.runtime.deviceSynchronize()  # memset is on the null stream, for which a non-blocking one does not wait
        kernel, scale = _kernel(cupy, "triad"), numpy.float32(TRIAD_SCALE)
        seconds = _median_s(cupy, lambda: kernel((blocks,), (kernels.THREADS,), (a, b, c, scale)), TRIAD_LAUNCHES)
        value = numpy.frombuffer(bytes([_PATTERN] * 4), numpy.float32)[0]
        _must_hold("triad", float(a[-1:].get()[0]), float(value * (1 + scale)))
        return triad_bytes(blocks) / seconds


_PATTERN = 0x3F  # the float whose every byte is this, 0.747


def fma(sms: int | None = None) -> float:
    """fp32 operations per second of fused multiply-adds on the `sms` of this process (None: counted first). Raises
    BackendError."""
    sms = census().sms if sms is None else sms
    with _probing("fma") as cupy:
        import numpy

        blocks = FMA_BLOCKS_PER_SM * sms
        out = cupy.empty(blocks * kernels.THREADS, dtype=numpy.float32)
        arguments = (out, numpy.float32(0.5), numpy.float32(1.0), numpy.int32(FMA_ROUNDS))
        kernel = _kernel(cupy, "multiply_add")
        seconds = _median_s(cupy, lambda: kernel((blocks,), (kernels.THREADS,), arguments), FMA_LAUNCHES)
        # x -> x / 2 + 1 has come to rest at 2 in every chain.
        _must_hold("fma", float(out[-1:].get()[0]), 2.0 * kernels.CHAINS)
        return fma_flops(blocks) / seconds


def launch() -> float:
    """Microseconds that the shortest kernel takes on the device, one after another and all queued in advance: without the
    host's part. Raises BackendError where the host never queues fast enough."""
    with _probing("launch") as cupy:
        stream, kernel = cupy.cuda.get_current_stream(), _kernel(cupy, "nothing")
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        kernel((1,), (1,), ())
        spin, found = EMPTY_SPIN_CYCLES, list[float]()
        for _ in range(EMPTY_TRIES):
            kept = _spun(cupy, 1, spin)  # alive until the stream is done with it
            begin.record(stream)
            for _ in range(EMPTY_LAUNCHES):
                kernel((1,), (1,), ())
            queued = not begin.done
            end.record(stream)
            end.synchronize()
            del kept
            if queued:
                found.append(1e3 * cupy.cuda.get_elapsed_time(begin, end) / EMPTY_LAUNCHES)
            else:
                spin *= 2
            if len(found) == RUNS:
                return statistics.median(found)
        raise BackendError(
            f"probe launch: the host queued {EMPTY_LAUNCHES} kernels before the device needed them {len(found)} times in "
            f"{EMPTY_TRIES}; run it on a host with less load",
            reason="PROBE_FAILED",
        )


def everything() -> dict[str, Any]:
    """All probes, as the command line prints them: figures in units that their names end with. The clock is that under load:
    counted last."""
    sms = census().sms
    figures = {"launch_us": launch(), "triad_bytes_per_s": triad(), "fma_flops_per_s": fma(sms)}
    with _probing("all") as cupy:
        memory_bytes = int(cupy.cuda.runtime.memGetInfo()[1])
        l2_bytes = _attribute(cupy, "L2CacheSize")
        cupy.get_default_memory_pool().free_all_blocks()
    return {**_shown(census()), **figures, "l2_bytes": l2_bytes, "memory_bytes": memory_bytes}


# -- through CuPy -----------------------------------------------------------------------------------------------------


@contextmanager
def _probing(probe: str) -> Iterator[Any]:
    """Gives CuPy. What it raises becomes BackendError: its errors share no class below Exception."""
    try:
        import cupy
    except ImportError as exc:
        raise BackendError(
            f"probe {probe}: CuPy cannot be imported ({exc}); pip install 'hasfaas[cuda]'", reason="NO_CUPY"
        ) from exc
    try:
        yield cupy
    except HasFaasError:
        raise
    except Exception as exc:
        raise BackendError(
            f"probe {probe}: {type(exc).__name__}: {exc}; `hasfaas doctor` looks at the driver, MPS and permissions",
            reason="PROBE_FAILED",
        ) from exc


def _kernel(cupy: Any, name: str) -> Any:
    # CuPy keeps the binary, in memory and on disk: compiled once on a machine.
    return cupy.RawModule(code=kernels.SOURCE, options=kernels.OPTIONS).get_function(name)


def _attribute(cupy: Any, name: str) -> int:
    runtime = cupy.cuda.runtime
    return int(runtime.deviceGetAttribute(getattr(runtime, f"cudaDevAttr{name}"), runtime.getDevice()))


def _spun(cupy: Any, blocks: int, cycles: int) -> Any:
    """Launches the census kernel: its rows are SM, cycles and nanoseconds of each block."""
    import numpy

    seen = cupy.empty((3, blocks), dtype=numpy.int64)
    _kernel(cupy, "census")((blocks,), (1,), (seen, numpy.int64(cycles)))
    return seen


def _median_s(cupy: Any, launch: Callable[[], object], launches: int) -> float:
    """Seconds of one launch: of `launches` in a row between two events, the median over RUNS, after WARM_S of load."""
    stream = cupy.cuda.get_current_stream()
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    warm_until_s = time.monotonic() + WARM_S
    while time.monotonic() < warm_until_s:
        launch()
        stream.synchronize()
    found = list[float]()
    for _ in range(RUNS):
        launch()  # the device is busy with it while the host queues those that count
        begin.record(stream)
        for _ in range(launches):
            launch()
        end.record(stream)
        end.synchronize()
        found.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3 / launches)
    return statistics.median(found)


def _must_hold(probe: str, found: float, expected: float) -> None:
    if abs(found - expected) > 1e-5 * abs(expected):
        raise BackendError(
            f"probe {probe}: the last element is {found}, not {expected}: the kernel did not do its work, and its figure "
            "would be wrong; this is a bug of hasfaas or a broken GPU",
            reason="PROBE_FAILED",
        )


# -- command line -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line of JSON; on failure one line on standard error, and 1."""
    parser = argparse.ArgumentParser(prog="python -m hasfaas.devices.probes", description="Measures the GPU.")
    parser.add_argument("probe", choices=("census", "all"))
    parser.add_argument("--hold", action="store_true", help="stay, with the context open, until standard input closes")
    given = parser.parse_args(arguments)
    try:
        context_ms = _context_ms()
        figures = _shown(census()) if given.probe == "census" else everything()
    except HasFaasError as exc:
        print(f"{exc.reason}: {exc.message}", file=sys.stderr)
        return 1
    print(json.dumps({**figures, "context_ms": context_ms}), flush=True)
    if given.hold:
        sys.stdin.read()
    return 0


def _context_ms() -> float:
    """Milliseconds to open this process's CUDA context; freeing nothing is the call that does only that."""
    with _probing("context") as cupy:
        began = time.perf_counter()
        cupy.cuda.runtime.free(0)
        return 1e3 * (time.perf_counter() - began)


def _shown(found: Census) -> dict[str, Any]:
    return attrs.asdict(found)


if __name__ == "__main__":
    sys.exit(main())
