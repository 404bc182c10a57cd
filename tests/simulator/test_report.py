"""The report: every figure has its unit and its meaning, and the page holds all that it shows."""

from __future__ import annotations

import builtins
import re
from html.parser import HTMLParser
from typing import Any

import attrs
import numpy as np
import pytest

from hasfaas.core.errors import InvalidRequestError
from hasfaas.simulator import models, pictures, report, report_html, run
from hasfaas.simulator.outcome import TAIL, Course, FunctionOutcome, Outcome
from hasfaas.simulator.trace import Trace


def course(replicas: float = 2.0) -> Course:
    now_s = np.arange(0.0, 50.0)
    lanes = np.zeros((50, 2, 3))
    lanes[10:, 0, :2] = (30.0, 20.0)
    return Course(
        now_s=now_s,
        arrivals_rps=np.full(50, 10.0),
        late_share=np.full(50, 0.01),
        replicas=np.full(50, replicas),
        quota_percent=np.full(50, 40.0),
        reserved_gpus=np.full(50, 0.2),
        lane_sm_percent=lanes,
        lane_quota_percent=lanes * 1.5,
    )


def outcome(policy: str, *, late: float = 0.002, billed_gpu_s: float = 36.0, **others: Any) -> Outcome:
    function = FunctionOutcome("f", 100.0, 500, late, 20.0, 60.0, 80.0, billed_gpu_s, 5.0, billed_gpu_s)
    made = Outcome(
        policy=policy,
        requests=1_000,
        late_share=late,
        worst_minute=2 * late,
        p50_ms=20.0,
        p95_ms=60.0,
        p99_ms=80.0,
        reserved_gpu_s=billed_gpu_s,
        provisioned_gpu_s=360.0,
        used_gpu_s=10.0,
        billed_gpu_s=billed_gpu_s,
        peak_gpus=1,
        cold_starts=2,
        actions=5,
        refused=0,
        refusal="",
        dropped=0,
        decide_ms=0.1,
        functions=(function, attrs.evolve(function, name="g")),
        tail=np.linspace(0.2, 2.0, len(TAIL)),
        course=course(),
    )
    return attrs.evolve(made, **others)


def comparison(*outcomes: Outcome) -> report.Comparison:
    found = models.named(["resnet50", "vgg16"])
    trace = Trace.of_counts(np.full((2, 50), 10), 1.0, ("f", "g"))
    return report.Comparison(run.scenario(found, trace, gpus=2), outcomes, 3.6, ("resnet50", "vgg16"), "Load <x>")


def page_of(made: report.Comparison) -> str:
    return report_html.page(made, report_html.drawn(made))


def test_costs_are_per_thousand_requests() -> None:
    """36 GPU-seconds at 3.6 USD an hour are 0.036 USD, for 1,000 requests."""
    assert outcome("a").usd_per_1k(36.0, 3.6) == pytest.approx(0.036)
    row = dict(zip((h.name for h in report.HEADINGS), report.row(outcome("a"), 3.6), strict=True))
    assert (row["USD/1k"], row["USD/1k GPUs"], row["USD/1k used"]) == ("0.0360", "0.360", "0.0100")
    assert (row["late %"], row["worst min %"], row["GPU-h"], row["p99 ms"]) == ("0.20", "0.40", "0.0100", "80.0")


def test_numbers_read_well() -> None:
    assert [report.percent(x) for x in (0.0, 1e-6, 0.0123, 1.0)] == ["0.00", "<0.01", "1.23", "100.00"]
    assert [report.figures(x) for x in (0.0, 0.00012345, 1.5, 12345.6, float("nan"))] == [
        "0",
        "0.000123",
        "1.50",
        "12346",
        "-",
    ]
    assert [report.milliseconds(x) for x in (12.34, 1234.5, float("inf"), float("nan"))] == [
        "12.3",
        "1234",
        "dropped",
        "-",
    ]


def test_the_verdict_names_the_cheapest_that_kept_its_promise() -> None:
    said = report.verdict(
        comparison(
            outcome("dear", billed_gpu_s=72.0),
            outcome("late", late=0.2, billed_gpu_s=1.0),
            outcome("cheap"),
            outcome("oracle", billed_gpu_s=18.0),
        )
    )
    assert said.startswith("Cheapest with at most 1 % late: cheap at 0.0360 USD per 1,000 requests.")
    assert "Others cost: dear 2.00x." in said
    assert "Told the load beforehand: oracle 0.500x." in said
    assert "More than 1 % were late with late." in said


