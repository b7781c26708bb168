"""Two sessions joined without a network, for tests that look at single frames."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from fastmtcp.engine.events import Events
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.codec import PREFIX, FrameReader, encode
from fastmtcp.engine.wire.frames import Frame, Got

START = 1_000_000.0
"""A clock that begins at 0 hides what was never set, and every sum of two times."""

_decoder = msgspec.msgpack.Decoder(Frame)


def pack(frame: Frame, payload: bytes = b"") -> bytes:
    """A whole frame as it is on the wire."""
    return encode(frame, len(payload)) + payload


def parse(data: bytes) -> list[tuple[Frame, bytes]]:
    """Whole frames from the wire, by plain slicing: it shares no code with the engine's reader."""
    frames = []
    while data:
        header_size, payload_size = PREFIX.unpack_from(data)
        body = PREFIX.size + header_size
        header = data[PREFIX.size : body]
        payload = data[body : body + payload_size]
        assert len(header) == header_size
        assert len(payload) == payload_size
        frames.append((_decoder.decode(header), payload))
        data = data[body + payload_size :]
    return frames


def collect(session: Session, now: float) -> list[tuple[Subflow, bytes]]:
    """Everything that the session wants to send now, in order."""
    sent: list[tuple[Subflow, bytes]] = []
    for _ in range(10_000):
        subflow = session.pick(now)
        if subflow is None:
            return sent
        buffers, size = session.pull(subflow, now)
        data = b"".join(buffers)
        assert len(data) == size
        if data:
            sent.append((subflow, data))
    raise AssertionError("pick() never comes to an end")


def frames_of(sent: Iterable[tuple[Subflow, bytes]]) -> list[tuple[Frame, bytes]]:
    """Frames in order, without the reports of what was read, which ride along with any ACK."""
    frames = [frame for _, data in sent for frame in parse(data)]
    return [(frame, payload) for frame, payload in frames if not isinstance(frame, Got)]


def is_between_frames(reader: FrameReader) -> bool:
    """True if the bytes that `reader` took so far end with a whole frame."""
    return not reader._left and not reader._partial


def events(session: Session) -> Events:
    """What has happened in a session since this was last asked."""
    return session.take_events() or Events([], [], [], False, [], [], None)


def opened(session: Session) -> list[Stream]:
    """Streams that the peer has opened since the session was last asked for events."""
    return events(session).opened


def updated(session: Session) -> list[Stream]:
    """Streams on which something has happened since the session was last asked for events."""
    return list(events(session).updated)


def ready_bytes(stream: Stream) -> bytes:
    """What the application could take."""
    return b"".join(bytes(piece) for piece in stream.receive.data.ready)


def feed(session: Session, data: bytes, now: float = START, subflow: int = 0) -> None:
    session.receive(session.subflows[subflow], memoryview(data), now)


def sample(
    rate: float = 1e6,
    rtt: float = 0.25,
    *,
    app_limited: bool = False,
    not_sent: int = 0,
    unacked: int = 0,
    acked: int = 0,
    peer_window: int = -1,
) -> Sample:
    """What the system says of a connection."""
    return Sample(rtt, rate, app_limited, not_sent, unacked, acked, peer_window)


class Pair:
    """A client's session and a server's, with `subflows` that deliver at once."""

    def __init__(
        self,
        *,
        subflows: int = 2,
        limits: Limits | None = None,
        server_limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        server_limits = server_limits or limits
        self.now = START
        self.client = Session(
            opener=True,
            limits=limits,
            now=self.now,
            peer_floor=server_limits.floor_window,
            peer_streams=server_limits.max_streams,
        )
        self.server = Session(opener=False, limits=server_limits, now=self.now)
        for subflow_id in range(subflows):
            self.attach(subflow_id)

    def attach(self, subflow_id: int) -> None:
        for session in (self.client, self.server):
            session.attach(subflow_id, self.now).ready = True

    def detach(self, subflow_id: int) -> None:
        for session in (self.client, self.server):
            session.detach(session.subflows[subflow_id], self.now)

    def detach_at(self, session: Session, subflow_id: int) -> None:
        """Only this side sees the subflow die; the other one's bytes get stuck in it."""
        session.detach(session.subflows[subflow_id], self.now)
        if subflow_id in self.other(session).subflows:
            self.other(session).subflows[subflow_id].ready = False

    def other(self, session: Session) -> Session:
        return self.server if session is self.client else self.client

    def flush(self, session: Session) -> list[tuple[Frame, bytes]]:
        """Carry what `session` has to say to the other side; return the frames."""
        sent = collect(session, self.now)
        for subflow, data in sent:
            feed(self.other(session), data, self.now, subflow.subflow_id)
        return frames_of(sent)

    def exchange(self) -> list[tuple[Frame, bytes]]:
        """Flush both sides, delayed ACKs included, until both are quiet."""
        seen: list[tuple[Frame, bytes]] = []
        for _ in range(1000):
            self.now += 0.03
            said: list[tuple[Frame, bytes]] = []
            for session in (self.client, self.server):
                session.on_time(self.now)
                said += self.flush(session)
            seen += said
            if not said:
                return seen
        raise AssertionError("the sessions never come to rest")

    def open(self, data: bytes = b"", target: str = "") -> tuple[Stream, Stream]:
        """A stream that is connected, with `data` sent and acknowledged."""
        mine = self.client.open(self.now, target)
        if data:
            mine.write(data)
        mine.announce()
        self.exchange()
        (theirs,) = opened(self.server)
        theirs.confirm()
        self.exchange()
        return mine, theirs

    def take(self, stream: Stream) -> bytes:
        """The application takes everything that is ready."""
        data = ready_bytes(stream)
        if data:
            stream.take(len(data), self.now)
        if stream.at_end:
            stream.take_end()
        return data
