"""Frames to bytes and back: whole, in pieces, and broken."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from fastmtcp.engine.limits import MAX_HEADER, MAX_PAYLOAD, MIB
from fastmtcp.engine.wire.codec import PREFIX, FrameReader, encode
from fastmtcp.engine.wire.errors import RemoteError, SessionCode
from fastmtcp.engine.wire.frames import (
    Ack,
    Blocked,
    Closed,
    Data,
    Frame,
    Goaway,
    Open,
    Ping,
    Pong,
    Reset,
    ResetAck,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.wire import is_between_frames, pack

BIG = 2**63 - 1

FRAMES: list[tuple[Frame, bytes]] = [
    (Open(0, 0, False), b""),
    (Open(1, 1 * MIB, True), b""),
    (Open(2, BIG, True, "host.example:80"), b"first bytes"),
    (Open(3, 5, False, "[::1]:80"), b"\x00" * 300),
    (Data(0, 0, False), b""),
    (Data(4, 0, True), b""),
    (Data(5, BIG, False), b"x"),
    (Data(6, 70_000, True), bytes(range(256)) * 3),
    (Ack(0, 0, 0), b""),
    (Ack(7, -1, BIG), b""),
    (Reset(8, 3), b""),
    (ResetAck(9), b""),
    (Closed(10), b""),
    (Ping(0), b""),
    (Pong(BIG), b""),
    (Blocked(11, 2**40), b""),
    (Goaway(0), b""),
    (Goaway(5, "because of \u00e4"), b""),
]

IDS = [type(frame).__name__ for frame, _ in FRAMES]


class Log:
    """What a reader said, with payload pieces joined."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.pieces: list[tuple[int, int, bytes, bool]] = []
        self.reader = FrameReader(self.frames.append, self._on_data)

    def _on_data(self, stream: int, offset: int, piece: memoryview, fin: bool) -> None:
        self.pieces.append((stream, offset, bytes(piece), fin))

    def feed(self, data: bytes) -> None:
        self.reader.feed(memoryview(data))

    @property
    def joined(self) -> list[tuple[int, int, bytes, bool]]:
        """Pieces of one frame joined: they follow one another without a hole."""
        frames: list[tuple[int, int, bytes, bool]] = []
        for stream, offset, piece, fin in self.pieces:
            if frames and piece:
                last_stream, start, data, last_fin = frames[-1]
                if data and last_stream == stream and start + len(data) == offset:
                    assert not last_fin
                    frames[-1] = (stream, start, data + piece, fin)
                    continue
            frames.append((stream, offset, piece, fin))
        return frames


def expected(
    frame: Frame, payload: bytes
) -> tuple[list[Frame], list[tuple[int, int, bytes, bool]]]:
    if isinstance(frame, Data):
        return [], [(frame.stream, frame.offset, payload, frame.fin)]
    if isinstance(frame, Open):
        return [frame], [(frame.stream, 0, payload, frame.fin)]
    return [frame], []


@pytest.mark.parametrize(("frame", "payload"), FRAMES, ids=IDS)
def test_whole(frame: Frame, payload: bytes) -> None:
    log = Log()
    log.feed(pack(frame, payload))
    assert (log.frames, log.pieces) == expected(frame, payload)
    assert is_between_frames(log.reader)


@pytest.mark.parametrize(("frame", "payload"), FRAMES, ids=IDS)
def test_byte_by_byte(frame: Frame, payload: bytes) -> None:
    log = Log()
    data = pack(frame, payload)
    for index in range(len(data)):
        assert is_between_frames(log.reader) == (index == 0)
        log.feed(data[index : index + 1])
    assert (log.frames, log.joined) == expected(frame, payload)
    assert is_between_frames(log.reader)


@pytest.mark.parametrize(("frame", "payload"), FRAMES, ids=IDS)
def test_every_split_in_three_with_a_frame_behind(frame: Frame, payload: bytes) -> None:
    data = pack(frame, payload) + pack(Ping(99))
    frames, pieces = expected(frame, payload)
    cuts = itertools.combinations(range(min(len(data), 60) + 1), 2)
    for first, second in cuts:
        log = Log()
        log.feed(data[:first])
        log.feed(data[first:second])
        log.feed(data[second:])
        assert (log.frames, log.joined) == ([*frames, Ping(99)], pieces)
        assert is_between_frames(log.reader)


def test_all_frames_in_one_buffer_and_at_every_split() -> None:
    data = b"".join(pack(frame, payload) for frame, payload in FRAMES)
    frames = [item for frame, payload in FRAMES for item in expected(frame, payload)[0]]
    pieces = [item for frame, payload in FRAMES for item in expected(frame, payload)[1]]
    for cut in range(len(data)):
        log = Log()
        log.feed(data[:cut])
        log.feed(data[cut:])
        assert log.frames == frames
        assert log.joined == pieces


@given(st.lists(st.sampled_from(FRAMES), max_size=20), st.lists(st.integers(1, 200), min_size=1))
def test_any_frames_in_any_pieces(frames: list[tuple[Frame, bytes]], sizes: list[int]) -> None:
    data = b"".join(pack(frame, payload) for frame, payload in frames)
    log = Log()
    step = itertools.cycle(sizes)
    position = 0
    while position < len(data):
        size = next(step)
        log.feed(data[position : position + size])
        position += size
    assert log.frames == [f for frame, payload in frames for f in expected(frame, payload)[0]]
    assert b"".join(piece for _, _, piece, _ in log.pieces) == b"".join(
        payload for _, payload in frames
    )


