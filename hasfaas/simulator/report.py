"""A comparison for people and programs: rows of a table, sentences that say what they mean, and the JSON form."""

from __future__ import annotations

import math
from typing import Any

import attrs

from hasfaas.simulator.outcome import SECONDS_PER_HOUR, Outcome
from hasfaas.simulator.scenario import Scenario

# Policies that `run` tells the load of the run beforehand.
HINDSIGHT = ("fixed", "oracle")
# Policies that give each replica a whole device.
WHOLE_GPUS = ("kpa", "ray")
# Calls per second of one gateway: 32 callers of 100 bytes, on two cores with its clients (docs/performance.md).
GATEWAY_RPS = 8309.0


@attrs.frozen
class Comparison:
    """What is reported: outcomes on one scenario at one price. `models` has an entry a function, `load` says what load.

    `gpu` is the kind of device that is simulated, `measured_on` the kind that the holds were measured on; "" if unknown.
    """

    scenario: Scenario
    outcomes: tuple[Outcome, ...]
    price_usd_h: float
    models: tuple[str, ...]
    load: str
    gpu: str = ""
    measured_on: str = ""
    gateway_rps: float = GATEWAY_RPS

    @property
    def rps(self) -> float:
        """Requests per second of all functions, the warm-up included."""
        return sum(map(len, self.scenario.arrivals)) / self.scenario.duration_s

    @property
    def gateways(self) -> int:
        """So many carry that, if each carries `gateway_rps`."""
        return math.ceil(self.rps / self.gateway_rps)

    @property
    def slo_factor(self) -> float:
        """An SLO is so many times one call on a whole device."""
        function = self.scenario.functions[0]
        return function.slo_ms / float(function.truth.hold_ms[0, -1])

    @property
    def allowed_percent(self) -> float:
        """Late requests that the promise allows, in percent; the strictest of the functions."""
        return 100.0 * min(function.late_share for function in self.scenario.functions)


@attrs.frozen
class Heading:
    """A column: its name, what it says, and whether less is better."""

    name: str
    says: str


HEADINGS = (
    Heading("policy", "the scaler; hybrid is hasfaas's own, fixed and oracle are told the load beforehand"),
    Heading("late %", "requests answered after their SLO, dropped or never answered (less is better)"),
    Heading("worst min %", "the same in the worst minute"),
    Heading("p95 ms", "95 of 100 requests were answered within this"),
    Heading("p99 ms", "99 of 100 requests were answered within this"),
    Heading("GPU-h", "device time reserved: SM share x quota x time, summed over replicas (less is better)"),
    Heading("USD/1k", "its price per 1,000 requests: what serverless users pay (less is better)"),
    Heading("USD/1k GPUs", "price of whole GPUs with a replica on them: what an operator pays (less is better)"),
    Heading("USD/1k used", "price of the device time in which something ran: the least that is possible"),
    Heading("peak GPUs", "most GPUs in use at a time"),
    Heading("cold starts", "replicas started, warm-up included"),
    Heading("actions", "changes made, warm-up included"),
    Heading("refused", "changes that did not fit"),
)


def row(outcome: Outcome, price_usd_h: float) -> tuple[str, ...]:
    """The cells of one policy, as `HEADINGS` names them."""
    return (
        outcome.policy,
        percent(outcome.late_share) if outcome.requests else "-",
        percent(outcome.worst_minute) if outcome.requests else "-",
        milliseconds(outcome.p95_ms),
        milliseconds(outcome.p99_ms),
        figures(outcome.billed_gpu_s / SECONDS_PER_HOUR),
        figures(outcome.usd_per_1k(outcome.billed_gpu_s, price_usd_h)),
        figures(outcome.usd_per_1k(outcome.provisioned_gpu_s, price_usd_h)),
        figures(outcome.usd_per_1k(outcome.used_gpu_s, price_usd_h)),
        str(outcome.peak_gpus),
        str(outcome.cold_starts),
        str(outcome.actions),
        str(outcome.refused),
    )


