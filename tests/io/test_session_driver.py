"""Two session drivers joined by real connections that come, go, break and fall silent."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Callable

import pytest
from fastmtcp.engine.limits import KIB, Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import ResetCode, SessionCode

from tests.io.joined import Joined
from tests.io.net import Background, data, fill, is_reset, read_all, tcp_pair, turn
from tests.io.wires import Wire, WireBox

Works = tuple[Background[None], Background[None], Background[bytes], Background[bytes]]


def transfer(joined: Joined, up: bytes, down: bytes) -> Works:
    """Start a stream that carries `up` and `down` at the same time."""
    application, target = joined.pair()

    def send(sock: socket.socket, content: bytes) -> None:
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)

    return (
        Background(send, application, up),
        Background(send, target, down),
        Background(read_all, target),
        Background(read_all, application),
    )


def add_wired(joined: Joined, box: WireBox) -> Wire:
    """A subflow that can be cut."""
    near, a = tcp_pair()
    b, far = tcp_pair()
    wire = box.join(a, b)
    joined.join(near, far)
    return wire


def test_all_subflows_carry_a_part() -> None:
    up, down = data(20_000_000, 1), data(20_000_000, 2)
    with Joined(subflows=4) as joined:
        works = transfer(joined, up, down)
        joined.run(*works)
        assert works[2].result() == up
        assert works[3].result() == down
        joined.until(joined.is_empty)
        for at_server, at_client in joined.subflows:
            assert at_server.subflow.bytes_sent > 256 * KIB
            assert at_client.subflow.bytes_sent > 256 * KIB


class TestSubflowsThatBreak:
    @pytest.mark.parametrize("end", [Wire.cut, Wire.hang_up], ids=["RST", "FIN"])
    @pytest.mark.parametrize("which", ["one", "all"])
    def test_again_and_again(self, end: Callable[[Wire], None], which: str) -> None:
        up, down = data(12_000_000, 1), data(12_000_000, 2)
        rng = random.Random(5)
        with WireBox() as box, Joined(subflows=0) as joined:
            for _ in range(3):
                add_wired(joined, box)
            works = transfer(joined, up, down)
            carried = 0

            def damage() -> None:
                """Break something whenever another two megabytes have gone through."""
                nonlocal carried
                if all(work.done for work in works):
                    return
                total = sum(wire.carried for wire in box.wires)
                if total - carried > 2_000_000:
                    carried = total
                    alive = box.alive()
                    for victim in alive if which == "all" else [rng.choice(alive)]:
                        end(victim)
                        add_wired(joined, box)
                joined.loop.call_later(0.002, damage)

            damage()
            joined.run(*works)
            assert works[2].result() == up
            assert works[3].result() == down
            joined.until(joined.is_empty)
            assert len(box.wires) > 5
            ended = len(box.wires) - 3
            joined.until(lambda: min(len(joined.client.lost), len(joined.server.lost)) >= ended)
            turn(joined.loop)
            assert len(joined.client.lost) == len(joined.server.lost) == ended
            assert not joined.client.ended
            assert not joined.server.ended

    @pytest.mark.parametrize(("end", "by_fin"), [(Wire.cut, False), (Wire.hang_up, True)])
    def test_the_session_is_told_whether_all_that_came_was_a_fin(
        self, end: Callable[[Wire], None], by_fin: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[bool] = []
        detach = Session.detach

        def note(session: Session, subflow: Subflow, now: float, *, by_fin: bool = False) -> None:
            told.append(by_fin)
            detach(session, subflow, now, by_fin=by_fin)

        monkeypatch.setattr(Session, "detach", note)
        with WireBox() as box, Joined(subflows=0) as joined:
            wire = add_wired(joined, box)
            turn(joined.loop)
            end(wire)
            joined.until(lambda: len(told) == 2)
            assert told == [by_fin] * 2

    def test_the_reason_is_told_once(self) -> None:
        with WireBox() as box, Joined(subflows=0) as joined:
            for end in (Wire.cut, Wire.hang_up):
                wire = add_wired(joined, box)
                turn(joined.loop)
                end(wire)
                joined.until(lambda: joined.client.lost and joined.server.lost)
                turn(joined.loop)
                expected = "Connection reset by peer" if end is Wire.cut else "closed by the peer"
                assert joined.client.lost == joined.server.lost == [expected]
                joined.client.lost.clear()
                joined.server.lost.clear()

    def test_streams_wait_while_there_is_no_subflow(self) -> None:
        content = data(3_000_000)
        with WireBox() as box, Joined(subflows=0) as joined:
            first = add_wired(joined, box)
            works = transfer(joined, content, content)
            joined.until(lambda: first.carried > 100_000)
            first.cut()
            joined.until(lambda: not joined.client.session.subflows)
            assert not any(work.done for work in works[2:])
            add_wired(joined, box)
            joined.run(*works)
            assert works[2].result() == works[3].result() == content


class TestSubflowsThatFallSilent:
    LIMITS = Limits(ping_interval=0.1, subflow_timeout=0.4, session_timeout=2.0)

    def test_one_in_the_middle_of_a_transfer(self) -> None:
        up, down = data(12_000_000, 1), data(12_000_000, 2)
        with WireBox() as box, Joined(subflows=1, limits=self.LIMITS) as joined:
            dying = [add_wired(joined, box) for _ in range(2)]
            works = transfer(joined, up, down)
            for wire in dying:
                joined.until(lambda wire=wire: wire.carried > 200_000)  # type: ignore[misc]
                wire.silence()
            joined.run(*works)
            assert works[2].result() == up
            assert works[3].result() == down
            joined.until(lambda: len(joined.client.lost) == len(joined.server.lost) == 2)
            reasons = set(joined.client.lost + joined.server.lost)
            assert "no answer" in reasons
            assert reasons <= {"no answer", "lost at the other side"}
            joined.until(joined.is_empty)

    def test_one_without_any_traffic(self) -> None:
        with WireBox() as box, Joined(subflows=1, limits=self.LIMITS) as joined:
            add_wired(joined, box).silence()
            joined.until(lambda: joined.client.lost and joined.server.lost)
            assert joined.client.lost == joined.server.lost == ["no answer"]
            assert len(joined.client.session.subflows) == 1

    def test_without_any_subflow_the_session_ends_and_everybody_is_reset(self) -> None:
        with WireBox() as box, Joined(subflows=0, limits=self.LIMITS) as joined:
            wire = add_wired(joined, box)
            application, target = joined.pair()
            wire.silence()
            joined.until(lambda: joined.client.ended and joined.server.ended)
            assert [code for code, _ in joined.client.ended] == [SessionCode.TIMEOUT]
            assert is_reset(application)
            assert is_reset(target)


class TestTheEnd:
    @pytest.mark.parametrize("side", ["client", "server"])
    def test_one_side_ends_both_and_resets_what_is_open(self, side: str) -> None:
        with Joined(subflows=3) as joined:
            application, target = joined.pair()
            application.sendall(b"half a ")
            ending = getattr(joined, side)
            other = joined.server if side == "client" else joined.client
            ending.driver.end(SessionCode.SHUTDOWN, "good bye")
            ending.driver.end(SessionCode.SHUTDOWN, "good bye")
            joined.until(lambda: other.ended)
            assert ending.ended == other.ended == [(SessionCode.SHUTDOWN, "good bye")]
            joined.until(lambda: is_reset(application) and is_reset(target))
            # Closed by ourselves, not lost.
            assert not joined.client.lost
            assert not joined.server.lost

    def test_the_end_is_heard_through_full_sockets_too(self) -> None:
        with Joined(subflows=2) as joined:
            application, target = joined.pair()
            idle = 0

            def stuck() -> bool:
                nonlocal idle
                idle = 0 if fill(application) else idle + 1
                return idle > 20

            joined.until(stuck)
            joined.client.driver.end(SessionCode.NORMAL, "over")
            joined.until(lambda: joined.server.ended or len(joined.server.lost) == 2)
            joined.until(lambda: is_reset(application))
            if not joined.server.ended:
                joined.server.driver.end(SessionCode.NORMAL, "over")
            joined.until(lambda: is_reset(target))

    def test_garbage_on_a_subflow_ends_the_session(self) -> None:
        with Joined(subflows=1) as joined:
            application, target = joined.pair()
            near, far = tcp_pair()
            joined.server.attach(far, 77)
            near.sendall(b"\xff" * 5000)
            joined.until(lambda: joined.server.ended and joined.client.ended)
            assert joined.server.ended[0][0] is SessionCode.PROTOCOL
            assert joined.client.ended[0][0] is SessionCode.PROTOCOL
            joined.until(lambda: is_reset(application) and is_reset(target))
            near.close()


class TestAttach:
    def test_bytes_that_were_read_with_the_handshake_come_first(self) -> None:
        with Joined(subflows=0) as joined:
            near, far = tcp_pair()
            application, _ = joined.application()
            application.sendall(b"hello")
            near.setblocking(False)
            joined.client.attach(near, 0)
            joined.until(lambda: len(far.recv(1000, socket.MSG_PEEK)) > 8, "the OPEN is sent")
            early = far.recv(8)
            joined.server.driver.attach(far, 0, "peer", None, early)
            target = joined.target()
            got = Background(target.recv, 100)
            joined.run(got)
            assert got.result() == b"hello"

    def test_one_that_is_refused_is_closed_and_forgotten(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its descriptor's number is the next connection's: that one must get its own events."""
        caplog.set_level(logging.INFO, "fastmtcp")
        with Joined(subflows=1) as joined:
            near, far = tcp_pair()
            number = far.fileno()
            # The handshake had it watched.
            joined.loop.watch(number, lambda mask: None)
            assert joined.server.driver.attach(far, 0, "peer") is None
            assert far.fileno() == -1
            assert near.recv(1) == b""
            assert (
                "subflow from peer refused: too many subflows, or one id used twice" in caplog.text
            )
            assert number not in joined.loop._handlers
            near.close()


