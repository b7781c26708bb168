"""Socket options."""

from __future__ import annotations

import socket

import pytest
from fastmtcp.io.tcp import abort, keep_alive, set_lowat, tune, tune_subflow

from tests.io.net import read_all, tcp_pair

TCP_NOTSENT_LOWAT = 25
TCP_USER_TIMEOUT = 18


def option(sock: socket.socket, name: int) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, name)


def test_options_of_a_subflow() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        tune_subflow(theirs, 65536, 15.0)
        assert option(theirs, socket.TCP_NODELAY) == 1
        assert option(theirs, TCP_NOTSENT_LOWAT) == 65536
        assert option(theirs, TCP_USER_TIMEOUT) == 15000
        set_lowat(theirs, 16384)
        assert option(theirs, TCP_NOTSENT_LOWAT) == 16384


def test_a_silent_peer_is_asked_and_given_up_after_as_long_again() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        keep_alive(ours, 0)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        keep_alive(theirs, 61)
        assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [option(theirs, name) for name in names] == [61, 15, 4]
        keep_alive(theirs, 1)
        assert [option(theirs, name) for name in names] == [1, 1, 4]
    unix, other = socket.socketpair()
    with unix, other:
        keep_alive(unix, 60)


def test_buffer_sizes_are_left_to_the_kernel() -> None:
    """Setting one, even to the same size, turns auto-tuning off."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        before = [theirs.getsockopt(socket.SOL_SOCKET, o) for o in (7, 8)]
        tune_subflow(theirs, 65536, 15.0)
        assert [theirs.getsockopt(socket.SOL_SOCKET, o) for o in (7, 8)] == before


def test_what_does_not_fit_a_socket_is_left_out() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        tune(ours)
        tune_subflow(ours, 65536, 15.0)


def test_abort_sends_a_reset_although_nothing_is_unread() -> None:
    ours, theirs = tcp_pair()
    with ours:
        theirs.send(b"last")
        abort(theirs)
        with pytest.raises(ConnectionResetError):
            read_all(ours)
    abort(theirs)
