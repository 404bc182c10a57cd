"""Lanes that functions share: a promise is a part of what a function needs, and a lane that is full is not the end of it."""

from __future__ import annotations

import pytest

from hasfaas.scaling.decision import AddReplica
from hasfaas.scaling.observation import Life
from hasfaas.scaling.scaler import HybridScaler
from hasfaas.scaling.settings import ScalerSettings
from tests.fakes.plant import Member, Plant, surface

# One replica of the share that is there carries it, with more than a full lane has left.
RPS = 6.0
POOLED = ScalerSettings(pooling=True)


def _full_lane() -> Plant:
    """The first function shares a lane with one, sized by hand, that has the rest of it; there is room for other lanes."""
    plant = Plant([surface(40.0), surface(40.0)], slo_ms=200.0, devices=1, batch_max=1, by_hand=[False, True])
    plant.members["mine"] = Member("mine", 0, 0, 0, 20.0, 25.0, 1, 0.0, Life.READY)
    plant.members["other"] = Member("other", 1, 0, 0, 20.0, 75.0, 1, 0.0, Life.READY)
    return plant


def _added(plant: Plant) -> list[AddReplica]:
    return [action for decision in plant.decisions for action in decision.actions if isinstance(action, AddReplica)]


@pytest.mark.parametrize("rps", [10.0, 20.0, 30.0, 40.0])
def test_batches_are_those_of_what_is_needed_not_of_what_is_promised(rps: float) -> None:
    def served(settings: ScalerSettings) -> Member:
        plant = Plant([surface(40.0)], slo_ms=200.0)
        plant.members["one"] = Member("one", 0, 0, 0, 20.0, 100.0, 1, 0.0, Life.READY)
        scaler = HybridScaler(settings)
        for _ in range(12):
            plant.step(scaler, [rps])
        return plant.members["one"]

    alone, pooled = served(ScalerSettings()), served(POOLED)
    assert pooled.quota_percent < alone.quota_percent
    assert pooled.batch >= alone.batch


def test_who_is_late_in_a_full_lane_gets_another_replica_elsewhere() -> None:
    plant, scaler = _full_lane(), HybridScaler(POOLED)
    for _ in range(12):
        plant.step(scaler, [RPS, 0.0], late=[1.0 if len(plant.of(0)) == 1 else 0.0, 0.0])
    first, *others = _added(plant)
    assert first.lane != 0
    assert first.sm_percent == 20.0
    assert "late" in first.reason
    assert not others  # one is waited for, and carries it
    assert len(plant.of(0)) == 2


def test_who_is_in_time_in_a_full_lane_lives_on_lent_time() -> None:
    plant, scaler = _full_lane(), HybridScaler(POOLED)
    for _ in range(12):
        plant.step(scaler, [RPS, 0.0])
    assert not _added(plant)
    assert "its lane has" in plant.decisions[-1].reason
