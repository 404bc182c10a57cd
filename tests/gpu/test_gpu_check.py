"""What runs the checks of a GPU: limits, the record, and what is said without a device. No GPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu_check, gpu_kernels, gpu_run
from benchmarks.gpu_box import Client, ClientError
from benchmarks.gpu_machine import Machine
from benchmarks.gpu_process import check as function_of
from benchmarks.gpu_record import PENDING, Record
from benchmarks.gpu_run import Check, Outcome, Status, allowed_s, run_all, run_one
from benchmarks.gpu_sheet import Figure, Sheet, Written
from hasfaas.devices.nvml import Gpu
from tests.fakes import nvml_library
from tests.gpu import stub_checks

ROOT = Path(__file__).parents[2]
MACHINE = Machine(
    date="2026-01-01 00:00 UTC",
    gpu="NVIDIA H100 80GB HBM3 (a fake)",
    memory_gib=80.0,
    capability="9.0",
    compute_mode="default",
    mig=False,
    driver="590.44.01",
    cuda="13.1",
    processes=0,
    load=0.5,
    cores=2,
    system="Linux",
    python="3.11.7",
    hasfaas="0.1.0",
    commit="",
    versions={"torch": "-"},
)


def stub(name: str, limit_s: float = 60.0) -> Check:
    return Check(name, f"the claim of {name}", f"tests.gpu.stub_checks:{name}", limit_s)


def lives(pid: int) -> bool:
    """A zombie has died, and may never be collected here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    end_s = time.monotonic() + 10.0
    while lives(pid) and time.monotonic() < end_s:
        time.sleep(0.05)
    return not lives(pid)


# -- one check ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("passes", Status.PASSED, ""),
        ("fails", Status.FAILED, "missed"),
        ("raises", Status.ERROR, "RuntimeError: it broke"),
        ("dies", Status.ERROR, "its process ended with signal 9"),
        ("is_silent", Status.ERROR, "it wrote no figure"),
        ("cannot_run", Status.NOT_RUN, "no such partitions here"),
    ],
)
def test_each_way_to_end_is_told_apart(name: str, status: Status, why: str) -> None:
    outcome = run_one(stub(name), "0", 60.0)
    assert (outcome.status, outcome.why) == (status, why)


def test_figures_and_remarks_come_across() -> None:
    outcome = run_one(stub("passes"), "0", 60.0)
    assert outcome.figures == (Figure("three", "ms", (1.0, 3.0, 2.0), 1.5, 2.5, "a | note"),)
    assert outcome.remarks == ("a remark",)


def test_the_limit_ends_the_whole_group_and_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run, "GRACE_S", 0.2)
    outcome = run_one(stub("hangs"), "0", 3.0)
    assert outcome.status is Status.OVER_TIME
    assert [figure.name for figure in outcome.figures] == ["before the end"]
    assert outcome.seconds < 60.0
    assert gone(int(outcome.remarks[0]))


def test_a_check_at_its_limit_may_take_back_what_it_made() -> None:
    outcome = run_one(stub("tidies_up"), "0", 3.0)
    assert (outcome.status, outcome.remarks) == (Status.OVER_TIME, ("taken back",))


def test_what_a_check_left_behind_is_ended() -> None:
    outcome = run_one(stub("leaves_a_child"), "0", 60.0)
    assert outcome.status is Status.PASSED
    assert gone(int(outcome.remarks[0]))


def test_a_line_that_was_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    sheet = Sheet(tmp_path / "lines")
    sheet.figure("whole", 1.0, "ms")
    lines = (tmp_path / "lines").read_text().splitlines()
    assert Written.of([*lines, '{"figure": {"na']).figures == tuple(sheet.figures)


# -- limits -------------------------------------------------------------------------------------------------------------


def test_all_limits_fit_into_eight_minutes() -> None:
    assert sum(check.limit_s for check in gpu_check.CHECKS) <= gpu_run.TOTAL_S <= 480.0 - gpu_run.GRACE_S


@pytest.mark.parametrize(
    ("left_s", "later_s", "allowed"),
    [
        (100.0, 60.0, 40.0),  # what the others leave
        (100.0, 70.0, 30.0),
        (480.0, 100.0, 60.0),  # at most the double of its own
        (20.0, 100.0, 20.0),  # and never more than is left
        (0.0, 0.0, 0.0),
    ],
)
def test_time_that_was_left_over_lengthens_a_limit(left_s: float, later_s: float, allowed: float) -> None:
    assert allowed_s(stub("passes", 30.0), left_s, [stub("fails", later_s)]) == allowed


