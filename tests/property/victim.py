"""A session whose peer is hostile, and what must hold for it all the time."""

from __future__ import annotations

from fastmtcp.engine.limits import (
    GAP_COST,
    MAX_OWN_FRAMES,
    RECORD_COST,
    SESSION_COST,
    STREAM_COST,
    Limits,
)
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.errors import LocalError, OpenError, ResetCode

from tests.unit.wire import collect, events

LIMITS = Limits(
    floor_window=2000,
    start_window=4000,
    max_window=16_000,
    window_pool=20_000,
    max_streams=5,
    max_gaps=50,
    send_buffer=10_000,
    backlog=2000,
)


class Victim:
    """A session with an application that writes and reads as it likes."""

    def __init__(self, *, opener: bool) -> None:
        self.now = 0.0
        self.seen: set[Stream] = set()
        self.session = Session(
            opener=opener, limits=LIMITS, now=0.0, peer_floor=3000, peer_streams=5
        )
        for number in range(2):
            self.session.attach(number, 0.0).ready = True

    def act(self, action: str, count: int) -> None:
        session = self.session
        self.now += 0.01
        streams = list(session.streams.values())
        stream = streams[count % len(streams)] if streams else None
        if action == "pull":
            collect(session, self.now)
        elif action == "time":
            self.now += count
            for subflow in session.on_time(self.now):
                self.replace(subflow.subflow_id)
        elif action == "open":
            try:
                session.open(self.now).announce()
            except LocalError:
                assert not session.opener
            except OpenError:
                full = len(session.table.waiting) >= LIMITS.max_streams
                assert session.ended or full
        elif action == "detach" and session.subflows:
            self.replace(min(session.subflows))
        elif action == "events":
            for gone in events(session).gone:
                if gone.subflow_id in session.subflows:
                    self.replace(gone.subflow_id)
        elif stream is None:
            return
        elif action == "write" and stream.room:
            stream.write(bytes(min(stream.room, count)))
        elif action == "take" and stream.receive.data.ready_bytes:
            stream.take(min(stream.receive.data.ready_bytes, count), self.now)
            if stream.at_end:
                stream.take_end()
        elif action == "confirm" and not session.opener:
            stream.confirm()
        elif action == "finish":
            stream.finish()
        elif action == "reset":
            stream.reset(ResetCode.CANCELLED)

    def replace(self, number: int) -> None:
        """A subflow died, and another one comes."""
        self.session.detach(self.session.subflows[number], self.now)
        self.session.attach(number + 10, self.now).ready = True

    def check(self) -> None:
        session = self.session
        assert len(session.streams) <= LIMITS.max_streams
        assert len(session.table.updated) <= 3 * LIMITS.max_streams + 1
        held = weight = grown = gaps = 0
        for stream in session.streams.values():
            receive = stream.receive
            held += stream.send.held
            weight += stream.send.weight
            window = receive.window
            grown += window.out
            gaps += receive.data.gaps
            assert receive.data.highest - window.taken <= LIMITS.floor_window + window.out
            assert receive.data.ready_bytes == sum(map(len, receive.data.ready))
        parting = session.table.parting
        assert len(parting) <= min(LIMITS.max_streams, session._outbox.unconfirmed)
        others = (*parting.values(), *session.table.waiting)
        held += sum(one.send.held for one in others)
        weight += sum(one.send.weight for one in others)
        assert session.held == held <= LIMITS.send_buffer
        assert held <= session.table.memory.held == weight
        # A stream that is complete is forgotten, and its application still takes what came.
        self.seen.update(session.streams.values())
        kept = sum(stream.receive.data.held for stream in self.seen)
        streams = len(session.streams) + len(parting)
        subflows = sum(subflow.counted for subflow in session.subflows.values())
        beside = gaps * GAP_COST + streams * STREAM_COST + subflows
        if session.ended is None:
            beside += SESSION_COST + session._overhead._records * RECORD_COST
        assert session.holding.bytes == weight + kept + beside
        assert session.holding.client.subflows == len(session.subflows)
        assert session.holding.client.streams == len(session.streams) + len(parting)
        assert session.table.windows.free >= 0
        assert session.table.windows.free + grown == LIMITS.window_pool
        assert session.table.gaps.free >= 0
        assert session.table.gaps.free + gaps == LIMITS.max_gaps
        assert session._outbox.own.keys() <= set(session.subflows.values())
        for frames in session._outbox.own.values():
            assert len(frames) <= MAX_OWN_FRAMES
