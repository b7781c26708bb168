"""Streams through both commands as real processes."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.io.net import (
    WAIT,
    Background,
    abort,
    data,
    fill,
    is_reset,
    read_all,
    read_exactly,
    refusing_port,
)
from tests.process.programs import IN_BOTH_SETUPS, Programs, eventually, subflows_by_worker
from tests.process.targets import Target, ask_for_exchange, exchange, round_trip

MB = 1_000_000
DEFAULT_TARGET, DEFAULT_SERVER, DEFAULT_CLIENT = 5201, 7700, 7701


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


def test_the_two_commands_with_nothing_but_workers(programs: Programs) -> None:
    """As in the README. Where another program has the default ports, with ports of our own."""
    default = all(map(is_free, (DEFAULT_TARGET, DEFAULT_SERVER, DEFAULT_CLIENT)))
    target = Target(exchange, port=DEFAULT_TARGET if default else 0)
    try:
        if default:
            server = programs.start("fastmtcp-server", "--workers", 4).ready()
            client = programs.start("fastmtcp-client", "--workers", 2).ready()
            assert server.port == DEFAULT_SERVER
            assert client.port == DEFAULT_CLIENT
        else:
            server = programs.server(target.port, "--workers", 4)
            client = programs.client(server, "--workers", 2, "--connections", "2-16")
        assert "with 4 workers" in server.wait_for("ready")
        assert "with 2 workers, 4 of 4 subflows up" in client.wait_for("ready")
        up = ask_for_exchange(client.address, 20 * MB, 20 * MB)
        assert target.works[0].result() == up
    finally:
        target.close()


@IN_BOTH_SETUPS
def test_many_transfers_over_many_workers_with_handoff(
    programs: Programs, exchange_target: Target[str]
) -> None:
    server = programs.server(exchange_target.port, "--workers", 4)
    number = programs.fixed("--connections", 16)
    client = programs.client(server, "--workers", 2, *number)
    least = 16 if number else 2
    assert f"{2 * least} of {2 * least} subflows up" in client.wait_for("ready")

    # The kernel spreads the connections over 4 workers; that 16 of them should fall to one by
    # chance has a probability of 1e-9. So where they are together, they were handed over.
    at_client = subflows_by_worker(client, server.port, remote=True)
    at_server = subflows_by_worker(server, server.port, remote=False)
    assert len(at_client) == 2
    for ports in at_client.values():
        assert len(ports) >= least
        assert [ports & others for others in at_server.values() if ports & others] == [ports]

    sizes = [(n * 700_000, (12 - n) * 700_000) for n in range(12)]
    with ThreadPoolExecutor(len(sizes)) as pool:
        sent = list(
            pool.map(lambda n: ask_for_exchange(client.address, *sizes[n], seed=n), range(12))
        )
    assert sorted(work.result() for work in exchange_target.works) == sorted(sent)


def test_ipv6_end_to_end(programs: Programs) -> None:
    target = Target(exchange, "::1")
    try:
        server = programs.start(
            "fastmtcp-server", "--listen", "[::1]:0", "--target", f"[::1]:{target.port}"
        ).ready()
        client = programs.start(
            "fastmtcp-client", "--listen", "[::1]:0", "--server", f"[::1]:{server.port}"
        ).ready()
        assert client.address[0] == server.address[0] == "::1"
        up = ask_for_exchange(client.address, 3 * MB, 3 * MB)
        assert target.works[0].result() == up
    finally:
        target.close()


def test_names_work_where_addresses_do(programs: Programs, echo_target: Target[int]) -> None:
    server = programs.start(
        "fastmtcp-server",
        *("--listen", "localhost:0"),
        *("--target", f"localhost:{echo_target.port}"),
    ).ready()
    client = programs.start(
        "fastmtcp-client", "--listen", "localhost:0", "--server", f"localhost:{server.port}"
    ).ready()
    assert round_trip(client.address)


@pytest.fixture
def ends(programs: Programs) -> object:
    """Makes pairs of an application and its target, both sockets of the test's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT)
        client = programs.pair(listener.getsockname()[1], server_workers=2)

        def make() -> tuple[socket.socket, socket.socket]:
            application = client.connect()
            target, _ = listener.accept()
            target.settimeout(WAIT)
            return application, target

        yield make


Ends = Callable[[], tuple[socket.socket, socket.socket]]


def send_and_finish(sock: socket.socket, content: bytes) -> None:
    sock.sendall(content)
    sock.shutdown(socket.SHUT_WR)


