from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.allocation import MAX_LANES
from hasfaas.core.errors import PlacementError
from hasfaas.devices.base import DeviceInfo, cut
from hasfaas.node import lanes
from hasfaas.node.lanes import LEAST_AUTO_QUOTA_PERCENT, Lane, Placement, Seat, Want

GIB = 2**30
SMALL = Want(memory_bytes=GIB)


def device(name: str = "sim0", units: int = 10, memory_gib: int = 16, auto_sm_percent: float = 100.0) -> DeviceInfo:
    kind = name.rstrip("0123456789")
    return DeviceInfo(name, kind, tuple(range(units)), memory_gib * GIB, auto_sm_percent)


def seat(replica_id: str, quota_percent: float = 0.0, *, pinned: bool = True) -> Seat:
    return Seat(replica_id, quota_percent, pinned, GIB)


def lane(*seats: Seat, number: int = 0, units: Sequence[int] = range(10)) -> Lane:
    return Lane("sim0", number, tuple(units), seats)


class Machine:
    """Devices with their lanes, changed by what the decisions say, as a node agent does."""

    def __init__(self, *devices: DeviceInfo) -> None:
        self.devices = devices
        self.lanes: dict[tuple[str, int], Lane] = {}

    def add(self, replica_id: str, want: Want) -> Placement:
        placed = lanes.place(replica_id, want, self.devices, list(self.lanes.values()))
        key = (placed.device_id, placed.lane)
        known = self.lanes.get(key) or Lane(placed.device_id, placed.lane, placed.units)
        assert known.units == placed.units
        quotas = dict(placed.resizes)
        seats = [attrs.evolve(s, quota_percent=quotas.get(s.replica_id, s.quota_percent)) for s in known.seats]
        assert set(quotas) <= {s.replica_id for s in known.seats}
        seats.append(Seat(replica_id, placed.quota_percent, placed.pinned, want.memory_bytes))
        self.lanes[key] = attrs.evolve(known, seats=tuple(seats))
        return placed

    def of(self, replica_id: str) -> Lane:
        return next(x for x in self.lanes.values() if any(s.replica_id == replica_id for s in x.seats))

    def resize(self, replica_id: str, quota_percent: float) -> None:
        self._put(self.of(replica_id), lanes.resize(self.of(replica_id), replica_id, quota_percent))

    def leave(self, replica_id: str) -> None:
        self._put(self.of(replica_id), lanes.leave(self.of(replica_id), replica_id))

    def _put(self, known: Lane, seats: tuple[Seat, ...]) -> None:
        self.lanes[known.device_id, known.lane] = attrs.evolve(known, seats=seats)
        if not seats:
            del self.lanes[known.device_id, known.lane]

    def check(self) -> None:
        """What must hold at all times."""
        for known in self.lanes.values():
            assert known.quota_percent <= 100.0 + 1e-6
            autos = {s.quota_percent for s in known.seats if not s.pinned}
            assert len(autos) <= 1, "those that nobody sized have equal parts"
            assert all(quota >= LEAST_AUTO_QUOTA_PERCENT for quota in autos)
        for info in self.devices:
            mine = [x for x in self.lanes.values() if x.device_id == info.device_id]
            units = [unit for x in mine for unit in x.units]
            assert len(units) == len(set(units)), "two lanes own one unit"
            assert set(units) <= set(info.units)
            assert all(x.units for x in mine)
            assert sum(s.memory_bytes for x in mine for s in x.seats) <= info.memory_bytes
            assert len(mine) <= MAX_LANES

    def pinned(self) -> dict[str, float]:
        return {s.replica_id: s.quota_percent for x in self.lanes.values() for s in x.seats if s.pinned}


# -- sharing a lane ----------------------------------------------------------------------------------------------------


def quotas(seats: Sequence[Seat] | None) -> list[float]:
    assert seats is not None
    return [s.quota_percent for s in seats]


