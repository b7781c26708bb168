"""What fastmtcp.io does, on the simulated network: one session, its subflows, its applications."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fastmtcp.engine.limits import KIB, OWN_SEND_ROOM, Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.send_buffer import Buffer
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.rate import Sample, reported
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import ResetCode

from tests.sim.network import Clock, Pipe

SAMPLE_EVERY = 0.02
MIN_ROOM = 16 * KIB
"""A relay does not read crumbs."""

MAX_PULLS = 20_000


@dataclass(frozen=True)
class Script:
    """What an application does with its connection. Times are seconds after it was connected."""

    writes: tuple[tuple[float, int], ...] = ()
    """(time, bytes), times rising."""

    closes: bool = True
    """Half-close behind the last write; False waits for the peer's end first."""

    bite: int | None = None
    """Bytes that a slow reader takes at a time; None takes everything at once."""

    pause: float = 0.0
    """Seconds between two bites."""

    deaf: tuple[float, float] | None = None
    """(from, until): takes nothing in between."""

    reset_at: float | None = None

    @property
    def size(self) -> int:
        return sum(size for _, size in self.writes)


class App:
    """An application at one end of a stream."""

    def __init__(self, host: Host, stream: Stream, script: Script) -> None:
        self.host = host
        self.stream = stream
        self.script = script
        self.sent = text_of(stream.stream_id, host.session.opener, script.size)
        """All that it is going to write."""
        self.received = bytearray()
        self.eof = False
        self.reset: ResetCode | None = None
        self.received_first_at: float | None = None
        self.ended_at: float | None = None
        self.written_at_reset: int | None = None
        """How much it had written when it reset its connection."""
        self._written = 0
        self._allowed = 0
        self._deaf = False
        self._biting = False
        stream.watcher = self
        clock = host.clock
        for when, size in script.writes:
            clock.after(when, partial(self._allow, size))
        if script.deaf is not None:
            clock.after(script.deaf[0], partial(self._set_deaf, True))
            clock.after(script.deaf[1], partial(self._set_deaf, False))
        if script.reset_at is not None:
            clock.after(script.reset_at, self.abort)
        if not script.writes:
            stream.announce()

    @property
    def allowed(self) -> int:
        """Bytes that it has been told to write by now."""
        return self._allowed

    @property
    def is_willing(self) -> bool:
        """True if it takes whatever comes."""
        return not self._deaf and not self._biting

    @property
    def over(self) -> bool:
        return self.reset is not None or (self.eof and self.stream.send.finished)

    def update(self) -> None:
        """The stream was updated, or the application can go on."""
        if self.reset is not None:
            return
        if self.stream.reset_code is None:
            self._read()
            self._write()
        if self.stream.reset_code is not None:
            self.reset = self.stream.reset_code
        if self.over and self.ended_at is None:
            self.ended_at = self.host.clock.now

    def abort(self) -> None:
        """The application resets its connection."""
        if not self.over:
            self.written_at_reset = self._written
            self.stream.reset(ResetCode.CANCELLED)
            self._wake()

    def _read(self) -> None:
        stream = self.stream
        ready = stream.receive.data.ready
        while ready and not self._deaf and not self._biting:
            most = self.script.bite or len(ready[0])
            with memoryview(ready[0]) as piece:
                taken = bytes(piece[:most])
            self.received += taken
            if self.received_first_at is None:
                self.received_first_at = self.host.clock.now
            stream.take(len(taken), self.host.clock.now)
            if self.script.bite is not None:
                self._biting = True
                self.host.clock.after(self.script.pause, self._hungry)
        if stream.at_end and not self.eof:
            assert not stream.receive.data.ready_bytes
            self.eof = True
            stream.take_end()

    def _write(self) -> None:
        stream = self.stream
        while True:
            have = self._allowed - self._written
            room = stream.room
            if not have or room < MIN_ROOM:
                break
            count = min(room, have)
            stream.write(memoryview(self.sent)[self._written : self._written + count])
            self._written += count
        if (
            self._written == len(self.sent)
            and (self.script.closes or self.eof)
            and not stream.send.finished
        ):
            stream.finish()

    def _allow(self, size: int) -> None:
        self._allowed += size
        self._wake()

    def _set_deaf(self, deaf: bool) -> None:
        self._deaf = deaf
        self._wake()

    def _hungry(self) -> None:
        self._biting = False
        self._wake()

    def _wake(self) -> None:
        self.update()
        self.host.settle()


