"""The polite limit, on the stand-in for CuPy and a fake torch: what is refused by whom, and one allocator for both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.devices import cuda_errors, cuda_memory
from hasfaas.devices.base import Failure
from tests.fakes import standin_cupy
from tests.fakes.torch_cuda import TOTAL_BYTES, FakeTorch

MIB = 1 << 20


@pytest.fixture
def cupy() -> Iterator[Any]:
    with standin_cupy.imported() as made:
        yield made


def test_the_context_is_subtracted() -> None:
    assert cuda_memory.usable_bytes(1024 * MIB) == 1024 * MIB - cuda_memory.CONTEXT_BYTES


@pytest.mark.parametrize("memory_bytes", [0, 64 * MIB, cuda_memory.CONTEXT_BYTES])
def test_memory_that_the_context_takes_whole_is_refused(memory_bytes: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"leaves nothing .* give the function more") as caught:
        cuda_memory.usable_bytes(memory_bytes)
    assert caught.value.reason == "MEMORY_TOO_SMALL"


def test_cupy_alone_is_bounded_by_its_pool(cupy: Any) -> None:
    cuda_memory.limit_cupy(cupy, 10 * MIB)
    kept = cupy.empty(8 * MIB, "u1")
    with pytest.raises(MemoryError) as caught:
        cupy.empty(4 * MIB, "u1")
    assert cuda_errors.failure(caught.value) is Failure.MEMORY
    del kept
    cupy.empty(10 * MIB, "u1")


def test_with_torch_both_share_one_limit_and_one_allocator(cupy: Any) -> None:
    torch = FakeTorch(cupy)
    cuda_memory.share_with_torch(cupy, torch, 10 * MIB)
    assert torch.fraction == 10 * MIB / TOTAL_BYTES
    stream = cupy.cuda.Stream(non_blocking=True).use()
    array = cupy.empty(8 * MIB, "u1")
    assert list(torch.allocated.values()) == [(8 * MIB, stream.ptr)]
    with pytest.raises(RuntimeError) as caught:
        torch.cuda.caching_allocator_alloc(4 * MIB, 0, stream.ptr)
    assert cuda_errors.failure(caught.value) is Failure.MEMORY
    with pytest.raises(RuntimeError, match="out of memory"):
        cupy.empty(4 * MIB, "u1")
    del array
    assert torch.allocated == {}
    cupy.empty(4 * MIB, "u1")


def test_what_cupy_held_before_torch_came_counts(cupy: Any) -> None:
    cuda_memory.limit_cupy(cupy, 10 * MIB)
    kept = cupy.empty(6 * MIB, "u1")
    torch = FakeTorch(cupy)
    cuda_memory.share_with_torch(cupy, torch, 10 * MIB)
    assert torch.fraction == 4 * MIB / TOTAL_BYTES
    del kept


def test_a_limit_above_what_there_is_is_all_of_it(cupy: Any) -> None:
    torch = FakeTorch(cupy)
    cuda_memory.share_with_torch(cupy, torch, 2 * TOTAL_BYTES)
    assert torch.fraction == 1.0


@pytest.mark.parametrize("told_bytes", [20 * MIB, TOTAL_BYTES])
@pytest.mark.parametrize("property_bytes", [20 * MIB, TOTAL_BYTES])
def test_whichever_total_torch_counts_by_it_is_not_bounded_below_the_limit(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, told_bytes: int, property_bytes: int
) -> None:
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (told_bytes, told_bytes))
    torch = FakeTorch(cupy)
    torch.total_bytes = property_bytes
    cuda_memory.share_with_torch(cupy, torch, 10 * MIB)
    assert torch.fraction is not None
    assert min(torch.fraction * told_bytes, torch.fraction * property_bytes) == 10 * MIB


def test_the_real_cupy_takes_the_allocator() -> None:
    """Without a driver it cannot allocate; that the class is there and is made so can be seen."""
    real = pytest.importorskip("cupy")
    made = real.cuda.PythonFunctionAllocator(lambda size, device: 0, lambda pointer, device: None)
    assert callable(made.malloc) and callable(real.cuda.set_allocator)
