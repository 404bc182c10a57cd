"""What a scaler decides: a list of actions, each with a reason that a person can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError

Array = np.ndarray[Any, Any]


def _has_reason(_instance: object, _attribute: attrs.Attribute[str], value: str) -> None:
    if not value.strip():
        raise InvalidRequestError("an action needs a reason that a person can read", reason="BAD_ACTION")


@attrs.frozen
class Resize:
    """Another quota, in place. It carries no SM share: that is fixed when a process starts."""

    replica_id: str
    quota_percent: float
    reason: str = attrs.field(validator=_has_reason)


@attrs.frozen
class Rebatch:
    """Another greatest batch for a replica: the router obeys it from its next batch on."""

    replica_id: str
    batch: int
    reason: str = attrs.field(validator=_has_reason)


@attrs.frozen
class AddReplica:
    """A new replica of `function` in lane number `lane` of `device`. A lane that nobody is in is made, with `sm_percent`; one
    that exists has that share."""

    function: str
    device: str
    lane: int
    sm_percent: float
    quota_percent: float
    batch: int
    reason: str = attrs.field(validator=_has_reason)


@attrs.frozen
class DrainReplica:
    """No further calls for a replica; it ends once it has answered those it holds."""

    replica_id: str
    reason: str = attrs.field(validator=_has_reason)


Action = Resize | Rebatch | AddReplica | DrainReplica


@attrs.frozen(eq=False)
class Decision:
    """What to do now, in this order: quotas that shrink come before those that grow, so that no lane is ever over-committed.

    `reason` is about the decision as a whole ("warming up", "steady"). `next_tick_s` is when to be asked again.
    `diagnostics` holds columns, one entry a function in the order of the observation: what was forecast and chosen.
    """

    actions: tuple[Action, ...]
    reason: str
    next_tick_s: float
    diagnostics: Mapping[str, Array] = attrs.field(factory=dict)
