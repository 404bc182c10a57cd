"""Predicted against measured, in real replicas under real quotas: six functions on this machine's CPU, six on a `sim` device.

`python -m benchmarks.rapp_live --json live.json --picture live.png`, about seven minutes; `--quick` tries it in one.
Each function is profiled with 16 points, then measured at batches, quotas (and on `sim` SM shares) that were not probed:
the mean response of a saturated replica beside hold / quota of the profile. Then a function takes 1.3 times its work, and
the corrected profile is looked at as batches are served. Timings need a quiet machine: the load is told.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import hasfaas
from benchmarks import rapp_functions
from benchmarks.gateway import running_gateway
from hasfaas import function
from hasfaas.rapp.profile import Profile
from hasfaas.sdk.client import Client

TARGET_PERCENT = 8.0
SLOWED_TARGET_PERCENT, WITHIN_BATCHES = 10.0, 50
SLOWDOWN = 1.3
# Not probed: probes go to powers of two, halfway between two, and to quotas of 30, 60 and 100 %.
BATCHES, QUOTAS = (5, 10, 14), (80.0, 45.0, 20.0)
SIM_SHARES = (60.0, 25.0)
PACE_S = 0.05
# (base, per item) in ms and the part that more SMs do not shorten, for six shapes of a latency table.
SIM_SHAPES = ((2.0, 0.5, 0.1), (0.8, 2.0, 0.02), (6.0, 0.1, 0.5), (1.0, 1.0, 0.3), (12.0, 3.0, 0.05), (3.0, 0.02, 0.8))
SIM_BATCHES, SIM_SMS = (1, 2, 4, 8, 16), (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


def _ones(batch: int) -> np.ndarray[Any, Any]:
    return np.ones((batch, 4))


def same(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Costs nothing itself: the device emulates the time."""
    return x


SIM = tuple(
    function(slo_ms=500, batch=hasfaas.Batch(16), memory="128MiB", example=_ones, name=f"sim.shape{i}")(same)
    for i in range(len(SIM_SHAPES))
)


def sim_tables() -> dict[str, object]:
    """The latency tables of the emulated functions."""

    def table(base_ms: float, per_item_ms: float, fixed: float) -> dict[str, object]:
        at = [[(base_ms + per_item_ms * b) * (fixed + (1 - fixed) * 100 / s) for s in SIM_SMS] for b in SIM_BATCHES]
        return {"batches": list(SIM_BATCHES), "sm_percents": list(SIM_SMS), "latency_ms": at}

    return {f"sim.shape{i}": table(*shape) for i, shape in enumerate(SIM_SHAPES)}


@attrs.frozen
class Seen:
    """One point that was not probed."""

    function: str
    batch: int
    sm_percent: float
    quota_percent: float
    hold_ms: float
    mean_hold_ms: float
    measured_ms: float
    predicted_ms: float
    runs: int
    log_spread: float

    @property
    def error_percent(self) -> float:
        """Absolute error of the prediction."""
        return 100.0 * abs(self.predicted_ms / self.measured_ms - 1.0)


def profiled(client: Client, name: str, points: int) -> Profile:
    """Measures a function and gives its profile."""

    async def last() -> str:
        text = ""
        async for news in client.profile(name, points=points):
            text = news.profile_json or text
            if news.note:
                report(f"  {name}: {news.note}")
        return text

    return Profile.from_dict(json.loads(client.run(last())))


def measured(client: Client, name: str, at: Sequence[tuple[int, float, float]]) -> list[Any]:
    """The figures of these points."""

    async def all_of_them() -> list[Any]:
        news = client.profile(name, at=at)
        return [each.measured async for each in news if each.WhichOneof("news") == "measured"]

    return client.run(all_of_them())


def unprobed(profile: Profile, quick: bool) -> list[tuple[int, float, float]]:
    """Points away from all probes: batches and quotas, and shares where the device has some between the probes."""
    shares = SIM_SHARES if profile.device.kind == "sim" else (profile.surface.sm_percents[-1],)
    batches, quotas = (BATCHES[:1], QUOTAS[:2]) if quick else (BATCHES, QUOTAS)
    points = list(itertools.product(batches, shares, quotas))
    probed = {(p.point.batch, p.point.sm_percent, p.point.quota_percent) for p in profile.probes}
    assert not probed & set(points), "what was probed is no test"
    return points


