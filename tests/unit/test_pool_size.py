"""The number of subflows that a PoolSize finds on modelled lines, over minutes of virtual time."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from fastmtcp.client.pool.size import FIRST_HOLD, IDLE_AFTER, TICK, PoolSize, Reading
from fastmtcp.config.connections import Connections

MBIT = 1e6 / 8
CONNECT = 0.3
START = 1_000_000.0


class Path:
    """A path, and what it can carry."""

    def __init__(
        self,
        limits: str = "2-16",
        *,
        each: float = 20 * MBIT,
        trunk: float = 1e9,
        rtt: float = 0.04,
        refuses_above: int = 64,
    ) -> None:
        self.size = PoolSize(Connections.read(limits))
        self.each = each
        self.trunk = trunk
        self.rtt = rtt
        self.refuses_above = refuses_above
        self.is_down = False
        self.rates: list[float] = []
        self._connecting: list[float] = []

    def move(self, now: float) -> tuple[int, float]:
        """Live subflows, and what they could carry: each new one begins slowly."""
        count = min(self.size.wanted, self.refuses_above)
        if self.is_down:
            self.rates.clear()
            self._connecting.clear()
            return 0, 0.0
        while len(self.rates) + len(self._connecting) < count:
            self._connecting.append(now + CONNECT)
        while len(self.rates) + len(self._connecting) > count:
            (self._connecting or self.rates).pop()
        up = [when for when in self._connecting if when <= now]
        self._connecting = [when for when in self._connecting if when > now]
        # Slow start: twice as much every round trip, here from a tenth on.
        growth = 2 ** (TICK / self.rtt)
        self.rates = [min(self.each, rate * growth) for rate in self.rates] + [
            self.each / 10 for _ in up
        ]
        self.rates = [min(self.each, rate) for rate in self.rates]
        return len(self.rates), min(sum(self.rates), self.trunk)


class Session:
    """Paths that carry what an application wants to send."""

    def __init__(
        self,
        *paths: Path,
        wants: float = 1e12,
        trunk: float = 1e12,
        noise: float = 0.0,
        seed: int = 1,
        always_hungry: bool = False,
    ) -> None:
        self.paths = paths
        self.wants = wants
        self.trunk = trunk
        self.now = START
        self.history: list[list[int]] = [[] for _ in paths]
        self._noise = noise
        self._always_hungry = always_hungry
        self._random = random.Random(seed)

    def run(self, seconds: float) -> Session:
        end = self.now + seconds
        while self.now < end:
            self.now += TICK
            moved = [path.move(self.now) for path in self.paths]
            able = sum(rate for _, rate in moved)
            share = min(1.0, self.trunk / able) if able else 0.0
            share *= self._random.uniform(1 - self._noise, 1 + self._noise)
            able *= share
            share *= min(1.0, self.wants / able) if able else 0.0
            goodput = min(able, self.wants)
            probing = sum(path.size.is_probing for path in self.paths)
            assert probing <= 1
            busy = bool(probing)
            for path, (up, rate), history in zip(self.paths, moved, self.history, strict=True):
                hungry = self._always_hungry or self.wants > able
                reading = Reading(up, hungry, goodput, rate * share, path.rtt)
                before = path.size.wanted
                path.size.update(self.now, reading, may_probe=not busy)
                busy = busy or path.size.is_probing
                if path.size.wanted != before:
                    for other in self.paths:
                        if other is not path:
                            other.size.disturbed()
                history.append(path.size.wanted)
        return self

    def share_of_time(self, low: int, high: int, path: int = 0) -> float:
        """How much of the time the number was from `low` to `high`."""
        history = self.history[path]
        return sum(low <= count <= high for count in history) / len(history)


def reached(session: Session, count: int) -> float:
    """Seconds until the number was first `count`."""
    return session.history[0].index(count) * TICK


def test_grows_to_the_most_where_each_connection_has_a_rate_of_its_own() -> None:
    session = Session(Path(each=160 * MBIT)).run(120)
    assert session.paths[0].size.wanted == session.paths[0].size.settled == 16
    assert reached(session, 8) < 6
    assert reached(session, 16) < 9
    # And stays there.
    assert set(session.history[0][int(10 / TICK) :]) == {16}
    steps = list(dict.fromkeys(session.history[0]))
    assert steps == [2, 3, 5, 8, 12, 16]


@pytest.mark.parametrize(
    ("each", "low", "high"),
    [(20, 5, 6), (50, 2, 3), (12, 8, 10), (9, 10, 13), (30, 3, 5), (100, 2, 2), (1000, 2, 2)],
)
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_finds_the_plateau_of_a_full_line_and_stays(
    each: float, low: int, high: int, noise: float
) -> None:
    # `low` connections are more than 80 percent of the line, and `high` are not many too many.
    for seed in range(10 if noise else 1):
        session = Session(Path(each=each * MBIT, trunk=100 * MBIT), noise=noise, seed=seed).run(20)
        assert low <= (session.paths[0].size.settled or 0) <= high + (noise > 0)
        session.history[0].clear()
        session.run(600)
        assert session.share_of_time(low, high + 1 + (noise > 0)) > 0.97
        # A small step is tried now and then, and taken back.
        assert changes(session) <= (20 if noise else 10)


def changes(session: Session) -> int:
    history = session.history[0]
    return sum(a != b for a, b in pairwise(history))


@pytest.mark.parametrize("wants", [5, 30, 39])
def test_an_application_that_wants_no_more_gets_no_more(wants: float) -> None:
    session = Session(Path(), wants=wants * MBIT, noise=0.02).run(300)
    assert set(session.history[0]) == {2}


def test_a_server_that_always_says_that_it_is_busy_gets_no_more_either() -> None:
    session = Session(Path(), wants=30 * MBIT, always_hungry=True).run(600)
    assert session.share_of_time(2, 3) == 1.0
    assert session.share_of_time(2, 2) > 0.95


def test_stops_where_the_application_is_satisfied() -> None:
    session = Session(Path(), wants=70 * MBIT).run(300)
    assert session.share_of_time(4, 5) > 0.95
    assert changes(session) == 2


def test_a_path_below_one_connection_stays_at_the_least() -> None:
    session = Session(Path(each=20 * MBIT, trunk=8 * MBIT), noise=0.1).run(400)
    assert session.share_of_time(2, 3) == 1.0
    assert session.share_of_time(2, 2) > 0.9


def test_a_long_line_with_slow_start_is_not_taken_for_gain() -> None:
    session = Session(Path(each=500 * MBIT, trunk=100 * MBIT, rtt=0.3)).run(200)
    assert max(session.history[0]) <= 3
    session = Session(Path(each=20 * MBIT, trunk=100 * MBIT, rtt=0.3)).run(200)
    assert session.paths[0].size.settled in (5, 6)


def test_holds_grow() -> None:
    session = Session(Path(trunk=100 * MBIT)).run(15)
    session.history[0].clear()
    session.run(900)
    history = session.history[0]
    starts = [n * TICK for n in range(1, len(history)) if history[n] > history[n - 1]]
    gaps = [round(b - a) for a, b in pairwise([0.0, *starts])]
    assert gaps[0] <= FIRST_HOLD + 5
    assert all(b > 1.7 * a for a, b in pairwise(gaps[:4]))


def test_a_rate_that_changes_by_day_is_followed() -> None:
    path = Path(each=20 * MBIT, trunk=100 * MBIT)
    session = Session(path, noise=0.05).run(60)
    assert path.size.settled == 5
    path.each = 8 * MBIT
    session.run(90)
    assert path.size.wanted in (11, 12, 13, 14, 15, 16)
    session.history[0].clear()
    session.run(300)
    assert changes(session) <= 10


def test_shrinks_when_idle_and_comes_back_at_once() -> None:
    path = Path(trunk=100 * MBIT)
    session = Session(path).run(60)
    assert path.size.wanted == 5
    session.wants = 20_000
    session.run(IDLE_AFTER - 2)
    assert path.size.wanted == 5
    session.run(4)
    assert path.size.wanted == 2
    session.run(60)
    session.history[0].clear()
    session.wants = 1e12
    session.run(60)
    # In one step, and it does not look any further.
    assert list(dict.fromkeys(session.history[0]))[:2] == [2, 5]
    assert reached(session, 5) < 2
    assert max(session.history[0]) <= 6


def test_a_plateau_at_the_least_number_is_remembered_over_a_pause() -> None:
    path = Path(each=500 * MBIT, trunk=100 * MBIT)
    session = Session(path).run(120)
    assert path.size.settled == 2
    session.history[0].clear()
    for _ in range(4):
        session.wants = 0
        session.run(IDLE_AFTER + 5)
        session.wants = 1e12
        session.run(10)
    assert changes(session) <= 2


def test_does_not_shrink_while_something_is_carried() -> None:
    path = Path()
    session = Session(path).run(60)
    assert path.size.wanted == 16
    session.wants = 2 * MBIT
    session.run(300)
    assert set(session.history[0][-100:]) == {16}


def test_short_transfers_end_before_anything_is_known() -> None:
    path = Path(each=500 * MBIT, trunk=100 * MBIT)
    session = Session(path)
    for _ in range(20):
        session.wants = 1e12
        session.run(1.5)
        session.wants = 0
        session.run(10)
    # It never climbs without proof.
    assert max(session.history[0]) <= 3


def test_connections_that_cannot_be_made_are_given_up() -> None:
    path = Path(refuses_above=3)
    session = Session(path).run(60)
    assert path.size.wanted == path.size.settled == 3
    session.history[0].clear()
    session.run(300)
    assert changes(session) <= 8


def test_a_path_that_was_lost_is_tried_again_soon() -> None:
    path = Path(trunk=100 * MBIT)
    session = Session(path).run(200)
    path.is_down = True
    session.run(20)
    assert path.size.wanted == 5
    path.is_down = False
    path.trunk = 1e9
    session.run(40)
    assert path.size.wanted == 16


def test_a_change_of_the_network_ends_a_long_hold() -> None:
    path = Path(trunk=100 * MBIT)
    session = Session(path).run(300)
    session.history[0].clear()
    path.size.retry(session.now)
    session.run(15)
    assert 6 in session.history[0]


def test_two_paths_take_turns_and_each_finds_its_number() -> None:
    first = Path(each=20 * MBIT, trunk=100 * MBIT)
    second = Path(each=10 * MBIT, trunk=80 * MBIT)
    session = Session(first, second, noise=0.05).run(60)
    assert first.size.settled in (5, 6)
    assert second.size.settled in (8, 9, 10)
    session.history = [[], []]
    session.run(300)
    assert session.share_of_time(5, 7, 0) > 0.97
    assert session.share_of_time(8, 12, 1) > 0.97


def test_two_paths_over_one_line_do_not_outbid_each_other() -> None:
    # What one gains the other loses.
    session = Session(Path(each=50 * MBIT), Path(each=50 * MBIT), trunk=100 * MBIT).run(300)
    for path in range(2):
        assert session.share_of_time(2, 3, path) == 1.0


def test_a_fixed_number_is_never_changed() -> None:
    session = Session(Path("4")).run(60)
    assert set(session.history[0]) == {4}


def test_other_limits_count_at_once() -> None:
    path = Path()
    session = Session(path).run(30)
    assert path.size.wanted == 16
    path.size.limit(Connections(2, 7))
    assert path.size.wanted == 7
    session.run(30)
    path.size.limit(Connections(9, 20))
    assert path.size.wanted == 9
    session.run(60)
    assert path.size.wanted == 20
