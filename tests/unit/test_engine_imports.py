"""The engine is sans-IO: no clock, no network, no randomness, no threads (rule 9)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import fastmtcp.engine
import pytest

ALLOWED = {
    "__future__",
    "bisect",
    "collections",
    "enum",
    "msgspec",
    "struct",
    "typing",
}
"""Everything else needs a reason. Clock, network and randomness have none here."""

FORBIDDEN = {
    "_random",
    "_socket",
    "asyncio",
    "psutil",
    "random",
    "secrets",
    "select",
    "selectors",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "uuid",
}

ROOT = Path(str(fastmtcp.engine.__file__)).parents[2]
FILES = sorted(Path(str(fastmtcp.engine.__file__)).parent.rglob("*.py"))
IDS = [path.relative_to(ROOT).as_posix() for path in FILES]


def modules_in(source: str) -> set[str]:
    """All modules that `source` imports, by any statement, absolute names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            found.add(str(node.module))
        elif isinstance(node, ast.Name):
            assert node.id not in ("__import__", "open", "exec", "eval", "input", "print", "hash")
    return found


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_source_imports_nothing_but_the_engine_and_harmless_modules(path: Path) -> None:
    for module in modules_in(path.read_text()):
        if module.partition(".")[0] == "fastmtcp":
            assert module.startswith("fastmtcp.engine"), module
        else:
            assert module.partition(".")[0] in ALLOWED, module


def test_the_walk_sees_imports_wherever_they_are() -> None:
    source = "def f():\n    import time, os.path\n    from random import random\n"
    assert modules_in(source) == {"time", "os.path", "random"}


def test_a_fresh_interpreter_loads_no_network_and_no_randomness_for_it() -> None:
    names = [name.removesuffix(".py").replace("/", ".") for name in IDS]
    names = [name.removesuffix(".__init__") for name in names]
    # msgspec pulls in some modules of its own: what it loads alone does not count.
    program = (
        "import sys, msgspec\n"
        "before = set(sys.modules)\n"
        f"import {', '.join(names)}\n"
        "print('\\n'.join(set(sys.modules) - before))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert set(names) <= loaded
    assert not {name.partition(".")[0] for name in loaded} & FORBIDDEN
    assert {name for name in loaded if name.startswith("fastmtcp.")} <= set(names)
