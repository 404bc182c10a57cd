"""The comparison as one HTML file with its pictures in it: what is seen on it is explained on it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from hasfaas.simulator import pictures
from hasfaas.simulator.report import HEADINGS, Comparison, figures, notes, percent, row, setting, verdict

LAWS = {
    "lane": "Replicas share a GPU in lanes; a batch holds its lane for the measured time of its model on that SM share, and "
    "the quota is a share of the lane's time (hasfaas's own law).",
    "table": "Batches take what the launch-gated table says, as published for HAS-GPU, whoever else runs. This is not how "
    "hasfaas's lanes work: compare with published figures only.",
}
CAPTIONS = {
    "pareto": (
        "Late requests against cost",
        "Lower and further left is better: below the dashed line the promise is kept, and the leftmost point there is the "
        f"cheapest. {pictures.LEAST_PERCENT:g} % stands for anything less.",
    ),
    "over-time": (
        "Over time",
        "How each policy followed the load: quotas move within a second, replicas need a cold start; what is reserved and "
        "not needed costs, what is needed and not there makes requests late.",
    ),
    "tail": (
        "Tail latency",
        "The share of requests that took longer than so many times their SLO: where a line crosses the dashed one is its "
        "share of late requests, and lower is better.",
    ),
}
MAP_SAYS = (
    "Each band is a GPU, each colour in it a lane as high as its share of the SMs: dark lanes are promised to replicas in "
    "full, pale ones have time left, grey is free."
)
# Above so many functions the table of each would be longer than anybody reads.
MOST_FUNCTIONS = 40


def drawn(comparison: Comparison) -> dict[str, str]:
    """The pictures as SVG text, by name: `pareto`, `over-time`, `tail`, and `gpu-map-POLICY` of each that used a GPU.

    Raises InvalidRequestError (NO_MATPLOTLIB) where matplotlib is not installed.
    """
    outcomes = comparison.outcomes
    names = [device.name for device in comparison.scenario.devices]
    return {
        "pareto": pictures.pareto(outcomes, comparison.price_usd_h, comparison.allowed_percent),
        "over-time": pictures.over_time(outcomes, comparison.scenario.warmup_s),
        "tail": pictures.tail(outcomes),
        **{f"gpu-map-{o.policy}": pictures.gpu_map(o, names) for o in outcomes if o.peak_gpus},
    }


def page(comparison: Comparison, svgs: Mapping[str, str]) -> str:
    """One HTML file, with its pictures (`drawn`) in it: it needs no network and no other file."""
    outcomes, price = comparison.outcomes, comparison.price_usd_h
    maps = [
        _picture(f"GPU map: {o.policy}", svgs[f"gpu-map-{o.policy}"], level=3)
        for o in outcomes
        if f"gpu-map-{o.policy}" in svgs
    ]
    parts = (
        "<h1>Scalers compared</h1>",
        f'<p class="lead">{_text(verdict(comparison))}</p>',
        f"<p>{_text(_setting(comparison))}</p>",
        *(f'<p class="note">{_text(note)}</p>' for note in notes(comparison)),
        "<h2>Figures</h2>",
        _table([h.name for h in HEADINGS], [row(o, price) for o in outcomes], [h.says for h in HEADINGS]),
        "<dl>" + "".join(f"<dt>{_text(h.name)}</dt><dd>{_text(h.says)}</dd>" for h in HEADINGS) + "</dl>",
        *(_picture(title, svgs[name], says) for name, (title, says) in CAPTIONS.items()),
        "<h2>GPU maps</h2>" if maps else "",
        f"<p>{_text(MAP_SAYS)}</p>" if maps else "",
        *maps,
        _functions(comparison),
    )
    return _PAGE.format(body="\n".join(part for part in parts if part))


# -- leaves -------------------------------------------------------------------------------------------------------------


def _setting(comparison: Comparison) -> str:
    law = LAWS[comparison.scenario.law]
    return f"{setting(comparison)}. A GPU costs {comparison.price_usd_h:g} USD per hour. {law}"


def _functions(comparison: Comparison) -> str:
    functions = comparison.scenario.functions
    if len(functions) == 1 or len(functions) > MOST_FUNCTIONS:
        return ""
    head = ["function", "model", "SLO ms", "requests", *(f"late % {o.policy}" for o in comparison.outcomes)]
    rows = [
        (
            function.name,
            model,
            figures(function.slo_ms),
            f"{comparison.outcomes[0].functions[index].requests:,}",
            *(
                percent(part.late_share) if part.requests else "-"
                for part in (outcome.functions[index] for outcome in comparison.outcomes)
            ),
        )
        for index, (function, model) in enumerate(zip(functions, comparison.models, strict=True))
    ]
    return "<h2>By function</h2>" + _table(head, rows, [""] * len(head))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], titles: Sequence[str]) -> str:
    cells = "".join(f'<th title="{_text(title)}">{_text(name)}</th>' for name, title in zip(head, titles, strict=True))
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in line) + "</tr>" for line in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _picture(title: str, svg: str, says: str = "", level: int = 2) -> str:
    caption = f"<figcaption>{_text(says)}</figcaption>" if says else ""
    return f"<h{level}>{_text(title)}</h{level}><figure>{svg}{caption}</figure>"


def _text(text: str) -> str:
    return html.escape(text, quote=True)


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>hasfaas: scalers compared</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff }}
body {{ max-width: 1060px; margin: 2em auto; padding: 0 1em }}
h1 {{ font-size: 1.6em }} h2 {{ margin-top: 2em; font-size: 1.2em }} h3 {{ font-size: 1em; margin-bottom: 0 }}
.lead {{ font-size: 1.15em; font-weight: 600 }} .note {{ background: #fff6e0; padding: .4em .8em }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 1em; font-size: .87em; color: #555 }} dd {{ margin: 0 }}
figure {{ margin: .5em 0 }} figcaption {{ color: #555 }} svg {{ width: 100%; height: auto }}
</style></head><body>
{body}
</body></html>
"""
