"""What was probed on one GPU, by SM share, as a value and as a file: `<state_dir>/devices/<uuid>.json`.

Law: a file is whole or not there (written beside it, then renamed), and one that cannot be read as it was meant is an error
that names the file, the field and the cure; it is never taken for no record.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import attrs

from hasfaas.core.errors import InvalidRequestError

FOLDER = "devices"
"""Where records lie, below `state_dir`."""
_UUID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)


def _figure(high: float = sys.float_info.max) -> Any:
    """Above 0 and at most `high`, so finite; a number that JSON wrote without a point is one as well."""

    def check(instance: object, field: attrs.Attribute[float], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= high:
            raise ValueError(f"{field.name}={value!r} must be a number above 0 and at most {high:g}")

    return check


def _count(instance: object, field: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 2**53:
        raise ValueError(f"{field.name}={value!r} must be a whole number of at least 1")


def _text(instance: object, field: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field.name}={value!r} must be a text")


def _uuid(instance: object, field: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not _UUID.fullmatch(value):  # it names a file
        raise ValueError(f"{field.name}={value!r} must be a GPU's UUID, such as GPU-1a2b3c4d-...")


def _date(instance: object, field: attrs.Attribute[str], value: object) -> None:
    _text(instance, field, value)
    try:
        datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{field.name}={value!r} must be a date in ISO 8601, such as 2026-01-31") from None


@attrs.frozen
class ProbePoint:
    """What a process found that was given `sm_percent` of the SMs: `sms` is how many it counted."""

    sm_percent: float = attrs.field(validator=_figure(high=100.0))
    sms: int = attrs.field(validator=_count)
    triad_bytes_per_s: float = attrs.field(validator=_figure())
    fma_flops_per_s: float = attrs.field(validator=_figure())


@attrs.frozen
class ProbeRecord:
    """The probes of one GPU, in rising order of SM share. `launch_us` is the device time of the shortest kernel, `clock_mhz`
    the SMs' clock under load; the sizes are None where nobody asked for them."""

    uuid: str = attrs.field(validator=_uuid)
    name: str = attrs.field(validator=_text)
    driver: str = attrs.field(validator=_text)
    date: str = attrs.field(validator=_date)
    points: tuple[ProbePoint, ...] = attrs.field()
    launch_us: float = attrs.field(validator=_figure())
    clock_mhz: float = attrs.field(validator=_figure())
    l2_bytes: int | None = attrs.field(default=None, validator=attrs.validators.optional(_count))
    memory_bytes: int | None = attrs.field(default=None, validator=attrs.validators.optional(_count))

    @points.validator
    def _rising(self, field: attrs.Attribute[Any], points: tuple[ProbePoint, ...]) -> None:
        shares = [point.sm_percent for point in points]
        if not shares or shares != sorted(set(shares)):
            raise ValueError(f"points at sm_percent={shares}: give at least one, in rising order, each share once")

    @classmethod
    def of(cls, uuid: str, name: str, driver: str, date: str, runs: Iterable[tuple[float, Mapping[str, Any]]]) -> Self:
        """From what `python -m hasfaas.devices.probes all` printed at each SM share (in percent, as asked for). The figures
        of the whole GPU are those of the largest. Raises InvalidRequestError (BAD_RECORD)."""
        ordered = sorted(runs, key=lambda run: run[0])
        try:
            points = [
                {"sm_percent": share, **{key: found[key] for key in ("sms", "triad_bytes_per_s", "fma_flops_per_s")}}
                for share, found in ordered
            ]
            whole = {key: ordered[-1][1][key] for key in ("launch_us", "clock_mhz", "l2_bytes", "memory_bytes")}
        except (KeyError, IndexError) as exc:
            raise _broken("the probes' output", f"{exc} is missing") from exc
        return cls.from_dict(
            {"uuid": uuid, "name": name, "driver": driver, "date": date, "points": points, **whole},
            "the probes' output",
        )

    @classmethod
    def from_dict(cls, data: object, origin: str = "a record") -> Self:
        """From the JSON form; `origin` is named in errors. Raises InvalidRequestError (BAD_RECORD)."""
        values = _fields(cls, data, origin)
        points = values["points"]
        if not isinstance(points, list | tuple):
            raise _broken(origin, f"points={points!r} must be a list")
        try:
            made = tuple(ProbePoint(**_fields(ProbePoint, point, origin)) for point in points)
            return cls(**{**values, "points": made})
        except ValueError as exc:
            if isinstance(exc, InvalidRequestError):
                raise
            raise _broken(origin, str(exc)) from exc

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return attrs.asdict(
            self, value_serializer=lambda _, __, value: list(value) if isinstance(value, tuple) else value
        )


