"""The record of a GPU's probes: there and back, as a value, as JSON and as a file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError
from hasfaas.devices import probe_record
from hasfaas.devices.probe_record import ProbePoint, ProbeRecord, find, load, records, store

UUID, OTHER = "GPU-1a2b3c4d-0000-0000-0000-000000000001", "GPU-1a2b3c4d-0000-0000-0000-000000000002"
RECORD = ProbeRecord(
    uuid=UUID,
    name="NVIDIA L4",
    driver="580.159.04",
    date="2026-01-31",
    points=(ProbePoint(50.0, 30, 2.0e11, 1.4e13), ProbePoint(100.0, 58, 2.6e11, 2.7e13)),
    launch_us=1.9,
    clock_mhz=2040.0,
    l2_bytes=48 * 2**20,
    memory_bytes=23 * 2**30,
)

figures = st.floats(min_value=1e-300, max_value=1e300)
counts = st.integers(1, 2**53)
points = st.lists(
    st.builds(ProbePoint, st.floats(0.1, 100.0), counts, figures, figures), min_size=1, unique_by=lambda p: p.sm_percent
).map(lambda some: tuple(sorted(some, key=lambda point: point.sm_percent)))
some_records = st.builds(
    ProbeRecord,
    uuid=st.from_regex(r"(GPU|MIG)-[0-9a-f]{8}-[0-9a-f]{4}", fullmatch=True),
    name=st.text(min_size=1),
    driver=st.text(min_size=1),
    date=st.dates().map(str) | st.datetimes().map(lambda day: day.isoformat()),
    points=points,
    launch_us=figures,
    clock_mhz=figures,
    l2_bytes=st.none() | counts,
    memory_bytes=st.none() | counts,
)


@given(some_records)
def test_json_and_back(record: ProbeRecord) -> None:
    assert ProbeRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@given(some_records)
def test_a_file_and_back(tmp_path_factory: pytest.TempPathFactory, record: ProbeRecord) -> None:
    folder = tmp_path_factory.mktemp("state") / probe_record.FOLDER
    assert load(folder, record.uuid) is None
    file = store(folder, record)
    assert load(folder, record.uuid) == record
    assert list(folder.iterdir()) == [file]  # nothing is left of how it was written


def test_a_record_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    store(tmp_path, RECORD)
    newer = attrs.evolve(RECORD, date="2026-02-01")
    store(tmp_path, newer)
    assert records(tmp_path) == (newer,)


def test_a_write_that_fails_leaves_the_last_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, RECORD)

    def full(self: Path, text: str) -> int:
        with self.open("w") as half:
            half.write(text[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InvalidRequestError, match="No space left") as raised:
        store(tmp_path, attrs.evolve(RECORD, date="2026-02-01"))
    assert raised.value.reason == "BAD_FOLDER"
    assert records(tmp_path) == (RECORD,)
    assert [file.name for file in tmp_path.iterdir()] == [f"{UUID}.json"]


def test_a_record_is_made_of_what_the_probes_print() -> None:
    def run(sms: int, rate: float) -> dict[str, Any]:
        return {
            "sms": sms,
            "device_sms": sms,
            "sm_ids": list(range(sms)),
            "clock_mhz": 2000.0 + sms,
            "context_ms": 250.0,
            "launch_us": 2.0 + sms,
            "triad_bytes_per_s": rate,
            "fma_flops_per_s": 50 * rate,
            "l2_bytes": 48,
            "memory_bytes": 24,
        }

    runs = [(100.0, run(58, 2.6e11)), (25.0, run(15, 1e11))]
    made = ProbeRecord.of(UUID, "NVIDIA L4", "580.159.04", "2026-01-31", runs)
    assert made.points == (ProbePoint(25.0, 15, 1e11, 5e12), ProbePoint(100.0, 58, 2.6e11, 1.3e13))
    assert (made.launch_us, made.clock_mhz, made.l2_bytes, made.memory_bytes) == (60.0, 2058.0, 48, 24)
    del runs[0][1]["triad_bytes_per_s"]
    with pytest.raises(InvalidRequestError, match="triad_bytes_per_s"):
        ProbeRecord.of(UUID, "NVIDIA L4", "580.159.04", "2026-01-31", runs)
    with pytest.raises(InvalidRequestError, match="doctor --probe"):
        ProbeRecord.of(UUID, "NVIDIA L4", "580.159.04", "2026-01-31", [])


# -- finding


def test_a_gpu_is_found_by_uuid_or_full_name(tmp_path: Path) -> None:
    store(tmp_path, RECORD)
    for name in (UUID, UUID.upper(), "NVIDIA L4", "nvidia l4"):
        assert find(tmp_path, name) == RECORD
    for name in ("L4", UUID[:-1], "", "../x", "*"):
        assert find(tmp_path, name) is None


def test_two_gpus_of_a_name_are_told_apart_by_uuid(tmp_path: Path) -> None:
    second = attrs.evolve(RECORD, uuid=OTHER)
    store(tmp_path, RECORD)
    store(tmp_path, second)
    assert find(tmp_path, OTHER) == second
    with pytest.raises(InvalidRequestError, match=f"{UUID}, {OTHER}") as raised:
        find(tmp_path, "NVIDIA L4")
    assert raised.value.reason == "AMBIGUOUS_DEVICE"


def test_no_folder_is_no_record(tmp_path: Path) -> None:
    assert records(tmp_path / "none") == ()
    assert find(tmp_path / "none", "NVIDIA L4") is None


# -- what is broken


def _changed(**values: Any) -> str:
    return json.dumps({**RECORD.to_dict(), **values})


def _point(**values: Any) -> str:
    return _changed(points=[{**RECORD.to_dict()["points"][0], **values}])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ""),
        ("{", ""),
        ("[]", "object"),
        ("\udcff", ""),
        (json.dumps({key: value for key, value in RECORD.to_dict().items() if key != "driver"}), "driver missing"),
        (_changed(color="red"), "color unknown"),
        (_changed(uuid=OTHER), "named after"),
        (_changed(uuid="../x"), "uuid"),
        (_changed(name=""), "name"),
        (_changed(date="yesterday"), "date='yesterday'"),
        (_changed(launch_us=0), "launch_us=0"),
        (_changed(launch_us=True), "launch_us=True"),
        (_changed(clock_mhz="fast"), "clock_mhz='fast'"),
        (_changed(clock_mhz=float("nan")), "clock_mhz"),
        (_changed(clock_mhz=float("inf")), "clock_mhz"),
        (_changed(clock_mhz=10**400), "clock_mhz"),
        (_changed(l2_bytes=0.5), "l2_bytes=0.5"),
        (_changed(points=[]), "points"),
        (_changed(points={}), "points"),
        (_changed(points=[3]), "object"),
        (_changed(points=RECORD.to_dict()["points"][::-1]), "rising"),
        (_changed(points=RECORD.to_dict()["points"][:1] * 2), "once"),
        (_point(sms=0), "sms=0"),
        (_point(sms=1.5), "sms=1.5"),
        (_point(sm_percent=101), "sm_percent=101"),
        (_point(triad_bytes_per_s=-1), "triad_bytes_per_s=-1"),
        (_point(fma_flops_per_s=None), "fma_flops_per_s=None"),
        (_point(watts=3), "watts unknown"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / f"{UUID}.json"
    file.write_text(text, errors="surrogateescape")
    for read in (lambda: load(tmp_path, UUID), lambda: records(tmp_path), lambda: find(tmp_path, "NVIDIA L4")):
        with pytest.raises(InvalidRequestError) as raised:
            read()
        assert raised.value.reason == "BAD_RECORD"
        assert str(file) in raised.value.message
        assert named in raised.value.message


def test_numbers_without_a_point_are_read(tmp_path: Path) -> None:
    file = tmp_path / f"{UUID}.json"
    file.write_text(_changed(clock_mhz=2040))
    assert load(tmp_path, UUID) == RECORD
