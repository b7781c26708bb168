"""What control groups allow, of both versions and as containers see them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastmtcp.io.cgroup import cpu_quota, memory_limit

V2 = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
NO_LIMIT = "9223372036854771712"


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    me = root / "proc/self"
    me.mkdir(parents=True)
    (me / "cgroup").write_text(groups)
    (me / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/root rw\n" + mounts)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_the_least_of_all_groups_up_to_the_top_counts(tmp_path: Path) -> None:
    files = {
        "a.slice/cpu.max": "150000 100000",
        "a.slice/b.service/cpu.max": "max 100000",
        "a.slice/memory.max": "1000000",
        "a.slice/b.service/memory.max": "2000000",
        "c.slice/cpu.max": "1000 100000",
    }
    root = machine(tmp_path, "0::/a.slice/b.service\n", V2.format(top="/"), files)
    assert cpu_quota(root) == 1.5
    assert memory_limit(root) == 1000000


@pytest.mark.parametrize(("group", "top"), [("/", "/"), ("/docker/1f", "/docker/1f")])
def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path, group: str, top: str) -> None:
    files = {"cpu.max": "50000 100000", "memory.max": "157286400"}
    root = machine(tmp_path, f"0::{group}\n", V2.format(top=top), files)
    assert cpu_quota(root) == 0.5
    assert memory_limit(root) == 157286400


def test_version_1(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/d/cpu.cfs_quota_us": "200000",
        "cpu,cpuacct/d/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "memory/d/memory.limit_in_bytes": NO_LIMIT,
        "memory/memory.limit_in_bytes": "300000000",
    }
    groups = "4:memory:/d\n2:cpu,cpuacct:/d\n0::/\n"
    root = machine(tmp_path, groups, V1.format(top="/"), files)
    assert cpu_quota(root) == 2
    assert memory_limit(root) == 300000000


def test_without_limits_there_are_none(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": NO_LIMIT,
        "cpu.max": "max 100000",
        "memory.max": "max",
    }
    groups = "4:memory:/\n2:cpu,cpuacct:/\n0::/\n"
    mounts = V1.format(top="/") + V2.format(top="/")
    root = machine(tmp_path, groups, mounts, files)
    assert cpu_quota(root) is None
    assert memory_limit(root) is None


@pytest.mark.parametrize(
    ("groups", "mounts"), [("", ""), ("garbage\n1:2\n", "a - b\n - \n"), ("0::/gone\n", V2)]
)
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, groups: str, mounts: str) -> None:
    root = machine(tmp_path, groups, mounts, {"cpu.max": "garbage", "memory.max": "-"})
    assert cpu_quota(root) is None
    assert memory_limit(root) is None


def test_without_proc(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None