def store(folder: Path, record: ProbeRecord) -> Path:
    """Writes the record of a GPU in place of its last one, and returns its file. Raises InvalidRequestError (BAD_FOLDER)
    where the folder cannot be written."""
    file = folder / f"{record.uuid}.json"
    beside = folder / f".{record.uuid}.{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside.write_text(json.dumps(record.to_dict(), indent=1) + "\n")
        beside.replace(file)
    except OSError as exc:
        raise InvalidRequestError(f"the record {file} cannot be written: {exc}", reason="BAD_FOLDER") from exc
    finally:
        beside.unlink(missing_ok=True)
    return file


def load(folder: Path, uuid: str) -> ProbeRecord | None:
    """The record of a GPU by its UUID, None where it was never probed. Raises InvalidRequestError (BAD_RECORD)."""
    return _read(folder / f"{uuid}.json") if _UUID.fullmatch(uuid) else None


def records(folder: Path) -> tuple[ProbeRecord, ...]:
    """All records, by UUID. Raises InvalidRequestError (BAD_RECORD) for the first that is broken."""
    found = (_read(file) for file in sorted(folder.glob("[!.]*.json")))
    return tuple(record for record in found if record is not None)


def find(folder: Path, device: str) -> ProbeRecord | None:
    """The record of a GPU by its UUID, or by its full name ("NVIDIA L4") where no other of that name was probed; case does
    not matter. None where there is none. Raises InvalidRequestError (AMBIGUOUS_DEVICE, BAD_RECORD)."""
    exact = load(folder, device)
    if exact is not None:
        return exact
    wanted = device.casefold()
    known = records(folder)
    same = [record for record in known if record.uuid.casefold() == wanted]
    same = same or [record for record in known if record.name.casefold() == wanted]
    if len(same) > 1:
        uuids = ", ".join(record.uuid for record in same)
        raise InvalidRequestError(
            f"device={device!r} was probed on several GPUs: give one of {uuids}", reason="AMBIGUOUS_DEVICE"
        )
    return same[0] if same else None


def _read(file: Path) -> ProbeRecord | None:
    try:
        data = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:  # what is no JSON, and no UTF-8, is a ValueError
        raise _broken(str(file), str(exc)) from exc
    record = ProbeRecord.from_dict(data, str(file))
    if record.uuid != file.stem:
        raise _broken(str(file), f"uuid={record.uuid!r} is not the GPU that the file is named after")
    return record


def _fields(cls: type[attrs.AttrsInstance], data: object, origin: str) -> dict[str, Any]:
    """The fields of a class from a JSON object that has no other, and all that have no default."""
    if not isinstance(data, Mapping):
        raise _broken(origin, f"{data!r:.60} must be an object")
    known = attrs.fields(cls)
    wrong = [str(key) for key in data if key not in {field.name for field in known}]
    missing = [field.name for field in known if field.default is attrs.NOTHING and field.name not in data]
    if wrong or missing:
        said = [f"{', '.join(names)} {what}" for names, what in ((missing, "missing"), (wrong, "unknown")) if names]
        raise _broken(origin, f"{cls.__name__}: {'; '.join(said)}")
    return dict(data)


def _broken(origin: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{origin} is no record of a GPU's probes: {why}; delete it, then `hasfaas doctor --probe`", reason="BAD_RECORD"
    )
