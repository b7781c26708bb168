"""Applications' sockets: data, half-close, reset and slow readers, both ways."""

from __future__ import annotations

import errno
import select
import socket

import pytest
from fastmtcp.driver.relay import Relay
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.wire.errors import ResetCode

from tests.io.joined import Joined
from tests.io.net import WAIT, Background, abort, data, fill, is_reset, read_all, read_exactly, turn

SMALL = Limits(window_pool=2 * MIB, send_buffer=2 * MIB, max_window=1 * MIB)


def send_and_finish(sock: socket.socket, content: bytes) -> None:
    sock.sendall(content)
    sock.shutdown(socket.SHUT_WR)


def ends(joined: Joined, from_target: bool) -> tuple[socket.socket, socket.socket]:
    """The two ends of a stream; the first is the one that does something."""
    application, target = joined.pair()
    return (target, application) if from_target else (application, target)


both_ways = pytest.mark.parametrize("from_target", [False, True], ids=["up", "down"])


def test_bytes_pass_both_ways_at_once() -> None:
    up, down = data(9_000_001, 1), data(7_000_003, 2)
    with Joined() as joined:
        application, target = joined.pair()
        works = (
            Background(send_and_finish, application, up),
            Background(send_and_finish, target, down),
        )
        got_down, got_up = Background(read_all, application), Background(read_all, target)
        joined.run(*works, got_down, got_up)
        assert got_up.result() == up
        assert got_down.result() == down
        joined.until(joined.is_empty)


@both_ways
def test_a_half_closed_stream_still_carries_the_answer(from_target: bool) -> None:
    question, answer = data(300_000, 3), data(2_000_000, 4)
    with Joined() as joined:
        one, other = ends(joined, from_target)
        asking = Background(send_and_finish, one, question)
        asked = Background(read_all, other)
        joined.run(asking, asked)
        assert asked.result() == question
        assert not is_reset(one)
        one.settimeout(WAIT)
        answering = Background(send_and_finish, other, answer)
        answered = Background(read_all, one)
        joined.run(answering, answered)
        assert answered.result() == answer
        joined.until(joined.is_empty)


@both_ways
@pytest.mark.parametrize("size", [0, 1, 5, 16 * KIB, 700_000])
def test_data_and_fin_at_once(from_target: bool, size: int) -> None:
    """The FIN is there before the relay reads the first byte: no further edge tells of it."""
    with Joined() as joined:
        one, other = ends(joined, from_target)
        sending = Background(send_and_finish, one, data(size))
        if size <= 16 * KIB:
            sending.result()
        got = Background(read_all, other)
        joined.run(sending, got)
        assert got.result() == data(size)


def test_an_application_that_finished_before_anything_was_set_up() -> None:
    with Joined(subflows=0) as joined:
        application, _ = joined.application()
        send_and_finish(application, b"early")
        joined.add_subflow()
        target = joined.target()
        got = Background(read_all, target)
        joined.run(got)
        assert got.result() == b"early"


@both_ways
@pytest.mark.parametrize("half_closed", ["no", "by the one", "by the other"])
def test_a_reset_passes_through(from_target: bool, half_closed: str) -> None:
    with Joined() as joined:
        one, other = ends(joined, from_target)
        one.sendall(b"x")
        if half_closed == "by the one":
            one.shutdown(socket.SHUT_WR)
        elif half_closed == "by the other":
            other.shutdown(socket.SHUT_WR)
        got = Background(other.recv, 1)
        joined.run(got)
        assert got.result() == b"x"
        abort(one)
        joined.until(lambda: is_reset(other), "the other end is reset")
        joined.until(joined.is_empty)


@both_ways
def test_a_reset_passes_by_data_that_nobody_reads(from_target: bool) -> None:
    """With all windows full the relay has no reason to read, but must see the reset."""
    with Joined(limits=SMALL) as joined:
        one, other = ends(joined, from_target)
        full = [0]

        def stuck() -> bool:
            sent = fill(one)
            full[0] = full[0] + 1 if not sent else 0
            return full[0] > 50

        joined.until(stuck, "the sender is held up")
        abort(one)
        # Everything on the way may be dropped, the reset may not.
        joined.until(joined.is_empty, "the stream is gone although its reader has stopped")
        assert is_reset(other)