@IN_BOTH_SETUPS
@pytest.mark.parametrize("from_target", [False, True], ids=["up", "down"])
class TestBothWays:
    @staticmethod
    def pair(ends: Ends, from_target: bool) -> tuple[socket.socket, socket.socket]:
        application, target = ends()
        return (target, application) if from_target else (application, target)

    def test_half_close_then_the_answer(self, ends: Ends, from_target: bool) -> None:
        one, other = self.pair(ends, from_target)
        question, answer = data(2 * MB, 1), data(4 * MB, 2)
        with one, other:
            asking = Background(send_and_finish, one, question)
            assert read_all(other) == question
            asking.result()
            # The question's end has passed; the answer still can.
            answering = Background(send_and_finish, other, answer)
            assert read_all(one) == answer
            answering.result()

    def test_a_reset_passes_through(self, ends: Ends, from_target: bool) -> None:
        for half_closed in (False, True):
            one, other = self.pair(ends, from_target)
            with other:
                one.sendall(b"x")
                assert other.recv(1) == b"x"
                if half_closed:
                    one.shutdown(socket.SHUT_WR)
                    assert other.recv(1) == b""
                abort(one)
                eventually(lambda: is_reset(other), "the other end is reset")  # noqa: B023

    def test_whoever_speaks_first(self, ends: Ends, from_target: bool) -> None:
        one, other = self.pair(ends, from_target)
        with one, other:
            for _ in range(5):
                one.sendall(b"220 hello\r\n")
                assert read_exactly(other, 11) == b"220 hello\r\n"
                other.sendall(b"HELO\r\n")
                assert read_exactly(one, 6) == b"HELO\r\n"

    def test_a_reader_that_stops_holds_nobody_else_up(self, ends: Ends, from_target: bool) -> None:
        one, other = self.pair(ends, from_target)
        with one, other:
            sent = 0
            while select.select([], [one], [], 0.5)[1]:
                sent += fill(one)
                assert sent < 400 * MB, "there is no end to what is taken without being read"
            content = data(5 * MB)
            for _ in range(3):
                near, far = self.pair(ends, from_target)
                with near, far:
                    sending = Background(send_and_finish, near, content)
                    assert read_all(far) == content
                    sending.result()
            # And when the reader goes on, so does the stream.
            one.setblocking(True)
            one.settimeout(WAIT)
            finishing = Background(send_and_finish, one, b"end")
            rest = sent
            while rest:
                part = other.recv(min(rest, 1 << 20))
                assert part.count(0) == len(part) > 0
                rest -= len(part)
            assert read_all(other) == b"end"
            finishing.result()


@IN_BOTH_SETUPS
def test_an_application_that_leaves_at_once(ends: Ends) -> None:
    """Connect, say something, close: what was said arrives, and then the end."""
    for content in (b"", b"bye"):
        application, target = ends()
        with target:
            application.sendall(content)
            application.close()
            assert read_all(target) == content


@IN_BOTH_SETUPS
def test_two_thousand_streams_at_once(programs: Programs) -> None:
    count, size = 2000, 3000
    at_once = 0
    most = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        while part := await reader.read(65536):
            writer.write(part)
        at_once -= 1
        writer.close()

    async def use(number: int, port: int, all_open: asyncio.Event, done: list[int]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        content = data(size, number)
        # Before and after all streams are open.
        for part in (content[: size // 2], content[size // 2 :]):
            writer.write(part)
            assert await reader.readexactly(len(part)) == part
            done.append(number)
            if len(done) == count:
                all_open.set()
            await all_open.wait()
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    async def run() -> None:
        target = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=2048)
        async with target:
            port = target.sockets[0].getsockname()[1]
            client = await asyncio.to_thread(programs.pair, port, 2, 2)
            all_open = asyncio.Event()
            done: list[int] = []
            port = client.port
            await asyncio.gather(*(use(n, port, all_open, done) for n in range(count)))
            assert len(done) == 2 * count

    asyncio.run(asyncio.wait_for(run(), 90))
    assert most == count


def test_a_refused_target_resets_the_application_and_both_sides_say_why(
    programs: Programs,
) -> None:
    with refusing_port() as port:
        server = programs.server(port, "--workers", 2)
        client = programs.client(server, "--workers", 1)
        client.check_resets()
        client.check_resets(b"hello")
        server.wait_for(f"cannot connect to target 127.0.0.1:{port}: Connection refused")
        client.wait_for("reset: the target refused the connection")


def test_a_target_that_cannot_be_looked_up(programs: Programs) -> None:
    server = programs.server("no-such-host.invalid:80", "--workers", 1)
    client = programs.client(server, "--workers", 1)
    client.check_resets()
    server.wait_for(r"cannot connect to target no-such-host\.invalid:80: ")
    client.wait_for("reset: the target's name cannot be looked up")
