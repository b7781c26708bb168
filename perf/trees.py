"""fastmtcp of this tree and of another commit, both to be called by their commands alone."""

from __future__ import annotations

import configparser
import contextlib
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from perf.processes import BenchmarkError
from perf.setups import Commands

REPOSITORY = Path(__file__).resolve().parents[1]

# An installed script, but for a tree that is named: its directory is the first on the path.
_SCRIPT = """\
#!{python}
import sys
sys.path.insert(0, {tree!r})
import fastmtcp
if not fastmtcp.__file__.startswith({tree!r} + "/"):
    sys.exit("fastmtcp was imported from " + fastmtcp.__file__)
from {module} import {function}
sys.exit({function}())
"""


@contextlib.contextmanager
def checked_out(commit: str, repository: Path = REPOSITORY) -> Iterator[Path]:
    """A work tree of `commit` in a temporary directory. Raises BenchmarkError if there is no such
    commit."""
    git = partial(_git, repository)
    number = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if not number:
        raise BenchmarkError(f"no commit is named {commit}")
    with tempfile.TemporaryDirectory(prefix="fastmtcp-base-") as folder:
        tree = Path(folder).resolve() / "tree"
        try:
            git("worktree", "add", "--quiet", "--detach", str(tree), number)
            if not tree.is_dir():
                raise BenchmarkError(f"git worktree add could not check out {commit}")
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def install(tree: Path, folder: Path) -> Commands:
    """Make the commands of `tree` in `folder`, with this Python and what is installed for it."""
    points = entry_points(tree)
    folder.mkdir()
    made = {}
    for name in ("fastmtcp", "fastmtcp-server", "fastmtcp-client"):
        if name not in points:
            raise BenchmarkError(f"{tree} has no command {name}")
        module, _, function = points[name].partition(":")
        path = folder / name
        path.write_text(
            _SCRIPT.format(python=sys.executable, tree=str(tree), module=module, function=function)
        )
        path.chmod(0o755)
        # Not by its first line: the kernel limits the length of that.
        made[name] = (sys.executable, str(path))
    return Commands(made["fastmtcp"], made["fastmtcp-server"], made["fastmtcp-client"])


def entry_points(tree: Path) -> dict[str, str]:
    """`module:function` of each command, from pyproject.toml or setup.cfg."""
    found: dict[str, str] = {}
    old = configparser.ConfigParser()
    old.read(tree / "setup.cfg")
    lines = old.get("options.entry_points", "console_scripts", fallback="")
    for line in filter(None, lines.splitlines()):
        name, _, where = line.partition("=")
        found[name.strip()] = where.strip()
    with contextlib.suppress(FileNotFoundError):
        project = tomllib.loads((tree / "pyproject.toml").read_text()).get("project", {})
        found |= project.get("scripts", {})
    return found


def _git(repository: Path, *words: str) -> str:
    """What git says; nothing if it fails."""
    done = subprocess.run(
        ["git", "-C", str(repository), *words], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