@both_ways
def test_a_reset_of_a_reader_stops_the_sender(from_target: bool) -> None:
    with Joined() as joined:
        one, other = ends(joined, from_target)

        def send_for_ever() -> None:
            block = bytes(1 << 16)
            while True:
                one.sendall(block)

        sending = Background(send_for_ever)
        reading = Background(read_exactly, other, 5_000_000)
        joined.run(reading)
        abort(other)
        joined.run(sending)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sending.result()
        joined.until(joined.is_empty)


def test_closing_with_unread_data_is_a_reset_too() -> None:
    """close(2) with bytes unread sends an RST (RFC 2525, 2.17): many programs end like that."""
    with Joined() as joined:
        application, target = joined.pair()
        target.sendall(b"unread")
        joined.until(lambda: select.select([application], [], [], 0)[0])
        application.close()
        joined.until(lambda: is_reset(target))
        joined.until(joined.is_empty)


@both_ways
def test_a_reader_that_stops_holds_its_sender_and_nobody_else(from_target: bool) -> None:
    content = data(3_000_000)
    with Joined(limits=SMALL) as joined:
        one, other = ends(joined, from_target)
        sent = 0
        idle = 0

        def stuck() -> bool:
            nonlocal sent, idle
            took = fill(one)
            sent += took
            idle = 0 if took else idle + 1
            return idle > 50

        joined.until(stuck, "the sender is held up")
        for side in (joined.client, joined.server):
            assert side.session.held <= SMALL.send_buffer
            # Windows, and slabs that are pinned in part.
            assert side.pool.slabs * side.pool.slab_size <= 16 * MIB
        for _ in range(3):
            near, far = joined.pair()
            works = (Background(send_and_finish, near, content), Background(read_all, far))
            joined.run(*works)
            assert works[1].result() == content
            far.close()
        got = Background(read_exactly, other, sent)
        joined.run(got)
        assert got.result() == bytes(sent)
        one.settimeout(WAIT)
        one.sendall(b"on")
        more = Background(read_exactly, other, 2)
        joined.run(more)
        assert more.result() == b"on"


