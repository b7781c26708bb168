"""Looks at a world all the time: how long did a receiver wait although a connection worked?"""

from __future__ import annotations

from functools import partial

from fastmtcp.engine.subflows.role import Role

from tests.sim.hosts import App
from tests.sim.world import Link, World

EVERY = 0.01
"""Virtual seconds between two looks."""


class PauseWatch:
    """The longest time in which a reader that was willing got nothing of what had been written,
    while one and the same connection could have brought it.

    Its credit, its window, its place in a queue, the way of an ACK: all of it counts. What does
    not count is the time in which no connection of the right direction worked.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.longest = 0.0
        self.where = ""
        self._seen: dict[App, int] = {}
        self._since: dict[App, float] = {}
        self._usable_since: dict[int, float] = {}
        self._look()

    def _look(self) -> None:
        world = self.world
        now = world.clock.now
        for number, link in enumerate(world.links):
            if is_usable(link):
                self._usable_since.setdefault(number, now)
            else:
                self._usable_since.pop(number, None)
        for upwards, sources in ((True, world.client.apps), (False, world.server.apps)):
            for source in sources.values():
                self._look_at(source, self._oldest(upwards), now)
        world.clock.after(EVERY, self._look)

    def _oldest(self, upwards: bool) -> float | None:
        """Since when one of the connections that may carry data this way has worked."""
        times = [
            since
            for number, since in self._usable_since.items()
            if self.world.links[number].up.path.role.carries(client=upwards)
        ]
        return min(times, default=None)

    def _look_at(self, source: App, usable_since: float | None, now: float) -> None:
        world = self.world
        arrived = world.arrived(source)
        peers = world.server if source.host is world.client else world.client
        sink = peers.apps.get(source.stream.stream_id)
        waits = (
            sink is not None
            and sink.is_willing
            and arrived < source.allowed
            and source.reset is None
            and sink.reset is None
        )
        if arrived != self._seen.get(source) or not waits or usable_since is None:
            self._seen[source] = arrived
            self._since[source] = now
            return
        began = max(self._since[source], usable_since)
        if now - began > self.longest:
            self.longest = now - began
            side = "up" if source.host is world.client else "down"
            self.where = f"stream {source.stream.stream_id} {side} at {now:.2f} s"


def is_usable(link: Link) -> bool:
    """True if both sides hold the connection, and it brings what is sent."""
    return (
        not link.dead
        and link.up.works
        and link.down.works
        and not link.client.closed
        and not link.server.closed
    )


def black_hole(world: World, link: Link, seconds: float) -> None:
    """Nothing gets through either way for a while; nobody is told."""
    for pipe in (link.up, link.down):
        pipe.pause()
        world.clock.after(seconds, pipe.resume)


def paused_one_way(world: World, link: Link, upwards: bool, seconds: float) -> None:
    pipe = link.up if upwards else link.down
    pipe.pause()
    world.clock.after(seconds, partial(pipe.resume))


ROLES = {
    "both": Role.BOTH,
    "up": Role.UP,
    "down": Role.DOWN,
    "backup": Role.BOTH | Role.BACKUP,
    "express": Role.BOTH | Role.EXPRESS,
}
