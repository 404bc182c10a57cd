from __future__ import annotations

from collections.abc import Iterator

import pytest

import hasfaas
from hasfaas.core import lease


class RecordingLease:
    """Remembers what was asked of it, and whether the lane is held."""

    def __init__(self, *, held: bool = True) -> None:
        self.held = held
        self.asked: list[str] = []

    def gate(self) -> None:
        self.asked.append("gate")

    def suspend(self) -> bool:
        self.asked.append("suspend")
        was, self.held = self.held, False
        return was

    def resume(self) -> None:
        self.asked.append("resume")
        self.held = True


@pytest.fixture(autouse=True)
def _nothing_installed() -> Iterator[None]:
    before = list(lease._installed)
    lease._installed.clear()
    yield
    lease._installed[:] = before


def installed(*, held: bool = True) -> RecordingLease:
    made = RecordingLease(held=held)
    lease.install(made)
    return made


def test_in_plain_local_code_both_doors_do_nothing() -> None:
    hasfaas.gate()
    with hasfaas.host():
        hasfaas.gate()


def test_a_gate_reaches_the_installed_lease() -> None:
    made = installed()
    hasfaas.gate()
    hasfaas.gate()
    assert made.asked == ["gate", "gate"]


def test_host_work_runs_without_the_lane_and_takes_it_back() -> None:
    made = installed()
    with hasfaas.host():
        assert not made.held
    assert made.held
    assert made.asked == ["suspend", "resume"]


def test_the_lane_is_taken_back_when_the_host_work_raises() -> None:
    made = installed()
    with pytest.raises(KeyError), hasfaas.host():
        raise KeyError
    assert made.held


def test_host_inside_host_takes_the_lane_back_once_at_the_outer_end() -> None:
    made = installed()
    with hasfaas.host():
        with hasfaas.host():
            assert not made.held
        assert not made.held, "the inner one must not take back what it did not give up"
    assert made.held
    assert made.asked == ["suspend", "suspend", "resume"]


def test_host_in_code_that_does_not_hold_the_lane_takes_nothing() -> None:
    made = installed(held=False)
    with hasfaas.host():
        pass
    assert made.asked == ["suspend"]
    assert not made.held


def test_the_last_installed_lease_is_the_only_one() -> None:
    first, second = installed(), installed()
    hasfaas.gate()
    assert (first.asked, second.asked) == ([], ["gate"])
