"""The log of decisions on disk: files of one form (`scaling/journal.py`), a bounded number of bounded size.

Each file can be replayed by itself. Where one has grown to its bound the next starts with a policy that remembers nothing,
to which the latest observations are shown first.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from hasfaas.scaling.decision import Decision
from hasfaas.scaling.journal import Scribe
from hasfaas.scaling.observation import Observation
from hasfaas.scaling.policy import Policy

# So many observations tell a fresh policy the load: about two minutes of them.
PRIMES = 120


class DecisionLog:
    """Owns the policy as well, since a new file means a new one. Calls come from one thread at a time."""

    def __init__(
        self,
        folder: Path,
        make_policy: Callable[[], tuple[Policy, Mapping[str, Any]]],
        *,
        name: str,
        most_bytes: int,
        segments: int,
    ) -> None:
        """`make_policy` gives a fresh policy and its settings. Makes the folder and the first file."""
        self._folder = folder
        self._make_policy = make_policy
        self._name = name
        self._most_bytes = most_bytes
        self._segments = segments
        self._latest: deque[Observation] = deque(maxlen=PRIMES)
        self._count = 0
        self._file: TextIO | None = None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._begin()

    @property
    def path(self) -> Path:
        """The file that is written now."""
        return self._path

    def decide(self, observation: Observation) -> Decision:
        """What the policy decides."""
        return self.policy.decide(observation)

    def write(self, observation: Observation, decision: Decision, refused: Mapping[int, str]) -> None:
        """One decision; begins the next file when this one is full."""
        self._write(self._scribe.tick(observation, decision, refused))
        self._latest.append(observation)
        if self._file is not None and self._file.tell() > self._most_bytes:
            self._begin()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self.close()
        self._count += 1
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self._path = self._folder / f"{stamp}-{os.getpid()}-{self._count:04d}.jsonl"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        self.policy, settings = self._make_policy()
        self._scribe = Scribe(self._name, settings)
        self._write([self._scribe.begin()])
        for observation in self._latest:
            self._write(self._scribe.prime(observation))
            self.policy.decide(observation)
        kept = sorted(self._folder.glob("*.jsonl"), key=lambda path: (path.stat().st_mtime, path.name))
        for path in kept[: -self._segments]:
            path.unlink(missing_ok=True)

    def _write(self, lines: Iterable[str]) -> None:
        assert self._file is not None, "the log is open"
        for line in lines:
            self._file.write(f"{line}\n")
        self._file.flush()