def of_function(client: Client, name: str, points: int, quick: bool) -> list[Seen]:
    """Profiles one function and looks at it elsewhere."""
    began_s = time.monotonic()
    profile = profiled(client, name, points)
    surface = profile.current()
    seen = [
        Seen(
            name,
            m.point.batch,
            m.point.sm_percent,
            m.point.quota_percent,
            m.hold_ms,
            m.mean_hold_ms,
            m.response_ms,
            surface.hold(m.point.batch, m.point.sm_percent) * 100.0 / m.point.quota_percent,
            m.runs,
            m.log_spread,
        )
        for m in measured(client, name, unprobed(profile, quick))
    ]
    errors = [one.error_percent for one in seen]
    report(
        f"{name}: median {statistics.median(errors):.1f} %, worst {max(errors):.1f} %, n {len(seen)}, law at the probes "
        f"{profile.law_error_percent or 0.0:.1f} %, {time.monotonic() - began_s:.0f} s"
    )
    return seen


def slowed(client: Client, points: int, batches: int) -> dict[str, Any]:
    """Errors of the corrected profile while batches of 1.3 times the work are served, by their number.

    What is true is what those batches held the lane, by the account of their replica: the median of all of them.
    """
    fn = rapp_functions.slowed
    fn.deploy()
    item = rapp_functions._signals(1)[0]
    profile = profiled(client, fn.name, points)
    share = profile.surface.sm_percents[-1]

    def used_ns() -> int:
        (status,) = client.run(client.status(fn.name)).functions
        return sum(replica.usage.used_ns for replica in status.replicas)

    def served(scale: float, until: int) -> tuple[list[dict[str, Any]], float]:
        """(what was predicted after so many batches, the median hold of all of them)."""
        known = Profile.from_dict(client.run(client.profile_of(fn.name)))
        begun = known.correction.batches if known.correction else 0
        rows = [{"batches": 0, "predicted_ms": known.current().hold(1, share), "drifted": False}]
        holds_ns: list[int] = []
        give_up_s = time.monotonic() + 60.0
        while rows[-1]["batches"] < until and time.monotonic() < give_up_s:
            before_ns = used_ns()
            fn.remote(item, scale)
            holds_ns.append(used_ns() - before_ns)
            time.sleep(PACE_S)
            known = Profile.from_dict(client.run(client.profile_of(fn.name)))
            if known.correction and known.correction.batches - begun != rows[-1]["batches"]:
                count, drifted = known.correction.batches - begun, known.correction.drifted
                rows.append({"batches": count, "predicted_ms": known.current().hold(1, share), "drifted": drifted})
        truth_ms = statistics.median(holds_ns) / 1e6
        for row in rows:
            row["error_percent"] = 100.0 * abs(row["predicted_ms"] / truth_ms - 1.0)
        return rows, truth_ms

    fn.remote(item, 1.0)
    usual, usual_ms = served(1.0, batches // 2)
    after, slowed_ms = served(SLOWDOWN, batches)
    # From then on it stays below the target.
    above = [row["batches"] for row in after if row["error_percent"] > SLOWED_TARGET_PERCENT]
    stays = [row["batches"] for row in after if row["batches"] > max(above, default=-1)]
    back = stays[0] if stays else None
    found = {
        "profiled_ms": profile.surface.hold(1, share),
        "usual_ms": usual_ms,
        "slowed_ms": slowed_ms,
        "before": usual,
        "after": after,
        "back_after_batches": back,
        "met": back is not None and back <= WITHIN_BATCHES,
    }
    report(
        f"slowdown: {usual_ms:.2f} ms became {slowed_ms:.2f} ms; error {after[0]['error_percent']:.1f} % at first, "
        f"{after[-1]['error_percent']:.1f} % after {after[-1]['batches']} batches"
    )
    return found


def summary(seen: Sequence[Seen]) -> dict[str, Any]:
    """Figures of one device."""
    errors = np.array([one.error_percent for one in seen])
    names = sorted({one.function for one in seen})
    by_function = {name: float(np.median([o.error_percent for o in seen if o.function == name])) for name in names}
    return {
        "n": len(seen),
        "median_percent": float(np.median(errors)),
        "mean_percent": float(np.mean(errors)),
        "p90_percent": float(np.percentile(errors, 90)),
        "target_percent": TARGET_PERCENT,
        # What else the machine did: 0 on a quiet one. And the law alone, by the mean hold of the very same runs.
        "interrupted_percent": 100.0 * float(np.median([o.mean_hold_ms / o.hold_ms - 1.0 for o in seen])),
        "law_median_percent": 100.0
        * float(np.median([abs(o.mean_hold_ms * 100.0 / o.quota_percent / o.measured_ms - 1.0) for o in seen])),
        "met": bool(np.median(errors) <= TARGET_PERCENT),
        "median_by_function": by_function,
        "points": [{**attrs.asdict(one), "error_percent": one.error_percent} for one in seen],
    }


def draw(document: dict[str, Any], path: Path) -> None:
    """Predicted against measured for each device, and the error after the slowdown."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    devices = [name for name in ("cpu", "sim") if name in document]
    panels = len(devices) + ("slowdown" in document)
    figure, axes = pyplot.subplots(1, panels, figsize=(5 * panels, 4.6), squeeze=False)
    for axis, name in zip(axes[0], devices, strict=False):
        found = document[name]
        for one in sorted(found["median_by_function"]):
            mine = [p for p in found["points"] if p["function"] == one]
            label = f"{one.rpartition('.')[2]} ({found['median_by_function'][one]:.1f} %)"
            axis.plot([p["measured_ms"] for p in mine], [p["predicted_ms"] for p in mine], "o", ms=4, label=label)
        ends = [f(p["measured_ms"] for p in found["points"]) for f in (min, max)]
        axis.plot(ends, ends, color="grey", lw=0.8)
        axis.fill_between(ends, [0.92 * e for e in ends], [1.08 * e for e in ends], color="grey", alpha=0.2, lw=0)
        axis.set(xscale="log", yscale="log", xlabel="measured mean response, saturated (ms)", ylabel="predicted (ms)")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(ScalarFormatter())
            side.set_minor_formatter(NullFormatter())
        axis.set_title(f"{name}: median error {found['median_percent']:.1f} %, n = {found['n']}")
        axis.legend(fontsize=7)
    if "slowdown" in document:
        _draw_slowdown(axes[0][-1], document["slowdown"])
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _draw_slowdown(axis: Any, slow: dict[str, Any]) -> None:
    axis.plot([r["batches"] for r in slow["after"]], [r["error_percent"] for r in slow["after"]], "o-", ms=3)
    axis.axhline(SLOWED_TARGET_PERCENT, color="grey", lw=0.8)
    axis.axvline(WITHIN_BATCHES, color="grey", lw=0.8)
    axis.set(
        xlabel=f"batches served at {SLOWDOWN:g} times the work",
        ylabel="error of the corrected hold (%)",
        ylim=(0, None),
    )
    axis.set_title("online correction")


def report(text: str) -> None:
    """News, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measures, prints the figures, writes the document and the picture. The exit status is 0 whatever they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--picture", type=Path, help="write predicted against measured here (matplotlib)")
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--only", choices=("cpu", "sim", "slowdown"), action="append", help="this part; repeatable")
    parser.add_argument("--quick", action="store_true", help="two functions a device, and few points")
    given = parser.parse_args()
    parts = given.only or ["cpu", "sim", "slowdown"]
    document: dict[str, Any] = {"points": given.points, "load_at_start": os.getloadavg()}
    began_s = time.monotonic()
    for kind, functions in (("cpu", rapp_functions.SIX), ("sim", SIM)):
        if kind not in parts and not (kind == "cpu" and "slowdown" in parts):
            continue
        device: dict[str, object] = {"kind": kind}
        if kind == "sim":
            device["profile"] = sim_tables()
        with running_gateway({"devices": [device]}) as client:
            if kind in parts:
                seen: list[Seen] = []
                for fn in functions[: 2 if given.quick else None]:
                    fn.deploy(warm=False)
                    seen += of_function(client, fn.name, 6 if given.quick else given.points, given.quick)
                document[kind] = summary(seen)
            if kind == "cpu" and "slowdown" in parts:
                document["slowdown"] = slowed(client, 6 if given.quick else given.points, WITHIN_BATCHES + 10)
    document |= {"load_at_end": os.getloadavg(), "seconds": time.monotonic() - began_s}
    for kind in ("cpu", "sim"):
        if kind in document:
            found = document[kind]
            print(
                f"{kind}: median {found['median_percent']:.1f} %, mean {found['mean_percent']:.1f} %, p90 "
                f"{found['p90_percent']:.1f} %, n {found['n']} (target: median <= {TARGET_PERCENT:g} %, "
                f"{'met' if found['met'] else 'missed'}); the law alone {found['law_median_percent']:.1f} %; interruptions "
                f"add {found['interrupted_percent']:.1f} % to the mean hold"
            )
    if "slowdown" in document:
        slow = document["slowdown"]
        print(
            f"slowdown of {SLOWDOWN:g}: below {SLOWED_TARGET_PERCENT:g} % after {slow['back_after_batches']} batches "
            f"(target: {WITHIN_BATCHES}, {'met' if slow['met'] else 'missed'})"
        )
    print(f"load {document['load_at_start'][0]:.1f} .. {document['load_at_end'][0]:.1f}, {document['seconds']:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(document, indent=1))
    if given.picture:
        draw(document, given.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
