"""Processes that die, restart, drain and end, and what applications see of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import psutil
import pytest
from fastmtcp.status.query import ask, running

from tests.io.net import WAIT, is_reset, read_all, read_exactly, refusing_port
from tests.process.programs import (
    ALL_UP,
    IN_BOTH_SETUPS,
    Program,
    Programs,
    eventually,
    subflows_by_worker,
)
from tests.process.targets import Target, echo, round_trip


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A target whose connections the test holds itself."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listener.settimeout(WAIT)
        yield listener


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def open_stream(client: Program, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """An application and its target, after a word in each direction."""
    application = client.connect()
    application.sendall(b"up")
    target, _ = listener.accept()
    target.settimeout(WAIT)
    assert read_exactly(target, 2) == b"up"
    target.sendall(b"down")
    assert read_exactly(application, 4) == b"down"
    return application, target


def talk(application: socket.socket, target: socket.socket) -> None:
    application.sendall(b"more")
    assert read_exactly(target, 4) == b"more"
    target.sendall(b"indeed")
    assert read_exactly(application, 6) == b"indeed"


def finish(application: socket.socket, target: socket.socket) -> None:
    """Both ends say and hear all that they have to."""
    application.sendall(b"last words")
    application.shutdown(socket.SHUT_WR)
    assert read_all(target) == b"last words"
    target.sendall(b"good bye")
    target.close()
    assert read_all(application) == b"good bye"
    application.close()


def refuses(program: Program) -> bool:
    """Whether nobody listens at the program's address."""
    try:
        program.connect().close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def owners(client: Program, server: Program) -> dict[int, int]:
    """Which server worker owns the session of each client worker."""
    at_client = subflows_by_worker(client, server.port, remote=True)
    at_server = subflows_by_worker(server, server.port, remote=False)
    return {
        near: far for near, ports in at_client.items() for far, p in at_server.items() if p & ports
    }


def client_worker_of(client: Program, application: socket.socket) -> int:
    """The worker that accepted the application's connection."""
    port = application.getsockname()[1]
    for pid, ports in subflows_by_worker(client, client.port, remote=False).items():
        if port in ports:
            return pid
    pytest.fail("no worker has the connection")


