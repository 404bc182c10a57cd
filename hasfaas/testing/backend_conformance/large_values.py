"""Values that travel in shared memory: whoever holds one keeps it as it was, and nobody loses one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hasfaas.testing.apps import large
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.load import Load
from hasfaas.testing.running import RunningBackend

MIB = 1 << 17  # float64 values


class LargeValues(Area):
    """Arrays that do not fit into a message."""

    def test_results_that_are_kept_do_not_change(self, backend: RunningBackend) -> None:
        kept = [large.filled.remote(MIB, float(i)) for i in range(12)]
        kept[0] += 100.0
        for i in range(12, 20):
            large.filled.remote(MIB, float(i))
        assert [(float(one.min()), float(one.max())) for one in kept] == [
            (100.0, 100.0),
            *((i, i) for i in range(1, 12)),
        ]

    def test_arguments_that_user_code_keeps_do_not_change(self, backend: RunningBackend) -> None:
        for i in range(8):
            sums = large.Keeper.remote(np.full(MIB, float(i)))
        assert sums == [float(i) * MIB for i in range(8)]

    def test_a_call_that_runs_again_finds_its_arguments_as_they_were(
        self, backend: RunningBackend, tmp_path: Path
    ) -> None:
        array = np.zeros(8 * MIB)
        assert large.bumped.remote(array, str(tmp_path / "died")) == (1.0, 1.0)
        assert not array.any()
        assert backend.function("large.bumped").calls.redispatched == 1

    def test_no_result_is_lost_while_replicas_come_and_go(self, backend: RunningBackend) -> None:
        large.filled.deploy()
        with Load(lambda: large.filled.remote(MIB, 1.0), width=4) as load:
            for _ in range(8):
                large.filled.scale(replicas=2)
                large.filled.scale(replicas=1)
        assert not load.errors
        assert load.done > 8

    def test_killed_replicas_lose_no_large_result(self, backend: RunningBackend) -> None:
        large.filled_again.deploy()
        seen: set[int] = set()
        for index, result in enumerate(large.filled_again.map([MIB] * 60, map(float, range(60)), max_in_flight=4)):
            assert float(result[-1]) == index
            if index in (10, 25, 40):
                pids = {one.pid for one in backend.replicas("large.filled_again")} - seen
                seen |= pids
                for pid in pids:
                    backend.kill_process(pid)
        assert seen
