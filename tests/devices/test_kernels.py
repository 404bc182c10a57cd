"""Every probe kernel compiles for every architecture from Volta on, and holds the work that the host counts. No GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hasfaas.devices import kernels

nvrtc: Any = pytest.importorskip("cupy", reason="CuPy is not installed: no kernel was compiled").cuda.nvrtc
ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)


def _compiled(architecture: str) -> Any:
    try:
        known = nvrtc.getSupportedArchs()
    except (RuntimeError, ImportError) as exc:  # the library is found at this first use
        pytest.skip(f"NVRTC is not installed ({exc}): no kernel was compiled")
    if int(architecture.partition("_")[2]) not in known:
        pytest.skip(f"this NVRTC {nvrtc.getVersion()} does not know {architecture}: not compiled for it")
    program = nvrtc.createProgram(kernels.SOURCE, "probes.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*kernels.OPTIONS, f"-arch={architecture}"))
    except nvrtc.NVRTCError as exc:
        raise AssertionError(nvrtc.getProgramLog(program)) from exc
    return program


@pytest.fixture(scope="module")
def parts() -> dict[str, str]:
    """The PTX of each kernel by its name."""
    text = nvrtc.getPTX(_compiled("compute_80"))
    text = text.decode() if isinstance(text, bytes) else text
    return {part.partition("(")[0]: part for part in text.split(".visible .entry ")[1:]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles(architecture: int) -> None:
    binary = nvrtc.getCUBIN(_compiled(f"sm_{architecture}"))
    for name in kernels.NAMES:
        assert f".text.{name}\0".encode() in binary


def test_a_kernel_that_does_not_compile_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SOURCE", kernels.SOURCE + "nonsense")
    with pytest.raises(AssertionError, match="nonsense"):
        _compiled("sm_80")


def test_the_kernels_are_those_that_are_named(parts: dict[str, str]) -> None:
    assert tuple(parts) == kernels.NAMES


def test_the_census_reads_the_device_and_cannot_be_moved(parts: dict[str, str]) -> None:
    read = re.findall(r"%(smid|globaltimer|clock64);", parts["census"])
    assert read == ["smid", "globaltimer", "clock64", "clock64", "globaltimer"]  # the timer encloses the clock
    assert parts["census"].count("st.global.u64") == 3


def test_the_triad_moves_what_the_host_counts(parts: dict[str, str]) -> None:
    moved = re.findall(r"(ld|st)\.global\S*v4\.f32", parts["triad"])
    assert moved == ["ld"] * 2 * kernels.TRIAD_WIDTH + ["st"] * kernels.TRIAD_WIDTH  # all loads before the first store
    assert not re.search(r"\bbra\b", parts["triad"])


def test_no_step_of_the_multiply_adds_is_folded(parts: dict[str, str]) -> None:
    unrolled = parts["multiply_add"].count("fma.rn.f32")
    assert unrolled == (16 + 1) * kernels.CHAINS  # the loop of 16 rounds, and one round for what 16 does not divide
    for name in ("triad", "multiply_add"):
        assert f".maxntid {kernels.THREADS}, 1, 1" in parts[name]
