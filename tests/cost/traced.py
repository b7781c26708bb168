"""Commands under strace, and the system calls of their workers.

strace, because only the kernel sees them all: Python itself makes calls that no wrapper of sockets
or epoll knows (accept() alone is accept4, getsockname and ioctl), and a wrapper would have to know
the modules that it wraps. It traces from the program's start, so no right to attach is needed.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.process.programs import Programs

CONNECT = r"connect\(\d+, \{sa_family=AF_INET,"
ACCEPT = r"accept4\(\d+, \{sa_family=AF_INET,"

# Looks at the subflows: they come by the clock, however much there is to do.
_BY_THE_CLOCK = re.compile(r"getsockopt\(\d+, SOL_TCP, TCP_INFO")
_WAIT = re.compile(r"epoll_p?wait\(")


class Traced:
    """A command with one worker, ready."""

    def __init__(self, programs: Programs, name: str, *arguments: object) -> None:
        self._prefix = programs.folder / f"{name}.trace"
        # With -D our child is the command and not strace. One file for each thread.
        strace = ("strace", "-D", "-ff", "-qq", "-s", "0", "-o", str(self._prefix))
        self.program = programs.start(name, "--workers", 1, *arguments, under=strace).ready()
        (self._worker,) = self.program.workers()

    def calls(self) -> list[str]:
        """End the program; the system calls of its worker's loop.

        Without those by the clock, and without a wait after which nothing was done: a timer, or
        one of the kernel's edges that says only that the peer has acknowledged something.
        """
        self.program.end()
        path = Path(f"{self._prefix}.{self._worker}")
        if not path.exists():
            pytest.fail(
                "strace has traced nothing; it needs ptrace(), which the container may forbid "
                f"(--cap-add SYS_PTRACE):\n{self.program.log}"
            )
        lines = path.read_text().splitlines()
        calls = [line for line in lines if not _BY_THE_CLOCK.match(line)]
        return [
            call
            for call, following in itertools.pairwise(calls)
            if not (_WAIT.match(call) and _WAIT.match(following))
        ]


def between(calls: list[str], mark: str) -> list[list[str]]:
    """The calls from each one that matches `mark` to the next, the last one left out: it is
    followed by the end of the program."""
    found = [index for index, call in enumerate(calls) if re.match(mark, call)]
    return [calls[begin:end] for begin, end in itertools.pairwise(found)]


def undisturbed(parts: list[list[str]]) -> list[str]:
    """One of the cheapest tenth: on a loaded machine most have a timer's work between. Not the
    very cheapest, which may have got two things at once."""
    ordered = sorted(parts, key=len)
    return ordered[len(ordered) // 10]