def test_the_verdict_without_a_winner() -> None:
    assert report.verdict(comparison(outcome("a", late=0.5))) == "More than 1 % were late with a."
    assert report.verdict(comparison(outcome("a", requests=0, late_share=0.0))).startswith("Nothing was counted")
    assert "does not know the load" in report.verdict(comparison(outcome("oracle")))
    free = report.verdict(comparison(outcome("a", billed_gpu_s=0.0), outcome("b", billed_gpu_s=0.0)))
    assert free == "Cheapest with at most 1 % late: a at 0 USD per 1,000 requests."


def test_holds_of_another_kind_of_gpu_are_said() -> None:
    made = comparison(outcome("a"))
    for gpu, measured_on, notes in (
        ("A100-SXM-80", "V100-SXM2-16GB", 1),
        ("V100-PCIE-32GB", "V100-SXM2-16GB", 0),
        ("A100-SXM-80", "", 0),
        ("", "V100-SXM2-16GB", 0),
    ):
        assert len(report.notes(attrs.evolve(made, gpu=gpu, measured_on=measured_on))) == notes


def test_the_setting_is_one_line() -> None:
    said = report.setting(attrs.evolve(comparison(outcome("a")), gpu="V100-SXM2-16GB"))
    assert said.startswith("Load <x>: 1,000 requests to 2 functions in 50 s (20 per second in all)")
    assert "SLO 5x one call on a whole GPU; 2 GPUs (V100-SXM2-16GB)" in said
    assert "\n" not in said


def test_what_was_refused_is_said() -> None:
    notes = report.notes(comparison(outcome("a", refused=3, refusal="gpu0 has no memory left", interpreted=True)))
    assert "a: 3 changes were refused, the first because gpu0 has no memory left." in notes
    assert any("numba" in note for note in notes)
    assert report.notes(comparison(outcome("a"))) == ()


class Page(HTMLParser):
    """What a browser would see of a page: tags that were left open, headings, and what is loaded from elsewhere."""

    VOID = frozenset({"meta", "path", "use", "image", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.loads: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.pictures += tag == "svg"
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            local = (value or "").startswith(("#", "data:"))
            if (name in ("src", "href", "xlink:href") and not local) or tag == "script":
                self.loads.append(f"{tag} {value}")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


def test_the_page_stands_alone() -> None:
    html = page_of(comparison(outcome("hybrid"), outcome("kpa", late=0.05, peak_gpus=0)))
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.loads == []
    # Three pictures of all policies, and a GPU map of the one that used any.
    assert page.pictures == 4
    assert "GPU map: hybrid" in page.headings
    assert "GPU map: kpa" not in page.headings
    assert "By function" in page.headings
    assert "Load &lt;x&gt;" in html
    assert all(heading.says in html.replace("&#x27;", "'") for heading in report.HEADINGS)


def test_one_comparison_one_page() -> None:
    made = comparison(outcome("a"), outcome("b"))
    assert page_of(made) == page_of(made)


def test_a_policy_without_any_request_or_replica_is_drawn() -> None:
    lanes = np.zeros((1, 2, 8))
    empty = attrs.evolve(
        course(0.0),
        **{field.name: np.zeros(1) for field in attrs.fields(Course)},
    )
    empty = attrs.evolve(empty, lane_sm_percent=lanes, lane_quota_percent=lanes)
    nothing = outcome("a", requests=0, late_share=0.0, tail=np.full(len(TAIL), np.nan), course=empty)
    assert "<svg" in pictures.gpu_map(nothing, ["gpu0", "gpu1"])
    assert page_of(comparison(nothing))
    assert report.row(nothing, 2.48)[6] == "-"


def test_a_map_shades_lanes_by_their_quota() -> None:
    lanes = course().lane_sm_percent
    bands = pictures._bands(lanes[:, 0], lanes[:, 0] * 1.5)
    column = bands[: pictures.ROWS_OF_DEVICE, 20]
    # 30 % and 20 % of the height are lanes with quotas of 45 % and 30 %, the rest is free.
    assert np.sum(column == 45.0) == pytest.approx(0.3 * pictures.ROWS_OF_DEVICE, abs=1)
    assert np.sum(column == 30.0) == pytest.approx(0.2 * pictures.ROWS_OF_DEVICE, abs=1)
    assert np.isnan(column[-10:]).all()
    assert np.isnan(bands[:, 0]).all()


def test_without_matplotlib_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidRequestError, match=re.escape("pip install 'hasfaas[simulator]'")):
        pictures.check_available()


def test_the_json_form_is_json() -> None:
    import json

    made = report.as_json(comparison(outcome("a", p99_ms=float("inf"))))
    text = json.dumps(made, allow_nan=False)
    back = json.loads(text)
    assert back["policies"][0]["p99_ms"] is None
    assert back["policies"][0]["usd_per_1k"]["billed"] == pytest.approx(0.036)
    assert [f["name"] for f in back["policies"][0]["functions"]] == ["f", "g"]
    assert back["functions"][0]["model"] == "resnet50"
