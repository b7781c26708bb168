"""Reports of what the peer's process has read, and what follows from them."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB
from fastmtcp.engine.scheduling.watch import UNDELIVERED
from fastmtcp.engine.session import Session
from fastmtcp.engine.subflows.delivery import Delivery
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import RemoteError, SessionCode
from fastmtcp.engine.wire.frames import Data, Got, Stalled

from tests.unit.wire import START, Pair, collect, feed, pack, parse


def frames(session: Session, now: float) -> list[object]:
    return [frame for _, data in collect(session, now) for frame, _ in parse(data)]


def busy(through: int) -> Sample:
    """A kernel, perhaps of a relay, that acknowledges and has more on its way."""
    return Sample(0.001, 1e6, False, 1000, 1000, through)


def test_a_report_rides_with_the_ack() -> None:
    pair = Pair(subflows=1)
    mine, _ = pair.open(b"start")
    mine.write(bytes(1000))
    pair.flush(pair.client)
    pair.now += 0.03
    pair.server.on_time(pair.now)
    (got,) = [frame for frame in frames(pair.server, pair.now) if isinstance(frame, Got)]
    assert got == Got(0, pair.client.subflows[0].bytes_sent)


def test_round_trip_and_rate_are_those_to_the_peer() -> None:
    delivery = Delivery(START)
    assert not delivery.waits
    for step in range(1, 11):
        delivery.sent(step * 1000, START + step * 0.02)
    assert delivery.waits
    for step in range(1, 11):
        delivery.on_got(step * 1000, START + step * 0.02 + 0.5)
    assert delivery.rtt == pytest.approx(0.5, rel=0.05)
    assert delivery.rate == pytest.approx(50_000, rel=0.3)
    assert not delivery.waits
    delivery.on_got(3000, 9.0)
    assert delivery.got == 10_000, "a report that was overtaken"


def test_patience_follows_how_steady_the_reports_are() -> None:
    def patience(*delays: float) -> float:
        delivery = Delivery(START)
        for step, delay in enumerate(delays, 1):
            delivery.sent(step * 1000, float(step))
            delivery.on_got(step * 1000, step + delay)
        return delivery.patience

    assert patience() == pytest.approx(0.6)
    assert patience(0.5) == pytest.approx(1.5)
    assert patience(*[0.5] * 20) == pytest.approx(0.5, rel=0.05)
    assert patience(*[0.3, 0.7] * 20) > 0.9
    assert patience(*[0.1, 0.9] * 20) < 1.7, "not more than three times the mean"


@pytest.mark.parametrize("count", [10**6, 2**63])
def test_more_than_was_sent_is_an_error(count: int) -> None:
    pair = Pair()
    with pytest.raises(RemoteError) as caught:
        feed(pair.client, pack(Got(0, count)))
    assert caught.value.code is SessionCode.PROTOCOL


def test_of_a_subflow_that_is_gone_nothing_is_believed() -> None:
    pair = Pair()
    feed(pair.client, pack(Got(77, 10**6)) + pack(Stalled(77)))
    assert frames(pair.client, START) == []


def test_what_a_relay_swallows_goes_out_elsewhere_and_the_peer_is_told() -> None:
    pair = Pair()
    mine, _ = pair.open(b"start")
    client = pair.client
    relay, direct = client.subflows.values()
    relay.speed.chunk = direct.speed.chunk = 16 * KIB
    mine.write(bytes(200_000))
    now = pair.now
    for subflow in (relay, direct):
        client.pull(subflow, now)
    for step in range(1, 50):
        at = now + step * 0.02
        direct.delivery.on_got(direct.delivery.got + 1, at)
        for subflow in (relay, direct):
            assert not client.on_sample(subflow, busy(step), at)
        if relay.suspect:
            break
    limit = max(UNDELIVERED, relay.delivery.patience)
    assert limit - 0.03 < at - now < limit + 0.05
    assert not direct.suspect
    assert mine.send.lost
    sent = collect(client, at)
    assert {subflow for subflow, _ in sent} == {direct}
    said = [frame for _, data in sent for frame, _ in parse(data)]
    assert Stalled(relay.subflow_id) in said
    # It comes back when the peer has read more of it.
    relay.delivery.on_got(relay.delivery.got + 1, at + 0.1)
    client.on_sample(relay, busy(99), at + 0.12)
    assert not relay.suspect


def test_a_peer_that_reads_nothing_from_anybody_is_no_dead_relay() -> None:
    pair = Pair()
    mine, _ = pair.open(b"start")
    mine.write(bytes(200_000))
    for subflow in pair.client.subflows.values():
        pair.client.pull(subflow, pair.now)
    for step in range(1, 200):
        for subflow in pair.client.subflows.values():
            pair.client.on_sample(subflow, busy(step), pair.now + step * 0.02)
            assert not subflow.suspect


def test_a_subflow_that_the_peer_doubts_is_left_alone_until_it_speaks() -> None:
    pair = Pair()
    pair.open(b"start")
    server = pair.server
    named, other = server.subflows.values()
    feed(server, pack(Stalled(0)), pair.now, subflow=1)
    assert named.suspect
    assert {subflow for subflow, _ in collect(server, pair.now)} == {other}
    # Only the peer gives it up.
    assert not server.on_sample(named, busy(1), pair.now + 9)
    feed(server, pack(Data(0, 5, False)), pair.now + 10, subflow=0)
    server.on_sample(named, busy(2), pair.now + 10)
    assert not named.suspect


def test_a_flood_of_doubts_is_work_once_a_second() -> None:
    pair = Pair()
    pair.open(b"start")
    named = pair.server.subflows[0]
    for step in range(100):
        now = pair.now + step * 0.01
        feed(pair.server, pack(Stalled(0)), now, subflow=1)
        feed(pair.server, pack(Data(0, 5, False)), now + 0.001, subflow=0)
        pair.server.on_sample(named, busy(step), now + 0.002)
    assert named.stalls <= 2


class TestRelays:
    """A subflow to a relay next door: its kernel takes everything at once."""

    NEXT_DOOR = Sample(0.0001, 5e9, False, 0, 0, 0)

    def run(self, subflow: Subflow, start: float, *, per_step: int, read: int, steps: int) -> float:
        """Give a subflow `per_step` bytes every 10 ms; the peer reads up to `read` of them."""
        now = start
        for _ in range(steps):
            now += 0.01
            subflow.count_sent(per_step, now)
            subflow.delivery.sent(subflow.bytes_sent, now)
            subflow.delivery.on_got(min(subflow.bytes_sent, subflow.delivery.got + read), now)
            subflow.on_sample(self.NEXT_DOOR, now)
        return now

    def test_what_it_hoards_shows_the_true_rate(self) -> None:
        subflow = Subflow(1, START)
        now = self.run(subflow, START, per_step=20_000, read=10_000, steps=100)
        assert subflow.speed.rate == pytest.approx(1e6, rel=0.15)
        # What was held has been read: after a while the kernel is believed again.
        subflow.delivery.on_got(subflow.bytes_sent, now)
        subflow.on_sample(self.NEXT_DOOR, now + 0.1)
        assert subflow.speed.rate == pytest.approx(1e6, rel=0.15)
        subflow.on_sample(self.NEXT_DOOR, now + 2.1)
        assert subflow.speed.rate == self.NEXT_DOOR.delivery_rate

    def test_the_rate_is_kept_while_it_is_given_less(self) -> None:
        subflow = Subflow(1, START)
        now = self.run(subflow, START, per_step=20_000, read=10_000, steps=60)
        subflow.delivery.on_got(subflow.bytes_sent, now)
        self.run(subflow, now, per_step=1_000, read=1_000, steps=50)
        assert subflow.speed.rate == pytest.approx(1e6, rel=0.15)

    def test_reports_that_take_their_time_are_no_relay(self) -> None:
        subflow = Subflow(1, START)
        now = START
        for step in range(200):
            now += 0.01
            subflow.count_sent(50_000, now)
            subflow.delivery.sent(subflow.bytes_sent, now)
            subflow.delivery.on_got((step - 4) * 50_000, now)
            # One step is still on its way in the kernel.
            subflow.on_sample(Sample(0.01, 5e6, False, 0, 50_000, 0), now)
        assert subflow.speed.rate == 5e6
