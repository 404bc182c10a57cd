"""One check in this process: `python -m benchmarks.gpu_process benchmarks.gpu_lanes:census [LINES] [GPU]`.

Without LINES, the file that its figures go to, they are printed. The exit status is 0 if the check came to its end, whatever
it found.
"""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu_sheet import NotRunError, Sheet


def main(argv: Sequence[str]) -> int:
    """Runs it."""
    target, lines, gpu = [*argv, *("", "0")[len(argv) - 1 :]]
    sheet = Sheet(Path(lines) if lines else None, gpu)
    # Told to end: what the check made on the GPU is taken back on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        check(target)(sheet)
    except NotRunError as exc:
        sheet.end("not run", str(exc))
        return 0
    except Exception as exc:
        traceback.print_exc()
        sheet.end("error", f"{type(exc).__name__}: {exc}")
        return 1
    sheet.end("done")
    return 0


def check(target: str) -> Callable[[Sheet], None]:
    """The function `module:name`."""
    module, _, name = target.partition(":")
    found: Callable[[Sheet], None] = getattr(importlib.import_module(module), name)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
