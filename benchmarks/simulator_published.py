"""The published runs of HAS-GPU, FaST-GShare and KServe as values: what was sent, what came back, which slices there were.

Files and traps: shared/data/v100/runs/SOURCE.md. Times are in seconds from the first call that was sent; a file notes when
an answer arrived, so a call was sent that much earlier as it took.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from hasfaas.core.errors import InvalidRequestError

Array = np.ndarray[Any, Any]

RUNS = Path("v100") / "runs"
BASE_LOAD = Path("traces") / "hasgpu_workload" / "rps.json"
# A run under the heavier load that kept up, of a model that is not judged here: its sending times show the list of rates,
# which is not among the published files.
STRESS_RUN = "kserve__3-bert-stress-2-gpu__kserve-bert-stress-2-gpu.csv.gz"
STAGE_S = 5.0
# What the client loses between two calls beside the pause of 1 / rate.
_LOST_S = 0.0002
# By the names in the files: the model of the V100 table.
MODELS = {"resnet": "resnet50", "mobilenet": "mobilenet_v3_large", "convnext": "convnext_large"}
# The same bytes as kserve__1-resnet-stress-2-gpu__kserve-resnet-stress, see SOURCE.md.
_TWICE = "kserve__1-resnet__kserve-25-res-pressure.csv.gz"


@attrs.frozen
class Slices:
    """From `at_s` on there are `pods` of one slice each, in percent."""

    at_s: float
    pods: int
    sm_percent: float
    quota_percent: float


@attrs.frozen(eq=False)
class PublishedRun:
    """One run: what each call that was recorded took, in order of sending, and which of them failed.

    `system` is HAS, fast-gshare or kserve, `model` the name in the V100 table. `slices` is the log from before the load to
    its end, empty where none was published.
    """

    system: str
    run: str
    file: str
    model: str
    stress: bool
    sent_s: Array
    latency_ms: Array
    failed: Array
    slices: tuple[Slices, ...]

    @property
    def one_slice(self) -> bool:
        """Whether every pod that was logged during the load has the same slice."""
        return len({(s.sm_percent, s.quota_percent) for s in self.during_load}) == 1

    @property
    def during_load(self) -> tuple[Slices, ...]:
        """The slices in force at the first call, and those that came later."""
        before = [s for s in self.slices if s.at_s <= 0.0]
        return (*before[-1:], *(s for s in self.slices if s.at_s > 0.0))


def published(data: Path) -> tuple[PublishedRun, ...]:
    """All runs but those of BERT, in the order of their files' names; one of which there are two copies comes once.

    Raises InvalidRequestError (BAD_RUNS) if `data` holds none.
    """
    folder = data / RUNS
    files = [path.name for path in sorted(folder.glob("*.csv.gz")) if "usage" not in path.name]
    if not files:
        raise InvalidRequestError(
            f"data={str(data)!r} holds no {RUNS}/*.csv.gz: name the folder that holds v100/", reason="BAD_RUNS"
        )
    return tuple(read(folder / name) for name in files if "bert" not in name and name != _TWICE)


def read(path: Path) -> PublishedRun:
    """One run from its file of requests, and the log of its slices beside it."""
    system, run, _ = path.name.split("__")
    calls = list(_rows(path))
    took_s = np.array([float(call["duration"]) for call in calls])
    sent = np.array([_seconds(call["timestamp"]) for call in calls]) - took_s
    order = np.argsort(sent, kind="stable")
    first = float(sent.min())
    return PublishedRun(
        system=system,
        run=run,
        file=path.name,
        model=next((model for word, model in MODELS.items() if word in run), run),
        stress="stress" in path.name,
        sent_s=sent[order] - first,
        latency_ms=1000.0 * took_s[order],
        failed=np.array([call["success"] != "True" for call in calls])[order],
        slices=_slices(path, first),
    )


def base_rps(data: Path) -> tuple[float, ...]:
    """The rates of the stages of the lighter load."""
    return tuple(map(float, json.loads((data / BASE_LOAD).read_text())["processed_request_counts"]))


def stress_rps(data: Path) -> tuple[float, ...]:
    """The rates of the stages of the heavier load, read off the sending times of a run that kept up."""
    return rates(read(data / RUNS / STRESS_RUN).sent_s)


def rates(sent_s: Array, stage_s: float = STAGE_S) -> tuple[float, ...]:
    """The whole rates of stages, from the times at which an unhindered client sent: it pauses 1 / rate after each call.

    A stage of rate r holds `stage_s` x r calls; r is the inverse of the median of its first gaps.
    """
    found: list[float] = []
    first = 0
    while first < len(sent_s) - 1:
        gap_s = float(np.median(np.diff(sent_s[first : first + 5])))
        found.append(max(1.0, round(1.0 / (gap_s - _LOST_S))))
        first += round(stage_s * found[-1])
    return tuple(found)


# -- leaves -------------------------------------------------------------------------------------------------------------


def _slices(requests: Path, first: float) -> tuple[Slices, ...]:
    """The log as changes. Sums over pods are divided by their number; files of one row a pod are counted."""
    path = requests.with_name(
        requests.name.replace("__has-", "__has-usage-").replace("__fastgshare-", "__fastgshare-usage-")
    )
    if path == requests or not path.exists():
        return ()
    at: dict[str, list[dict[str, str]]] = {}
    for row in _rows(path):
        at.setdefault(row["timestamp"], []).append(row)
    found: list[Slices] = []
    for stamp, rows in at.items():
        pods = sum(int(row.get("pod_count") or row.get("pod_counts") or 1) for row in rows)
        sm = sum(float(row.get("sm_usage") or row["sm_partition"]) for row in rows)
        quota = sum(float(row.get("quota_usage") or row["quota"]) for row in rows)
        now = Slices(_seconds(stamp) - first, pods, sm / pods, quota / pods)
        if not found or attrs.astuple(found[-1])[1:] != attrs.astuple(now)[1:]:
            found.append(now)
    return tuple(found)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def _seconds(stamp: str) -> float:
    """Local time in both files; a Z at the end is not meant."""
    return datetime.fromisoformat(stamp.removesuffix("Z")).timestamp()