def test_if_each_check_used_all_it_may_every_one_would_still_have_its_own_limit() -> None:
    left_s = gpu_run.TOTAL_S
    for index, check in enumerate(gpu_check.CHECKS):
        allowed = allowed_s(check, left_s, gpu_check.CHECKS[index + 1 :])
        assert allowed >= check.limit_s
        left_s -= allowed


def test_a_failing_check_does_not_stop_the_others() -> None:
    checks = [stub(name) for name in ("raises", "dies", "fails", "passes")]
    found = [outcome.status for outcome in run_all(checks, "0")]
    assert found == [Status.ERROR, Status.ERROR, Status.FAILED, Status.PASSED]


def test_after_the_total_nothing_is_begun() -> None:
    now_s = iter((0.0, 0.0, 458.0))
    first, second = run_all([stub("passes"), stub("fails")], "0", total_s=460.0, clock_s=lambda: next(now_s))
    assert first.status is Status.PASSED
    assert (second.status, second.why) == (Status.NOT_RUN, "the 460 s of all checks were used up")


# -- the record ---------------------------------------------------------------------------------------------------------


def test_the_record_is_written_after_each_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(MACHINE, (stub("fails"), stub("reads_the_record"), stub("passes")))
    monkeypatch.setenv(stub_checks.RECORD, str(tmp_path / f"{record.stem()}.json"))
    done = gpu_check.run(record, "0", tmp_path)
    seen = json.loads(done.outcomes[1].remarks[0])
    assert seen == [["failed", "missed"], ["not run", PENDING], ["not run", PENDING]]
    assert [o["status"] for o in json.loads((tmp_path / f"{record.stem()}.json").read_text())["checks"]] == [
        "failed",
        "passed",
        "passed",
    ]


def test_the_page_says_what_was_kept_and_missed_and_not_run() -> None:
    passed, failed = (run_one(stub(name), "0", 60.0) for name in ("passes", "fails"))
    page = Record(MACHINE, (passed.check, failed.check, stub("hangs")), (passed, failed)).page()
    assert "1 checks passed, 1 failed, 1 not run." in page
    assert "| three (a / note) | 2 | 1 .. 3 | ms | at least 1.5, at most 2.5 | kept |" in page
    assert "| missed | 3 |  | ms | at most 2 | **missed** |" in page
    assert f"| hangs | the claim of hangs | not run: {PENDING} | 0 |" in page
    assert "- a remark" in page


def test_the_record_is_named_after_its_gpu() -> None:
    assert Record(MACHINE, ()).stem() == "RECORD-NVIDIA-H100-80GB-HBM3-a-fake"


@pytest.mark.parametrize(
    ("values", "least", "most", "met"),
    [
        ((1.0,), None, None, None),
        ((1.0, 5.0, 9.0), 5.0, 5.0, True),
        ((1.0, 5.0, 9.0), 5.1, None, False),
        ((1.0, 5.0, 9.0), None, 4.9, False),
        ((float("nan"),), 0.0, None, False),
    ],
)
def test_a_bound_is_for_the_median(
    values: tuple[float, ...], least: float | None, most: float | None, met: bool | None
) -> None:
    assert Figure("f", "ms", values, least, most).met is met


def test_a_figure_without_values_is_none() -> None:
    with pytest.raises(ValueError, match="not measured"):
        Figure("f", "ms", ())


# -- the command ----------------------------------------------------------------------------------------------------------


def asked(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture
def no_driver(tmp_path: Path) -> dict[str, str]:
    """A machine without one, also where this one has a GPU."""
    return nvml_library.install(tmp_path / "nvml", init=9)


@nvml_library.needs_compiler
def test_a_dry_run_without_a_gpu_lists_every_check_with_its_limit(no_driver: dict[str, str]) -> None:
    done = asked("--dry-run", environment=no_driver)
    assert done.returncode == 0, done.stderr
    for check in gpu_check.CHECKS:
        assert re.search(
            rf"^  {check.name} .*{re.escape(check.claim)} +at most {check.limit_s:g} s$", done.stdout, re.M
        )
    assert f"no device, {len(gpu_check.CHECKS)} GPU checks not run" in done.stdout


@nvml_library.needs_compiler
def test_without_a_gpu_nothing_runs_and_nothing_is_written(no_driver: dict[str, str], tmp_path: Path) -> None:
    done = asked("--out", str(tmp_path / "records"), environment=no_driver)
    assert done.returncode == 2
    assert "16 GPU checks not run" in done.stdout.splitlines()[0]
    assert len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "records").exists()


