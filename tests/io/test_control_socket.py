"""The supervisor's control socket: who may ask, and what clients can do to it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from fastmtcp.errors import StartError
from fastmtcp.io.loop import Loop
from fastmtcp.status import query as instances
from fastmtcp.status.control_name import LISTED, REQUEST, ControlName, parse_listed
from fastmtcp.status.document import InstanceStatus, TotalsStatus
from fastmtcp.status.query import NoAnswerError, NotRunningError
from fastmtcp.workers import control_socket as control
from fastmtcp.workers.control_socket import ControlSocket, listen

from tests.io.net import WAIT, Background, read_all, run_until, turn

NOBODY = 65534


def status(control: str = "") -> InstanceStatus:
    return InstanceStatus(
        format=1,
        program="fastmtcp-server",
        version="1",
        pid=os.getpid(),
        uptime=1.0,
        state="ready",
        control=control,
        listening=[],
        totals=TotalsStatus(),
        workers=[],
    )


class Served:
    """A control socket on a loop, with what the test lets it answer."""

    def __init__(self, name: str) -> None:
        self.loop = Loop()
        sock, self.name = listen([ControlName(name)])
        self.asked: list[Callable[[bytes], None]] = []
        self.answer: bytes | None = msgspec.json.encode(status(str(self.name)))
        self.socket = ControlSocket(self.loop, sock, self._ask)
        self._clients: list[socket.socket] = []

    def _ask(self, done: Callable[[bytes], None]) -> None:
        self.asked.append(done)
        if self.answer is not None:
            done(self.answer)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._clients.append(client)
        client.settimeout(WAIT)
        client.connect(self.name.address)
        return client

    def run(self, function: Callable[..., object], *arguments: object) -> Background[object]:
        """Run the loop until `function` has ended on a thread."""
        work = Background(function, *arguments)
        run_until(self.loop, lambda: work.done, "the client ends")
        return work

    def end(self) -> None:
        self.socket.close()
        for client in self._clients:
            client.close()
        watched = list(self.loop._handlers)
        self.loop.close()
        assert watched == []
        assert not is_listed(self.name)


def is_listed(name: ControlName) -> bool:
    with open(LISTED, encoding="utf-8", errors="replace") as file:
        return str(name) in map(str, parse_listed(file.read()))


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served(f"test-{os.getpid()}")
    yield served
    served.end()


def test_an_answer(served: Served) -> None:
    assert is_listed(served.name)
    answer = served.run(instances.ask, served.name).result()
    assert answer == status(str(served.name))


def test_a_large_answer_comes_whole(served: Served) -> None:
    served.answer = os.urandom(8 << 20)
    client = served.connect()
    client.sendall(REQUEST)
    assert served.run(read_all, client).result() == served.answer


def test_the_request_may_come_in_pieces(served: Served) -> None:
    client = served.connect()
    for byte in REQUEST:
        assert not served.asked
        client.send(bytes([byte]))
        turn(served.loop)
    assert served.run(read_all, client).result() == served.answer


def test_who_says_a_piece_and_leaves_keeps_no_place(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The FIN is there with the piece: no other event tells of it."""
    monkeypatch.setattr(control, "REQUEST_TIMEOUT", 1000.0)
    client = served.connect()
    client.sendall(REQUEST[:3])
    client.shutdown(socket.SHUT_WR)
    assert served.run(read_all, client).result() == b""


def test_a_client_may_shut_its_side_down(served: Served) -> None:
    client = served.connect()
    client.sendall(REQUEST)
    client.shutdown(socket.SHUT_WR)
    assert served.run(read_all, client).result() == served.answer


@pytest.mark.parametrize("text", [b"x", b"stat\n", b"statusquo", b"x" * 100_000, b"\n"])
def test_an_unknown_request(served: Served, text: bytes) -> None:
    client = served.connect()
    sending = Background(send_anyway, client, text)
    answer = served.run(read_all_anyway, client).result()
    sending.result()
    assert b'"error":"unknown request' in answer  # type: ignore[operator]
    assert not served.asked


def send_anyway(client: socket.socket, text: bytes) -> None:
    try:
        client.sendall(text)
    except OSError:
        return


def read_all_anyway(client: socket.socket) -> bytes:
    """What comes before the end, or before the reset that unread bytes make of it."""
    answer = b""
    try:
        while part := client.recv(1 << 16):
            answer += part
    except ConnectionResetError:
        pass
    return answer


def test_a_client_that_says_nothing_or_reads_nothing_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.05)
    monkeypatch.setattr(control, "TIMEOUT", 0.05)
    served.answer = bytes(64 << 20)
    silent, greedy = served.connect(), served.connect()
    greedy.sendall(REQUEST)
    run_until(served.loop, lambda: served.asked and not served.socket._askers, "both are gone")
    assert read_all(silent) == b""
    assert 0 < len(read_all(greedy)) < 64 << 20


def test_a_client_that_has_gone_does_no_harm(served: Served) -> None:
    served.answer = None
    client = served.connect()
    client.sendall(REQUEST)
    run_until(served.loop, lambda: served.asked, "the question is there")
    client.close()
    served.asked[0](b"x" * (4 << 20))
    assert not served.socket._askers
    served.answer = b"{}"
    late = served.connect()
    late.sendall(REQUEST)
    assert served.run(read_all, late).result() == b"{}"


