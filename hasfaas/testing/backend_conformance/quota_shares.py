"""A saturated replica gets its quota of the lane's time, whatever is asked of it, and the quota changes in place."""

from __future__ import annotations

import pytest

from hasfaas import PlacementError
from hasfaas.testing.apps import shares
from hasfaas.testing.backend_conformance.area import Area
from hasfaas.testing.load import Load, used_share
from hasfaas.testing.running import RunningBackend
from hasfaas.testing.waiting import eventually

SECONDS = 1.5


def _during_calls(backend: RunningBackend, name: str, calls: int) -> list[float]:
    def look() -> tuple[int, int]:
        status = backend.status()
        [found] = [one for one in status.functions if one.name == f"shares.{name}"]
        return status.at_ns, found.replicas[0].usage.used_ns

    began_ns, before = look()
    assert list(getattr(shares, name).map(range(calls))) == list(range(calls))
    ended_ns, after = look()
    return [(after - before) / (ended_ns - began_ns)]


class QuotaShares(Area):
    """Quotas, lanes, lending, host work, replicas that come and go."""

    def test_the_used_share_follows_a_quota_that_changes_under_load(self, backend: RunningBackend) -> None:
        shares.spin.deploy()
        before = backend.replica("shares.spin")
        assert before.quota_percent == pytest.approx(100.0)
        with Load(shares.spin.remote, width=3) as load:
            found = {}
            for quota in (30, 70, 15):
                shares.spin.scale(quota=quota)
                eventually(lambda: load.done > 5)
                [found[quota]] = used_share(backend, ["shares.spin"], SECONDS)
        after = backend.replica("shares.spin")
        assert not load.errors
        assert (after.pid, after.replica_id) == (before.pid, before.replica_id)
        assert after.usage.throttled_ns > 0
        assert 0.20 < found[30] < 0.36, found
        assert 0.50 < found[70] < 0.76, found
        assert 0.08 < found[15] < 0.21, found

    def test_three_pinned_functions_share_one_lane(self, backend: RunningBackend) -> None:
        names = ["shares.spin", "shares.spin_two", "shares.spin_three"]
        functions = [shares.spin, shares.spin_two, shares.spin_three]
        for function in functions:
            function.deploy()
        for function, quota in zip(functions, (20, 20, 20), strict=True):
            function.scale(quota=quota)
        for function, quota in zip(functions, (50, 30, 20), strict=True):
            function.scale(quota=quota)
        assert len({backend.replica(name).lane for name in names}) == 1
        with pytest.raises(PlacementError, match=r"60 % does not fit.*at most 50 %") as caught:
            shares.spin.scale(quota=60)
        assert caught.value.reason == "QUOTA_EXCEEDED"
        assert [backend.replica(name).quota_percent for name in names] == [50, 30, 20]
        with (
            Load(shares.spin.remote, 3) as one,
            Load(shares.spin_two.remote, 3) as two,
            Load(shares.spin_three.remote, 3) as three,
        ):
            eventually(lambda: min(one.done, two.done, three.done) > 3)
            found = used_share(backend, names, SECONDS)
        assert not [*one.errors, *two.errors, *three.errors]
        for share, promised in zip(found, (0.5, 0.3, 0.2), strict=True):
            assert promised - 0.12 < share < promised + 0.06, found

    def test_a_full_lane_takes_nobody_more(self, backend: RunningBackend) -> None:
        shares.spin.deploy()
        shares.spin.scale(quota=100)
        with pytest.raises(PlacementError, match="no lane with room"):
            shares.spin_two.deploy()
        with pytest.raises(PlacementError, match="no lane with room"):
            shares.spin_three.remote()
        assert backend.replica("shares.spin").quota_percent == 100
        shares.spin.scale(quota=60)
        assert shares.spin_two.remote(1) > 0
        assert backend.replica("shares.spin_two").quota_percent == pytest.approx(40, abs=0.1)

    def test_neighbours_that_nobody_pinned_share_alike(self, backend: RunningBackend) -> None:
        shares.spin.deploy()
        shares.spin_two.deploy()
        assert backend.replica("shares.spin").quota_percent == pytest.approx(50, abs=0.1)
        backend.delete("shares.spin_two")
        eventually(lambda: backend.replica("shares.spin").quota_percent > 99)

    def test_another_sm_share_is_another_process(self, backend: RunningBackend) -> None:
        before = shares.spin.remote(1)
        shares.spin.scale(sm=50)
        after = backend.replica("shares.spin")
        assert after.pid == shares.spin.remote(1) != before
        assert after.sm_asked_percent == 50
        assert after.sm_granted_percent >= 50

    def test_replicas_come_and_go(self, backend: RunningBackend) -> None:
        first = shares.spin.remote(1)
        shares.spin.scale(replicas=2)
        assert len(backend.replicas("shares.spin")) == 2
        with Load(shares.spin.remote, width=4) as load:
            eventually(lambda: load.done > 40)
            assert len(set(shares.spin.map([4] * 60))) == 2
            shares.spin.scale(replicas=1)
        assert not load.errors
        assert backend.replica("shares.spin").pid == first
        shares.spin.scale(replicas=0)
        assert not backend.replicas("shares.spin")
        assert shares.spin.remote(1) != first

    @pytest.mark.parametrize("name", ["Decoding", "decoding"])
    def test_host_work_is_not_charged(self, backend: RunningBackend, name: str) -> None:
        """30 ms of decoding and about 5 of device work a call."""
        function = getattr(shares, name)
        function.remote(0)
        before = backend.function(f"shares.{name}")
        [share] = _during_calls(backend, name, calls=20)
        after = backend.function(f"shares.{name}")
        calls = after.calls.completed - before.calls.completed
        used_ms = (after.replicas[0].usage.used_ns - before.replicas[0].usage.used_ns) / calls / 1e6
        assert 3.0 < used_ms < 12.0
        assert share < 0.5

    def test_a_neighbour_runs_while_the_host_works(self, backend: RunningBackend) -> None:
        """A lane whose holder decodes is free: both together are faster than one after the other."""
        shares.Decoding.deploy()
        shares.spin.deploy()
        with Load(lambda: shares.Decoding.remote(1), 2) as decoding, Load(shares.spin.remote, 2) as spinning:
            eventually(lambda: decoding.done > 3 and spinning.done > 3)
            used = used_share(backend, ["shares.Decoding", "shares.spin"], SECONDS)
        assert not [*decoding.errors, *spinning.errors]
        assert used[0] < 0.35
        assert used[1] > 0.3

    def test_those_that_lend_use_what_nobody_is_entitled_to(self, backend: RunningBackend) -> None:
        names, functions = ["shares.spin", "shares.spin_two"], [shares.spin, shares.spin_two]
        for function, quota in zip(functions, (20, 30), strict=True):
            function.deploy()
            function.scale(quota=10)
            function.scale(quota=quota)
        with Load(shares.spin.remote, 3) as one, Load(shares.spin_two.remote, 3) as two:
            eventually(lambda: min(one.done, two.done) > 3)
            kept = used_share(backend, names, SECONDS)
            for function in functions:
                function.scale(lend=True)
            lent = used_share(backend, names, SECONDS)
            assert all(replica.lends for f in functions for replica in f.status().replicas)
            for function in functions:
                function.scale(lend=False)
            again = used_share(backend, names, SECONDS)
        assert not [*one.errors, *two.errors]
        assert sum(kept) < 0.58 and sum(again) < 0.62, (kept, again)
        assert sum(lent) > 0.85, lent
        assert all(share > quota - 0.08 for share, quota in zip(lent, (0.2, 0.3), strict=True)), lent

    def test_an_owner_that_returns_has_its_share_back_from_a_borrower(self, backend: RunningBackend) -> None:
        shares.spin.deploy()
        shares.spin_two.deploy()
        shares.spin.scale(quota=60)
        shares.spin_two.scale(quota=20, lend=True)
        with Load(shares.spin_two.remote, 3) as borrower:
            eventually(lambda: borrower.done > 3)
            [alone] = used_share(backend, ["shares.spin_two"], SECONDS)
            with Load(shares.spin.remote, 3) as owner:
                eventually(lambda: owner.done > 3)
                together = used_share(backend, ["shares.spin", "shares.spin_two"], SECONDS)
        assert alone > 0.8, alone
        assert together[0] > 0.45, together
        assert not [*owner.errors, *borrower.errors]