def test_the_server_may_speak_first() -> None:
    with Joined() as joined:
        application, target = joined.pair()
        target.sendall(b"220 hello")
        got = Background(application.recv, 100)
        joined.run(got)
        assert got.result() == b"220 hello"


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_stream_resets_its_application_and_says_why(
    side: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Joined() as joined:
        application, target = joined.pair()
        (stream,) = getattr(joined, side).session.streams.values()
        stream.reset(ResetCode.REFUSED)
        assert stream.watcher is not None
        stream.watcher.update()
        getattr(joined, side).driver.progress()
        joined.until(lambda: is_reset(application) and is_reset(target))
        assert "reset: the target refused the connection" in caplog.text
        joined.until(joined.is_empty)


def test_streams_that_end_leave_nothing_behind() -> None:
    with Joined(subflows=2) as joined:
        for number in range(60):
            application, target = joined.pair()
            content = data(number * 500)
            got = Background(read_all, target)
            send_and_finish(application, content)
            joined.run(got)
            assert got.result() == content
            if number % 3 == 0:
                abort(target)
            else:
                target.close()
            application.close()
        joined.until(joined.is_empty)
        assert joined.client.session.table.windows.free == Limits().window_pool
        assert joined.server.session.table.windows.free == Limits().window_pool


@pytest.mark.parametrize("pieces", [[b"hello"], [b"he", b"llo"], [b"he", b"llo, and more"]])
def test_what_an_application_sends_beyond_its_budget_is_dropped(pieces: list[bytes]) -> None:
    with Joined() as joined:
        application, relay = joined.application(budget=5)
        target = joined.target()
        for piece in pieces:
            application.sendall(piece)
        got = Background(read_exactly, target, 5)
        joined.run(got)
        assert got.result() == b"hello"
        application.sendall(b"\r\n")
        turn(joined.loop)
        assert len(b"".join(pieces)) > 5 or relay._linger is None
        application.sendall(b"!")
        joined.until(lambda: relay._linger is not None)
        # A server would take an end for "nobody waits for the answer any more".
        assert not relay.read_done
        target.sendall(b"the answer")
        target.close()
        answer = Background(read_exactly, application, 10)
        joined.run(answer)
        assert answer.result() == b"the answer"
        assert not relay.closed
        application.sendall(b"?" * 100)
        application.close()
        joined.until(lambda: relay.closed)
        joined.until(joined.is_empty)


@pytest.mark.parametrize("leaves_it_open", [False, True])
def test_who_sends_beyond_the_budget_is_closed_when_the_answer_is_whole(
    leaves_it_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmtcp.driver.relay._LINGER", 0.1)
    with Joined() as joined:
        application, relay = joined.application(budget=1)
        target = joined.target()
        application.sendall(b"a and more")
        got = Background(read_exactly, target, 1)
        joined.run(got)
        if leaves_it_open:
            target.sendall(b"an answer")
            answer = Background(read_exactly, application, 9)
            joined.run(answer)
            # Only now: before the answer it would be taken for "nobody waits for it any more".
            told = Background(target.recv, 1)
            joined.run(told)
            assert told.result() == b""
        target.close()
        ended = Background(application.recv, 1)
        joined.run(ended)
        assert ended.result() == b""
        joined.until(lambda: relay.closed)
        joined.until(joined.is_empty)


class Failing:
    """A socket whose call of that name fails, as it may at any time when its peer is gone."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock = sock
        self._name = name

    def __getattr__(self, name: str) -> object:
        if name == self._name:
            return self._fail
        return getattr(self._sock, name)

    def _fail(self, *_arguments: object) -> None:
        raise OSError(errno.ENOTCONN, "not connected")


@pytest.mark.parametrize(
    ("name", "finished"),
    [("recv_into", False), ("sendmsg", False), ("sendmsg", True), ("shutdown", False)],
)
def test_a_call_that_fails_closes_once_and_resets_both_ends(name: str, finished: bool) -> None:
    with Joined() as joined:
        application, relay = joined.application()
        target = joined.target()
        if finished:
            application.shutdown(socket.SHUT_WR)
            joined.until(lambda: relay.read_done)
        closed: list[Relay] = []
        on_close = relay._on_close

        def count(one: Relay) -> None:
            closed.append(one)
            on_close(one)

        relay._on_close = count
        relay._sock = Failing(relay._sock, name)  # type: ignore[assignment]
        if name == "recv_into":
            application.sendall(b"x")
        elif name == "sendmsg":
            target.sendall(b"x")
        else:
            target.shutdown(socket.SHUT_WR)
        joined.until(lambda: relay.closed)
        assert closed == [relay]
        joined.until(lambda: is_reset(application), "the application is reset")
        joined.until(lambda: is_reset(target), "the target is reset")
        assert closed == [relay]
        joined.until(joined.is_empty)


def test_an_end_that_cannot_be_passed_on_closes_once() -> None:
    """Both directions are done then, but for this: nothing is left to be closed a second time."""
    with Joined() as joined:
        application, relay = joined.application()
        target = joined.target()
        application.shutdown(socket.SHUT_WR)
        joined.until(lambda: relay.read_done)
        closed: list[Relay] = []
        on_close = relay._on_close

        def count(one: Relay) -> None:
            closed.append(one)
            on_close(one)

        relay._on_close = count
        relay._sock = Failing(relay._sock, "shutdown")  # type: ignore[assignment]
        target.shutdown(socket.SHUT_WR)
        joined.until(lambda: relay.closed)
        joined.until(joined.is_empty)
        assert closed == [relay]
        assert is_reset(application)


def test_what_comes_behind_the_budget_does_not_hide_a_reset() -> None:
    with Joined() as joined:
        application, relay = joined.application(budget=5)
        target = joined.target()
        application.sendall(b"hello, and more")
        got = Background(read_exactly, target, 5)
        joined.run(got)
        assert got.result() == b"hello"
        application.sendall(bytes(100_000))
        joined.until(lambda: not relay._readable, "what comes is thrown away")
        abort(application)
        joined.until(lambda: relay.closed)
        joined.until(joined.is_empty)


def test_an_end_behind_the_budget_is_read_and_the_answer_arrives() -> None:
    with Joined() as joined:
        application, relay = joined.application(budget=5)
        target = joined.target()
        send_and_finish(application, data(200_000))
        got = Background(read_all, target)
        joined.run(got)
        assert len(got.result()) == 5
        send_and_finish(target, b"answer")
        answer = Background(read_all, application)
        joined.run(answer)
        assert answer.result() == b"answer"
        joined.until(lambda: relay.closed)
        assert not is_reset(application)
