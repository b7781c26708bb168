"""`fastmtcp status`: its options, its exit codes, and what it says when there is nothing."""

from __future__ import annotations

import json

import pytest
from fastmtcp.cli import main as group
from fastmtcp.cli import status as command
from fastmtcp.errors import FastmtcpError
from fastmtcp.status.control_name import ControlName
from fastmtcp.status.document import InstanceStatus, TotalsStatus
from fastmtcp.status.query import NoAnswerError, NotRunningError

Capture = pytest.CaptureFixture[str]


def instance(program: str, pid: int) -> InstanceStatus:
    return InstanceStatus(
        format=1,
        program=program,
        version="1",
        pid=pid,
        uptime=1.0,
        state="ready",
        control=f"fastmtcp/0/{pid}",
        listening=[],
        totals=TotalsStatus(),
        workers=[],
    )


class Machine:
    """The programs that run, by the names of their control sockets."""

    def __init__(self) -> None:
        self.programs: dict[str, InstanceStatus | FastmtcpError] = {}
        self.timeouts: list[float] = []

    def running(self) -> list[ControlName]:
        return [ControlName(name, 0) for name in self.programs]

    def ask(self, name: ControlName, timeout: float = 0.0) -> InstanceStatus:
        self.timeouts.append(timeout)
        found = self.programs.get(name.name, NotRunningError(f"nothing under {name.name}"))
        if isinstance(found, FastmtcpError):
            raise found
        return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(command, "running", made.running)
    monkeypatch.setattr(command, "ask", made.ask)
    return made


@pytest.fixture
def both(machine: Machine) -> Machine:
    machine.programs = {
        "c": instance("fastmtcp-client", 11),
        "s": instance("fastmtcp-server", 12),
    }
    return machine


def pids(capsys: Capture) -> list[int]:
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == 1
    return [one["pid"] for one in document["instances"]]


@pytest.mark.parametrize(
    ("options", "expected"), [([], [11, 12]), (["--client"], [11]), (["--server"], [12])]
)
def test_which_programs(
    both: Machine, capsys: Capture, options: list[str], expected: list[int]
) -> None:
    assert group.main(["status", "--json", *options]) == 0
    assert pids(capsys) == expected
    assert group.main(["status", *options]) == 0
    text = capsys.readouterr().out
    assert [pid for pid in (11, 12) if f"pid {pid} " in text] == expected


@pytest.mark.parametrize("name", ["s", "fastmtcp/0/s"])
def test_one_by_its_name(both: Machine, capsys: Capture, name: str) -> None:
    assert group.main(["status", "--json", "--socket", name]) == 0
    assert pids(capsys) == [12]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ([], "fastmtcp-server or fastmtcp-client"),
        (["--client"], "fastmtcp-client"),
        (["--server", "--json"], "fastmtcp-server"),
    ],
)
def test_nothing_runs(machine: Machine, capsys: Capture, options: list[str], what: str) -> None:
    assert group.main(["status", *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    remedy = "start one, or name its socket with --socket"
    assert captured.err == f"fastmtcp: error: no {what} runs here; {remedy}\n"


def test_the_one_that_was_named_does_not_run(both: Machine, capsys: Capture) -> None:
    assert group.main(["status", "--socket", "x"]) == 1
    assert capsys.readouterr().err == "fastmtcp: error: nothing under x\n"


def test_one_that_has_ended_meanwhile_is_left_out(both: Machine, capsys: Capture) -> None:
    both.programs["c"] = NotRunningError("gone")
    assert group.main(["status", "--json"]) == 0
    assert pids(capsys) == [12]


def test_one_that_does_not_answer_hides_no_other(both: Machine, capsys: Capture) -> None:
    both.programs["c"] = NoAnswerError("c does not answer")
    assert group.main(["status"]) == 1
    captured = capsys.readouterr()
    assert "pid 12 " in captured.out
    assert captured.err == "fastmtcp status: error: c does not answer\n"


def test_many_that_do_not_answer_take_no_longer(
    both: Machine, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_ALL", 0.0)
    assert group.main(["status"]) == 1
    assert "was not asked" in capsys.readouterr().err
    assert both.timeouts == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--client", "--server"], "--socket, --client and --server exclude one another; use one"),
        (["--client", "--socket", "c"], "--socket, --client and --server exclude one another"),
        (["--socket", "a b"], "--socket: 'a b' is no name; write it like client-7701"),
        (["--socket", ""], "--socket: '' is no name"),
        (["--nope"], "no such option"),
        (["extra"], "got unexpected extra argument (extra)"),
    ],
)
def test_wrong_usage(both: Machine, capsys: Capture, options: list[str], message: str) -> None:
    assert group.main(["status", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"fastmtcp status: error: {message}")
    assert captured.err.endswith("see `fastmtcp status --help`\n")
