"""What every backend keeps: verbs, errors, batches, streams, quotas in place, lanes, large values, bad input, restarts.

A test module of one's own claims it by one fixture and one class:

    @pytest.fixture(scope="module")
    def running() -> Iterator[RunningBackend]:
        with started("mine") as made:
            yield made

    class TestMine(BackendConformance):
        pass

The suite asks for one device of one lane, of kind `sim`, or `cpu` with one core, and that replicas can write to the folders
of the tests. A part of it is any of the areas below. Tests see a backend through its client alone, and its processes through
three methods of `RunningBackend`.
"""

from __future__ import annotations

from hasfaas.testing.backend_conformance.bad_input import BadInput
from hasfaas.testing.backend_conformance.batch_contract import BatchContract
from hasfaas.testing.backend_conformance.call_verbs import CallVerbs
from hasfaas.testing.backend_conformance.failing_code import FailingCode
from hasfaas.testing.backend_conformance.large_values import LargeValues
from hasfaas.testing.backend_conformance.leases import Leases
from hasfaas.testing.backend_conformance.profile_verbs import ProfileVerbs
from hasfaas.testing.backend_conformance.quota_shares import QuotaShares
from hasfaas.testing.backend_conformance.restarts import Restarts
from hasfaas.testing.backend_conformance.shared_init import SharedInit
from hasfaas.testing.backend_conformance.stream_verbs import StreamVerbs
from hasfaas.testing.running import RunningBackend, settings_in, started

__all__ = [
    "BackendConformance",
    "BadInput",
    "BatchContract",
    "CallVerbs",
    "FailingCode",
    "LargeValues",
    "Leases",
    "ProfileVerbs",
    "QuotaShares",
    "Restarts",
    "RunningBackend",
    "SharedInit",
    "StreamVerbs",
    "settings_in",
    "started",
]


class BackendConformance(
    CallVerbs,
    StreamVerbs,
    BatchContract,
    FailingCode,
    BadInput,
    LargeValues,
    SharedInit,
    Leases,
    QuotaShares,
    ProfileVerbs,
    Restarts,
):
    """The whole contract."""