def test_the_peer_hears_why_a_session_had_to_go() -> None:
    """Not the peer's frames, but somebody else's need for memory has ended it."""
    with Joined() as joined:
        joined.server.session.holding.give_up()
        joined.server.driver.progress()
        joined.until(lambda: joined.client.ended)
        for ended in (joined.client.ended, joined.server.ended):
            ((code, reason),) = ended
            assert code is SessionCode.LIMIT
            assert "memory" in reason


def test_a_returned_stream_whose_application_is_gone_goes_to_no_other_session() -> None:
    returned: list[Stream] = []

    def take(stream: Stream) -> bool:
        returned.append(stream)
        return True

    with Joined(subflows=0) as joined:
        client = joined.client
        client.driver.on_returned = take
        gone, here = (client.session.open(joined.loop.now) for _ in range(2))
        client.session.on_draining()
        gone.reset(ResetCode.CANCELLED)
        client.driver.progress()
        assert returned == [here]
        assert gone.reset_code is ResetCode.CANCELLED


def test_a_session_that_is_given_up_for_others_ends_at_once() -> None:
    """It may have nothing to do, and so no event of its own, for seconds."""
    with Joined() as joined:
        turn(joined.loop, 5)
        memory = joined.server.session.holding.memory
        memory.make_room()
        turn(joined.loop, 2)
        assert joined.server.driver.ended
        assert not memory.holdings
        assert memory.free == memory.size


@pytest.mark.parametrize("given_up", [False, True])
def test_what_is_left_of_an_ended_session_counts_until_it_is_delivered(given_up: bool) -> None:
    content = data(500_000)
    with Joined(limits=Limits(floor_window=1024 * KIB)) as joined:
        application, target = joined.pair()
        target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        (relay,) = joined.server.driver.relays
        relay._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sending = Background(application.sendall, content)
        joined.run(sending)
        application.shutdown(socket.SHUT_WR)
        receive = relay.stream.receive
        joined.until(lambda: receive.is_all_here, "all of it has arrived")
        joined.client.driver.end(SessionCode.NORMAL, "")
        joined.until(lambda: joined.server.driver.ended)
        holding = joined.server.session.holding
        memory = holding.memory
        assert holding.bytes == receive.data.held > 100_000
        assert memory.holdings == {holding}
        if given_up:
            memory.make_room()
            assert is_reset(target)
        else:
            reading = Background(read_all, target)
            joined.run(reading)
            assert reading.result() == content
            joined.until(lambda: not joined.server.driver.relays)
        assert holding.bytes == 0
        assert not memory.holdings