def test_an_answer_that_comes_too_late_is_forgotten(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "TIMEOUT", 0.05)
    served.answer = None
    client = served.connect()
    client.sendall(REQUEST)
    run_until(served.loop, lambda: served.asked and not served.socket._askers, "it is dropped")
    served.asked[0](b"late")
    assert read_all(client) == b""


def test_clients_beyond_the_limit_wait(served: Served) -> None:
    served.answer = None
    clients = [served.connect() for _ in range(control.MAX_ASKERS + 3)]
    for client in clients:
        client.sendall(REQUEST)
    run_until(served.loop, lambda: len(served.asked) == control.MAX_ASKERS, "all places are taken")
    turn(served.loop)
    assert len(served.socket._askers) == control.MAX_ASKERS
    for done in list(served.asked):
        done(b"now")
    run_until(served.loop, lambda: len(served.asked) == len(clients), "the others have their turn")
    for done in served.asked[control.MAX_ASKERS :]:
        done(b"now")
    assert [read_all(client) for client in clients] == [b"now"] * len(clients)


def test_closing_ends_clients_and_frees_the_name(served: Served) -> None:
    client = served.connect()
    run_until(served.loop, lambda: served.socket._askers, "the client is there")
    served.socket.close()
    assert read_all(client) == b""
    assert not is_listed(served.name)
    with pytest.raises(NotRunningError, match="nothing runs under the name"):
        instances.ask(served.name)


def test_the_first_free_name_is_taken(served: Served) -> None:
    other = ControlName(f"test-{os.getpid()}-other")
    sock, name = listen([served.name, other])
    with sock:
        assert str(name) == str(other)
    with pytest.raises(StartError, match="in use; choose another --control"):
        listen([served.name])


# --- other users --------------------------------------------------------------------------------


def as_nobody(work: Callable[[], bytes]) -> bytes:
    """What `work` returns in a child process of another user."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(write, work())
        finally:
            os._exit(0)
    os.close(write)
    said = b""
    while part := os.read(read, 1 << 16):
        said += part
    os.close(read)
    os.waitpid(pid, 0)
    return said


def error_of(name: ControlName) -> bytes:
    try:
        instances.ask(name)
    except NoAnswerError as error:
        return str(error).encode()
    return b"an answer"


class TestOtherUsers:
    """Only root can become somebody else; everybody can see that uids are compared."""

    def test_another_user_is_refused(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        if os.geteuid() == 0:
            said = served.run(as_nobody, lambda: error_of(served.name)).result()
        else:
            monkeypatch.setattr(control, "peer_uid", lambda _sock: NOBODY)
            said = served.run(error_of, served.name).result()
        assert said == f"{served.name}: another user may not ask".encode()
        assert not served.asked
        assert not served.socket._askers

    def test_root_may_ask_everybody(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
        monkeypatch.setattr(control, "peer_uid", lambda _sock: 0)
        client = served.connect()
        client.sendall(REQUEST)
        assert served.run(read_all, client).result() == served.answer

    def test_a_name_that_somebody_else_has_taken_is_not_believed(self, served: Served) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            theirs = ControlName("server-7700", NOBODY)
            sock.bind(theirs.address)
            sock.listen()
            with pytest.raises(NoAnswerError, match=f"not of user {NOBODY} but of user"):
                instances.ask(theirs)


# --- the asking side ----------------------------------------------------------------------------


def test_a_socket_that_does_not_answer(served: Served) -> None:
    served.answer = None
    work = served.run(instances.ask, served.name, 0.05)
    with pytest.raises(NoAnswerError, match="does not answer"):
        work.result()


def test_one_that_drips_does_not_hold_up_the_client(served: Served) -> None:
    served.answer = None
    stop = time.monotonic() + WAIT

    def drip() -> None:
        for client in served.socket._askers:
            with contextlib.suppress(BrokenPipeError):
                client._sock.send(b" ")
        if time.monotonic() < stop:
            served.loop.call_later(0.01, drip)

    drip()
    work = served.run(instances.ask, served.name, 0.2)
    with pytest.raises(NoAnswerError, match="does not answer"):
        work.result()


@pytest.mark.parametrize("answer", [b"", b"{}", b"hello", b'{"format":1,"program":3}', b"\xff"])
def test_an_answer_of_another_kind(served: Served, answer: bytes) -> None:
    served.answer = answer
    with pytest.raises(NoAnswerError, match="does not answer as this version does"):
        served.run(instances.ask, served.name).result()


def test_an_endless_answer_is_cut(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "MAX_ANSWER", 1000)
    served.answer = b" " * (4 << 20) + msgspec.json.encode(status())
    with pytest.raises(NoAnswerError, match="does not answer as"):
        served.run(instances.ask, served.name).result()


def test_unknown_keys_of_a_later_version_are_no_error(served: Served) -> None:
    document = msgspec.to_builtins(status()) | {"later": [1, 2]}
    served.answer = msgspec.json.encode(document)
    assert served.run(instances.ask, served.name).result() == status()


def test_what_runs_is_found_without_proc(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [str(name) for name in instances.running()]
    assert str(served.name) in usual
    monkeypatch.setattr(instances, "LISTED", "/nowhere/net/unix")
    assert [str(name) for name in instances.running()] == usual


def test_what_runs_is_found(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(served.name) in map(str, instances.running())
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    assert str(served.name) not in map(str, instances.running())
