"""The book of seats: what it says of room, and that no lane is ever promised more than there is."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import HasFaasError, NotFoundError, PlacementError
from hasfaas.devices.base import Condition, DeviceInfo, Health
from hasfaas.node.lanes import Want
from hasfaas.node.seats import Seats

GIB = 2**30


def device(name: str, kind: str = "sim", memory_gib: int = 8) -> DeviceInfo:
    return DeviceInfo(name, kind, tuple(range(10)), memory_gib * GIB)


def seats(*devices: DeviceInfo) -> Seats:
    made = Seats()
    made.open(devices or (device("a/sim0"),))
    return made


def sit(book: Seats, name: str, **want: object) -> str:
    """Seats a replica; the device it is on."""
    asked = Want(**{"memory_bytes": GIB} | want)  # type: ignore[arg-type]
    placed = book.find(name, asked)
    book.sit(name, placed, asked.memory_bytes)
    return placed.device_id


def test_who_nobody_sized_shares_the_lane_evenly_and_gets_back_what_is_left() -> None:
    book = seats()
    sit(book, "f-1")
    placed = book.find("f-2", Want(memory_bytes=GIB))
    assert book.sit("f-2", placed, GIB) == (("f-1", 50.0),)
    assert [book.seat(name).quota_percent for name in ("f-1", "f-2")] == [50.0, 50.0]
    assert book.leave("f-1") == (("f-2", 100.0),)
    assert book.leave("f-2") == ()
    assert book.lanes() == ()


def test_a_quota_that_does_not_fit_changes_nothing() -> None:
    book = seats()
    sit(book, "f-1", quota_percent=60.0, sm_percent=100.0)
    sit(book, "f-2", quota_percent=40.0, sm_percent=100.0)
    with pytest.raises(PlacementError, match="at most 40 %"):
        book.resize("f-2", 41.0)
    assert book.seat("f-2").quota_percent == 40.0
    assert book.resize("f-1", 30.0) == (("f-1", 30.0),)
    assert book.resize("f-2", 70.0) == (("f-2", 70.0),)


def test_all_new_quotas_are_looked_at_together() -> None:
    book = seats()
    sit(book, "f-1", quota_percent=60.0, sm_percent=100.0)
    sit(book, "f-2", quota_percent=40.0, sm_percent=100.0)
    book.check_resizes({"f-1": 20.0, "f-2": 80.0})
    with pytest.raises(PlacementError):
        book.check_resizes({"f-1": 30.0, "f-2": 80.0})
    assert book.seat("f-1").quota_percent == 60.0


def test_room_is_looked_for_as_if_some_had_left() -> None:
    book = seats(device("a/sim0", memory_gib=2))
    sit(book, "f-1")
    sit(book, "f-2")
    with pytest.raises(PlacementError, match="memory"):
        book.check_room([Want(memory_bytes=GIB)], (), {})
    book.check_room([Want(memory_bytes=GIB)], {"f-1"}, {})
    with pytest.raises(PlacementError):
        book.check_room([Want(memory_bytes=GIB)] * 2, {"f-1"}, {})


def test_a_node_brings_its_devices_and_takes_them_away() -> None:
    book = seats(device("a/sim0"), device("b/sim0"))
    assert sit(book, "f-1", device="b/sim0") == "b/sim0"
    with pytest.raises(AssertionError, match="somebody sits"):
        book.close({"b/sim0"})
    book.leave("f-1")
    book.close({"b/sim0"})
    assert set(book.devices) == set(book.conditions) == {"a/sim0"}
    with pytest.raises(PlacementError):
        sit(book, "f-2", device="b/sim0")


def test_nobody_is_placed_on_a_device_that_is_not_ready_and_the_reason_is_told() -> None:
    book = seats(device("a/sim0"), device("b/sim0"))
    book.conditions["a/sim0"] = Condition(Health.RECOVERING, "a fault", "wait a minute")
    assert sit(book, "f-1") == "b/sim0"
    book.conditions["b/sim0"] = Condition(Health.RECOVERING, "another", "")
    with pytest.raises(PlacementError, match=r"a/sim0 is recovering \(a fault; wait a minute\)"):
        sit(book, "f-2")


def test_who_has_gone_is_told_as_such() -> None:
    book = seats()
    for ask in (book.seat, book.lane_of, book.unpin):
        with pytest.raises(NotFoundError, match="f-9"):
            ask("f-9")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sit"), st.sampled_from([None, 10.0, 35.0, 60.0]), st.sampled_from([None, 30.0, 50.0])),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("resize"), st.integers(0, 9), st.floats(1.0, 100.0)),
        st.tuples(st.just("unpin"), st.integers(0, 9)),
    ),
    max_size=25,
)


@given(STEPS)
def test_whatever_is_asked_nothing_is_promised_twice(steps: list[tuple[object, ...]]) -> None:
    book = seats(device("a/sim0", memory_gib=4), device("b/sim0", memory_gib=3))
    there: list[str] = []
    told: dict[str, float] = {}
    for number, (what, *given_) in enumerate(steps):
        name = f"f-{number}"
        try:
            if what == "sit":
                asked = Want(memory_bytes=GIB, quota_percent=given_[0], sm_percent=given_[1])  # type: ignore[arg-type]
                placed = book.find(name, asked)
                changes = book.sit(name, placed, GIB)
                there.append(name)
                told[name] = placed.quota_percent
            elif there:
                whom = there[int(given_[0]) % len(there)]  # type: ignore[call-overload]
                if what == "leave":
                    changes = book.leave(whom)
                    there.remove(whom)
                    del told[whom]
                elif what == "resize":
                    changes = book.resize(whom, float(given_[1]))  # type: ignore[arg-type]
                else:
                    changes = book.unpin(whom)
            else:
                continue
        except HasFaasError:
            continue
        told.update(changes)
        # Whoever only hears of changes knows every quota.
        assert told == {replica: book.seat(replica).quota_percent for replica in there}
        for lane in book.lanes():
            assert lane.seats and lane.quota_percent <= 100.0 + 1e-6
        for name_, info in book.devices.items():
            mine = [lane for lane in book.lanes() if lane.device_id == name_]
            units = [unit for lane in mine for unit in lane.units]
            assert len(units) == len(set(units))
            assert sum(s.memory_bytes for lane in mine for s in lane.seats) <= info.memory_bytes


def test_of_equal_seats_the_one_on_another_node_than_the_functions_others() -> None:
    book = Seats()
    book.open(attrs.evolve(device(f"{node}/sim{n}"), node=node) for node in ("a", "b", "c") for n in (0, 1))
    for number in range(6):
        placed = book.find(
            f"f-{number}", Want(memory_bytes=GIB, quota_percent=100.0), [f"f-{n}" for n in range(number)]
        )
        book.sit(f"f-{number}", placed, GIB)
    nodes = [book.lane_of(f"f-{number}").device_id.partition("/")[0] for number in range(6)]
    assert sorted(nodes[:3]) == sorted(nodes[3:]) == ["a", "b", "c"]


def test_a_lane_with_room_is_filled_before_another_is_opened_elsewhere() -> None:
    book = Seats()
    book.open(attrs.evolve(device(f"{node}/sim0"), node=node) for node in ("a", "b"))
    want = Want(memory_bytes=GIB, quota_percent=30.0, sm_percent=50.0)
    for name in ("f-1", "f-2"):
        book.sit(name, book.find(name, want, ["f-1"]), GIB)
    assert book.lane_of("f-1").device_id == book.lane_of("f-2").device_id


def test_a_share_goes_where_units_meet_it_best() -> None:
    book = Seats()
    book.open((DeviceInfo("cpu0", "cpu", (0,), 8 * GIB), device("sim0")))
    assert sit(book, "f-1", sm_percent=30.0) == "sim0", "a device of one core would give all of it"
    assert sit(book, "f-2", sm_percent=100.0, device="cpu0") == "cpu0"


def test_a_device_is_called_by_its_node_too() -> None:
    book = Seats()
    book.open(attrs.evolve(device(f"{node}/sim0"), node=node) for node in ("a", "b"))
    assert sit(book, "f-1", device="b") == "b/sim0"
    assert not device("sim0").is_called("")


def test_what_no_device_could_hold_gets_no_advice_to_wait() -> None:
    with pytest.raises(PlacementError, match="No device has so much"):
        sit(seats(), "f-1", memory_bytes=900 * GIB)