class End:
    """One end of a connection: the socket of a subflow."""

    def __init__(self, host: Host, subflow: Subflow, out: Pipe, incoming: Pipe) -> None:
        self.host = host
        self.subflow = subflow
        self.out = out
        self.closed = False
        self._rest = b""
        self._sampled_at = 0.0
        subflow.ready = True
        out.on_room = self._on_room
        incoming.on_bytes = self._on_bytes

    def send(self, buffers: list[Buffer], size: int) -> None:
        data = b"".join(buffers)
        assert len(data) == size
        taken = self.out.write(data)
        if taken < size:
            self._rest = data[taken:]
            self.subflow.ready = False
            self.out.want_room()

    def measure(self, now: float) -> bool:
        """True if the session gives this subflow up."""
        if now - self._sampled_at < SAMPLE_EVERY:
            return False
        self._sampled_at = now
        return self.host.session.on_sample(self.subflow, self.sample(), now)

    def sample(self) -> Sample:
        """What the system knows, or what the peer's reports tell."""
        return reported(self.subflow.delivery) if self.out.path.blind else self.out.sample()

    def _on_room(self) -> None:
        if self.closed:
            return
        self._rest = self._rest[self.out.write(self._rest) :]
        if self._rest:
            self.out.want_room()
        else:
            self.subflow.ready = True
            self.host.settle()

    def _on_bytes(self, data: bytes) -> None:
        """Hand them to the session in pieces of any size, as reads from a socket come."""
        host = self.host
        position = 0
        while position < len(data) and not self.closed and host.session.ended is None:
            size = len(data) - position
            if host.rng.random() < 0.3:
                size = host.rng.randint(1, size)
            # A copy each: nothing may depend on the bytes behind a view.
            piece = memoryview(bytes(data[position : position + size]))
            host.session.receive(self.subflow, piece, host.clock.now)
            position += size
            host.settle()


