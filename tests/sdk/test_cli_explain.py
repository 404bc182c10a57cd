"""`hasfaas explain`, `scale --auto` and `replay`: what is asked, what is shown, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from hasfaas.core.settings import Settings
from hasfaas.scaling.journal import Scribe
from hasfaas.scaling.scaler import HybridScaler
from hasfaas.scaling.settings import ScalerSettings
from hasfaas.sdk.cli import cli
from tests.fakes.shell_gateway import FakeClient, FakeGateway
from tests.scaling.test_journal import observation

Run = Callable[..., Result]
GOVERNED = {
    "function": "app.f",
    "version": "v1",
    "governed": True,
    "why_not": "",
    "log": "/s/scaling/1.jsonl",
    "decided_ago_s": 0.4,
    "reason": "1 change",
    "diagnostics": {"rate_rps": 30.0, "peak_rps": 45.0, "capacity_rps": 60.0, "margin": None},
    "observed": {
        "seconds": 60.0,
        "rps": 25.0,
        "completed": 1500,
        "late": 30,
        "late_share": 0.02,
        "late_share_promised": 0.01,
        "slo_ms": 200.0,
        "p50_ms": 20.0,
        "p95_ms": 77.0,
    },
    "unpredicted": "",
    "predicted": {
        "rps": 25.0,
        "carried": True,
        "p95_ms": 81.0,
        "idle_ms": 16.0,
        "worst_ms": 55.0,
        "overhead_ms": 0.4,
        "cold_start_s": 1.0,
    },
    "replicas": [
        {
            "replica": "app.f-1",
            "state": "ready",
            "device": "sim0",
            "lane": 2,
            "sm_percent": 10.0,
            "quota_percent": 34.0,
            "batch": 4,
            "occupancy": 0.034,
        }
    ],
    "occupancy": 0.034,
    "actions": [
        {"ago_s": 2.0, "do": "resize", "replica_id": "app.f-1", "quota_percent": 34.0, "reason": "more", "refused": ""},
        {"ago_s": 3.0, "do": "rebatch", "replica_id": "app.f-1", "batch": 4, "reason": "fuller", "refused": ""},
        {"ago_s": 5.0, "do": "drain", "replica_id": "app.f-0", "reason": "no call", "refused": "it has gone"},
        {
            "ago_s": 9.0,
            "do": "add",
            "function": "app.f",
            "device": "sim0",
            "lane": 2,
            "sm_percent": 10.0,
            "quota_percent": 20.0,
            "batch": 1,
            "reason": "at least one is wanted",
            "refused": "",
        },
    ],
}


class ExplainingClient(FakeClient):
    """Explains what a test says."""

    def __init__(self, made: FakeGateway, told: dict[str, Any]) -> None:
        super().__init__(made)
        self.told = told

    async def explain(self, name: str) -> dict[str, Any]:
        return {**self.told, "asked": name}


@pytest.fixture
def made(tmp_path: Path) -> FakeGateway:
    return FakeGateway(Settings(state_dir=tmp_path / "s", runtime_dir=tmp_path / "r"))


def run(made: FakeGateway, *arguments: str, told: dict[str, Any] | None = None) -> Result:
    client = ExplainingClient(made, told or GOVERNED)
    return CliRunner().invoke(cli, arguments, obj=lambda _settings: client)


def test_predicted_stands_beside_observed_and_actions_beside_their_reasons(made: FakeGateway) -> None:
    result = run(made, "explain", "f", "--price", "2.5")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "app.f: 1 change, decided 400 ms ago"
    text = result.output
    for part in (
        "promised     99 % of the calls within 200 ms",
        "observed     25 rps, 30 of 1500 late (2 %), p50 20 ms, p95 77 ms",
        "predicted    p95 81 ms at the 25 rps of now; one call alone 16 ms after a pause, at most 55 ms where",
        "planned for  30 rps now, 45 rps before another replica could serve; its slices carry 60 rps",
        "holds        0.034 of a device, 0.085 an hour",
        "/s/scaling/1.jsonl",
        "app.f-1 to quota 34 %",
        "no call (came to nothing: it has gone)",
        "a replica in sim0 lane 2: SM 10 %, quota 20 %, batches of 1",
    ):
        assert part in text, text


def test_the_json_form_is_what_the_gateway_said_with_the_cost(made: FakeGateway) -> None:
    found = json.loads(run(made, "explain", "f", "--json", "--price", "10").output)
    assert found.pop("cost_per_hour") == pytest.approx(0.34)
    assert found == {**GOVERNED, "asked": "f"}


def test_of_a_function_that_is_not_scaled_it_is_said_why(made: FakeGateway) -> None:
    told = {"function": "app.f", "governed": False, "why_not": "it has no profile yet", "log": ""}
    assert run(made, "explain", "f", told=told).output == "app.f is not scaled: it has no profile yet\n"
    told = {"function": "app.f", "governed": True, "why_not": "", "log": "/s/scaling"}
    text = run(made, "explain", "f", told=told).output
    assert "has not looked at it yet" in text
    assert text.endswith("  log  /s/scaling\n")


def changed(**parts: Any) -> dict[str, Any]:
    """What is told of a function, some parts of it changed: mappings by key, others as a whole."""
    return {
        name: {**value, **parts[name]} if name in parts and isinstance(value, dict) else parts.get(name, value)
        for name, value in GOVERNED.items()
    }


@pytest.mark.parametrize(
    ("told", "shown", "hidden"),
    [
        (changed(governed=False, why_not="it was sized by hand"), "planned for  not planned\n", "45 rps"),
        (changed(unpredicted="no profile yet"), "predicted  no profile yet: nothing is predicted", "carry"),
        (changed(replicas=[], observed={"rps": 0.0}), "not planned: no call comes", "45 rps"),
        (changed(observed={"late": 1, "completed": 1, "late_share": 1.0}), "1 of 1 late (100 %)", "e+"),
        (changed(observed={"rps": 1234.0}, diagnostics={"capacity_rps": 5678.0}), "carry 5678 rps", "e+"),
        (changed(observed={"p50_ms": None, "p95_ms": None}), "p50 -, p95 -, in 1 min", "None"),
        (
            changed(predicted={"p95_ms": None, "carried": False, "rps": 90.0}),
            "the 90 rps of now are more than its slices are sure to answer within 200 ms; one call alone",
            "p95 81",
        ),
    ],
)
def test_what_is_not_known_or_not_planned_is_said_in_words(
    made: FakeGateway, told: dict[str, Any], shown: str, hidden: str
) -> None:
    text = run(made, "explain", "f", told=told).output
    assert shown in text, text
    assert hidden not in text, text


def test_explain_needs_a_gateway(made: FakeGateway) -> None:
    made.up_now = False
    assert run(made, "explain", "f").exit_code == 5


def test_auto_is_given_alone(made: FakeGateway) -> None:
    made.add("app.f")
    assert "sized by hasfaas again" in run(made, "scale", "f", "--auto").output
    assert run(made, "scale", "f", "--auto", "--quota", "4").exit_code == 2
    assert run(made, "scale", "f").exit_code == 2


# -- replay -----------------------------------------------------------------------------------------------------------------


def log_of(ticks: int) -> list[str]:
    """What a hybrid scaler decided about one function with a replica."""
    settings = ScalerSettings(tick_s=2.0)
    policy, scribe = HybridScaler(settings), Scribe("hybrid", attrs.asdict(settings))
    lines = [scribe.begin()]
    for number in range(ticks):
        seen = observation(value=1.0, now_s=float(number))
        lines += scribe.tick(seen, policy.decide(seen))
    return lines


def test_a_log_replays(tmp_path: Path, made: FakeGateway) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(log_of(5)) + "\n")
    result = run(made, "replay", str(path))
    assert result.exit_code == 0, result.output
    assert result.output.startswith("5 decisions with ")


def test_the_first_difference_ends_a_replay(tmp_path: Path, made: FakeGateway) -> None:
    lines = log_of(5)
    changed = json.loads(lines[-1])
    changed["decision"]["reason"] = "something else"
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([*lines[:-1], json.dumps(changed)]))
    result = run(made, "replay", str(path))
    assert result.exit_code == 1
    assert f"4 decisions are the same, the next one differs: {path}, line {len(lines)}" in result.output
    assert '  reason: logged "something else", replayed ' in result.output
    assert "another version" not in result.output
    found = json.loads(run(made, "replay", str(path), "--json").output)
    assert found["difference"]["logged"]["reason"] == "something else"


def test_a_difference_from_another_version_says_so_first(tmp_path: Path, made: FakeGateway) -> None:
    path = tmp_path / "log.jsonl"
    lines = log_of(2)
    begin, last = json.loads(lines[0]), json.loads(lines[-1])
    last["decision"]["diagnostics"]["rate_rps"][0] += 1.0
    path.write_text("\n".join([json.dumps(begin | {"version": "0.0.9"}), *lines[1:-1], json.dumps(last)]))
    first, _, *rest = run(made, "replay", str(path)).output.splitlines()
    assert "another version, hasfaas 0.0.9" in first
    [line] = rest
    assert line.startswith("  rate_rps of f: logged ")


@pytest.mark.parametrize("lines", [0, 1])
def test_a_log_without_decisions_is_no_success(tmp_path: Path, made: FakeGateway, lines: int) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(log_of(1)[:lines]))
    result = run(made, "replay", str(path))
    assert (result.exit_code, result.output) == (1, f"{path}: no decision in it\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"policy":"hybrid"', '"policy":"other"'), "policy='other' of the log is not replayed here"),
        (('"tick_s":2.0', '"tack_s":2.0'), "a scaler with other settings"),
        (('"kind":"begin"', '"kind":"start"'), "line 1: a log starts with a line of the kind begin"),
    ],
)
def test_a_log_that_cannot_be_replayed_says_why(
    tmp_path: Path, made: FakeGateway, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "log.jsonl"
    text = "\n".join(log_of(2))
    assert change[0] in text
    path.write_text(text.replace(*change))
    result = run(made, "replay", str(path))
    assert result.exit_code == 2
    assert message in result.output


def test_the_type_of_device_is_told_with_the_others(made: FakeGateway) -> None:
    candidates = [
        {"type": "sim:l4", "cost": 0.05, "keeps": True, "room": False},
        {"type": "sim:h100", "cost": 0.08, "keeps": True, "room": None},
        {"type": "cpu", "cost": 0.01, "keeps": False, "room": None},
    ]
    choice = {"type": "sim:h100", "why": "sim:l4 has no room for more", "candidates": candidates}
    lines = run(made, "explain", "f", told={**GOVERNED, "device_type": choice}).output.splitlines()
    at = next(n for n, line in enumerate(lines) if "device " in line and "sim:h100:" in line)
    assert [" ".join(line.split()) for line in lines[at : at + 4]] == [
        "device sim:h100: sim:l4 has no room for more",
        "sim:l4: costs 0.05, no room",
        "sim:h100: costs 0.08",
        "cpu: costs 0.01, cannot keep the promise",
    ]
