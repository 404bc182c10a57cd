"""What a fleet keeps of each deployed function and of each of its replicas."""

from __future__ import annotations

import asyncio
from pathlib import Path

import attrs

from hasfaas.backends.bench import Bench
from hasfaas.backends.nodes import Replica
from hasfaas.core.errors import HasFaasError
from hasfaas.core.state import ReplicaState
from hasfaas.node.lanes import Want
from hasfaas.serving.channel import ReplicaChannel
from hasfaas.serving.ports import FunctionRecord
from hasfaas.wire.frames import Started

# Of a function's cold start, how much its latest one counts.
LATEST_SHARE = 0.3


@attrs.define(eq=False)
class Member:
    """A replica, from its start to its end. `batch` is the greatest batch that a scaler lets it have, None its function's."""

    deployed: Deployed
    record: FunctionRecord
    want: Want
    process: Replica
    ready: asyncio.Future[None]
    state: ReplicaState = ReplicaState.STARTING
    channel: ReplicaChannel | None = None
    batch: int | None = None
    # Serves no calls: it was started to be measured.
    bench: Bench | None = None
    # What it told when it became ready.
    started: Started | None = None

    @property
    def live(self) -> bool:
        """Whether it serves, or will."""
        return self.state in (ReplicaState.STARTING, ReplicaState.READY)


@attrs.define(eq=False)
class Deployed:
    """A function by its name. `starting` counts starts under way; `cold_start_s` is what its own took, 0 before one."""

    record: FunctionRecord
    wanted: int
    members: dict[str, Member] = attrs.field(factory=dict)
    starting: int = 0
    failures: int = 0
    failure: HasFaasError | None = None
    retry_at_s: float = 0.0
    cold_start_s: float = 0.0
    # Since when its calls have waited for room that more nodes may bring; None while they do not.
    short_since_s: float | None = None
    logs: list[tuple[str, Path]] = attrs.field(factory=list)

    def serves(self) -> bool:
        """Whether any replica is ready."""
        return any(member.state is ReplicaState.READY for member in self.members.values())

    def started(self, took_s: float) -> None:
        """A replica has become ready after so long."""
        before_s = self.cold_start_s or took_s
        self.cold_start_s = before_s + LATEST_SHARE * (took_s - before_s)
