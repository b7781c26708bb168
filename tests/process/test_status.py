"""`fastmtcp status` against real programs: what it says is what happened."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastmtcp.status.control_name import LISTED, parse_listed
from fastmtcp.units import format_bytes

from tests.io.net import WAIT, data, read_exactly
from tests.io.wires import WireBox
from tests.process.programs import Program, Programs, eventually
from tests.process.targets import Target, round_trip

SIZE = 3_000_000


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A target whose connections the test holds itself."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listener.settimeout(WAIT)
        yield listener


def open_stream(client: Program, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    application = client.connect()
    target, _ = listener.accept()
    target.settimeout(WAIT)
    return application, target


def names() -> list[str]:
    with open(LISTED, encoding="utf-8", errors="replace") as file:
        return [str(name) for name in parse_listed(file.read())]


def name_of(program: Program) -> str:
    """Under which a program is found that was given no --control."""
    side = program.name.removeprefix("fastmtcp-")
    return f"fastmtcp/{os.geteuid()}/{side}-{program.port}"


def ask(programs: Programs, name: str) -> Any:
    """The status of one program as a JSON document."""
    result = programs.run("fastmtcp", "status", "--json", "--socket", name)
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["format"] == 1
    (one,) = document["instances"]
    return one


def all_of(programs: Programs, *options: str) -> dict[int, Any]:
    """What `fastmtcp status --json` finds, by pid. Others may run on this machine, too."""
    result = programs.run("fastmtcp", "status", "--json", *options)
    return {one["pid"]: one for one in json.loads(result.stdout)["instances"]}


def streams_of(instance: Any) -> list[Any]:
    return [
        stream
        for worker in instance["workers"]
        for session in worker["sessions"]
        for stream in session["streams"]
    ]


def test_both_ends_agree_with_what_was_sent(programs: Programs, listener: socket.socket) -> None:
    server = programs.server(listener.getsockname()[1], "--workers", 2)
    client = programs.client(server, "--workers", 1, "--connections", 3, "--no-express")
    application, target = open_stream(client, listener)
    application.sendall(data(SIZE, 1))
    assert read_exactly(target, SIZE) == data(SIZE, 1)
    target.sendall(data(SIZE // 10, 2))
    assert read_exactly(application, SIZE // 10) == data(SIZE // 10, 2)

    def settled() -> tuple[Any, Any] | None:
        """Both, once the last ACKs are there."""
        both = ask(programs, name_of(client)), ask(programs, name_of(server))
        return both if not any(one["totals"]["unacked"] for one in both) else None

    near, far = eventually(settled, "everything is acknowledged")  # type: ignore[misc]
    session_ids = set()
    for program, one in ((client, near), (server, far)):
        assert (one["program"], one["pid"]) == (program.name, program.process.pid)
        assert one["state"] == "ready"
        assert one["listening"] == [f"127.0.0.1:{program.port}"]
        assert sorted(worker["pid"] for worker in one["workers"]) == program.workers()
        assert all(worker["state"] == "serving" for worker in one["workers"])
        assert all(worker["memory"] > 1 << 20 for worker in one["workers"])
        totals = one["totals"]
        assert (totals["payload_up"], totals["payload_down"]) == (SIZE, SIZE // 10)
        assert totals["bytes_up"] > SIZE
        assert totals["bytes_down"] > SIZE // 10
        assert (totals["sessions"], totals["subflows"], totals["streams"]) == (1, 3, 1)
        (stream,) = streams_of(one)
        assert (stream["payload_up"], stream["payload_down"]) == (SIZE, SIZE // 10)
        assert (stream["state"], stream["gaps"]) == ("open", 0)
        (session,) = [s for worker in one["workers"] for s in worker["sessions"]]
        assert sum(subflow["bytes_up"] for subflow in session["subflows"]) == totals["bytes_up"]
        assert all(0 < subflow["srtt"] < 10 for subflow in session["subflows"])
        session_ids.add(session["id"])
    (session_id,) = session_ids
    host, port = application.getsockname()
    assert streams_of(near)[0]["application"] == f"{host}:{port}"
    where = f"127.0.0.1:{listener.getsockname()[1]}"
    assert (streams_of(far)[0]["application"], streams_of(far)[0]["target"]) == (where, where)
    ends = [
        {
            (s["local"], s["remote"])
            for w in one["workers"]
            for x in w["sessions"]
            for s in x["subflows"]
        }
        for one in (near, far)
    ]
    assert ends[0] == {(remote, local) for local, remote in ends[1]}

    for program in (client, server):
        result = programs.run("fastmtcp", "status", "--socket", name_of(program))
        assert (result.returncode, result.stderr) == (0, "")
        assert f"pid {program.process.pid} " in result.stdout
        assert f"{format_bytes(SIZE)} of applications" in result.stdout
        assert f"{format_bytes(SIZE // 10)} of applications" in result.stdout
        assert f"session {session_id} of worker" in result.stdout
    target.close()
    application.close()


def test_a_rate_is_shown_while_something_is_sent(
    programs: Programs, listener: socket.socket
) -> None:
    client = programs.pair(listener.getsockname()[1])
    application, target = open_stream(client, listener)

    def shows_a_rate() -> bool:
        application.sendall(bytes(200_000))
        read_exactly(target, 200_000)
        totals = ask(programs, name_of(client))["totals"]
        return bool(10_000 < totals["rate_up"] > totals["rate_down"])

    eventually(shows_a_rate, "there is a rate upwards")
    eventually(
        lambda: ask(programs, name_of(client))["totals"]["rate_up"] < 1000, "the rate goes away"
    )
    target.close()
    application.close()


def test_counters_outlive_the_streams(programs: Programs, echo_target: Target[int]) -> None:
    client = programs.pair(echo_target.port)
    for _ in range(3):
        assert round_trip(client.address, b"x" * 1000)

    def totals() -> Any:
        return ask(programs, name_of(client))["totals"]

    eventually(lambda: totals()["streams"] == 0, "the streams are gone")
    found = totals()
    assert (found["payload_up"], found["payload_down"]) == (3000, 3000)
    assert found["streams_opened"] == 3


def test_a_lost_subflow_shows_as_a_reconnect(programs: Programs, echo_target: Target[int]) -> None:
    server = programs.server(echo_target.port, "--workers", 1)
    with WireBox() as box:
        port = box.listen(server.address)
        client = programs.client(port, "--workers", 1, "--connections", 2, "--no-express")
        client.wait_for("2 of 2 subflows up")
        box.alive()[0].cut()
        client.wait_for("2 of 2 subflows up", 2)
        one = ask(programs, name_of(client))
        (path,) = one["workers"][0]["sessions"][0]["paths"]
        assert (path["name"], path["subflows"], path["wanted"]) == (f"127.0.0.1:{port}", 2, 2)
        assert (path["reconnects"], path["trouble"], path["state"]) == (1, "", "up")
        totals = one["totals"]
        assert (totals["reconnects"], totals["subflows"], totals["subflows_ended"]) == (1, 2, 1)
        client.end()


def test_a_client_without_a_server_says_why(programs: Programs) -> None:
    with socket.socket() as bound_only:
        bound_only.bind(("127.0.0.1", 0))
        port = bound_only.getsockname()[1]
        client = programs.client(port, "--workers", 1)
        (worker,) = ask(programs, name_of(client))["workers"]
    (session,) = worker["sessions"]
    assert (session["state"], session["id"], session["subflows"]) == ("waiting", "", [])
    (path,) = session["paths"]
    assert (path["state"], path["subflows"], path["wanted"]) == ("down", 0, 4)
    assert "refused" in path["trouble"].lower()


def test_no_secret_is_in_it(programs: Programs, echo_target: Target[int], tmp_path: Path) -> None:
    key_file = tmp_path / "k.key"
    assert programs.run("fastmtcp", "keygen", key_file).returncode == 0
    server = programs.server(echo_target.port, "--key-file", key_file, "--workers", 1)
    client = programs.client(server, "--key-file", key_file, "--workers", 1)
    assert round_trip(client.address)
    for program in (client, server):
        one = ask(programs, name_of(program))
        text = json.dumps(one)
        assert key_file.read_text().strip() not in text
        assert str(key_file) not in text
        # Neither whole ids nor secrets, which would be as long.
        words = "".join(c if c in "0123456789abcdef" else " " for c in text).split()
        assert max(map(len, words)) <= 16
        (session,) = one["workers"][0]["sessions"]
        assert len(session["id"]) == 12


def test_all_that_run_are_found(programs: Programs, echo_target: Target[int]) -> None:
    server = programs.server(echo_target.port, "--workers", 1)
    clients = [programs.client(server, "--workers", 1) for _ in range(2)]
    mine = {program.process.pid for program in (server, *clients)}
    assert mine <= all_of(programs).keys()
    assert mine & all_of(programs, "--server").keys() == {server.process.pid}
    assert mine & all_of(programs, "--client").keys() == {c.process.pid for c in clients}
    result = programs.run("fastmtcp", "status")
    assert all(f"pid {pid} " in result.stdout for pid in mine)
    for program in (server, *clients):
        program.end()
    assert not mine & all_of_or_none(programs)


def all_of_or_none(programs: Programs) -> set[int]:
    result = programs.run("fastmtcp", "status", "--json")
    if result.returncode == 1 and not result.stdout:
        assert "runs here; start one" in result.stderr
        return set()
    return {one["pid"] for one in json.loads(result.stdout)["instances"]}


class TestName:
    def test_it_can_be_chosen_but_not_taken_away(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        name = f"mine-{os.getpid()}"
        server = programs.server(echo_target.port, "--workers", 1, "--control", name)
        assert ask(programs, name)["pid"] == server.process.pid
        assert ask(programs, name)["control"] == f"fastmtcp/{os.geteuid()}/{name}"
        second = programs.start(
            *("fastmtcp-server", "--listen", "127.0.0.1:0", "--control", name, "--workers", 1)
        )
        assert second.wait() == 1
        assert "the name is in use; choose another --control" in second.log
        assert second.log.count("\n") == 1
        second.expects_trouble = True
        assert ask(programs, name)["pid"] == server.process.pid

    def test_off_hides_it(self, programs: Programs, echo_target: Target[int]) -> None:
        server = programs.server(echo_target.port, "--workers", 1, "--control", "off")
        assert name_of(server) not in names()
        result = programs.run("fastmtcp", "status", "--socket", name_of(server))
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == (
            f"fastmtcp: error: nothing runs under the name {name_of(server)}\n"
        )

    def test_two_on_one_port_of_two_addresses(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        first = programs.server(echo_target.port, "--workers", 1)
        target = f"127.0.0.1:{echo_target.port}"
        second = programs.start(
            *("fastmtcp-server", "--listen", f"127.0.0.2:{first.port}", "--target", target),
            *("--workers", 1),
        ).ready()
        assert ask(programs, name_of(first))["pid"] == first.process.pid
        other = f"{name_of(first)}-{second.process.pid}"
        assert ask(programs, other)["pid"] == second.process.pid


class TestTrouble:
    def test_nothing_is_left_of_a_killed_supervisor(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        server = programs.server(echo_target.port, "--workers", 2)
        client = programs.client(server, "--workers", 2)
        for program in (client, server):
            name = name_of(program)
            assert name in names()
            program.expects_trouble = True
            program.signal(signal.SIGKILL)
            program.process.wait(WAIT)
            # At once, also while its workers are still there.
            assert name not in names()
            eventually(lambda: not program.family(), "the workers end")  # noqa: B023
        again = programs.server(echo_target.port, "--workers", 1, port=server.port)
        assert ask(programs, name_of(server))["pid"] == again.process.pid

    def test_a_worker_that_hangs_is_silent_and_the_others_answer(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        server = programs.server(echo_target.port, "--workers", 2)
        victim, other = server.workers()

        def states() -> Any:
            workers = ask(programs, name_of(server))["workers"]
            return {worker["pid"]: worker["state"] for worker in workers}

        assert states() == {victim: "serving", other: "serving"}
        os.kill(victim, signal.SIGSTOP)
        try:
            eventually(
                lambda: states() == {victim: "silent", other: "serving"}, "it does not answer"
            )
        finally:
            os.kill(victim, signal.SIGCONT)
        eventually(lambda: set(states().values()) == {"serving"}, "it answers again")

    def test_a_worker_that_was_killed_is_counted(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        server = programs.server(echo_target.port, "--workers", 2)
        victim = ask(programs, name_of(server))["workers"][1]
        os.kill(victim["pid"], signal.SIGKILL)

        def restarted() -> Any:
            worker = ask(programs, name_of(server))["workers"][1]
            return worker if worker["state"] == "serving" and worker["restarts"] else None

        worker = eventually(restarted, "it was started again")
        assert worker["restarts"] == 1
        assert worker["pid"] != victim["pid"]

    def test_clients_of_the_socket_that_stay_keep_nothing_from_working(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        client = programs.pair(echo_target.port)
        name = name_of(client)
        idle = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(20)]
        try:
            for sock in idle:
                sock.setblocking(False)
                sock.connect_ex(f"\0{name}")
            assert round_trip(client.address)
            eventually(
                lambda: programs.run("fastmtcp", "status", "--socket", name).returncode == 0,
                "it answers once the idle ones were dropped",
            )
        finally:
            for sock in idle:
                sock.close()

    def test_many_streams_are_counted_and_the_busiest_listed(
        self, programs: Programs, listener: socket.socket
    ) -> None:
        client = programs.pair(listener.getsockname()[1])
        streams = [open_stream(client, listener) for _ in range(150)]
        application, target = streams[77]
        application.sendall(b"x" * 5000)
        assert len(read_exactly(target, 5000)) == 5000
        one = eventually(
            lambda: (o := ask(programs, name_of(client)))["totals"]["unacked"] == 0 and o,
            "all is acknowledged",
        )
        assert one["totals"]["streams"] == 150
        listed = streams_of(one)
        assert len(listed) == 100
        assert listed[0]["payload_up"] == 5000
        result = programs.run("fastmtcp", "status", "--socket", name_of(client))
        assert "and 50 more streams" in result.stdout
        for pair in streams:
            for sock in pair:
                sock.close()
