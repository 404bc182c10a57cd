"""Points are measured in a replica of their own on every backend, by the arguments of a call or by given ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hasfaas import InvalidRequestError, NotFoundError
from hasfaas.testing.apps import batches
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.running import RunningBackend
from hasfaas.wire.payload import encode_arguments

AT = [(1, 100.0, 100.0), (8, 100.0, 50.0)]


def figures(backend: RunningBackend, name: str, **asked: Any) -> list[Any]:
    async def gathered() -> list[Any]:
        news = backend.client.profile(name, **asked)
        return [each.measured async for each in news if each.WhichOneof("news") == "measured"]

    return backend.client.run(gathered())


class ProfileVerbs(Area):
    """`profile`, and what is measured."""

    def test_points_of_a_batched_function_are_measured(self, backend: RunningBackend) -> None:
        batches.sums.deploy(warm=False)
        with pytest.raises(InvalidRequestError, match="no arguments to be measured with"):
            figures(backend, "batches.sums", at=AT)
        given = figures(backend, "batches.sums", at=AT, arguments=encode_arguments((np.ones(3),), {}))
        assert batches.sums.remote(np.ones(3))["sum"] == 3.0
        remembered = figures(backend, "batches.sums", at=AT)
        for found in (given, remembered):
            assert [(one.point.batch, one.point.quota_percent) for one in found] == [(1, 100.0), (8, 50.0)]
            assert all(one.hold_ms > 0 and one.runs >= 1 for one in found)
            # Half of the time is no longer its own.
            assert found[1].response_ms > 1.3 * found[1].hold_ms
        assert not [r for r in backend.function("batches.sums").replicas if r.state == "profiling"]
        with pytest.raises(NotFoundError, match="unprofiled"):
            backend.client.run(backend.client.profile_of("batches.sums"))
