from __future__ import annotations

import attrs
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.allocation import MAX_LANES
from hasfaas.scaling.placement import Book, Spot
from tests.fakes.plant import GIB, Plant, surface


def empty(devices: int = 2) -> Book:
    """A book of devices with 80 units and 16 GiB each."""
    return Book.of(Plant([surface()], devices=devices).observe([0.0]))


def seat(book: Book, sm_percent: float, quota_percent: float, **options: object) -> Spot | None:
    spot = book.spot(sm_percent, quota_percent, 1.0 * GIB, **options)  # type: ignore[arg-type]
    if spot is not None:
        book.take(spot, sm_percent, quota_percent, 1.0 * GIB)
    return spot


def test_a_lane_of_the_same_share_is_filled_before_another_is_made() -> None:
    book = empty()
    assert seat(book, 25.0, 40.0) == Spot(0, 0, True, 60.0)
    assert seat(book, 25.0, 60.0) == Spot(0, 0, False, 0.0)
    assert seat(book, 25.0, 1.0) == Spot(0, 1, True, 99.0)


def test_of_two_lanes_the_one_that_is_filled_most_is_chosen() -> None:
    book = empty()
    seat(book, 25.0, 50.0)
    seat(book, 25.0, 80.0)
    assert seat(book, 25.0, 20.0) == Spot(0, 1, False, 0.0)


def test_a_device_in_use_comes_before_an_empty_one_and_the_fullest_first() -> None:
    book = empty(3)
    seat(book, 50.0, 100.0)
    seat(book, 60.0, 100.0)  # the second device
    seat(book, 30.0, 100.0)  # fills the second rather than the first
    assert book.free_units.tolist() == [40, 8, 80]


def test_one_that_wants_a_lane_of_its_own_gets_one_and_keeps_it() -> None:
    book = empty()
    first = seat(book, 25.0, 10.0, most_replicas=1)
    assert first is not None
    other = seat(book, 25.0, 10.0)
    # The second puts up with company, the first does not.
    book_of_one = Book.of(Plant([surface()]).observe([0.0]), np.array([1]))
    assert other is not None and book_of_one.lane_most.min() >= 1
    again = seat(book, 25.0, 10.0, most_replicas=1)
    assert again is not None and again.new


def test_memory_and_lanes_bound_a_device() -> None:
    book = empty(1)
    for _ in range(16):
        assert seat(book, 10.0, 50.0) is not None
    assert seat(book, 10.0, 1.0) is None  # 16 GiB are taken
    lanes = empty(1)
    for _ in range(MAX_LANES):
        assert seat(lanes, 5.0, 100.0) is not None
    assert seat(lanes, 5.0, 100.0) is None


def test_devices_that_are_not_allowed_are_left_out() -> None:
    spot = empty().spot(10.0, 10.0, GIB, devices=np.array([False, True]))
    assert spot is not None and spot.device == 1


def two_nodes(devices: int = 4, cut: tuple[int, ...] = ()) -> Book:
    """The same, the first half of the devices on one node, the others on another."""
    seen = Plant([surface()], devices=devices, cut=cut).observe([0.0])
    nodes = np.repeat([0, 1], devices // 2)
    return Book.of(attrs.evolve(seen, devices=attrs.evolve(seen.devices, node=nodes)))


def test_a_second_replica_goes_to_another_node_where_that_opens_no_more_lanes() -> None:
    book = two_nodes()
    first = seat(book, 25.0, 60.0)
    assert first == Spot(0, 0, True, 40.0)
    held = book.node == book.node[first.device]
    # Both would open a lane; the other node's device is empty.
    assert seat(book, 25.0, 60.0, held=held) == Spot(2, 0, True, 40.0)
    # Both have a lane with room: the other node's first, though the first node's is fuller.
    assert seat(book, 25.0, 20.0) == Spot(0, 0, False, 20.0)
    assert seat(book, 25.0, 20.0, held=held) == Spot(2, 0, False, 20.0)
    # The first node has room in a lane, the other one would open one.
    assert seat(book, 25.0, 20.0, held=held) == Spot(2, 0, False, 0.0)
    assert seat(book, 25.0, 20.0, held=held) == Spot(0, 0, False, 0.0)


def test_who_holds_every_node_is_packed_and_lanes_cut_in_advance_are_spread_too() -> None:
    book = two_nodes()
    seat(book, 50.0, 100.0)
    assert seat(book, 20.0, 50.0, held=np.ones(4, bool)) == Spot(0, 1, True, 50.0)
    cut = two_nodes(cut=(40, 20, 20))
    assert seat(cut, 25.0, 50.0) == Spot(0, 1, True, 50.0)
    assert seat(cut, 25.0, 50.0) == Spot(0, 2, True, 50.0)
    assert seat(cut, 50.0, 50.0, held=cut.node == 0) == Spot(2, 0, True, 50.0)


@given(
    st.lists(st.tuples(st.sampled_from([10.0, 25.0, 50.0]), st.sampled_from([20.0, 50.0, 100.0])), max_size=12),
    st.integers(0, 1),
)
def test_spreading_finds_room_wherever_packing_does_and_opens_as_many_lanes(
    taken: list[tuple[float, float]], held: int
) -> None:
    book = two_nodes()
    for sm_percent, quota_percent in taken:
        seat(book, sm_percent, quota_percent)
    packed = book.spot(25.0, 50.0, GIB)
    spread = book.spot(25.0, 50.0, GIB, held=book.node == held)
    assert (packed is None) == (spread is None)
    assert packed is None or spread is None or packed.new == spread.new


def test_a_resize_is_granted_as_far_as_the_lane_has_room() -> None:
    book = empty()
    seat(book, 25.0, 40.0)
    seat(book, 25.0, 30.0)
    assert book.resize(0, 0, 40.0, 90.0) == 70.0
    assert book.free_percent(0, 0) == 0.0
    assert book.resize(0, 0, 70.0, 20.0) == 20.0
    assert book.free_percent(0, 0) == 50.0


def test_a_copy_is_another_book() -> None:
    book = empty()
    other = book.copy()
    seat(other, 25.0, 40.0)
    assert not book.used().any() and other.used().any()


SEATS = st.lists(
    st.tuples(st.sampled_from([5.0, 7.5, 25.0, 60.0, 100.0]), st.floats(1.0, 100.0), st.booleans(), st.booleans()),
    max_size=60,
)


@given(SEATS)
def test_nothing_is_ever_over_committed_and_who_leaves_gives_all_back(
    seats: list[tuple[float, float, bool, bool]],
) -> None:
    book = empty(3)
    taken: list[tuple[Spot, float]] = []
    for sm_percent, quota_percent, alone, leaves in seats:
        spot = seat(book, sm_percent, quota_percent, most_replicas=1 if alone else 1000)
        if spot is not None:
            taken.append((spot, quota_percent))
        if leaves and taken:
            gone, quota = taken.pop(0)
            book.leave(gone.device, gone.lane, quota, 1.0 * GIB)
        assert np.all(book.lane_quota_percent <= 100.0 + 1e-4)
        assert np.all(book.free_units >= 0) and np.all(book.free_bytes >= 0.0)
        assert np.all(book.free_units == book.units - book.lane_units.sum(axis=1))
    for gone, quota in taken:
        book.leave(gone.device, gone.lane, quota, 1.0 * GIB)
    assert not book.used().any() and np.allclose(book.free_bytes, 16.0 * GIB)