@pytest.mark.parametrize(
    ("pinned", "autos", "dealt"),
    [
        ([], 1, [100.0]),
        ([], 3, [33.3333] * 3),
        ([30.0], 2, [30.0, 35.0, 35.0]),
        ([60.0, 40.0], 0, [60.0, 40.0]),
        ([99.0], 1, [99.0, 1.0]),
        ([0.0], 1, [0.0, 100.0]),
    ],
)
def test_pinned_ones_keep_theirs_and_the_rest_is_dealt_evenly(
    pinned: list[float], autos: int, dealt: list[float]
) -> None:
    seats = [seat(f"p{i}", q) for i, q in enumerate(pinned)] + [seat(f"a{i}", pinned=False) for i in range(autos)]
    assert quotas(lanes.share(seats)) == pytest.approx(dealt)


@pytest.mark.parametrize(("pinned", "autos"), [([60.0, 41.0], 0), ([99.5], 1), ([100.0], 1), ([98.0], 3)])
def test_a_lane_that_cannot_give_everybody_a_share_is_full(pinned: list[float], autos: int) -> None:
    seats = [seat(f"p{i}", q) for i, q in enumerate(pinned)] + [seat(f"a{i}", pinned=False) for i in range(autos)]
    assert lanes.share(seats) is None


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=12))
def test_what_is_dealt_never_sums_to_more_than_all_of_a_lane(given_: list[tuple[float, bool]]) -> None:
    seats = [seat(str(i), quota, pinned=pinned) for i, (quota, pinned) in enumerate(given_)]
    shared = lanes.share(seats)
    if shared is None:
        return
    assert sum(quotas(shared)) <= 100.0 + 1e-6
    assert [s for s in shared if s.pinned] == [s for s in seats if s.pinned]
    autos = [s.quota_percent for s in shared if not s.pinned]
    if autos:
        assert len(set(autos)) == 1
        # Nothing but the rounding to a part per million is left over.
        assert sum(quotas(shared)) >= 100.0 - len(autos) * 1e-4 - 1e-6


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=8))
def test_changes_are_told_shrinking_first_so_that_no_sum_ever_passes_both(moves: list[tuple[float, float]]) -> None:
    before = [seat(str(i), old) for i, (old, _) in enumerate(moves)]
    after = [seat(str(i), new) for i, (_, new) in enumerate(moves)]
    now = {s.replica_id: s.quota_percent for s in before}
    most = max(sum(now.values()), sum(new for _, new in moves))
    for replica_id, quota in lanes.changed(before, after):
        assert quota != now[replica_id]
        now[replica_id] = quota
        assert sum(now.values()) <= most + 1e-6
    assert list(now.values()) == pytest.approx([new for _, new in moves], abs=1e-9)


def test_who_came_or_left_is_no_change() -> None:
    assert lanes.changed([seat("left", 10.0), seat("stays", 20.0)], [seat("stays", 20.0), seat("came", 30.0)]) == ()


# -- units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "sm_percent", "granted"),
    [(10, 100, 10), (10, 50, 5), (10, 51, 6), (10, 1, 1), (10, 30, 3), (3, 100 / 3, 1), (1, 5, 1), (132, 30, 40)],
)
def test_a_share_is_rounded_up_to_whole_units(units: int, sm_percent: float, granted: int) -> None:
    assert lanes.granted_units(device(units=units), sm_percent) == granted


@given(st.integers(1, 200), st.floats(1, 100))
def test_what_is_granted_is_at_least_what_was_asked_by_less_than_a_unit(units: int, sm_percent: float) -> None:
    granted = lanes.granted_units(device(units=units), sm_percent)
    assert 1 <= granted <= units
    assert granted * 100 >= sm_percent * units - 1e-6
    assert granted == 1 or (granted - 1) * 100 < sm_percent * units


# -- placing one -------------------------------------------------------------------------------------------------------


def test_the_first_that_nobody_sized_gets_the_largest_slice() -> None:
    placed = Machine(device()).add("r1", SMALL)
    assert (placed.units, placed.sm_percent, placed.quota_percent, placed.pinned) == (tuple(range(10)), 100, 100, False)
    assert placed.resizes == ()


