"""Arrays of the stand-in: numpy's, with an allocation of the device behind them and work queued for what they do."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._machine import SHORT_NS, machine
from ._memory import MemoryPointer, alloc
from .cuda import get_current_stream


class ndarray:
    """An array on the device. `get` waits for the stream, as CuPy's does."""

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.data: MemoryPointer = alloc(host.nbytes)
        self.data.host = host
        self.host = host

    @property
    def shape(self) -> tuple[int, ...]:
        """As numpy's."""
        return tuple(self.host.shape)

    @property
    def dtype(self) -> Any:
        """As numpy's."""
        return self.host.dtype

    @property
    def nbytes(self) -> int:
        """As numpy's."""
        return self.host.nbytes

    def get(self) -> np.ndarray[Any, Any]:
        """A copy on the host."""
        get_current_stream().synchronize()
        return self.host.copy()

    def __getitem__(self, key: Any) -> ndarray:
        view = object.__new__(ndarray)
        view.data, view.host = self.data, np.atleast_1d(self.host[key])
        return view

    def __add__(self, other: Any) -> ndarray:
        return _computed(lambda a, b: a + b, self, other)

    def __mul__(self, other: Any) -> ndarray:
        return _computed(lambda a, b: a * b, self, other)


def _computed(call: Any, left: ndarray, right: Any) -> ndarray:
    made = ndarray(np.empty_like(call(left.host, _host(right))))

    def work() -> None:
        made.host[...] = call(left.host, _host(right))

    machine.queue(get_current_stream().ptr).put(SHORT_NS, work)
    return made


def _host(value: Any) -> Any:
    return value.host if isinstance(value, ndarray) else value


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Not set."""
    return ndarray(np.empty(shape, dtype))


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    """Zeros."""
    return ndarray(np.zeros(shape, dtype))


def array(value: Any, dtype: Any = None) -> ndarray:
    """A copy on the device."""
    return ndarray(np.array(_host(value), dtype))


def asarray(value: Any, dtype: Any = None) -> ndarray:
    """On the device."""
    return value if isinstance(value, ndarray) and dtype is None else array(value, dtype)


def asnumpy(value: Any) -> Any:
    """On the host."""
    return value.get() if isinstance(value, ndarray) else np.asarray(value)
