"""`hasfaas simulate`: what people and programs get, and what is said of a wrong wish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hasfaas.sdk.cli import cli
from hasfaas.simulator import report

SHORT = ("--duration", 60, "--rps", 10, "--gpus", 2, "--policies", "kpa,fast")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["simulate", *map(str, arguments)])


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HASFAAS_DATA", raising=False)


def test_people_get_a_table_with_its_meaning() -> None:
    result = run(*SHORT)
    assert result.exit_code == 0, result.output
    head, kpa, fast = result.stdout.splitlines()[:3]
    for heading in report.HEADINGS:
        assert heading.name in head
    assert (kpa.split()[0], fast.split()[0]) == ("kpa", "fast")
    assert "USD per GPU-hour" in result.stdout
    assert "Cheapest with at most 1 % late" in result.stdout or "were late with" in result.stdout


def test_programs_get_json_and_readers_a_page(tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    result = run(*SHORT, "--json", "-", "--report", page, "--pictures", tmp_path, "--models", "resnet50,vgg16")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [policy["policy"] for policy in found["policies"]] == ["kpa", "fast"]
    assert [function["model"] for function in found["functions"]] == ["resnet50", "vgg16"]
    assert found["policies"][0]["requests"] == found["policies"][1]["requests"] > 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert page.name in result.stderr
    names = {"pareto", "over-time", "tail", "gpu-map-kpa", "gpu-map-fast"}
    assert {file.stem for file in tmp_path.glob("*.svg")} == names


def test_one_seed_one_result_in_a_file(tmp_path: Path) -> None:
    texts = []
    for name in ("a.json", "b.json"):
        assert run(*SHORT, "--seed", 3, "--json", tmp_path / name).exit_code == 0
        found = json.loads((tmp_path / name).read_text())
        for policy in found["policies"]:
            for name in ("decide_ms", "decide_mean_ms", "decide_p99_ms"):  # how long this machine thought
                del policy[name]
        texts.append(found)
    assert texts[0] == texts[1]


def test_a_trace_is_read(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("second,cat,dog\n" + "\n".join(f"{second},5,1" for second in range(90)))
    result = run("--trace", trace, "--trace-format", "counts", "--policies", "fast", "--json", "-")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(f["name"], f["mean_rps"]) for f in found["functions"]] == [("cat", 5.0), ("dog", 1.0)]
    assert found["duration_s"] == 90.0
    part = run(
        "--trace",
        trace,
        "--trace-format",
        "counts",
        "--start",
        30,
        "--duration",
        20,
        "--policies",
        "fast",
        "--json",
        "-",
    )
    assert json.loads(part.stdout)["duration_s"] == 20.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--models", "bert"), "mobilenet_v3_large, resnet50"),
        (("--models", ""), "one name at least"),
        (("--policies", "magic"), "known are hybrid"),
        (("--policies", "kpa:speed=1"), "use one of"),
        (("--load", "tides"), "known are steady"),
        (("--spread", "lumpy"), "known are poisson"),
        (("--law", "magic"), "law"),
        (("--gpu", "abacus"), "abacus"),
        (("--gpus", 0), "gpus=0"),
        (("--functions", 0), "functions"),
        (("--models", "resnet50,vgg16", "--functions", 1), "functions=1 are fewer than the 2"),
        (("--gateway-rps", 0), "gateway-rps=0 must be positive"),
        (("--rps", -1), "rps=-1"),
        (("--duration", 0), "duration"),
        (("--seed", -1), "seed=-1"),
        (("--price", "nan"), "price=nan"),
        (("--slo-factor", 0), "slo_factor"),
        (("--cold-start", -1), "cold-start=-1"),
        (("--trace", "nowhere.csv", "--trace-format", "counts"), "does not exist"),
        (("--trace", "nowhere.csv", "--trace-format", "parquet"), "known are requests"),
        (("--trace", "nowhere.csv"), "--trace-format"),
        (("--trace-format", "counts"), "give --trace"),
        (("--top", 3), "give --trace"),
        (("--start", 3), "give --trace"),
        (("--ranks", "one"), "2,4,9"),
        (("--table", "nowhere.csv"), "does not exist"),
        (("--report", "no/such/folder/out.html"), "make it first"),
        (("--pictures", f"{__file__}/pictures"), "is no folder"),
        (("--law", "table"), "give --table"),
        (("--predictor-error", 200), "from 0 to 100, in %"),
        (("--predictor-error", -1), "from 0 to 100, in %"),
        (("--trace", __file__, "--trace-format", "counts", "--load", "diurnal"), "--load is about made-up load"),
        (("--policies", "fixed:f=0"), "f="),
        (("--policies", "fixed:rho=1.5"), "rho="),
        (("--json", "no/such/folder/out.json"), "make it first"),
    ],
)
def test_a_wrong_wish_is_explained_before_anything_runs(arguments: tuple[object, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_people_are_told_what_was_simulated() -> None:
    result = run(*SHORT, "--slo-factor", 4, "--cold-start", 3)
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("Made-up load"))
    for said in ("diurnal", "in 60 s", "per second", "SLO 4x", "2 GPUs (V100", "cold start 3 s", "law lane"):
        assert said in line
    assert "measured on" not in result.stderr


def test_holds_of_another_gpu_are_owned_up_to(tmp_path: Path) -> None:
    said = "Holds were measured on a V100; only SMs and memory are the A100's."
    page, file = tmp_path / "out.html", tmp_path / "out.json"
    result = run(*SHORT, "--policies", "kpa", "--gpu", "a100", "--report", page, "--json", file)
    assert said in result.stderr
    assert said in json.loads(file.read_text())["notes"]
    assert said in page.read_text().replace("&#x27;", "'")


def test_pictures_make_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    assert run(*SHORT, "--policies", "kpa", "--pictures", folder).exit_code == 0
    assert (folder / "pareto.svg").exists()


def test_a_run_that_counted_nothing_says_so() -> None:
    result = run(*SHORT, "--policies", "kpa", "--warmup", 59.99)
    assert result.exit_code == 0, result.output
    assert "Nothing was counted" in result.stdout
    assert "were late" not in result.stdout


def test_a_bad_trace_is_told_with_its_line(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("second,count\n0,4\n1,-4\n")
    result = run("--trace", trace, "--trace-format", "counts")
    assert result.exit_code == 2
    assert "line 3" in result.stderr
    assert "negative" in result.stderr
