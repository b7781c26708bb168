"""The sending half of a stream, in ACK space: OPEN is -1, data from 0, FIN behind the data."""

from __future__ import annotations

import tracemalloc

import pytest
from fastmtcp.engine.limits import KIB
from fastmtcp.engine.streams.send_buffer import BUFFER_COST, Buffer, SendBuffer
from fastmtcp.engine.streams.send_side import SendSide
from fastmtcp.engine.wire.errors import LocalError, RemoteError, SessionCode

MORE = 1_000_000
LARGE = 4 * KIB
"""Of a view that is never joined with others."""


def sender(data: bytes = b"", limit: int = 100, *, opener: bool = False) -> SendSide:
    side = SendSide(opener=opener, limit=limit)
    if data:
        side.write(data)
    return side


def content(side: SendSide, start: int, stop: int) -> bytes:
    out: list[Buffer] = []
    side.buffer.slice(start, stop, out)
    return b"".join(out)


def test_buffer_slices_reference_what_was_appended() -> None:
    buffer = SendBuffer()
    first, second = memoryview(b"abc" * LARGE), memoryview(b"defg" * LARGE)
    for view in (first, memoryview(b""), second):
        buffer.append(view)
    out: list[Buffer] = []
    buffer.slice(0, 3 * LARGE, out)
    assert out[0] is first
    out.clear()
    buffer.slice(3 * LARGE - 1, 3 * LARGE + 2, out)
    assert [bytes(view) for view in out if len(view)] == [b"c", b"de"]
    out.clear()
    buffer.slice(7 * LARGE, 7 * LARGE, out)
    assert out == []


