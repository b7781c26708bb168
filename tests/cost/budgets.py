"""What things may cost, in counts that do not depend on the machine or on what else it does.

A count that grows is paid by every user and shows in no test of behaviour, and in a benchmark only
to those who run it. Who needs more raises the limit here, in the commit that needs it, with the
reason beside it; who makes something cheaper lowers both figures.
"""

from __future__ import annotations

from typing import NamedTuple


class Budget(NamedTuple):
    """`today` is what was measured when the figure was written, `limit` what is allowed."""

    today: float
    limit: float
    unit: str

    def check(self, measured: float, details: object = "") -> None:
        assert measured <= self.limit, (
            f"{measured:g} {self.unit}; it was {self.today:g} and may be {self.limit:g}\n{details}"
        )


# System calls of the worker that has the connection. A short connection is a question and an
# answer, then the client's end and the server's, each when the one before has arrived, one
# connection after another. With many at once it is about 15 and 17: one epoll_wait() and one read
# of a subflow then serve several. The same in every run. The limits leave room for one epoll_ctl()
# that tells whoever takes a socket over what is there already. At the server four calls ask for
# keep-alive of the connection to the target and one for urgent data in line, which the client's
# listener has once for all that it accepts.
SHORT_CLIENT = Budget(22, 23, "system calls of the client for a short connection")
SHORT_SERVER = Budget(30, 31, "system calls of the server for a short connection")

# The cheapest of a few transfers. How much a read finds depends on how fast the other processes
# are, so with other work beside it was 9 to 11 and 5 to 17. Reading in crumbs, a write for each
# frame or a change of epoll's interest for each chunk would double it.
MB_SENDING = Budget(10, 14, "system calls of the side that has the sender, for a MB")
MB_RECEIVING = Budget(9, 20, "system calls of the side that has the receiver, for a MB")

# Frames for 10^6 bytes over four subflows of 20 MB/s and 20 ms, on virtual time. The same in every
# run, but another order of things is like another seed: the limits are a little above the worst of
# a few. A chunk is 10 ms of a subflow; about every fifth frame that comes back is an ACK, the
# others are reports of what was read. Twice goes what finds out how fast a young subflow is.
FRAMES_WITH_DATA = Budget(5.6, 6.2, "frames with data for a MB")
FRAMES_BESIDE = Budget(0.7, 1.0, "other frames of the sender for a MB")
FRAMES_BACK = Budget(6.1, 7.0, "frames of the receiver, ACKs and reports, for a MB")
BYTES_BACK = Budget(90, 110, "bytes from the receiver for a MB")
BYTES_TWICE = Budget(12_700, 25_000, "bytes sent once more for a MB, copies and rescues")

# The engine alone, 64 KiB at a time. The same in every run: a tenth above. Calls are those of
# Python functions and of C ones from Python. A layer more is a call or two more for each chunk.
CALLS_SENDING = Budget(63, 70, "calls to write and pull a chunk")
CALLS_RECEIVING = Budget(40, 44, "calls to receive and take a chunk")
CALLS_ACK = Budget(85, 94, "calls of both sides for an ACK and what rides along")

# Payload is referred to and never copied: what is allocated is headers, views and the records of
# what is on its way, and one copy would be 65536. Blocks are those of Python's allocator; what is
# kept is no more than lists that are now and then longer.
PEAK_SENDING = Budget(562, 1000, "bytes allocated at most while a chunk is written and pulled")
PEAK_RECEIVING = Budget(383, 1000, "bytes allocated at most while a chunk is received and taken")
BLOCKS_IN_FLIGHT = Budget(2.3, 4, "blocks that the sender holds for a chunk on its way")
BLOCKS_KEPT = Budget(0.03, 0.1, "blocks that both sides keep for a chunk that is done with")

# Measured with pages of the system, so a little more or less from run to run. OpenSSL's memory for
# ciphertext, each way, is as large as what it held at most, and a third: a chunk sealed or a
# slab read at once would be 375 KiB a connection, and a pool that grows to 100 of them looks
# like a leak.
TLS_CONNECTION = Budget(95, 130, "KiB that a TLS connection keeps after bulk in both directions")