def test_a_device_says_how_large_that_slice_is() -> None:
    placed = Machine(device(units=4, auto_sm_percent=75)).add("r1", SMALL)
    assert (placed.units, placed.sm_percent) == ((0, 1, 2), 75)


def test_further_ones_share_and_an_empty_device_is_better_than_sharing() -> None:
    machine = Machine(device("sim0"), device("sim1"))
    assert machine.add("r1", SMALL).device_id == "sim0"
    assert machine.add("r2", SMALL).device_id == "sim1"
    third = machine.add("r3", SMALL)
    assert third.quota_percent == 50.0
    assert third.resizes == ((("r1", 50.0),) if third.device_id == "sim0" else (("r2", 50.0),))
    assert machine.add("r4", SMALL).device_id != third.device_id


def test_a_pinned_quota_takes_from_those_that_nobody_sized() -> None:
    machine = Machine(device())
    machine.add("auto", SMALL)
    placed = machine.add("pinned", attrs.evolve(SMALL, quota_percent=30.0))
    assert (placed.quota_percent, placed.pinned, placed.resizes) == (30.0, True, (("auto", 70.0),))


def test_a_pinned_one_prefers_a_lane_where_nobody_has_to_give_then_the_fullest() -> None:
    machine = Machine(device("sim0"), device("sim1"), device("sim2"))
    machine.add("auto", SMALL)
    pinned = attrs.evolve(SMALL, quota_percent=30.0)
    assert machine.add("p1", pinned).device_id == "sim1"
    assert machine.add("p2", pinned).device_id == "sim1", "packed, so that another device stays free"
    assert machine.add("p3", pinned).device_id == "sim1"
    assert machine.add("p4", pinned).device_id == "sim2"


def test_a_partition_of_another_size_is_another_lane() -> None:
    machine = Machine(device(units=10))
    half = attrs.evolve(SMALL, sm_percent=50.0)
    first, second = machine.add("r1", half), machine.add("r2", attrs.evolve(SMALL, sm_percent=30.0))
    assert (first.units, second.units) == ((0, 1, 2, 3, 4), (5, 6, 7))
    assert second.lane != first.lane
    assert machine.add("r3", half).lane == first.lane, "two units are left, so it shares the lane of its size"


def test_the_number_of_a_lane_that_emptied_is_used_again() -> None:
    machine = Machine(device(units=10))
    tenth = attrs.evolve(SMALL, sm_percent=10.0, quota_percent=100.0)
    for number in range(MAX_LANES):
        assert machine.add(f"r{number}", tenth).lane == number
    machine.leave("r3")
    placed = machine.add("again", tenth)
    assert (placed.lane, placed.units) == (3, (3,))


def test_a_device_has_a_fixed_number_of_lanes() -> None:
    machine = Machine(device(units=100))
    sized = attrs.evolve(SMALL, quota_percent=100.0)
    for number in range(MAX_LANES):
        machine.add(f"r{number}", attrs.evolve(sized, sm_percent=1.0 + number))
    with pytest.raises(PlacementError, match="no lane with room"):
        machine.add("one more", attrs.evolve(sized, sm_percent=50.0))


@pytest.mark.parametrize(("wanted", "chosen"), [("auto", "cpu0"), ("cpu", "cpu0"), ("sim", "sim0"), ("sim1", "sim1")])
def test_a_device_can_be_named_by_kind_or_name(wanted: str, chosen: str) -> None:
    machine = Machine(device("cpu0"), device("sim0"), device("sim1"))
    assert machine.add("r1", attrs.evolve(SMALL, device=wanted)).device_id == chosen


