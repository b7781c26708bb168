"""What the control group of this process allows it: CPU time and memory (cgroups(7)).

In a container the machine has 64 CPUs and the process half of one: who counts CPUs starts 64
workers. Every group from the process's own up to the top limits it, so the least counts. Where
nothing can be read (no /proc, no cgroups, another system) there is no limit that we know of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NEVER = 1 << 60
"""Version 1 says "no limit" with a number of bytes near 2^63."""


def cpu_quota(root: Path = Path("/")) -> float | None:
    """So many CPUs' time the process may use; None is without limit."""
    found = [
        *(_share(text) for text in _read(root, "", "cpu.max")),
        *(
            _share(f"{quota} {period}")
            for quota, period in zip(
                _read(root, "cpu", "cpu.cfs_quota_us"),
                _read(root, "cpu", "cpu.cfs_period_us"),
                strict=False,
            )
        ),
    ]
    return min((share for share in found if share is not None), default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """So many bytes all processes of the group may hold; None is without limit."""
    texts = [
        *_read(root, "", "memory.max"),
        *_read(root, "memory", "memory.limit_in_bytes"),
    ]
    sizes = [int(text) for text in texts if text.isdecimal()]
    return min((size for size in sizes if size < _NEVER), default=None)


def _share(text: str) -> float | None:
    """Of `50000 100000`: time in microseconds, of so many. The first may be `max`, or negative."""
    quota, _, period = text.partition(" ")
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)


def _read(root: Path, controller: str, name: str) -> Iterator[str]:
    """What the file `name` says in each group of the process; `controller` is empty for version
    2, whose groups have them all."""
    for folder in _folders(root, controller):
        try:
            yield (folder / name).read_text().strip()
        except (OSError, ValueError):
            continue


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the group of this process and of those above it."""
    own = _own_group(root, controller)
    if own is None:
        return
    for top, mounted in _mounts(root, controller):
        # The mount shows one group and what is below it, in a container its own.
        try:
            below = Path(own).relative_to(top)
        except ValueError:
            below = Path()
        folder = mounted / below
        yield folder
        while folder != mounted:
            folder = folder.parent
            yield folder


def _own_group(root: Path, controller: str) -> str | None:
    """Of lines such as `4:cpu,cpuacct:/docker/1f` or `0::/user.slice`."""
    for line in _lines(root / "proc/self/cgroup"):
        fields = line.split(":", 2)
        if len(fields) == 3 and controller in fields[1].split(","):
            return fields[2]
    return None


def _mounts(root: Path, controller: str) -> Iterator[tuple[str, Path]]:
    """Which group is mounted where (proc_pid_mountinfo(5))."""
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        fields, kinds = mount.split(" "), system.split(" ")
        if len(fields) < 5 or len(kinds) < 3:
            continue
        fits = controller in kinds[2].split(",") if controller else kinds[0] == "cgroup2"
        if fits and kinds[0].startswith("cgroup"):
            yield fields[3], root / fields[4].lstrip("/")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
