"""The report of the scaling benchmark as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def text(report: Mapping[str, Any]) -> str:
    """Lines for people, from what the JSON holds."""
    return "\n".join(_lines(report))


# -- leaves -------------------------------------------------------------------------------------------------------------


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    figures = {key: value for key, value in report.items() if isinstance(value, dict) and "met" in value}
    yield f"{'figure':26}{'value':>8}   {'95 % interval':18}{'target':>7}  {'met':4}{'cells':>6}{'whole-GPU bound':>17}"
    for key, found in figures.items():
        if found["n"]:
            interval = f"{found['low']:.3g} .. {found['high']:.3g}"
            met = "yes" if found["met"] else "no"
            bound = report.get("bounds", {}).get(key)
            beside = "" if bound is None else f"{bound:17.2f}"
            yield f"{key:26}{found['value']:8.3g}   {interval:18}{found['target']:7g}  {met:4}{found['n']:6}{beside}"
    if "summary" in report:
        yield from _grid(report)
    if report.get("ablations"):
        yield from _ablations(report["ablations"])
    if "tenants" in report:
        yield from _tenants(report["tenants"])
    for count, speed in report.get("speed", {}).items():
        yield f"decide for {count} functions: median {speed['median_ms']:.2f} ms, p90 {speed['p90_ms']:.2f} ms"
    for name, study in report.get("studies", {}).items():
        yield from _study(name, study)
    yield f"\n{report['wall_s']:.0f} s, {report['cpu_s']:.0f} s of processor time"


def _grid(report: Mapping[str, Any]) -> Iterator[str]:
    yield "\ncosts over ours (geometric means over cells), and late calls (means over seeds, then over cells)"
    yield from _summary(report["summary"])
    yield "\nKPA over ours by load, in whole GPUs with their best batch, beside the most that slices alone can save"
    yield f"{'load':14}{'cells':>6}{'ratio':>8}{'bound':>8}{'share':>7}{'KPA late':>10}{'our late':>10}"
    for part in report["curve"]:
        low, high = part["load_gpus"]
        yield (
            f"{low:g} to {high:g}".ljust(14)
            + f"{part['cells']:6}{part['cost_ratio']:8.2f}{part['bound']:8.2f}{part['cost_ratio'] / part['bound']:7.2f}"
            + f"{part['kpa_violations']:10.2%}{part['our_violations']:10.2%}"
        )
    yield f"\ncells over 1 % late under ours: {len(report['missed'])}"
    for one in report["missed"]:
        yield f"  {one['cell']:40}" + ", ".join(f"{policy} {late:.2%}" for policy, late in one["violations"].items())
    yield f"\ncells that ours loses: {len(report['lost'])}"
    for one in report["lost"]:
        yield (
            f"  {one['cell']:40}to {one['to']:13}{one['why']}: cost ratio {one['cost_ratio']:.2f}, "
            f"late {one['violations']:.2%} against our {one['our_violations']:.2%}"
        )
    yield f"of them more than 5 % dearer than the tuned fixed slice: {len(report['dearer_than_fixed'])}"


def _summary(lines: list[dict[str, Any]]) -> Iterator[str]:
    yield (
        f"{'policy':14}{'reserved':>9}{'provis.':>9}{'used':>7}{'billed':>8}"
        f"{'median late':>13}{'mean late':>11}{'within 1 %':>12}{'actions/min':>13}{'cells':>7}"
    )
    for line in lines:
        yield (
            f"{line['policy']:14}{line['reserved_over_ours']:9.2f}{line['provisioned_over_ours']:9.2f}"
            f"{line['used_over_ours']:7.2f}{line['billed_over_ours']:8.2f}{line['median_violations']:13.2%}"
            f"{line['mean_violations']:11.2%}{line['cells_within_1pct']:12.1%}{line['actions_per_min']:13.1f}"
            f"{line['cells']:7}"
        )


def _ablations(parts: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield "\nours without a part, over ours with all (first seed; no pooling: the tenants, provisioned)"
    for name, found in parts.items():
        within = f", {found['cells_within_1pct']:.1%} of cells within 1 %" if "cells_within_1pct" in found else ""
        yield f"  {name:14}cost {found['cost_ratio']:.2f}, late {found['violation_ratio']:.2f}{within}"


def _tenants(part: Mapping[str, Any]) -> Iterator[str]:
    yield f"\ntenants, GPU-hours; the best baseline is {part['best_baseline']}"
    yield (
        f"{'policy':24}{'provis.':>9}{'reserved':>9}{'used':>7}{'billed':>8}{'late':>8}{'worst':>8}{'peak':>6}"
        f"{'refused':>9}{'actions/min':>13}  settings"
    )
    for line in part["summary"]:
        yield (
            f"{line['policy']:24}{line['provisioned_gpu_h']:9.2f}{line['reserved_gpu_h']:9.2f}{line['used_gpu_h']:7.2f}"
            f"{line['billed_gpu_h']:8.2f}{line['violations']:8.2%}{line['worst_function']:8.1%}{line['peak_gpus']:6.1f}"
            f"{line['refused']:9.0f}{line['actions_per_min']:13.1f}  {', '.join(line['settings'])}"
        )


def _study(name: str, study: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n== {name}"
    if "at_equal_violations" in study:
        for part in study["at_equal_violations"]:
            found = part["fixed_over_ours"]
            value = f"{found['value']:.2f}" if found["n"] else "-"
            yield (
                f"at most {part['limit']:.1%} late: fixed over ours {value} in {found['n']} cells; "
                f"only ours {part['only_ours']}, only fixed {part['only_fixed']}"
            )
        return
    yield from _summary(study["summary"])
    for key, found in study["figures"].items():
        yield f"  {key:26}{found['value']:8.3g}   {found['low']:.3g} .. {found['high']:.3g} in {found['n']} cells"