@pytest.mark.parametrize(
    ("want", "words"),
    [
        (Want(GIB, device="cuda"), ["cpu0 is not 'cuda'", "sim0 is not 'cuda'"]),
        (Want(16 * GIB, device="sim"), ["cpu0 is not 'sim'", "sim0 has 15360 MiB of memory left, 16384 MiB are asked"]),
        (Want(GIB, sm_percent=50.0, quota_percent=10.0), ["sm 50 %", "quota 10 %", "sim0 has no lane with room"]),
        (Want(GIB, quota_percent=99.5), ["quota 99.5 %", "cpu0 has no lane with room"]),
        (Want(GIB, quota_percent=0.0, device="cuda"), ["sm auto, quota 0 %"]),
    ],
)
def test_no_room_names_each_device_with_its_reason_and_the_cure(want: Want, words: list[str]) -> None:
    machine = Machine(device("cpu0"), device("sim0"))
    for name in ("cpu0", "sim0"):
        machine.add(f"on {name}", attrs.evolve(SMALL, device=name))
    with pytest.raises(PlacementError) as caught:
        machine.add("r1", want)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    cure = "name one of them with device=" if want.device == "cuda" else "hasfaas scale"
    assert cure in str(caught.value)
    assert caught.value.reason == "NO_ROOM"


def test_without_devices_there_is_no_room() -> None:
    with pytest.raises(PlacementError, match="there is no device"):
        Machine().add("r1", SMALL)


# -- re-sizing and leaving ---------------------------------------------------------------------------------------------


def test_a_resize_pins_and_the_others_share_the_rest() -> None:
    known = lane(seat("a", 50, pinned=False), seat("b", 50, pinned=False))
    assert lanes.resize(known, "a", 20.0) == (seat("a", 20), seat("b", 80, pinned=False))


def test_a_resize_never_moves_a_pinned_neighbour() -> None:
    known = lane(seat("a", 30), seat("b", 60), seat("c", 10, pinned=False))
    assert lanes.resize(known, "a", 5.0) == (seat("a", 5), seat("b", 60), seat("c", 35, pinned=False))


def test_a_resize_beyond_the_lane_names_it_and_how_much_there_is() -> None:
    known = lane(seat("a", 30), seat("b", 50), seat("c", 20, pinned=False), number=3)
    with pytest.raises(PlacementError) as caught:
        lanes.resize(known, "a", 60.0)
    text = str(caught.value)
    assert "quota 60 % does not fit lane 3 of sim0" in text
    assert "50 % are set for other replicas, those that nobody sized keep 1 %" in text
    assert "at most 49 %" in text
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert quotas(lanes.resize(known, "a", 49.0)) == [49.0, 50.0, 1.0]


def test_who_leaves_makes_room_for_those_that_nobody_sized() -> None:
    known = lane(seat("a", 60), seat("b", 20, pinned=False), seat("c", 20, pinned=False))
    assert lanes.leave(known, "a") == (seat("b", 50, pinned=False), seat("c", 50, pinned=False))
    assert lanes.leave(known, "b") == (seat("a", 60), seat("c", 40, pinned=False))
    assert lanes.leave(lane(seat("a", 60)), "a") == ()


# -- a life of a machine -----------------------------------------------------------------------------------------------

WANTS = st.builds(
    Want,
    memory_bytes=st.integers(1, 6).map(lambda n: n * GIB),
    device=st.sampled_from(["auto", "auto", "sim", "sim1", "cpu"]),
    sm_percent=st.none() | st.sampled_from([10.0, 25.0, 33.3, 50.0, 100.0]),
    quota_percent=st.none() | st.sampled_from([0.0, 1.0, 20.0, 33.3333, 50.0, 99.0, 100.0]),
)
EVENTS = st.lists(
    st.tuples(st.just("add"), WANTS)
    | st.tuples(st.just("resize"), st.tuples(st.integers(0, 50), st.floats(0, 100)))
    | st.tuples(st.just("leave"), st.integers(0, 50)),
    max_size=30,
)


