"""What one check of `hasfaas doctor` found."""

from __future__ import annotations

import enum

import attrs


class State(enum.Enum):
    """How good it is."""

    OK = "ok"
    NOTE = "note"  # to be known
    WARN = "warn"  # works, and less well than it could
    FAIL = "fail"  # does not work


@attrs.frozen
class Finding:
    """`check` names what was looked at, `detail` says what is there, and `cure` what changes it ("": nothing to change)."""

    check: str
    state: State
    detail: str
    cure: str = ""


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check, State.OK, detail)


def note(check: str, detail: str, cure: str = "") -> Finding:
    """To be known."""
    return Finding(check, State.NOTE, detail, cure)


def warn(check: str, detail: str, cure: str) -> Finding:
    """Works, and less well than it could."""
    return Finding(check, State.WARN, detail, cure)


def fail(check: str, detail: str, cure: str) -> Finding:
    """Does not work."""
    return Finding(check, State.FAIL, detail, cure)
