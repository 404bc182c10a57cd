"""Idle replicas make room for what is called; those that somebody asked to keep stay."""

from __future__ import annotations

import pytest

from hasfaas import PlacementError, function
from hasfaas.core.settings import DeviceSettings
from tests.live import gateway


def add(x: int, more: int = 1) -> int:
    return x + more


functions = [function(slo_ms=100, memory="128MiB", name=f"room.f{n}")(add) for n in range(3)]
kept = function(slo_ms=100, memory="128MiB", replicas=(1, 2), name="room.kept")(add)
giant = function(slo_ms=100, memory="512MiB", name="room.giant")(add)


def test_the_longest_idle_replica_makes_room() -> None:
    with gateway(DeviceSettings(kind="sim", memory="300MiB")) as made:
        made.use()
        first, second, third = functions
        assert (first.remote(1), second.remote(1), first.remote(2)) == (2, 2, 3)
        assert third.remote(1) == 2
        assert [len(f.status().replicas) for f in functions] == [1, 0, 1]
        assert second.remote(5) == 6


def test_what_never_fits_evicts_nobody_and_what_is_kept_stays() -> None:
    with gateway(DeviceSettings(kind="sim", memory="300MiB")) as made:
        made.use()
        kept.deploy()
        first, second, _ = functions
        assert first.remote(1) == 2
        with pytest.raises(PlacementError, match="declare less memory"):
            giant.remote(1)
        assert len(first.status().replicas) == 1
        assert second.remote(1) == 2
        assert len(kept.status().replicas) == 1
        second.scale(replicas=1)
        with pytest.raises(PlacementError, match="hasfaas delete NAME"):
            first.remote(1)
