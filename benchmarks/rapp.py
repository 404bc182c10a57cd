"""RaPP against the published predictors, on their data: one table, ours beside theirs.

`python -m benchmarks.rapp --data ../shared/data --json out.json`. Everything is trained anew by the protocol of each row:
what a row tests was never seen by the model that it tests, nor used to choose it. About 25 minutes on 2 cores; `--only
unseen` runs one part.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from benchmarks import rapp_configurations, rapp_operators, rapp_sm_law, rapp_unseen
from benchmarks.rapp_row import Row

Rows = Callable[[Path, Sequence[int], Callable[[str], None]], list[Row]]

PARTS: dict[str, Rows] = {
    "configurations": rapp_configurations.rows,
    "unseen": rapp_unseen.rows,
    "sm_law": rapp_sm_law.rows,
    "operators": rapp_operators.rows,
}
# Keys at the top level of the JSON document, which readers look for.
COVERAGE_OF = "unseen_models_16_mape"


def main() -> int:
    """Runs the parts, prints the table, writes the JSON document. The exit status is 0 whatever the figures say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with v100/, gpu/ and profiles/")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="this part only; repeatable")
    given = parser.parse_args()
    if not (given.data / "v100").is_dir():
        parser.error(f"--data {given.data} holds no v100/: give the folder of measured data, see docs/rapp.md")
    rows: list[Row] = []
    for name in given.only or PARTS:
        began = time.monotonic()
        rows += PARTS[name](given.data, given.seeds, lambda text: print(f"  {text}", file=sys.stderr, flush=True))
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(document(rows), indent=1))
    return 0


def document(rows: Iterable[Row]) -> dict[str, object]:
    """The figures by key, and every row whole under `rows`."""
    rows = list(rows)
    figures: dict[str, object] = {row.key: row.mean for row in rows}
    covered = {row.key: row.coverage for row in rows}
    if COVERAGE_OF in covered:
        figures["coverage_90"] = covered[COVERAGE_OF]
    return figures | {"rows": [attrs.asdict(row) | {"met": row.met} for row in rows]}


def table(rows: Iterable[Row]) -> str:
    """As text, one line a row and its note below."""
    numbers = f"{'n':>7} {'MAPE %':>7} {'seeds':>13} {'median':>7} {'p90':>6} {'cover':>6} {'target':>7}"
    head = f"{'protocol':58} {numbers}  published"
    return "\n".join([head, *(line for row in rows for line in _lines(row))])


def _lines(row: Row) -> Iterable[str]:
    spread = f"{min(row.by_seed):.2f}..{max(row.by_seed):.2f}" if len(row.by_seed) > 1 else ""
    cover = "" if row.coverage is None else f"{100 * row.coverage:.1f}"
    target = "" if row.target is None else f"{row.target:g} {'ok' if row.met else 'NO'}"
    yield (
        f"{row.protocol[:58]:58} {row.n:>7} {row.mean:>7.2f} {spread:>13} {row.median:>7.2f} {row.p90:>6.1f} "
        f"{cover:>6} {target:>7}  {row.published}"
    )
    if row.note:
        yield f"    {row.note}"


if __name__ == "__main__":
    raise SystemExit(main())