def test_buffer_lets_go_of_a_view_as_soon_as_it_is_covered() -> None:
    buffer = SendBuffer()
    data = bytearray(LARGE)
    buffer.append(memoryview(data))
    buffer.append(b"def" * LARGE)
    buffer.release(LARGE // 2)
    with pytest.raises(BufferError):
        data.clear()
    buffer.release(LARGE)
    data.clear()
    assert contents(buffer) == b"def" * LARGE


def contents(buffer: SendBuffer) -> bytes:
    out: list[Buffer] = []
    buffer.slice(buffer.base, buffer.end, out)
    return b"".join(out)


def test_what_little_is_left_of_a_view_does_not_keep_all_of_it() -> None:
    buffer = SendBuffer()
    data = bytearray(b"abc" * LARGE)
    buffer.append(memoryview(data))
    buffer.release(len(data) // 2)
    with pytest.raises(BufferError):
        data.clear()
    assert buffer.weight == BUFFER_COST + len(data)
    buffer.release(len(data) // 2 + 1)
    left = bytes(data[len(data) // 2 + 1 :])
    data.clear()
    assert buffer.weight == BUFFER_COST + len(left)
    assert contents(buffer) == left
    buffer.release(buffer.end - 2)
    assert contents(buffer) == b"bc"
    buffer.release(buffer.end)
    assert buffer.weight == 0


def test_single_bytes_are_kept_together() -> None:
    """An object for each would take 400 bytes for a byte."""
    buffer = SendBuffer()
    data = bytes(range(256)) * 1024
    tracemalloc.start()
    try:
        for value in range(len(data)):
            buffer.append(memoryview(data)[value : value + 1])
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 2 * len(data)
    assert buffer.weight == len(data) + len(data) // (64 * KIB) * BUFFER_COST
    assert contents(buffer) == data


def test_what_is_on_its_way_does_not_grow() -> None:
    """A socket that has not taken all of a frame still holds views of it."""
    buffer = SendBuffer()
    for text in (b"a", b"b", b"c"):
        buffer.append(text)
    out: list[Buffer] = []
    buffer.slice(0, 3, out)
    for text in (b"d", b"e", b"f"):
        buffer.append(text)
    assert b"".join(out) == b"abc"
    assert contents(buffer) == b"abcdef"
    buffer.slice(3, 6, out)
    out.clear()
    buffer.append(b"g")
    buffer.release(2)
    buffer.append(b"h")
    assert contents(buffer) == b"cdefgh"


def test_large_views_are_not_joined() -> None:
    buffer = SendBuffer()
    first, second = memoryview(bytes(LARGE)), memoryview(bytes(LARGE))
    for view in (first, b"x", second, b"y", b"z"):
        buffer.append(view)
    out: list[Buffer] = []
    buffer.slice(0, buffer.end, out)
    assert out[0] is first
    assert out[2] is second
    assert [bytes(view) for view in (out[1], *out[3:])] == [b"x", b"yz"]
    assert buffer.weight == buffer.end + 4 * BUFFER_COST


def test_a_buffer_that_was_emptied_begins_anew() -> None:
    buffer = SendBuffer()
    buffer.append(b"question")
    buffer.release(8)
    answer = memoryview(b"next")
    buffer.append(answer)
    out: list[Buffer] = []
    buffer.slice(8, 12, out)
    assert out[0] is answer  # one small piece by itself is not copied


def test_buffer_of_many_views() -> None:
    buffer = SendBuffer()
    for value in range(1000):
        buffer.append(bytes([value % 256]) * 3)
        if value > 20:
            buffer.release(3 * (value - 20) + 1)
    out: list[Buffer] = []
    buffer.slice(buffer.base, buffer.end, out)
    assert b"".join(out) == (b"".join(bytes([v % 256]) * 3 for v in range(1000)))[buffer.base :]


def test_pull_in_order_up_to_the_limit() -> None:
    side = sender(b"x" * 50, limit=30)
    assert side.pull(20) == (0, 20)
    assert side.pull(20) == (20, 30)
    assert not side.sendable
    assert side.backlog == 20
    assert side.on_ack(0, 45)
    assert side.sendable
    assert side.pull(MORE) == (30, 45)


def test_open_goes_with_the_first_bytes() -> None:
    side = sender(b"hello", opener=True)
    assert side.sendable
    assert side.pull(MORE) == (-1, 5)
    assert not side.sendable


def test_open_goes_alone_if_there_are_no_bytes_or_no_credit() -> None:
    side = sender(opener=True)
    assert side.pull(MORE) == (-1, 0)
    side = sender(b"hello", limit=0, opener=True)
    assert side.pull(MORE) == (-1, 0)
    assert not side.sendable


def test_open_and_fin_without_data() -> None:
    side = sender(opener=True, limit=0)
    side.finished = True
    assert side.pull(MORE) == (-1, 1)
    assert not side.complete
    side.on_ack(1, 0)
    assert side.complete


def test_fin_goes_with_the_last_bytes_and_needs_no_credit() -> None:
    side = sender(b"hello", limit=5)
    side.finished = True
    assert side.pull(3) == (0, 3)
    assert side.pull(MORE) == (3, 6)
    assert not side.sendable
    side = sender(b"hello", limit=5)
    assert side.pull(MORE) == (0, 5)
    assert not side.sendable
    side.finished = True
    assert side.sendable
    assert side.pull(MORE) == (5, 6)


def test_fin_waits_for_bytes_that_wait_for_credit() -> None:
    side = sender(b"hello", limit=3)
    side.finished = True
    assert side.pull(MORE) == (0, 3)
    assert not side.sendable
    side.on_ack(0, 5)
    assert side.pull(MORE) == (3, 6)


def test_complete_only_when_the_fin_is_acknowledged() -> None:
    side = sender(b"hello")
    side.finished = True
    side.pull(MORE)
    side.on_ack(5, 100)
    assert not side.complete
    assert side.held == 0
    assert side.unacked
    side.on_ack(6, 100)
    assert side.complete
    assert not side.unacked


def test_write_after_finish_is_our_fault() -> None:
    side = sender()
    side.finished = True
    with pytest.raises(LocalError):
        side.write(b"x")


def test_bytes_are_kept_until_acknowledged() -> None:
    side = sender(b"abcdef")
    side.pull(MORE)
    assert side.held == 6
    side.on_ack(4, 100)
    side.on_lost(0, 6)
    start, stop = side.pull(MORE)
    assert (start, stop) == (4, 6)
    assert content(side, start, stop) == b"ef"


def test_lost_ranges_go_first_and_lowest_first() -> None:
    side = sender(b"x" * 50)
    for _ in range(4):
        side.pull(10)
    assert side.on_lost(30, 40)
    assert side.on_lost(0, 10)
    assert [side.pull(10) for _ in range(3)] == [(0, 10), (30, 40), (40, 50)]


def test_a_lost_range_is_cut_anew() -> None:
    side = sender(b"x" * 50)
    side.pull(50)
    side.on_lost(0, 50)
    assert [side.pull(20) for _ in range(3)] == [(0, 20), (20, 40), (40, 50)]


def test_lost_open_and_lost_fin() -> None:
    side = sender(b"hello", opener=True)
    side.finished = True
    assert side.pull(MORE) == (-1, 6)
    side.on_lost(-1, 6)
    assert side.pull(1) == (-1, 0)
    assert side.pull(5) == (0, 5)
    assert side.pull(5) == (5, 6)


def test_loss_of_acknowledged_bytes_is_no_loss() -> None:
    side = sender(b"x" * 50)
    side.pull(50)
    side.on_ack(20, 100)
    assert not side.on_lost(0, 20)
    assert side.on_lost(10, 30)
    assert list(side.lost) == [(20, 30)]
    side.on_ack(25, 100)
    assert list(side.lost) == [(25, 30)]
    side.on_ack(50, 100)
    assert not side.lost


def test_lost_bytes_need_no_new_credit() -> None:
    side = sender(b"x" * 50, limit=50)
    side.pull(50)
    side.on_lost(0, 10)
    assert side.sendable
    assert side.pull(MORE) == (0, 10)


def test_acks_that_were_overtaken_change_nothing() -> None:
    side = sender(b"x" * 50)
    side.pull(50)
    assert side.on_ack(30, 200)
    assert not side.on_ack(20, 150)
    assert not side.on_ack(-5, -5)
    assert (side.acked, side.limit) == (30, 200)
    assert side.on_ack(30, 201)
    assert side.on_ack(31, 0)


@pytest.mark.parametrize("received", [21, 51, 2**60])
def test_ack_beyond_what_was_sent(received: int) -> None:
    side = sender(b"x" * 50)
    side.pull(20)
    with pytest.raises(RemoteError) as caught:
        side.on_ack(received, 100)
    assert caught.value.code == SessionCode.PROTOCOL


def test_ack_of_a_fin_that_was_not_sent() -> None:
    side = sender(b"x" * 50)
    side.pull(50)
    with pytest.raises(RemoteError):
        side.on_ack(51, 100)