def test_payload_is_cut_through_without_a_copy() -> None:
    """A piece is handed on as soon as it is there, as a view into the buffer that it came in."""
    seen: list[memoryview] = []
    reader = FrameReader(lambda _: None, lambda *piece: seen.append(piece[2]))
    buffer = bytearray(pack(Data(1, 0, True), b"abcdef"))
    reader.feed(memoryview(buffer)[:-3])
    assert [bytes(piece) for piece in seen] == [b"abc"]
    assert seen[0].obj is buffer
    assert not is_between_frames(reader)


def test_fin_comes_with_the_last_piece_only() -> None:
    log = Log()
    data = pack(Data(1, 10, True), b"abcdef")
    log.feed(data[:-4])
    log.feed(data[-4:-1])
    log.feed(data[-1:])
    assert log.pieces == [
        (1, 10, b"ab", False),
        (1, 12, b"cde", False),
        (1, 15, b"f", True),
    ]


def broken(header: bytes, payload_size: int = 0) -> bytes:
    return PREFIX.pack(len(header), payload_size) + header


BROKEN = {
    "no header": PREFIX.pack(0, 0),
    "header too long": PREFIX.pack(MAX_HEADER + 1, 0),
    "payload too long": PREFIX.pack(4, MAX_PAYLOAD + 1),
    "not msgpack": broken(b"\xc1"),
    "not an array": broken(msgspec.msgpack.encode("x")),
    "empty array": broken(msgspec.msgpack.encode([])),
    "unknown frame": broken(msgspec.msgpack.encode([99, 1])),
    "tag is text": broken(msgspec.msgpack.encode(["DATA", 1])),
    "field missing": broken(msgspec.msgpack.encode([2, 1, 0])),
    "wrong type": broken(msgspec.msgpack.encode([2, 1, "0", False])),
    "float for an int": broken(msgspec.msgpack.encode([2, 1, 0.5, False])),
    "int for a bool": broken(msgspec.msgpack.encode([2, 1, 0, 1])),
    "truncated header": broken(encode(Ping(1))[6:-1]),
    "bytes behind the header": broken(encode(Ping(1))[6:] + b"\x00"),
    "text is not UTF-8 in OPEN": broken(b"\x95\x01\x00\x00\xc2\xa2\xff\xfe"),
    "text is not UTF-8 in GOAWAY": broken(b"\x93\x09\x00\xa2\xff\xfe"),
    "array longer than its bytes": broken(b"\xdd\xff\xff\xff\xff\x07\x00"),
    "deep nesting": broken(b"\x91" * MAX_HEADER),
    "ACK with a payload": broken(encode(Ack(1, 0, 0))[6:], 1),
    "PING with a payload": broken(encode(Ping(1))[6:], 1),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_frames_are_the_peers_fault(data: bytes) -> None:
    """However the bytes are cut, and behind good ones too."""
    good = pack(Data(1, 0, False), b"abc")
    for cut in range(len(data)):
        log = Log()
        log.feed(good)
        with pytest.raises(RemoteError) as caught:  # noqa: PT012
            log.feed(data[:cut])
            log.feed(data[cut:])
        assert caught.value.code == SessionCode.PROTOCOL
        assert log.pieces == [(1, 0, b"abc", False)]


def test_the_longest_header_and_payload_pass() -> None:
    target = "x" * (MAX_HEADER - 17)
    header = msgspec.msgpack.encode(Open(1, BIG, False, target))
    assert len(header) == MAX_HEADER
    log = Log()
    payload = bytes(MAX_PAYLOAD)
    log.feed(PREFIX.pack(len(header), len(payload)) + header)
    log.feed(payload)
    assert log.frames == [Open(1, BIG, False, target)]
    assert log.pieces == [(1, 0, payload, False)]


def test_an_endless_header_is_refused_before_it_is_buffered() -> None:
    log = Log()
    log.feed(PREFIX.pack(MAX_HEADER + 1, 0)[:-1])
    with pytest.raises(RemoteError, match="header of 513 bytes"):
        log.feed(b"\x00")


def test_fields_of_a_newer_peer_are_ignored() -> None:
    log = Log()
    log.feed(broken(msgspec.msgpack.encode([7, 5, "new", {"also": [1, 2]}])))
    assert log.frames == [Ping(5)]


@given(st.binary(max_size=300), st.integers(1, 50))
def test_garbage_raises_nothing_but_remote_error(data: bytes, step: int) -> None:
    log = Log()
    try:
        for position in range(0, len(data), step):
            log.feed(data[position : position + step])
    except RemoteError as error:
        assert error.code == SessionCode.PROTOCOL  # noqa: PT017
    for stream, offset, piece, fin in log.pieces:
        assert type(stream) is int
        assert type(offset) is int
        assert type(fin) is bool
        assert len(piece) <= len(data)


@given(st.binary(min_size=1, max_size=40), st.integers(0, 100))
def test_garbage_headers_raise_nothing_but_remote_error(header: bytes, payload_size: int) -> None:
    """Garbage behind a good prefix, so that it reaches the header's decoder."""
    log = Log()
    try:
        log.feed(broken(header, payload_size))
    except RemoteError as error:
        assert error.code == SessionCode.PROTOCOL  # noqa: PT017
    else:
        assert log.frames or log.pieces or payload_size


@given(st.data())
def test_damaged_frames_raise_nothing_but_remote_error(data: st.DataObject) -> None:
    frame, payload = data.draw(st.sampled_from(FRAMES))
    wire = bytearray(pack(frame, payload))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    log = Log()
    try:
        log.feed(bytes(wire))
    except RemoteError as error:
        assert error.code == SessionCode.PROTOCOL  # noqa: PT017
