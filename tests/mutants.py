"""Changes the code in many small ways and says which changes no test notices (scripts/mutants).

mutmut leaves the constants and tables of a module alone and drops no operand and no filter, which
is what most went unnoticed here; cosmic-ray runs one command for each change: all tests, or too
few. This collects the tests once and forks for each change: the fork puts the changed code in place
of the loaded one and runs the tests that reach its line, the fastest first, until one fails. The
working tree stays as it is. Bodies of classes are left alone, as they exist already.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from coverage import CoverageData

from tests.mutations import Mutant, is_inside, mutants

TESTS = ["tests/unit", "tests/property", "tests/sim", "tests/fuzz"]
_MEMORY = 4 << 30


def _apply(path: Path, mutant: Mutant) -> None:
    """Put a change in place of what is loaded."""
    module = sys.modules[".".join(path.with_suffix("").parts)]
    changed = dict(module.__dict__)
    exec(mutant.code, changed)
    rest = ast.parse(path.read_text()).body[mutant.top + 1 :]
    follow = [node for node in rest if isinstance(node, ast.Assign)]
    if not any(isinstance(value, FunctionType | type) for value in _new(module.__dict__, changed)):
        exec(compile(ast.Module(list(follow), []), str(path), "exec"), changed)
    for name, value in changed.items():
        loaded = module.__dict__.get(name)
        if value is loaded or name == "__builtins__":
            continue
        if isinstance(value, FunctionType | type):
            _replace(loaded, value)
            continue
        for other in list(sys.modules.values()):
            if getattr(other, "__dict__", {}).get(name) is loaded:
                setattr(other, name, value)


def _new(loaded: dict[str, Any], changed: dict[str, Any]) -> list[Any]:
    return [value for name, value in changed.items() if loaded.get(name) is not value]


def _replace(loaded: Any, changed: Any) -> None:
    """Give a function, or all functions of a class, the code of another one."""
    if isinstance(changed, type):
        for name, value in changed.__dict__.items():
            _replace(loaded.__dict__.get(name), value)
    elif isinstance(changed, property):
        _replace(loaded.fget, changed.fget)
    elif isinstance(changed, classmethod | staticmethod):
        _replace(loaded.__func__, changed.__func__)
    elif isinstance(changed, FunctionType):
        loaded.__code__ = changed.__code__
        loaded.__defaults__ = changed.__defaults__
        loaded.__kwdefaults__ = changed.__kwdefaults__


class Run:
    """A plugin for pytest that runs the tests once, and then those that reach a change."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
        self._durations = directory / "durations"
        self._coverage = directory / "coverage"
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if not self._durations.exists():
            return None
        self.seconds = json.loads(self._durations.read_text())
        data = CoverageData(str(self._coverage))
        data.read()
        for path in self._options.files:
            lines = {
                line: {context.rpartition("|")[0] for context in contexts}
                for line, contexts in data.contexts_by_lineno(str(path.resolve())).items()
            }
            self._report(path, lines, {item.nodeid: item for item in session.items})
        return True

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if not exitstatus:
            self._durations.write_text(json.dumps(self.seconds))

    def _report(
        self, path: Path, lines: dict[int, set[str]], items: dict[str, pytest.Item]
    ) -> None:
        chosen = list(mutants(path))
        if self._options.sample and self._options.sample < len(chosen):
            chosen = random.Random(1).sample(chosen, self._options.sample)
        left = 0
        # Tests of a constant reach no line, but are among others that do.
        files = {test.partition("::")[0] for test in set[str]().union(*lines.values())}
        everything = {test for test in items if test.partition("::")[0] in files}
        tree = ast.parse(path.read_text())
        same = [
            Mutant(0, top, "", compile(ast.Module([whole], []), str(path.resolve()), "exec"))
            for top, whole in enumerate(tree.body)
            if not isinstance(whole, ast.ImportFrom)
        ]
        if self._is_noticed(path, same, everything, items):
            sys.exit(f"{path}: tests fail though nothing was changed")
        for mutant in sorted(chosen, key=lambda mutant: mutant.line):
            inside = is_inside(tree.body[mutant.top], mutant.line)
            reach = lines.get(mutant.line, set()) if inside else everything
            if not self._is_noticed(path, [mutant], reach & items.keys(), items):
                left += 1
                print(f"{path}:{mutant.line}\n    {mutant.diff}", flush=True)
        share = 1 - left / len(chosen)
        print(f"{path}: {len(chosen) - left} of {len(chosen)} noticed ({share:.1%})", flush=True)

    def _is_noticed(
        self, path: Path, changes: list[Mutant], reach: set[str], items: dict[str, pytest.Item]
    ) -> bool:
        """True if a test fails, or hangs."""
        child = os.fork()
        if not child:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            silence = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(silence, number)
            try:
                for mutant in changes:
                    _apply(path, mutant)
                os._exit(self._fails(reach, items))
            finally:
                os._exit(1)
        until = time.monotonic() + 20 + 5 * self._options.seconds
        while time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status != 0
            time.sleep(0.005)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True

    def _fails(self, reach: set[str], items: dict[str, pytest.Item]) -> bool:
        left = self._options.seconds
        for test in sorted(reach, key=lambda test: self.seconds.get(test, 0.0)):
            left -= self.seconds.get(test, 0.0)
            if left < 0:
                break
            item = items[test]
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if item.session.testsfailed:
                return True
        return False


def _pytest(run: Run, *arguments: str) -> int:
    """Run pytest in a fork, so that it imports everything anew."""
    child = os.fork()
    if not child:
        status = 70
        try:
            status = int(pytest.main(["-p", "no:cacheprovider", "-q", *arguments], [run]))
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path)
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files or folders")
    parser.add_argument("--sample", type=int, help="so many changes of each file, chosen at random")
    parser.add_argument("--seconds", type=float, default=10.0, help="of tests for each change")
    parser.add_argument("--keep", type=Path, help="folder for what reaches what: as it is found")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or Path(temporary)
        directory.mkdir(exist_ok=True)
        os.environ["COVERAGE_FILE"] = str(directory / "coverage")
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = temporary
        run = Run(options, directory)
        if not (directory / "durations").exists() and _pytest(
            run, "--cov=fastmtcp", "--cov-context=test", "--cov-report=", *options.tests
        ):
            sys.exit("the tests must pass before anything is changed")
        sys.exit(_pytest(run, "-s", *options.tests))


if __name__ == "__main__":
    main()