@given(EVENTS)
def test_whatever_comes_and_goes_the_laws_of_lanes_hold(events: list[tuple[str, object]]) -> None:
    machine = Machine(device("cpu0", units=4, auto_sm_percent=75), device("sim0", units=7), device("sim1", units=132))
    numbers = itertools.count()
    here: list[str] = []
    for what, how in events:
        pinned = machine.pinned()
        touched = None
        match what, how:
            case "add", Want() as want:
                touched = f"r{next(numbers)}"
                try:
                    placed = machine.add(touched, want)
                except PlacementError:
                    continue
                here.append(touched)
                check_granted(machine, want, placed)
            case "resize", (int(which), float(quota)) if here:
                touched = here[which % len(here)]
                try:
                    machine.resize(touched, quota)
                except PlacementError:
                    continue
            case "leave", int(which) if here:
                touched = here.pop(which % len(here))
                machine.leave(touched)
        machine.check()
        now = machine.pinned()
        assert all(now[name] == quota for name, quota in pinned.items() if name != touched), "a pinned one was moved"


def check_granted(machine: Machine, want: Want, placed: Placement) -> None:
    """Who asked for something got it."""
    info = next(x for x in machine.devices if x.device_id == placed.device_id)
    assert want.device in ("auto", info.kind, info.device_id)
    assert placed.sm_percent == pytest.approx(100 * len(placed.units) / len(info.units))
    if want.sm_percent is not None:
        assert len(placed.units) == lanes.granted_units(info, want.sm_percent)
    if want.quota_percent is not None:
        assert placed.quota_percent == want.quota_percent
    assert placed.pinned == (want.quota_percent is not None)
    assert math.isfinite(placed.quota_percent)


# -- lanes cut in advance ----------------------------------------------------------------------------------------------

CUTS = {"sim0": (4, 2, 2), "sim1": (5, 5), "sim2": (1, 1, 1, 7), "sim3": (10,)}


def fixed(name: str = "sim0") -> DeviceInfo:
    """A device of ten units with the lanes of CUTS, out of which some units may have been left."""
    starts = list(itertools.accumulate(CUTS[name], initial=0))
    cut = tuple(tuple(range(start, start + count)) for start, count in zip(starts, CUTS[name], strict=False))
    return attrs.evolve(device(name), fixed_lanes=cut)


@pytest.mark.parametrize(
    ("sm_percent", "lane_number", "granted"), [(1, 1, 20), (20, 1, 20), (21, 0, 40), (40, 0, 40), (None, 0, 40)]
)
def test_a_share_is_met_by_the_smallest_fixed_lane_that_has_it_and_no_share_by_the_largest(
    sm_percent: float | None, lane_number: int, granted: float
) -> None:
    placed = Machine(fixed()).add("r1", attrs.evolve(SMALL, sm_percent=sm_percent))
    assert (placed.lane, placed.units, placed.sm_percent) == (lane_number, fixed().fixed_lanes[lane_number], granted)  # type: ignore[index]


def test_those_that_nobody_sized_take_the_largest_that_is_free_and_then_share_it() -> None:
    machine = Machine(fixed())
    assert [machine.add(f"r{n}", SMALL).lane for n in range(4)] == [0, 1, 2, 0]
    assert machine.of("r0").quota_percent == pytest.approx(100.0)


def test_a_larger_fixed_lane_serves_where_the_smallest_are_full() -> None:
    machine = Machine(fixed())
    sized = attrs.evolve(SMALL, sm_percent=20.0, quota_percent=70.0)
    assert [machine.add(f"r{n}", sized).lane for n in range(3)] == [1, 2, 0]
    assert machine.add("r3", attrs.evolve(sized, quota_percent=30.0)).lane in (1, 2)
    with pytest.raises(PlacementError, match=r"no lane with room among those cut in advance, 0 \(40 %\), 1 \(20 %\)"):
        machine.add("r4", sized)


def test_of_two_devices_the_one_whose_fixed_lane_is_nearer_to_the_share_is_taken() -> None:
    machine = Machine(fixed("sim1"), fixed("sim0"), fixed("sim2"))
    sized = attrs.evolve(SMALL, sm_percent=20.0, quota_percent=100.0)
    assert [machine.add(f"r{n}", sized).device_id for n in range(3)] == ["sim0", "sim0", "sim0"]
    assert machine.add("r3", sized).device_id == "sim1"


