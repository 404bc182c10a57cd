"""What the control groups of this process allow it: memory, and processor time. Versions 1 and 2 of the kernel's files.

A group is bounded by every group above it too, so the lowest of those limits holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs

# Version 1 writes "no limit" as the highest whole page; what no machine has is no limit.
_NO_LIMIT_BYTES = 1 << 60
_MAX = "max"


@attrs.frozen
class Limits:
    """None where there is no limit. `cores` is processor time for each time of the clock."""

    memory_bytes: int | None = None
    cores: float | None = None


def limits(proc: Path = Path("/proc/self"), root: Path = Path("/")) -> Limits:
    """The limits of this process; a file that cannot be read is no limit. `root` is put before the paths of mounts."""
    groups, mounts = _text(proc / "cgroup"), _text(proc / "mountinfo")
    memory = [value for folder in _folders(groups, mounts, "memory", root) for value in _memory(folder)]
    cores = [value for folder in _folders(groups, mounts, "cpu", root) for value in _cores(folder)]
    return Limits(min(memory, default=None), min(cores, default=None))


def _folders(groups: str, mounts: str, controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's group and of those above it, for one controller, of both versions."""
    for line in groups.splitlines():
        _number, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mounted_root, mount in _mounts(mounts, controller if controllers else ""):
            below = Path(path).relative_to(mounted_root) if Path(path).is_relative_to(mounted_root) else Path()
            top = root / mount.lstrip("/")
            yield from (top / part for part in (below, *below.parents) if (top / part).is_dir())


def _mounts(mounts: str, controller: str) -> Iterator[tuple[str, str]]:
    """(root, mount point) of each mount of the controller (version 1), or of version 2 where it is ""."""
    for line in mounts.splitlines():
        before, _dash, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        of_v1 = kind[0] == "cgroup" and controller in kind[-1].split(",")
        if of_v1 if controller else kind[0] == "cgroup2":
            yield fields[3], fields[4]


def _memory(folder: Path) -> Iterator[int]:
    for name in ("memory.max", "memory.limit_in_bytes"):
        value = _text(folder / name).strip()
        if value and value != _MAX and int(value) < _NO_LIMIT_BYTES:
            yield int(value)


def _cores(folder: Path) -> Iterator[float]:
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if quota and quota != _MAX:
        yield int(quota) / int(period)
    quota, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if quota and period and int(quota) > 0:
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
