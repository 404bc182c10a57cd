"""The gpu-marked tests, counted: `python -m benchmarks.gpu_process benchmarks.gpu_tests:tests`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu_sheet import NotRunError, Sheet

ROOT = Path(__file__).parents[1]
FOLDER = "tests/gpu"


def tests(sheet: Sheet) -> None:
    """Runs them on the GPU under check, without what the other tests need (their conftest, plugins, data)."""
    if importlib.util.find_spec("pytest") is None:
        raise NotRunError("pytest is not installed")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--confcutdir={FOLDER}", f"--junit-xml={report}"]
        # A package that a file beside them needs may be missing here: an error, but the others run.
        options += ["--continue-on-collection-errors"]
        command = [sys.executable, "-m", "pytest", *options, FOLDER]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "HASFAAS_GPU": sheet.gpu}, check=False)
        suite = ElementTree.parse(report).getroot()  # pytest's own, of a moment ago
    cases = list(suite.iter("testcase"))
    for case in cases:
        name, problems = case.get("name", ""), [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if skipped is not None:
            sheet.remark(f"{name} skipped: {skipped.get('message', '')}")
        else:
            sheet.claim(name, not problems, note=_first_line(problems))
    sheet.figure("tests that ran", sum(case.find("skipped") is None for case in cases), "", least=1.0)


def _first_line(problems: list[ElementTree.Element]) -> str:
    return problems[0].get("message", "").partition("\n")[0] if problems else ""