@nvml_library.needs_compiler
def test_a_dry_run_with_a_gpu_names_it(tmp_path: Path) -> None:
    done = asked("--dry-run", "--only", "wall", environment=nvml_library.install(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "would run on NVIDIA Fake 80GB, driver 590.44.01" in done.stdout
    assert "wall" in done.stdout
    assert "shares" not in done.stdout


@nvml_library.needs_compiler
def test_a_gpu_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    done = asked("--gpu", "7", environment=nvml_library.install(tmp_path))
    assert done.returncode == 2
    assert "gpu='7' is not here" in done.stdout
    assert "0 (NVIDIA Fake 80GB)" in done.stdout


def test_every_check_is_a_function_and_needs_no_library_of_a_gpu_to_be_found() -> None:
    targets = [check.target for check in gpu_check.CHECKS]
    assert all(callable(function_of(target)) for target in targets)
    code = (
        "import sys\nfrom benchmarks import gpu_check\nfrom benchmarks.gpu_process import check\n"
        "[check(each.target) for each in gpu_check.CHECKS]\n"
        "print([name for name in ('cupy', 'torch', 'grpc', 'pynvml', 'pytest', 'hypothesis') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_uses_the_python_that_it_is_given_and_installs_nothing(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "ran with: $@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "gpu-check", "--dry-run", f"PYTHON={python}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "ran with: -m benchmarks.gpu_check --dry-run" in done.stdout
    assert "pip" not in done.stdout
    assert "venv" not in done.stdout


# -- the rest -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", (70, 75, 80, 86, 89, 90, 100, 120))
def test_the_kernels_of_the_checks_compile(architecture: int) -> None:
    nvrtc = pytest.importorskip("cupy", reason="CuPy is not installed: no kernel was compiled").cuda.nvrtc
    try:
        known = nvrtc.getSupportedArchs()
    except (RuntimeError, ImportError) as exc:  # the library is found at this first use
        pytest.skip(f"NVRTC is not installed ({exc}): no kernel was compiled")
    if architecture not in known:
        pytest.skip(f"this NVRTC {nvrtc.getVersion()} does not know sm_{architecture}: not compiled for it")
    program = nvrtc.createProgram(gpu_kernels.SOURCE, "checks.cu", (), ())
    nvrtc.compileProgram(program, (*gpu_kernels.OPTIONS, f"-arch=compute_{architecture}"))
    text = nvrtc.getPTX(program)
    text = text.decode() if isinstance(text, bytes) else text
    assert all(f".entry {name}(" in text for name in gpu_kernels.NAMES)


def test_the_folder_of_records_says_which_there_are() -> None:
    page = (gpu_check.RECORDS / "README.md").read_text()
    records = sorted(path.name for path in gpu_check.RECORDS.glob("RECORD-*.md"))
    assert [name for name in records if name not in page] == []
    assert ("not yet run on a GPU" in page) == (not records)


def test_an_outcome_is_known_by_the_name_of_its_check() -> None:
    outcome = Outcome(stub("passes"), Status.PASSED)
    record = Record(MACHINE, (stub("fails"), stub("passes"))).with_outcome(outcome)
    assert [each.status for each in record.all()] == [Status.NOT_RUN, Status.PASSED]


def test_a_client_that_ended_with_something_unread_has_ended() -> None:
    client = Client.__new__(Client)
    client.process = SimpleNamespace(join=lambda _s: None, exitcode=4)  # type: ignore[assignment]
    client._line, theirs = multiprocessing.Pipe()
    client.say("now")
    theirs.close()
    with pytest.raises(ClientError, match="exit code 4"):
        client.heard(1.0)
    client._line.close()


def test_the_gpu_of_a_record_is_found_by_number_or_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_machine
    from hasfaas.devices import nvml

    there = (Gpu(0, "GPU-a", "A", 1, (9, 0)), Gpu(1, "GPU-b", "B", 1, (9, 0)))
    monkeypatch.setattr(nvml, "gpus", lambda: there)
    assert [gpu_machine.find(name).name for name in ("0", "1", "GPU-b")] == ["A", "B", "B"]
