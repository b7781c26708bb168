"""Signals as events of a loop, in a process of its own: handlers are the process's."""

from __future__ import annotations

import subprocess
import sys

WATCH = """
import os, signal
from fastmtcp.io.loop import Loop
from fastmtcp.io.signals import Signals

loop = Loop()
heard = []

def on_signal():
    heard.append(1)
    loop.stop()

signals = Signals(loop, (signal.SIGTERM, signal.SIGINT), on_signal)
"""


def run(body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WATCH + body], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_signals_are_told_on_the_loop_and_those_that_come_together_once() -> None:
    body = """
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGINT)
print(heard)
loop.run()
print(heard)
os.kill(os.getpid(), signal.SIGTERM)
loop.run()
print(heard)
"""
    assert run(body) == "[]\n[1]\n[1, 1]\n"


def test_a_forked_child_does_not_wake_its_parent() -> None:
    body = """
if os.fork() == 0:
    signals.forget()
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
print(os.wait()[1])
loop.call_later(0.05, loop.stop)
loop.run()
print(heard)
os.kill(os.getpid(), signal.SIGTERM)
loop.run()
print(heard)
"""
    assert run(body) == "0\n[]\n[1]\n"


def test_ignored_at_the_end() -> None:
    assert run("signals.ignore()\nos.kill(os.getpid(), signal.SIGTERM)\nprint('here')") == "here\n"
