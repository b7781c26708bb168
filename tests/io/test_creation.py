"""Which of several connections creates the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastmtcp.client.pool import creation
from fastmtcp.client.pool.creation import Creation
from fastmtcp.io.loop import Loop
from fastmtcp.security.handshake import Membership

from tests.io.net import run_until, turn

SESSION = Membership(b"s" * 16, b"k" * 32)


class Connection:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def authenticate(self, *, creates: bool) -> None:
        self.told.append("create" if creates else "join")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    turn(loop, 1)
    yield loop
    loop.close()


def told(*connections: Connection) -> list[list[str]]:
    return [one.told for one in connections]


def test_one_creates_and_the_others_join_it(loop: Loop) -> None:
    one_session, (a, b, c) = Creation(loop), (Connection(), Connection(), Connection())
    for one in (a, b):
        one_session.enter(one)
    assert told(a, b) == [["create"], []]
    assert one_session.may_create(a)
    one_session.passed(a, SESSION)
    one_session.enter(c)
    assert told(a, b, c) == [["create"], ["join"], ["join"]]
    assert one_session.membership is SESSION


def test_the_next_one_creates_if_the_first_fails(loop: Loop) -> None:
    one_session, (a, b, c) = Creation(loop), (Connection(), Connection(), Connection())
    for one in (a, b, c):
        one_session.enter(one)
    # One that waits, and one that never came: neither lets anybody in.
    one_session.leave(b)
    one_session.leave(Connection())
    assert told(a, b, c) == [["create"], [], []]
    one_session.leave(a)
    assert told(a, b, c) == [["create"], [], ["create"]]


def test_the_next_one_tries_too_if_the_first_gets_no_answer(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "TURN", 0.0)
    one_session, (a, b) = Creation(loop), (Connection(), Connection())
    one_session.enter(a)
    one_session.enter(b)
    run_until(loop, lambda: b.told, "its turn comes")
    assert told(a, b) == [["create"], ["create"]]
    # The one that is answered first goes on, whichever it is.
    assert one_session.may_create(b)
    assert not one_session.may_create(a)
    one_session.leave(a)
    one_session.passed(b, SESSION)
    assert not one_session.may_create(a)
