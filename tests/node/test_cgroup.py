"""The limits of control groups, read from trees as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasfaas.node.cgroup import Limits, limits

V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
)
UNLIMITED_V1 = "9223372036854771712\n"


def tree(root: Path, groups: str, mounts: str, **files: str) -> Limits:
    proc = root / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text(f"23 1 8:1 / / rw - ext4 /dev/root rw\n{mounts}")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return limits(proc, root)


def test_version_2_takes_the_lowest_limit_on_the_way_up(tmp_path: Path) -> None:
    files = {
        "a/memory.max": "4294967296\n",
        "a/cpu.max": "max 100000\n",
        "a/b/memory.max": "max\n",
        "a/b/cpu.max": "150000 100000\n",
        "other/memory.max": "1\n",
    }
    assert tree(tmp_path, "0::/a/b\n", V2, **files) == Limits(4 * 2**30, 1.5)


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    files = {
        "memory/c/memory.limit_in_bytes": "1073741824\n",
        "memory/memory.limit_in_bytes": UNLIMITED_V1,
        "cpu,cpuacct/c/cpu.cfs_quota_us": "50000\n",
        "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
    }
    assert tree(tmp_path, "4:memory:/c\n2:cpu,cpuacct:/c\n3:cpuset:/d\n", V1, **files) == Limits(2**30, 0.5)


@pytest.mark.parametrize(
    ("groups", "mounts", "files"),
    [
        ("0::/\n", V2, {"memory.max": "max\n", "cpu.max": "max 100000\n"}),
        ("4:memory:/\n", V1, {"memory/memory.limit_in_bytes": UNLIMITED_V1}),
        ("2:cpu,cpuacct:/\n", V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "1\n"}),
        ("0::/gone\n", V2, {}),
        ("", "", {}),
    ],
)
def test_no_limit_is_none(tmp_path: Path, groups: str, mounts: str, files: dict[str, str]) -> None:
    assert tree(tmp_path, groups, mounts, **files) == Limits()


def test_in_a_container_the_mount_starts_at_its_own_group(tmp_path: Path) -> None:
    mounts = "35 31 0:32 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    found = tree(tmp_path, "4:memory:/docker/x\n", mounts, **{"memory/memory.limit_in_bytes": "1048576\n"})
    assert found.memory_bytes == 2**20


def test_a_group_outside_what_is_mounted_is_the_mount_itself(tmp_path: Path) -> None:
    mounts = "35 31 0:32 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    found = tree(tmp_path, "4:memory:/elsewhere\n", mounts, **{"memory/memory.limit_in_bytes": "1048576\n"})
    assert found.memory_bytes == 2**20


def test_this_process_can_be_asked() -> None:
    found = limits()
    assert found.memory_bytes is None or found.memory_bytes > 2**20
    assert found.cores is None or found.cores > 0.0
