"""A client, a server, connections between them that come and go, and the verdict at the end."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fastmtcp.engine.limits import KIB, Limits
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.errors import ResetCode

from tests.sim.hosts import App, End, Host, Script
from tests.sim.network import Clock, Path, Pipe

SMALL = Limits(
    floor_window=64 * KIB,
    start_window=128 * KIB,
    max_window=512 * KIB,
    window_pool=512 * KIB,
    send_buffer=256 * KIB,
    backlog=64 * KIB,
)
"""Limits that a short run reaches."""


@dataclass
class Link:
    """A TCP connection of the pool, with the slot of the pool that it fills."""

    slot: int
    up: Pipe
    down: Pipe
    client: End
    server: End
    dead: bool = False


class World:
    """Everything of one run. `paths` are the slots of the client's pool."""

    def __init__(
        self,
        seed: int = 0,
        paths: Sequence[Path] = (Path(), Path()),
        *,
        limits: Limits = SMALL,
        server_limits: Limits | None = None,
        redial: float | None = 0.1,
    ) -> None:
        """`redial` is the time after which the client replaces a connection that it saw die."""
        self.clock = Clock()
        self.rng = random.Random(seed)
        self.paths = list(paths)
        self.redial = redial
        self.client = Host(self.clock, self.rng, opener=True, limits=limits)
        self.server = Host(self.clock, self.rng, opener=False, limits=server_limits or limits)
        self.server.accept = self._accept
        self.client.on_drop = self._on_drop
        self.client.on_part = self._on_part
        self.links: list[Link] = []
        self.deaths = 0
        self._answers: dict[str, tuple[Script, float]] = {}
        self._welcomed = False
        for slot in range(len(self.paths)):
            self.connect(slot)

    # --- connections ------------------------------------------------------------------------

    def connect(self, slot: int) -> None:
        """A new, authenticated connection for a slot of the pool."""
        if self.client.session.ended is not None or self.server.session.ended is not None:
            return
        path = self.paths[slot]
        up = Pipe(self.clock, self.rng, path)
        down = Pipe(self.clock, self.rng, path)
        number = len(self.links)
        server = self.server.attach(number, down, up)
        client = self.client.attach(number, up, down)
        link = Link(slot, up, down, client, server)
        self.links.append(link)
        if not self._welcomed:
            self._welcomed = True
            limits = self.server.session.limits
            self.client.session.set_peer_limits(limits.floor_window, limits.max_streams)
        self.server.settle()
        self.client.settle()

    def live(self) -> list[Link]:
        return [link for link in self.links if not link.dead]

    def kill(
        self,
        link: Link,
        *,
        client_sees: float | None = 0.0,
        server_sees: float | None = 0.0,
        drop: bool = True,
    ) -> None:
        """A connection dies. Each side sees it after some seconds, or (None) never."""
        if link.dead:
            return
        link.dead = True
        self.deaths += 1
        link.up.cut(drop=drop)
        link.down.cut(drop=drop)
        for host, end, after in (
            (self.client, link.client, client_sees),
            (self.server, link.server, server_sees),
        ):
            if after is not None:
                self.clock.after(after, partial(host.drop, end))

    def _on_drop(self, end: End) -> None:
        """The client saw one die, perhaps only by its silence: nothing comes through any more."""
        link = next(link for link in self.links if link.client is end)
        self.kill(link, client_sees=None, server_sees=None)
        if self.redial is not None:
            self.clock.after(self.redial, partial(self.connect, link.slot))

    def _on_part(self, end: End) -> None:
        """The client has closed one that it had retired: its FIN follows the last bytes."""
        link = next(link for link in self.links if link.client is end)
        link.dead = True
        self._finish(link)

    def _finish(self, link: Link) -> None:
        if link.up.is_empty:
            self.server.drop(link.server, by_fin=True)
        else:
            self.clock.after(0.01, partial(self._finish, link))

    # --- applications -----------------------------------------------------------------------

    def open(self, client: Script, server: Script, *, connect_time: float = 0.0) -> App:
        """An application connects to the client; the target answers it as `server` says."""
        stream = self.client.session.open(self.clock.now, str(len(self._answers)))
        self._answers[stream.target] = (server, connect_time)
        app = App(self.client, stream, client)
        self.client.apps[stream.stream_id] = app
        self.client.settle()
        return app

    def open_at(
        self, when: float, client: Script, server: Script, *, connect_time: float = 0.0
    ) -> None:
        def opening() -> None:
            self.open(client, server, connect_time=connect_time)

        self.clock.at(when, opening)

    def peer(self, app: App) -> App:
        """The application at the other end."""
        other = self.server if app.host is self.client else self.client
        return other.apps[app.stream.stream_id]

    def arrived(self, app: App) -> int:
        """How many of its bytes the application at the other end has."""
        other = self.server if app.host is self.client else self.client
        peer = other.apps.get(app.stream.stream_id)
        return len(peer.received) if peer is not None else 0

    def is_served(self, app: App) -> bool:
        """True if both ends have everything."""
        return self.arrived(app) == len(app.sent) and app.eof and self.peer(app).eof

    def _accept(self, stream: Stream) -> None:
        script, connect_time = self._answers[stream.target]
        self.clock.after(connect_time, partial(self._connected, stream, script))

    def _connected(self, stream: Stream, script: Script) -> None:
        stream.confirm()
        self.server.apps[stream.stream_id] = app = App(self.server, stream, script)
        app.update()
        self.server.settle()

    def refuse_all(self, code: ResetCode) -> None:
        """From now on the target takes no connections."""

        def refuse(stream: Stream) -> None:
            stream.reset(code)

        self.server.accept = refuse

    # --- running ----------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], within: float) -> None:
        """Run until a condition holds; fail if it does not `within` so many virtual seconds."""
        end = self.clock.now + within
        while not until():
            self.clock.step()
            assert self.clock.now <= end, f"not done at {self.clock.now:.3f} s: {self.describe()}"

    def run_for(self, seconds: float) -> None:
        end = self.clock.now + seconds
        self.clock.at(end, _nothing)
        self.run(lambda: self.clock.now >= end, seconds + 1)

    def is_done(self) -> bool:
        """True if every application has its end, and no side holds a stream any more."""
        return not (
            self.client.session.streams
            or self.server.session.streams
            or self.client.session.table.parting
            or self.server.session.table.parting
            or any(not app.over for app in self.client.apps.values())
            or any(not app.over for app in self.server.apps.values())
        )

    def run_all(self, within: float = 120.0) -> None:
        """Run until all is done, then check that what went in came out and nothing is left."""
        self.run(self.is_done, within)
        self.run_for(2.0)
        self.check_transfers()
        self.check_nothing_is_left()

    def check_transfers(self) -> None:
        """What went in came out, once, in order, or both ends were reset."""
        for stream_id, mine in self.client.apps.items():
            theirs = self.server.apps.get(stream_id)
            if theirs is None:
                assert mine.reset is not None
                assert not mine.received
                continue
            for source, sink in ((mine, theirs), (theirs, mine)):
                assert sink.received == source.sent[: len(sink.received)]
                if sink.eof:
                    assert len(sink.received) == len(source.sent)
            if mine.reset is not None or theirs.reset is not None:
                # The side that was reset last may have had its clean end before the other's
                # reset was known: only if it had everything and had said everything.
                for app, other in ((mine, theirs), (theirs, mine)):
                    if app.reset is None:
                        assert app.eof
                        assert len(app.received) == len(other.sent)
                        assert app.stream.finished
            else:
                assert mine.eof
                assert theirs.eof

    def check_last_bytes(self) -> None:
        """With a network that is well, and applications that read, all that was written before a
        reset arrives, if the other end did not reset too."""
        for mine in self.client.apps.values():
            theirs = self.server.apps.get(mine.stream.stream_id)
            for source, sink in ((mine, theirs), (theirs, mine)):
                if source is None or sink is None or source.written_at_reset is None:
                    continue
                if sink.written_at_reset is None:
                    assert len(sink.received) == source.written_at_reset

    def check_nothing_is_left(self) -> None:
        for host in (self.client, self.server):
            session = host.session
            assert session.streams == {}
            assert session.table.parting == {}
            assert session.held == 0
            assert session.table.windows.free == session.limits.window_pool
            assert session.table.gaps.free == session.limits.max_gaps
            assert session.take_events() is None
            assert not any(subflow.inflight.has_unacked() for subflow in session.subflows.values())
            assert all(not subflow.inflight for subflow in session.subflows.values())

    def describe(self) -> str:
        lines = []
        for name, host in (("client", self.client), ("server", self.server)):
            session = host.session
            lines.append(
                f"{name}: held {session.held}, ended {session.ended}, subflows "
                f"{[(s.subflow_id, s.ready, len(s.inflight)) for s in session.subflows.values()]}"
            )
            for stream in session.streams.values():
                send, receive = stream.send, stream.receive
                lines.append(
                    f"  {stream.stream_id}: acked {send.acked} next {send.next} end "
                    f"{send.buffer.end} limit {send.limit} finished {send.finished} lost "
                    f"{list(send.lost)}; received {receive.data.next} taken "
                    f"{receive.window.taken} told {receive.window.limit} fin {receive.fin_at}"
                )
        return "\n".join(lines)


def _nothing() -> None:
    """An event that only moves the clock."""
