"""The event loop: edges, timers, and what comes next."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest
from fastmtcp.io.loop import ERR, HUP, IN, OUT, RDHUP, Loop

from tests.io.net import WAIT, abort, run_until, tcp_pair, turn


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestDescriptors:
    def test_an_edge_comes_once(self, loop: Loop) -> None:
        ours, theirs = tcp_pair()
        with ours, theirs:
            masks: list[int] = []
            loop.watch(theirs.fileno(), masks.append)
            run_until(loop, lambda: masks)
            assert masks == [OUT]
            ours.sendall(b"x")
            run_until(loop, lambda: len(masks) > 1)
            assert masks[1] & IN
            # Not read, and not told again.
            turn(loop, 5)
            assert len(masks) == 2
            ours.sendall(b"y")
            run_until(loop, lambda: len(masks) > 2)
            assert masks[2] & IN

    def test_the_ends_of_a_connection_show_in_the_mask(self, loop: Loop) -> None:
        for end, expected in ((socket.socket.close, RDHUP | IN), (abort, ERR | HUP | RDHUP | IN)):
            ours, theirs = tcp_pair()
            with theirs:
                masks: list[int] = []
                loop.watch(theirs.fileno(), masks.append)
                turn(loop)
                end(ours)
                run_until(loop, lambda: masks[-1] & RDHUP)  # noqa: B023
                assert masks[-1] & expected == expected
                loop.unwatch(theirs.fileno())

    def test_level_triggered_goes_on_until_it_was_read(self, loop: Loop) -> None:
        ours, theirs = tcp_pair()
        with ours, theirs:
            calls: list[int] = []

            def on_event(mask: int) -> None:
                calls.append(mask)
                if len(calls) == 3:
                    theirs.recv(100)

            loop.watch_level(theirs.fileno(), on_event)
            turn(loop)
            assert calls == []
            ours.sendall(b"x")
            run_until(loop, lambda: len(calls) >= 3)
            turn(loop, 3)
            assert len(calls) == 3

    def test_a_new_owner_gets_the_later_edges(self, loop: Loop) -> None:
        ours, theirs = tcp_pair()
        with ours, theirs:
            first: list[int] = []
            second: list[int] = []
            loop.watch(theirs.fileno(), first.append)
            turn(loop)
            loop.watch(theirs.fileno(), second.append)
            ours.sendall(b"x")
            run_until(loop, lambda: second)
            assert first == [OUT]

    def test_unwatch_ends_events_also_for_a_copy_of_the_descriptor(self, loop: Loop) -> None:
        ours, theirs = tcp_pair()
        with ours, theirs, theirs.dup():
            masks: list[int] = []
            loop.watch(theirs.fileno(), masks.append)
            turn(loop)
            loop.unwatch(theirs.fileno())
            loop.unwatch(theirs.fileno())
            seen = len(masks)
            ours.sendall(b"x")
            turn(loop, 5)
            assert len(masks) == seen

    def test_a_handler_that_goes_away_during_the_batch_is_not_called(self, loop: Loop) -> None:
        pairs = [tcp_pair() for _ in range(2)]
        calls: list[int] = []

        def end_both(_mask: int) -> None:
            calls.append(1)
            for _, theirs in pairs:
                loop.unwatch(theirs.fileno())

        for ours, theirs in pairs:
            ours.sendall(b"x")
            loop.watch(theirs.fileno(), end_both)
        turn(loop, 5)
        assert calls == [1]
        for ours, theirs in pairs:
            ours.close()
            theirs.close()

    def test_a_descriptor_number_used_again_is_watched_anew(self, loop: Loop) -> None:
        number = 0
        for _ in range(2):
            ours, theirs = tcp_pair()
            with ours, theirs:
                # The lowest free number above all others: the same both times.
                number, before = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, 400), number
                assert before in (0, number)
                masks: list[int] = []
                loop.watch(number, masks.append)
                ours.sendall(b"x")
                run_until(loop, lambda: any(mask & IN for mask in masks))  # noqa: B023
                loop.unwatch(number)
                os.close(number)


class TestTimers:
    def test_in_order_of_time_then_of_asking(self) -> None:
        clock = Clock()
        loop = Loop(clock)
        calls: list[str] = []
        for when, name in ((103, "c"), (101, "a"), (103, "d"), (102, "b"), (104, "e")):
            loop.call_at(when, lambda name=name: calls.append(name))  # type: ignore[misc]
        clock.now = 103
        turn(loop)
        assert calls == ["a", "b", "c", "d"]
        clock.now = 104
        turn(loop)
        assert calls[4:] == ["e"]
        loop.close()

    def test_cancelled_is_not_called(self) -> None:
        clock = Clock()
        loop = Loop(clock)
        calls: list[int] = []
        timers = [loop.call_later(i, lambda i=i: calls.append(i)) for i in range(5)]  # type: ignore[misc]
        timers[0].cancel()
        timers[3].cancel()
        timers[3].cancel()
        clock.now += 10
        turn(loop)
        assert calls == [1, 2, 4]
        timers[1].cancel()
        loop.close()

    def test_a_timer_may_cancel_another_of_the_same_moment(self) -> None:
        clock = Clock()
        loop = Loop(clock)
        calls: list[str] = []
        second = None

        def first() -> None:
            assert second is not None
            second.cancel()
            calls.append("first")

        loop.call_later(1, first)
        second = loop.call_later(1, lambda: calls.append("second"))
        clock.now += 1
        turn(loop)
        assert calls == ["first"]
        loop.close()

    def test_one_that_cannot_do_what_is_due_does_not_hold_up_the_rest(self) -> None:
        """It asks to be called at a time that has come, for as long as it takes."""
        clock = Clock()
        loop = Loop(clock)
        calls: list[str] = []

        def again() -> None:
            calls.append("again")
            assert len(calls) < 100
            loop.call_at(clock.now, again)

        loop.call_later(1, again)
        loop.call_later(2, lambda: calls.append("other"))
        clock.now += 5
        turn(loop)
        assert calls[:3] == ["again", "other", "again"]
        loop.close()

    def test_now_is_the_time_of_the_batch(self) -> None:
        clock = Clock()
        loop = Loop(clock)
        seen: list[float] = []

        def look() -> None:
            clock.now += 5
            seen.append(loop.now)

        loop.call_at(0, look)
        loop.call_at(0, look)
        turn(loop)
        assert seen == [100.0, 100.0]
        loop.close()

    def test_a_timer_wakes_a_loop_that_has_nothing_else(self, loop: Loop) -> None:
        fired: list[float] = []

        def fire() -> None:
            fired.append(loop.clock())
            loop.stop()

        due = loop.clock() + 0.05
        loop.call_at(due, fire)
        loop.run()
        assert fired[0] >= due


class TestSoon:
    def test_after_the_events_and_in_order(self, loop: Loop) -> None:
        calls: list[str] = []
        ours, theirs = tcp_pair()
        with ours, theirs:
            loop.call_soon(lambda: calls.append("first"))
            loop.call_soon(lambda: calls.append("second"))
            loop.watch(theirs.fileno(), lambda mask: calls.append("event"))
            turn(loop, 1)
            assert calls == ["event", "first", "second"]
            loop.unwatch(theirs.fileno())

    def test_what_is_asked_for_meanwhile_waits_for_the_next_turn(self, loop: Loop) -> None:
        """Otherwise a callback that asks for itself would keep events from their turn."""
        ours, theirs = tcp_pair()
        with ours, theirs:
            calls: list[int] = []
            masks: list[int] = []

            def again() -> None:
                calls.append(1)
                loop.call_soon(again)

            again()
            ours.sendall(b"x")
            loop.watch(theirs.fileno(), masks.append)
            run_until(loop, lambda: masks)
            assert calls
            loop.unwatch(theirs.fileno())


def test_a_signal_does_not_end_the_loop(loop: Loop) -> None:
    old = signal.signal(signal.SIGALRM, lambda number, frame: None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        done: list[int] = []
        loop.call_later(0.1, lambda: done.append(1))
        run_until(loop, lambda: done)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


class TestCallsFromOtherThreads:
    def test_they_run_on_the_loop_in_order(self) -> None:
        loop = Loop()
        seen: list[tuple[int, threading.Thread]] = []

        def call(number: int) -> None:
            seen.append((number, threading.current_thread()))

        def from_outside() -> None:
            for number in range(1000):
                assert loop.call_threadsafe(partial(call, number))

        thread = threading.Thread(target=from_outside)
        thread.start()
        run_until(loop, lambda: len(seen) == 1000)
        thread.join(WAIT)
        assert seen == [(number, threading.current_thread()) for number in range(1000)]
        loop.close()

    def test_one_wakes_a_loop_that_waits(self) -> None:
        loop = Loop()
        thread = threading.Thread(target=loop.run)
        thread.start()
        loop.call_threadsafe(loop.stop)
        thread.join(WAIT)
        assert not thread.is_alive()
        loop.close()

    def test_a_closed_loop_says_so(self) -> None:
        loop = Loop()
        loop.close()
        assert not loop.call_threadsafe(loop.stop)
        loop.close()
