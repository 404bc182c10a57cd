"""What a check of a GPU found: its figures with their bounds, one JSON line each as they come.

Lines and not one document: what a check had found before its time was over is in the record too.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs


class NotRunError(Exception):
    """Why a check cannot be made on this machine."""


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


@attrs.frozen
class Figure:
    """One claim in numbers: each measured value, and the bounds that their median has to keep (None: it is reported only)."""

    name: str
    unit: str
    values: tuple[float, ...] = attrs.field(converter=_floats)
    least: float | None = None
    most: float | None = None
    note: str = ""

    def __attrs_post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"figure {self.name!r} has no values: it was not measured")

    @property
    def median(self) -> float:
        """The value that is held against the bounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the bounds are kept; None where there are none. Not-a-number keeps none."""
        if self.least is None and self.most is None:
            return None
        low = self.least is None or self.median >= self.least
        high = self.most is None or self.median <= self.most
        return low and high and self.median == self.median

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return attrs.asdict(self) | {"median": self.median, "met": self.met}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Figure:
        """From `to_dict`."""
        return cls(**{field.name: data[field.name] for field in attrs.fields(cls)})


class Sheet:
    """Where a check writes. `gpu` is the GPU to check, by number or UUID."""

    def __init__(self, path: Path | None = None, gpu: str = "0") -> None:
        self.gpu = gpu
        self.figures: list[Figure] = []
        self._remarks: list[str] = []
        self._path = path

    def figure(
        self,
        name: str,
        values: float | Sequence[float],
        unit: str,
        *,
        least: float | None = None,
        most: float | None = None,
        note: str = "",
    ) -> Figure:
        """One more figure."""
        many = (values,) if isinstance(values, int | float) else values
        found = Figure(name, unit, many, least, most, note)
        self.figures.append(found)
        self._line({"figure": found.to_dict()})
        return found

    def claim(self, name: str, holds: bool, note: str = "") -> None:
        """A claim that holds or does not: a figure of 1 or 0, which has to be 1."""
        self.figure(name, float(holds), "yes = 1", least=1.0, note=note)

    def remark(self, text: str) -> None:
        """A sentence for the record, once."""
        if text not in self._remarks:
            self._remarks.append(text)
            self._line({"remark": text})

    def end(self, how: str, why: str = "") -> None:
        """The last line: "done", "not run" or "error", and why."""
        self._line({"end": how, "why": why})

    def _line(self, line: Mapping[str, Any]) -> None:
        if self._path is None:
            print(json.dumps(line), flush=True)
            return
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


@attrs.frozen
class Written:
    """The lines of one check; `end` is empty where it was killed before its last one."""

    figures: tuple[Figure, ...] = ()
    remarks: tuple[str, ...] = ()
    end: str = ""
    why: str = ""

    @classmethod
    def of(cls, lines: Iterable[str]) -> Written:
        """From the text lines; a torn last one is left out."""
        figures, remarks, end, why = [], [], "", ""
        for line in lines:
            try:
                data = json.loads(line)
            except ValueError:
                break
            if "figure" in data:
                figures.append(Figure.from_dict(data["figure"]))
            elif "remark" in data:
                remarks.append(data["remark"])
            else:
                end, why = data["end"], data["why"]
        return cls(tuple(figures), tuple(remarks), end, why)