class Host:
    """One side: drives its session as fastmtcp.io would, and checks it after every event."""

    def __init__(self, clock: Clock, rng: random.Random, *, opener: bool, limits: Limits) -> None:
        self.clock = clock
        self.rng = rng
        self.session = Session(opener=opener, limits=limits, now=clock.now)
        self.ends: dict[int, End] = {}
        self.apps: dict[int, App] = {}
        self.accept: Callable[[Stream], None] = self._refuse
        self.on_drop: Callable[[End], None] = _ignore
        self.on_part: Callable[[End], None] = _ignore
        self.wire = hashlib.sha256()
        """Of all that this side sent, in order."""
        self.most_held = 0
        self._gone: list[Subflow] = []
        self._timer_at: float | None = None
        self._arm()

    def attach(self, subflow_id: int, out: Pipe, incoming: Pipe) -> End:
        subflow = self.session.attach(subflow_id, self.clock.now, out.path.role)
        end = End(self, subflow, out, incoming)
        self.ends[subflow_id] = end
        self.session.on_sample(subflow, end.sample(), self.clock.now)
        return end

    def drop(self, end: End, *, by_fin: bool = False) -> None:
        """This side has seen that the connection is dead."""
        if end.closed:
            return
        self._close(end, by_fin=by_fin)
        self.on_drop(end)
        self.settle()

    def _part(self, end: End) -> None:
        """Close a retired connection, after a last frame."""
        report = self.session.last_report(end.subflow)
        while report:
            report = report[end.out.write(report) :]
        self._close(end)
        self.on_part(end)

    def _close(self, end: End, *, by_fin: bool = False) -> None:
        end.closed = True
        del self.ends[end.subflow.subflow_id]
        self.session.detach(end.subflow, self.clock.now, by_fin=by_fin)

    def settle(self) -> None:
        """Let everything move that can. Not re-entrant by nature: nothing in it calls back."""
        session = self.session
        now = self.clock.now
        for end in [end for end in self.ends.values() if end.measure(now)]:
            self.drop(end)
        session.rescue(now)
        for _ in range(MAX_PULLS):
            happened = self._handle_events()
            subflow = session.pick(now)
            if subflow is not None:
                assert subflow.ready
                buffers, size = session.pull(subflow, now)
                if size:
                    self.wire.update(b"%d " % subflow.subflow_id + b"".join(buffers))
                    self.ends[subflow.subflow_id].send(buffers, size)
            elif not happened:
                break
        else:
            raise AssertionError("the session never comes to rest")
        while self._gone:
            lost = self._gone.pop(0)
            if lost.subflow_id in self.ends:
                self.drop(self.ends[lost.subflow_id])
        self.check()
        self._arm()

    def check(self) -> None:
        """What must be true whenever the session is at rest (rule 4)."""
        session = self.session
        limits = session.limits
        held = grown = 0
        for stream in session.streams.values():
            send, receive = stream.send, stream.receive
            held += send.held
            window = receive.window
            grown += window.out
            assert window.wanted <= max(limits.max_window, limits.start_window)
            # All that the peer may make us hold is its floor, and what it has of the pool.
            most = window.limit if receive.fin_at is None else receive.fin_at
            assert most - window.taken <= limits.floor_window + window.out
            assert receive.data.highest <= window.limit
            assert window.taken + receive.data.ready_bytes == receive.data.next
            assert send.acked <= send.next <= send.buffer.end + send.finished
            assert min(send.next, send.buffer.end) <= max(send.limit, 0)
            assert send.backlog <= limits.backlog
            assert stream.reset_code is None
        parting = session.table.parting
        held += sum(stream.send.held for stream in parting.values())
        assert session.held == held
        assert held <= limits.send_buffer + OWN_SEND_ROOM * (len(session.streams) + len(parting))
        assert session.table.windows.free >= 0
        assert session.table.windows.free + grown == limits.window_pool
        assert len(session.streams) <= limits.max_streams
        self.most_held = max(self.most_held, held)
        if session.ended is not None:
            assert not session.streams
            assert not session.table.parting

    def _handle_events(self) -> bool:
        """Do what the session says has happened; False if nothing has."""
        events = self.session.take_events()
        if events is None:
            return False
        for stream in events.updated:
            if stream.watcher is not None:
                stream.watcher.update()
        for stream in events.opened:
            self.accept(stream)
        self._gone += events.gone
        for subflow in events.parted:
            self._part(self.ends[subflow.subflow_id])
        return True

    def _arm(self) -> None:
        if self.session.ended is not None:
            return
        due = self.session.deadline()
        if not self.session.idle:
            # As the driver does: whoever waits for an event sees no silence.
            due = min(due, self.clock.now + SAMPLE_EVERY)
        if self._timer_at is None or due < self._timer_at:
            self._timer_at = due
            self.clock.at(due, partial(self._on_timer, due))

    def _on_timer(self, due: float) -> None:
        if due != self._timer_at:
            return
        self._timer_at = None
        for subflow in self.session.on_time(self.clock.now):
            self.drop(self.ends[subflow.subflow_id])
        self.settle()

    def _refuse(self, stream: Stream) -> None:
        raise AssertionError("a stream was opened to a side that does not accept any")


def text_of(stream_id: int, client: bool, size: int) -> bytes:
    """Bytes that are different for every stream and direction, and at every offset."""
    return random.Random(2 * stream_id + client).randbytes(size)


def _ignore(_end: End) -> None:
    """Nobody replaces it."""
