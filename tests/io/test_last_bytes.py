"""What was said just before a reset, or before the session ended, is heard."""

from __future__ import annotations

import contextlib
import socket

import pytest
from fastmtcp.driver.relay import Relay
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.wire.errors import SessionCode
from fastmtcp.io.dialer import Dial
from fastmtcp.io.loop import Loop
from fastmtcp.io.resolver import Resolver

from tests.io.joined import Joined
from tests.io.net import WAIT, Background, abort, data, read_all, read_exactly, run_until

ANSWER = b"HTTP/1.1 413 Payload Too Large\r\n\r\n" + b"e" * 5000


def send_what_it_takes(sock: socket.socket, content: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        sock.sendall(content)


def read_to_the_end(sock: socket.socket) -> bytes:
    """All that comes before the reset. (It may show as an end, if a send()
    was told of it.)"""
    got = b""
    sock.settimeout(WAIT)
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(1 << 16):
            got += part
    return got


@pytest.mark.parametrize("from_target", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("size", [20_000, 8_000_000])
def test_an_early_answer_arrives_though_the_rest_is_not_read(from_target: bool, size: int) -> None:
    with Joined() as joined:
        application, target = joined.pair()
        sender, refuser = (target, application) if from_target else (application, target)
        sending = Background(send_what_it_takes, sender, bytes(size))
        asked = Background(read_exactly, refuser, 1000)
        joined.run(asked)
        refuser.sendall(ANSWER)
        # The kernel sends an RST behind the answer: there are bytes unread.
        refuser.close()
        heard = Background(read_to_the_end, sender)
        joined.run(sending, heard)
        assert heard.result() == ANSWER
        joined.until(joined.is_empty)


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_slow_reader_of_a_complete_stream_loses_nothing_to_the_end_of_the_session(
    half_closed: bool,
) -> None:
    content = data(3_000_000)
    with Joined() as joined:
        application, target = joined.pair()
        if half_closed:
            application.shutdown(socket.SHUT_WR)
        sending = Background(target.sendall, content)
        (stream,) = joined.client.session.streams.values()
        joined.run(sending)
        target.shutdown(socket.SHUT_WR)
        joined.until(lambda: stream.receive.is_all_here)
        joined.client.driver.end(SessionCode.SHUTDOWN, "restarted")
        heard = Background(read_to_the_end, application)
        joined.run(heard)
        assert heard.result() == content
        application.close()
        joined.until(lambda: not joined.client.driver.relays)


def test_what_comes_behind_the_budget_is_read_however_much_it_is() -> None:
    """Unread it would make the close a reset, which destroys the answer."""
    with Joined() as joined:
        application, relay = joined.application(budget=5)
        target = joined.target()
        sending = Background(application.sendall, b"hello" + bytes(30_000_000))
        asked = Background(read_exactly, target, 5)
        joined.run(sending, asked)
        target.sendall(ANSWER)
        target.close()
        heard = Background(read_all, application)
        joined.run(heard)
        assert heard.result() == ANSWER
        assert isinstance(relay, Relay)
        assert not relay.closed
        application.close()
        joined.until(lambda: relay.closed)


def test_a_target_that_speaks_and_resets_before_the_dial_is_told() -> None:
    loop = Loop()
    resolver = Resolver(loop)
    connected: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = Endpoint("127.0.0.1", listener.getsockname()[1])
        errors: list[OSError] = []
        Dial(loop, resolver, place, WAIT, connected.append, lambda error, _: errors.append(error))
        loop.run_calls()
        far, _ = listener.accept()
        far.sendall(ANSWER)
        abort(far)
        run_until(loop, lambda: connected or errors)
    (sock,) = connected
    loop.unwatch(sock.fileno())
    assert read_exactly(sock, len(ANSWER)) == ANSWER
    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    sock.close()
    resolver.close()
    loop.close()
