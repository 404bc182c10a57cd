"""A replica with nothing to run holds nothing."""

from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import pytest

from hasfaas import CancelledError, FunctionError
from hasfaas.testing.apps import steady
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.running import RunningBackend
from hasfaas.testing.waiting import eventually


class Leases(Area):
    """What is over holds neither its lane nor its arguments."""

    def test_a_queued_call_that_is_cancelled_leaves_no_lease_behind(self, backend: RunningBackend) -> None:
        steady.again.remote(1)
        running, queued = steady.again.spawn(1, 400), steady.again.spawn(2, 400)
        eventually(lambda: backend.function("steady.again").replicas[0].in_flight == 2)
        queued.cancel()
        running.cancel()
        with pytest.raises(CancelledError):
            queued.result(timeout_s=20)
        eventually(lambda: backend.function("steady.again").replicas[0].in_flight == 0)

        def gains() -> int:
            before = backend.function("steady.again").replicas[0].usage.used_ns
            time.sleep(0.2)
            return int(backend.function("steady.again").replicas[0].usage.used_ns) - before

        eventually(lambda: gains() == 0)

    def test_arguments_of_a_failed_call_die_with_its_error(self, backend: RunningBackend) -> None:
        steady.fails_on.deploy()
        gc.collect()
        gc.disable()
        try:
            array = np.ones(1000)
            gone = weakref.ref(array)
            with pytest.raises(FunctionError):
                steady.fails_on.remote(array)
            del array
            eventually(lambda: gone() is None, timeout_s=10.0)
        finally:
            gc.enable()
