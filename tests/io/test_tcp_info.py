"""What the kernel tells of a connection."""

from __future__ import annotations

import socket

from fastmtcp.driver.tcp_info import sample

from tests.io.net import WAIT, data, fill, read_exactly, tcp_pair


def test_of_what_is_no_tcp_connection_nothing_is_known() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert sample(ours) is None
    assert sample(ours) is None


def test_a_sample_of_a_used_connection() -> None:
    content = data(500_000)
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.sendall(content)
        theirs.settimeout(WAIT)
        assert read_exactly(theirs, len(content)) == content
        theirs.sendall(b"z")
        assert ours.recv(1) == b"z"
        known = sample(ours)
        assert known is not None
        # The answer carried the ACK of all; the SYN counts as one byte.
        assert known.bytes_acked == len(content) + 1
        assert known.not_sent == 0
        assert known.unacked == 0
        assert 0 < known.rtt < WAIT
        assert known.delivery_rate > 0


def test_a_sample_tells_what_waits_in_the_kernel() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        sent = fill(theirs)
        known = sample(theirs)
        assert known is not None
        assert 0 < known.not_sent < sent
        assert known.bytes_acked + known.not_sent <= sent + 1
