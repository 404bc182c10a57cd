"""The pictures of a comparison, as SVG text. The same outcomes give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasfaas.core.errors import InvalidRequestError
from hasfaas.simulator.outcome import TAIL, Outcome

Array = np.ndarray[Any, Any]

# Okabe and Ito's palette, for readers who see no red or green; beyond it lines are dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
DASHES = ("-", "--", ":", "-.")
# Below this share nothing can be told from a run of ordinary length, and a logarithm needs a floor.
LEAST_PERCENT = 0.01
ROWS_OF_DEVICE, GAP = 24, 2


def check_available() -> None:
    """Raises InvalidRequestError (NO_MATPLOTLIB) where pictures cannot be drawn."""
    _figure(1, 1, (1.0, 1.0))


def pareto(outcomes: Sequence[Outcome], price_usd_h: float, late_percent: float) -> str:
    """Late requests against cost, for the slices reserved and for whole GPUs; a line at what the promise allows."""
    figure, axes = _figure(1, 2, (9.6, 3.9), sharey=True)
    panels = (("billed", "slices reserved"), ("provisioned", "whole GPUs in use"))
    for axis, (cost, label) in zip(axes[0], panels, strict=True):
        costs = [outcome.usd_per_1k(getattr(outcome, f"{cost}_gpu_s"), price_usd_h) for outcome in outcomes]
        for index, (outcome, usd) in enumerate(zip(outcomes, costs, strict=True)):
            late = max(100.0 * outcome.late_share, LEAST_PERCENT)
            # Larger and hollow ones first: policies that agree lie on top of each other and are all seen.
            size = 13.0 - 8.0 * index / max(1, len(outcomes) - 1)
            style = {"markerfacecolor": "none", "markeredgewidth": 2.0, "markeredgecolor": _colour(index)}
            axis.plot([usd], [late], "o", markersize=size, label=outcome.policy, **style)
        axis.axhline(late_percent, color="0.5", linewidth=0.8, linestyle="--")
        _logarithmic(axis.xaxis, (1.0, 2.0, 5.0))
        _logarithmic(axis.yaxis, (1.0,))
        axis.set_ylim(0.6 * LEAST_PERCENT, 150.0)
        axis.margins(x=0.15)
        if not any(usd > 0.0 for usd in costs):  # nothing that a logarithm could place
            axis.set_xlim(1e-3, 1.0)
        axis.set_xlabel(f"USD per 1,000 requests, {label}")
        _grid(axis)
    axes[0][0].set_ylabel("late requests, %")
    axes[0][0].text(
        0.01, late_percent * 1.1, f"allowed: {late_percent:g} %", transform=axes[0][0].get_yaxis_transform(), fontsize=8
    )
    _legend(figure, axes[0][0])
    return _svg(figure)


def over_time(outcomes: Sequence[Outcome], warmup_s: float = 0.0) -> str:
    """Load, replicas, their mean quota, reserved devices and late requests of each policy, one below the other."""
    figure, axes = _figure(5, 1, (9.6, 8.4), sharex=True)
    load, replicas, quota, reserved, late = (row[0] for row in axes)
    first = outcomes[0].course
    load.fill_between(first.now_s, first.arrivals_rps, step="post", color="0.7", linewidth=0.0, zorder=2)
    for index, outcome in enumerate(outcomes):
        course = outcome.course
        style: dict[str, Any] = {
            "color": _colour(index),
            "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
            "linewidth": 1.2,
            "drawstyle": "steps-post",
            "label": outcome.policy,
        }
        replicas.plot(course.now_s, course.replicas, **style)
        quota.plot(course.now_s, np.where(course.replicas > 0, course.quota_percent, np.nan), **style)
        reserved.plot(course.now_s, course.reserved_gpus, **style)
        late.plot(course.now_s, 100.0 * course.late_share, **style)
    for axis, label in (
        (load, "requests/s"),
        (replicas, "replicas"),
        (quota, "mean quota, %"),
        (reserved, "GPUs reserved"),
        (late, "late, %"),
    ):
        axis.set_ylabel(label, fontsize=8)
        axis.set_ylim(bottom=0.0)
        axis.set_xlim(0.0)
        axis.axvspan(0.0, warmup_s, color="0.95", zorder=0)
        _grid(axis)
    if warmup_s:
        load.set_title("Grey on the left: warm-up, which counts in no figure.", fontsize=8, loc="left")
    late.set_xlabel("time, s")
    _legend(figure, replicas)
    return _svg(figure)


def gpu_map(outcome: Outcome, device_names: Sequence[str]) -> str:
    """Each device over time: its lanes stacked by SM share, shaded by how much of their time is promised."""
    course = outcome.course
    used = np.flatnonzero(course.lane_sm_percent.max(axis=(0, 2), initial=0.0) > 0.0).tolist()
    figure, axes = _figure(1, 1, (9.6, 0.9 + 0.42 * max(2, len(used))))
    axis = axes[0][0]
    if not used:
        axis.text(0.5, 0.5, "no replica at any time", ha="center", transform=axis.transAxes)
        return _svg(figure)
    bands = [_bands(course.lane_sm_percent[:, device], course.lane_quota_percent[:, device]) for device in used]
    image = np.concatenate(bands, axis=0)
    # Samples lie at ticks, which a policy may choose: cells are as wide as the time up to the next one.
    edges = np.append(course.now_s, 2.0 * course.now_s[-1] - course.now_s[-2] if len(course.now_s) > 1 else 1.0)
    shown = axis.pcolormesh(
        edges, np.arange(len(image) + 1), image, cmap="viridis_r", vmin=0.0, vmax=100.0, rasterized=True
    )
    height = ROWS_OF_DEVICE + GAP
    for row in range(len(used)):
        axis.axhspan(height * row, height * row + ROWS_OF_DEVICE, color="0.93", zorder=0)
    axis.set_yticks(
        [height * row + ROWS_OF_DEVICE / 2 for row in range(len(used))], [device_names[device] for device in used]
    )
    axis.tick_params(axis="y", labelsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("time, s")
    figure.colorbar(shown, ax=axis, label="quota promised, %", aspect=12)
    return _svg(figure)


def tail(outcomes: Sequence[Outcome]) -> str:
    """Which share of the requests took longer than so many times their SLO, on logarithmic axes."""
    figure, axes = _figure(1, 1, (9.6, 3.8))
    axis = axes[0][0]
    for index, outcome in enumerate(outcomes):
        # Dropped requests take for ever: their share is a line that goes on to the right.
        over = np.minimum(outcome.tail, 1e3)
        axis.plot(over, 100.0 * TAIL, color=_colour(index), linewidth=1.4, label=outcome.policy)
    axis.axvline(1.0, color="0.5", linewidth=0.8, linestyle="--")
    axis.text(1.02, 60.0, "SLO", fontsize=8)
    _logarithmic(axis.xaxis, (1.0, 2.0, 5.0))
    _logarithmic(axis.yaxis, (1.0,))
    axis.set_xlim(0.05, 20.0)
    axis.set_ylim(100.0 * TAIL[-1], 110.0)
    axis.set_xlabel("latency / SLO")
    axis.set_ylabel("requests that took longer, %")
    _grid(axis)
    _legend(figure, axis)
    return _svg(figure)


# -- leaves -------------------------------------------------------------------------------------------------------------


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _logarithmic(axis: Any, steps: Sequence[float]) -> None:
    """A logarithmic axis with its numbers written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _grid(axis: Any) -> None:
    axis.grid(True, color="0.92")
    axis.set_axisbelow(True)


def _legend(figure: Any, axis: Any) -> None:
    """Above all axes, where it hides nothing."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncol=6, fontsize=8, frameon=False)


def _bands(sm_percent: Array, quota_percent: Array) -> Array:
    """[row, time] of one device: the quota of the lane that covers each row; NaN where no lane is, and below it."""
    ends = np.cumsum(sm_percent, axis=1)
    row = (np.arange(ROWS_OF_DEVICE)[:, None, None] + 0.5) * 100.0 / ROWS_OF_DEVICE
    inside = (row < ends[None]) & (row >= (ends - sm_percent)[None])
    covered = np.where(inside, quota_percent[None], 0.0).sum(axis=2)
    image = np.where(inside.any(axis=2), covered, np.nan)
    return np.concatenate([image, np.full((GAP, image.shape[1]), np.nan)])


def _figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure that no window and no global state knows of. Raises where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise InvalidRequestError(
            "--report needs matplotlib, which is not installed: pip install 'hasfaas[simulator]'",
            reason="NO_MATPLOTLIB",
        ) from exc
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _svg(figure: Any) -> str:
    """Without what changes from run to run: the date, and ids drawn at random."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "hasfaas", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Sized by the page, and with ids of its own: several pictures share one.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