def setting(comparison: Comparison) -> str:
    """What was simulated, in one line without a full stop at its end."""
    scenario = comparison.scenario
    functions, gpus = len(scenario.functions), len(scenario.devices)
    requests = sum(map(len, scenario.arrivals))
    rate = f"{comparison.rps:,.0f}" if comparison.rps >= 1000.0 else f"{comparison.rps:.3g}"
    kind = f" ({comparison.gpu})" if comparison.gpu else ""
    return (
        f"{comparison.load}: {requests:,} requests to {functions} function{'s' * (functions != 1)} in "
        f"{scenario.duration_s:g} s ({rate} per second in all), the first "
        f"{scenario.warmup_s:g} s not counted; SLO {comparison.slo_factor:.3g}x one call on a whole GPU; "
        f"{gpus} GPU{'s' * (gpus != 1)}{kind}{_lanes(scenario)}; cold start {scenario.functions[0].cold_start_s:g} s; "
        f"law {scenario.law}{', lending' * scenario.lend}; seed {scenario.seed}"
    )


def verdict(comparison: Comparison) -> str:
    """Who kept the promise at the least cost, and what the others that kept it cost. One sentence or two."""
    if comparison.outcomes and not any(outcome.requests for outcome in comparison.outcomes):
        return (
            f"Nothing was counted: no request came after the warm-up, the first {comparison.scenario.warmup_s:g} s of "
            f"{comparison.scenario.duration_s:g}. Simulate for longer, or with more load or a shorter warm-up."
        )
    allowed = comparison.allowed_percent
    kept = [o for o in comparison.outcomes if 100.0 * o.late_share <= allowed and o.requests]
    real = [o for o in kept if not _knows_the_load(o)]
    broke = ", ".join(o.policy for o in comparison.outcomes if o not in kept)
    late = f"More than {allowed:g} % were late with {broke}." if broke else ""
    if not real:
        return late or "No policy that does not know the load beforehand was compared."
    best = min(real, key=lambda o: o.billed_gpu_s)
    usd = figures(best.usd_per_1k(best.billed_gpu_s, comparison.price_usd_h))
    said = [f"Cheapest with at most {allowed:g} % late: {best.policy} at {usd} USD per 1,000 requests."]
    for kind, others in (
        ("Others cost", [o for o in real if o is not best]),
        ("Told the load beforehand", [o for o in kept if _knows_the_load(o)]),
    ):
        if others and best.billed_gpu_s:
            ratios = ", ".join(f"{o.policy} {figures(o.billed_gpu_s / best.billed_gpu_s)}x" for o in others)
            said.append(f"{kind}: {ratios}.")
    return " ".join([*said, late]).strip()


def scale(comparison: Comparison) -> tuple[str, ...]:
    """What grows with the number of functions and devices: a line a policy, and one on gateways."""
    found = []
    for outcome in comparison.outcomes:
        packing = outcome.packing
        placed = "no GPU was in use"
        if packing is not None:
            placed = (
                f"{figures(packing.replicas)} replicas on {figures(packing.devices)} GPUs in the mean, on no fewer than "
                f"{figures(packing.bound)} however packed ({packing.quality:.2f}); the GPUs in use are full to "
                f"{100.0 * packing.memory_share:.0f} % by memory, {100.0 * packing.units_share:.0f} % by SMs"
            )
        found.append(
            f"{outcome.policy}: a decision took {milliseconds(outcome.decide_mean_ms)} ms in the mean, "
            f"{milliseconds(outcome.decide_p99_ms)} ms in 99 of 100; {placed}."
        )
    return (
        *found,
        f"{comparison.rps:,.0f} requests per second: {comparison.gateways} "
        f"gateway{'s' * (comparison.gateways != 1)} at {comparison.gateway_rps:,.0f} each.",
    )


