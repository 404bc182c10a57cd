"""The code of docs/plugins.md does what the page says."""

from __future__ import annotations

import re
import time
import types

import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.devices.base import _OFFERS, DeviceRequest, DeviceSlice
from hasfaas.testing.backend_conformance import BackendConformance
from tests.live import ROOT

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "plugins.md").read_text(), re.MULTILINE | re.DOTALL)


def loaded(word: str) -> types.ModuleType:
    """The one block of code with this word, as a module."""
    [code] = [block for block in BLOCKS if word in block]
    module = types.ModuleType("shown")
    exec(compile(code, "docs/plugins.md", "exec"), vars(module))
    return module


def test_the_device_is_one_and_its_stream_is_in_order() -> None:
    worker = loaded("class WorkerStream")
    assert all(hasattr(worker, name) for name in _OFFERS)
    with pytest.raises(InvalidRequestError, match="a worker device has no option cores=2"):
        worker.inventory(DeviceRequest(options={"cores": 2}))
    [info] = worker.inventory(DeviceRequest(memory_bytes=1 << 20))
    assert worker.keeper(info).start() == info
    stream = worker.enter(DeviceSlice("worker0", "worker", 0, info.units, 100.0))
    assert stream.query(stream.record())
    events = []
    for _ in range(3):
        stream.launch(lambda: time.sleep(0.05))
        events.append(stream.record())
    assert not stream.query(events[2])
    stream.wait(events[1])
    assert stream.query(events[0]) and stream.query(events[1])
    stream.drain()
    assert stream.query(events[2])


def test_the_test_file_of_a_backend_is_the_whole_contract() -> None:
    shown = loaded("from hasfaas.testing")
    assert issubclass(shown.TestProjectBackend, BackendConformance)
    assert callable(shown.running)


def test_what_it_names_is_there() -> None:
    [skipped] = [block for block in BLOCKS if "pytest.mark.skip" in block]
    assert hasattr(BackendConformance, re.findall(r"def (test_\w+)", skipped)[0])