def has_unread(ports: set[int]) -> bool:
    """Whether bytes wait in the kernel to be read from connections of these local ports."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return any(int(r[1][-4:], 16) in ports and int(r[4].split(":")[1], 16) for r in rows)


class TestWorkerKilled:
    @IN_BOTH_SETUPS
    def test_at_the_server_its_streams_are_reset_and_all_goes_on(
        self, programs: Programs, listener: socket.socket
    ) -> None:
        server = programs.server(port_of(listener), "--workers", 4)
        client = programs.client(server, "--workers", 2)
        before = server.workers()
        streams = [open_stream(client, listener) for _ in range(12)]
        owner_of = owners(client, server)
        victim = owner_of[client_worker_of(client, streams[0][0])]
        hit = [s for s in streams if owner_of[client_worker_of(client, s[0])] == victim]
        spared = [s for s in streams if s not in hit]
        os.kill(victim, signal.SIGKILL)
        for application, target in hit:
            # A reset, not a FIN: what was on its way is lost, so it must not look like the end.
            eventually(lambda: is_reset(application), "the application is reset")  # noqa: B023
            eventually(lambda: is_reset(target), "the target is reset")  # noqa: B023
        for stream in spared:
            talk(*stream)
            finish(*stream)
        server.wait_for(rf"worker \d \(pid {victim}\) ended by signal 9")
        eventually(lambda: len(server.workers()) == 4, "the worker is there again")
        assert len(set(before) & set(server.workers())) == 3
        client.wait_for("starting a new one")
        client.wait_for(ALL_UP, 2)
        for _ in range(10):
            finish(*open_stream(client, listener))

    @IN_BOTH_SETUPS
    def test_at_the_client_its_streams_are_reset_and_all_goes_on(
        self, programs: Programs, listener: socket.socket
    ) -> None:
        server = programs.server(port_of(listener), "--workers", 2)
        client = programs.client(server, "--workers", 2)
        streams = [open_stream(client, listener) for _ in range(12)]
        victim = client_worker_of(client, streams[0][0])
        hit = [s for s in streams if client_worker_of(client, s[0]) == victim]
        spared = [s for s in streams if s not in hit]
        os.kill(victim, signal.SIGKILL)
        for application, _ in hit:
            eventually(lambda: is_reset(application), "the application is reset")  # noqa: B023
        for stream in spared:
            talk(*stream)
            finish(*stream)
        client.wait_for(rf"worker \d \(pid {victim}\) ended by signal 9")
        eventually(lambda: len(client.workers()) == 2, "the worker is there again")
        client.wait_for(ALL_UP, 2)
        for _ in range(10):
            finish(*open_stream(client, listener))
        for _, target in hit:
            target.close()

    @IN_BOTH_SETUPS
    @pytest.mark.parametrize("workers", [1, 2])
    def test_at_the_client_the_server_is_told_and_waits_for_nobody(
        self, programs: Programs, listener: socket.socket, workers: int
    ) -> None:
        """What the worker has not read makes its kernel reset all its connections, and to the
        server that could be a bad network as well."""
        server = programs.server(port_of(listener), "--workers", 2, "--session-timeout", 3600)
        client = programs.client(server, "--workers", workers)
        streams = [open_stream(client, listener) for _ in range(6)]
        victim = client_worker_of(client, streams[0][0])
        hit = [target for near, target in streams if client_worker_of(client, near) == victim]
        ports = subflows_by_worker(client, server.port, remote=True)[victim]
        os.kill(victim, signal.SIGSTOP)
        hit[0].sendall(b"nobody reads this" * 5000)
        eventually(lambda: has_unread(ports), "bytes wait for the worker")
        os.kill(victim, signal.SIGKILL)
        for target in hit:
            eventually(lambda: is_reset(target), "the target is reset")  # noqa: B023
        client.wait_for("told the server that the session of a dead worker is over")
        eventually(lambda: len(client.workers()) == workers, "the worker is there again")
        finish(*open_stream(client, listener))

    def test_one_that_crashes_in_a_row_is_restarted_later_and_later(
        self, programs: Programs, listener: socket.socket
    ) -> None:
        server = programs.server(port_of(listener), "--workers", 2)
        for count, delay in ((1, "0.5"), (2, "1.0")):
            before = server.workers()
            os.kill(before[-1], signal.SIGKILL)
            assert server.wait_for("ended by signal 9", count).endswith(f"next in {delay} s")
            eventually(lambda: len(server.workers()) == 2, "the worker is there again")
        client = programs.client(server)
        finish(*open_stream(client, listener))


@IN_BOTH_SETUPS
class TestSupervisorKilled:
    @pytest.mark.parametrize("which", ["server", "client"])
    def test_its_workers_end_and_everybody_is_reset(
        self, programs: Programs, listener: socket.socket, which: str
    ) -> None:
        server = programs.server(port_of(listener), "--workers", 3)
        client = programs.client(server, "--workers", 2)
        application, target = open_stream(client, listener)
        victim = server if which == "server" else client
        victim.expects_trouble = True
        assert len(victim.workers()) == (3 if which == "server" else 2)
        victim.signal(signal.SIGKILL)
        victim.process.wait(WAIT)
        eventually(lambda: is_reset(application), "the application is reset")
        eventually(lambda: is_reset(target), "the target is reset")
        eventually(lambda: not victim.family(), "the workers end")
        assert refuses(victim)
        # Nothing of it stands in the way of a successor.
        again = (
            programs.server(port_of(listener), port=server.port)
            if which == "server"
            else programs.client(server, port=client.port)
        )
        if which == "server":
            client.wait_for(ALL_UP, 2)
            finish(*open_stream(client, listener))
        else:
            finish(*open_stream(again, listener))


class TestServerComesAndGoes:
    @IN_BOTH_SETUPS
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
    def test_restarted_under_a_client(
        self, programs: Programs, echo_target: Target[int], how: signal.Signals
    ) -> None:
        server = programs.server(echo_target.port, "--workers", 2)
        client = programs.client(server, "--workers", 2)
        assert round_trip(client.address)
        if how == signal.SIGKILL:
            server.expects_trouble = True
            server.kill()
        else:
            server.end()
        programs.server(echo_target.port, "--workers", 2, port=server.port)
        client.wait_for(ALL_UP, 2)
        for _ in range(5):
            assert round_trip(client.address)

    def test_a_client_that_was_there_first(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        with refusing_port() as port:
            client = programs.client(port, "--workers", 2)
            assert (
                f"0 of 8 subflows up (cannot use server 127.0.0.1:{port}: Connection refused; "
                "trying again)"
            ) in client.wait_for("ready")
            waiting = client.connect()
            waiting.sendall(b"early bird")
        # An application that has not waited for long yet is served when the server comes.
        programs.server(echo_target.port, "--workers", 2, port=port)
        client.wait_for("8 of 8 subflows up")
        with waiting:
            assert read_exactly(waiting, 10) == b"early bird"
        assert round_trip(client.address)

    def test_without_a_server_applications_are_reset_in_the_end(self, programs: Programs) -> None:
        with refusing_port() as port:
            client = programs.client(port, "--connect-timeout", 1)
            for _ in range(2):
                # At first one waits for the server, later there is no point.
                client.check_resets(b"anybody?")


class TestDrain:
    @IN_BOTH_SETUPS
    @pytest.mark.parametrize("which", ["server", "client"])
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_open_streams_go_on_and_finish_and_no_new_ones_begin(
        self,
        programs: Programs,
        listener: socket.socket,
        which: str,
        number: signal.Signals,
    ) -> None:
        server = programs.server(port_of(listener), "--workers", 2)
        client = programs.client(server, "--workers", 2, "--connect-timeout", 1)
        streams = [open_stream(client, listener) for _ in range(4)]
        draining = server if which == "server" else client
        draining.signal(number)
        draining.wait_for("stopping: open streams have 30 s")
        eventually(lambda: refuses(draining), "new connections are refused")
        for stream in streams:
            talk(*stream)
        if which == "server":
            client.wait_for("the server is shutting down; new streams wait for another")
            client.check_resets(b"too late")
        assert draining.process.poll() is None
        for stream in streams:
            finish(*stream)
        assert draining.wait() == 0

    @pytest.mark.parametrize("which", ["server", "client"])
    def test_streams_that_take_too_long_are_reset(
        self, programs: Programs, listener: socket.socket, which: str
    ) -> None:
        server = programs.server(port_of(listener), "--workers", 2, "--drain-timeout", 0.5)
        client = programs.client(server, "--workers", 1, "--drain-timeout", 0.5)
        application, target = open_stream(client, listener)
        draining = server if which == "server" else client
        draining.signal(signal.SIGTERM)
        eventually(lambda: is_reset(application), "the application is reset")
        eventually(lambda: is_reset(target), "the target is reset")
        assert draining.wait() == 0

    @pytest.mark.parametrize("which", ["server", "client"])
    def test_a_second_signal_ends_it_at_once(
        self, programs: Programs, listener: socket.socket, which: str
    ) -> None:
        server = programs.server(port_of(listener), "--drain-timeout", 3600)
        client = programs.client(server, "--drain-timeout", 3600)
        application, target = open_stream(client, listener)
        draining = server if which == "server" else client
        draining.signal(signal.SIGTERM)
        draining.wait_for("stopping: open streams have 3600 s")
        talk(application, target)
        draining.signal(signal.SIGTERM)
        assert draining.wait() == 0
        draining.wait_for("stopping now")
        eventually(lambda: is_reset(application), "the application is reset")
        eventually(lambda: is_reset(target), "the target is reset")

    def test_with_nothing_open_it_ends_at_once(
        self, programs: Programs, listener: socket.socket
    ) -> None:
        server = programs.server(port_of(listener), "--workers", 4)
        client = programs.client(server, "--workers", 2)
        for program in (client, server):
            program.signal(signal.SIGTERM)
            assert program.wait() == 0

    def test_a_client_that_has_vanished_does_not_hold_the_server_up(
        self, programs: Programs, listener: socket.socket
    ) -> None:
        server = programs.server(port_of(listener), "--workers", 2, "--drain-timeout", 3600)
        client = programs.client(server, "--workers", 1)
        client.expects_trouble = True
        client.kill()
        eventually(
            lambda: not any(subflows_by_worker(server, server.port, remote=False).values()),
            "the server has no subflows any more",
        )
        server.signal(signal.SIGTERM)
        assert server.wait() == 0

    def test_a_signal_to_all_processes_at_once_is_a_drain_too(
        self, programs: Programs, listener: socket.socket
    ) -> None:
        """Service managers and terminals signal the whole group."""
        server = programs.server(port_of(listener), "--workers", 2)
        client = programs.client(server, "--workers", 2)
        stream = open_stream(client, listener)
        for number in (signal.SIGTERM, signal.SIGINT):
            if number == signal.SIGTERM:
                os.killpg(server.process.pid, number)
                server.wait_for("stopping: open streams have 30 s")
                talk(*stream)
                finish(*stream)
                assert server.wait() == 0
            else:
                os.killpg(client.process.pid, number)
                assert client.wait() == 0

    def test_a_server_killed_while_it_drains_resets_what_it_had(
        self, programs: Programs, listener: socket.socket
    ) -> None:
        server = programs.server(port_of(listener), "--workers", 2)
        client = programs.client(server, "--workers", 1)
        application, target = open_stream(client, listener)
        server.signal(signal.SIGTERM)
        client.wait_for("the server is shutting down; new streams wait for another")
        server.expects_trouble = True
        server.kill()
        eventually(lambda: is_reset(target), "the target is reset")
        eventually(lambda: is_reset(application), "the application is reset")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_successor_starts_while_the_old_one_drains(
    programs: Programs, listener: socket.socket, hangs: bool
) -> None:
    """Name and port are free as soon as nothing new is taken, also of a worker that hangs."""
    fixed = ("--workers", 1, "--control", f"same-{os.getpid()}")
    old = programs.server(port_of(listener), *fixed, "--drain-timeout", 60)
    client = programs.client(old)
    stream = open_stream(client, listener)
    (worker,) = old.workers()
    if hangs:
        os.kill(worker, signal.SIGSTOP)
        old.expects_trouble = True
    try:
        old.signal(signal.SIGTERM)
        old.wait_for("stopping: open streams have 60 s")
        new = programs.server(port_of(listener), *fixed, port=old.port)
        assert old.process.poll() is None
        mine = {one.name: one for one in running() if one.name.startswith(f"same-{os.getpid()}")}
        pid = old.process.pid
        assert sorted(mine) == [f"same-{os.getpid()}", f"same-{os.getpid()}-{pid}"]
        assert ask(mine[f"same-{os.getpid()}"]).pid == new.process.pid
        old_status = ask(mine[f"same-{os.getpid()}-{pid}"])
        assert (old_status.pid, old_status.state) == (pid, "stopping")
        if not hangs:
            talk(*stream)
            finish(*stream)
            assert old.wait() == 0
            finish(*open_stream(client, listener))
    finally:
        if hangs:
            os.kill(worker, signal.SIGCONT)


def test_a_single_worker_that_is_told_to_end_is_replaced(
    programs: Programs, echo_target: Target[int]
) -> None:
    server = programs.server(echo_target.port, "--workers", 2)
    client = programs.client(server)
    (first, _) = server.workers()
    os.kill(first, signal.SIGTERM)
    server.wait_for(rf"worker \d \(pid {first}\) ended with code 0")
    eventually(lambda: len(server.workers()) == 2, "the worker is there again")
    eventually(lambda: round_trip(client.address), "streams work again")


def test_a_worker_that_hangs_does_not_keep_the_program_from_ending(programs: Programs) -> None:
    target = Target(echo)
    server = programs.server(target.port, "--workers", 2, "--drain-timeout", 0)
    server.expects_trouble = True
    (stuck, _) = server.workers()
    os.kill(stuck, signal.SIGSTOP)
    try:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        server.wait_for(rf"worker \d \(pid {stuck}\) does not end; killing it")
        assert not psutil.pid_exists(stuck)
    finally:
        target.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(stuck, signal.SIGKILL)