def test_a_fixed_lane_is_asked_for_by_its_number() -> None:
    machine = Machine(fixed())
    assert machine.add("r1", attrs.evolve(SMALL, sm_percent=20.0, lane=2)).lane == 2
    for want, words in (
        (attrs.evolve(SMALL, lane=3), "no lane 3: its lanes were cut in advance"),
        (attrs.evolve(SMALL, sm_percent=30.0, lane=1), "no lane 1 of SM 30 % or more"),
    ):
        with pytest.raises(PlacementError, match=words) as caught:
            machine.add("r2", want)
        assert caught.value.reason == lanes.NO_SUCH_LANE


def test_more_than_any_fixed_lane_has_is_refused_with_the_lanes_there_are() -> None:
    with pytest.raises(PlacementError) as caught:
        Machine(fixed(), fixed("sim1")).add("r1", attrs.evolve(SMALL, sm_percent=60.0))
    text = str(caught.value)
    assert "sim0 has no lane of SM 60 % or more: its lanes were cut in advance, 0 (40 %), 1 (20 %), 2 (20 %)" in text
    assert "sim1 has no lane of SM 60 % or more: its lanes were cut in advance, 0 (50 %), 1 (50 %)" in text
    assert "hasfaas scale NAME --sm" in text
    assert caught.value.reason == lanes.NO_SUCH_LANE


@pytest.mark.parametrize(
    ("want", "holds"),
    [
        (SMALL, True),
        (attrs.evolve(SMALL, sm_percent=70.0), True),
        (attrs.evolve(SMALL, sm_percent=70.0, device="sim0"), False),
        (attrs.evolve(SMALL, sm_percent=71.0), False),
        (attrs.evolve(SMALL, device="cuda"), False),
        (attrs.evolve(SMALL, memory_bytes=17 * GIB), False),
    ],
)
def test_what_devices_could_hold_does_not_depend_on_who_is_there(want: Want, holds: bool) -> None:
    assert lanes.could_hold(want, [fixed("sim0"), fixed("sim2")]) is holds


@given(EVENTS)
def test_whatever_comes_and_goes_no_lane_but_the_fixed_ones_is_opened(events: list[tuple[str, object]]) -> None:
    machine = Machine(*(fixed(name) for name in CUTS))
    here: list[str] = []
    for number, (what, how) in enumerate(events):
        match what, how:
            case "add", Want() as want:
                try:
                    placed = machine.add(f"r{number}", want)
                except PlacementError:
                    continue
                here.append(f"r{number}")
                info = fixed(placed.device_id)
                assert want.sm_percent is None or len(placed.units) >= lanes.granted_units(info, want.sm_percent)
            case "resize", (int(which), float(quota)) if here:
                try:
                    machine.resize(here[which % len(here)], quota)
                except PlacementError:
                    continue
            case "leave", int(which) if here:
                machine.leave(here.pop(which % len(here)))
        machine.check()
        for known in machine.lanes.values():
            cut = fixed(known.device_id).fixed_lanes
            assert cut is not None and known.units == cut[known.lane]


def test_a_lane_serves_whoever_asks_for_what_it_was_cut_for() -> None:
    """Of 15 chunks a lane for 50 % has 7, which is 46.7 %."""
    chunks = DeviceInfo(
        "gpu", "sim", tuple(range(15)), GIB, fixed_lanes=cut(15, (50.0, 25.0, 25.0)), lane_percents=(50.0, 25.0, 25.0)
    )
    assert [len(units) for units in chunks.fixed_lanes or ()] == [7, 4, 4]
    placed = lanes.place("a", Want(memory_bytes=1, sm_percent=50.0), [chunks], [])
    assert (placed.lane, len(placed.units)) == (0, 7)
    with pytest.raises(PlacementError, match=r"0 \(46.7 %\)"):
        lanes.place("a", Want(memory_bytes=1, sm_percent=51.0), [chunks], [])