def notes(comparison: Comparison) -> tuple[str, ...]:
    """What a reader must know besides."""
    found = []
    kind, measured_on = _kind(comparison.gpu), _kind(comparison.measured_on)
    if kind and measured_on and kind != measured_on:
        found.append(f"Holds were measured on a {measured_on}; only SMs and memory are the {kind}'s.")
    whole = [o.policy for o in comparison.outcomes if o.policy.partition(":")[0] in WHOLE_GPUS]
    if whole and not _has_whole(comparison.scenario):
        found.append(f"{', '.join(whole)}: asks for whole GPUs, and none of the lanes is one, so nothing was started.")
    refusals = [(o.policy, o.refused, o.refusal) for o in comparison.outcomes if o.refused]
    found += [f"{policy}: {count} changes were refused, the first because {why}." for policy, count, why in refusals]
    if comparison.scenario.lend:
        found.append(
            "Lanes lend idle time; what ran on lent time is in GPU-h, per tick the greater of reserved and used."
        )
    if any(o.interpreted for o in comparison.outcomes):
        found.append("numba is not installed, so this ran slowly: pip install 'hasfaas[simulator]'.")
    return tuple(found)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The machine form."""
    scenario = comparison.scenario
    return {
        "load": comparison.load,
        "law": scenario.law,
        "duration_s": scenario.duration_s,
        "warmup_s": scenario.warmup_s,
        "seed": scenario.seed,
        "lend": scenario.lend,
        "gpus": len(scenario.devices),
        "gpu": comparison.gpu or None,
        "lanes": None if scenario.devices[0].lanes is None else list(scenario.devices[0].lanes),
        "measured_on": comparison.measured_on or None,
        "slo_factor": comparison.slo_factor,
        "price_usd_per_gpu_h": comparison.price_usd_h,
        "allowed_late_share": comparison.allowed_percent / 100.0,
        "rps": comparison.rps,
        "gateway_rps": comparison.gateway_rps,
        "gateways": comparison.gateways,
        "functions": [
            {
                "name": function.name,
                "model": model,
                "slo_ms": function.slo_ms,
                "cold_start_s": function.cold_start_s,
                "mean_rps": len(times) / scenario.duration_s,
            }
            for function, model, times in zip(scenario.functions, comparison.models, scenario.arrivals, strict=True)
        ],
        "policies": [outcome.to_dict(comparison.price_usd_h) for outcome in comparison.outcomes],
        "verdict": verdict(comparison),
        "notes": list(notes(comparison)),
    }


def percent(share: float) -> str:
    """A share as percent with two digits behind the point; "<0.01" for what is less and not nothing."""
    value = 100.0 * share
    return "<0.01" if 0.0 < value < 0.005 else f"{value:.2f}"


def milliseconds(value_ms: float) -> str:
    """Whole milliseconds from 100 on; "dropped" where so many requests had no answer."""
    if math.isnan(value_ms):
        return "-"
    if math.isinf(value_ms):
        return "dropped"
    return f"{value_ms:.0f}" if value_ms >= 100.0 else f"{value_ms:.1f}"


def figures(value: float) -> str:
    """Three significant digits, never an exponent."""
    if not math.isfinite(value):
        return "-"
    if value == 0.0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


# -- leaves -------------------------------------------------------------------------------------------------------------


def _kind(gpu: str) -> str:
    """V100 of V100-SXM2-16GB: cards of one kind differ in memory and clock, hardly in how long a batch takes."""
    return gpu.partition("-")[0].upper()


def _lanes(scenario: Scenario) -> str:
    """How the devices were cut in advance, empty where they were not. All devices are alike."""
    lanes = scenario.devices[0].lanes
    return "" if lanes is None else f", cut into lanes of {', '.join(f'{percent:g}' for percent in lanes)} % of the SMs"


def _has_whole(scenario: Scenario) -> bool:
    return any(device.lanes is None or device.units in device.lane_units for device in scenario.devices)


def _knows_the_load(outcome: Outcome) -> bool:
    """A bound rather than a rival."""
    return outcome.policy.partition(":")[0] in HINDSIGHT
