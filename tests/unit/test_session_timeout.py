"""How long a session without a subflow is kept."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import LEFT_TIMEOUT, Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.wire.errors import SessionCode
from fastmtcp.engine.wire.frames import Gone

from tests.unit.wire import collect, frames_of

BEGIN = 1e6
FIN, OTHER = True, False


def kept(*ends: tuple[float, bool], opener: bool = False, timeout: float = 120.0) -> float:
    """Seconds for which a session is kept whose subflows end so long after its begin, and so."""
    limits = Limits(session_timeout=timeout)
    session = Session(opener=opener, limits=limits, now=BEGIN, peer_streams=1)
    for number in range(len(ends)):
        session.attach(number, BEGIN)
    at = BEGIN
    for number, (seconds, by_fin) in enumerate(ends):
        at = BEGIN + seconds
        session.detach(session.subflows[number], at, by_fin=by_fin)
    for second in range(1, 1000):
        session.on_time(at + second)
        if session.ended is not None:
            assert session.ended == (SessionCode.TIMEOUT, "no subflow for too long")
            return second
    pytest.fail("it never ends")


def test_a_client_whose_connections_all_ended_with_a_fin_is_not_waited_for_so_long() -> None:
    assert LEFT_TIMEOUT == 20
    assert kept((1, FIN)) == kept((1, FIN), (1, FIN), (2, FIN)) == 20
    assert kept((1, FIN), (1, FIN), timeout=5) == 5


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_one_that_ended_in_another_way_keeps_the_full_time(cut: int) -> None:
    ends = [(1.0, number != cut) for number in range(3)]
    assert kept(*ends) == 120


def test_what_was_cut_long_ago_does_not_count() -> None:
    assert kept((1, OTHER), (20, FIN)) == 120
    assert kept((1, OTHER), (21, FIN)) == 20


def test_a_client_waits_for_its_server_whatever_was_the_end() -> None:
    assert kept((1, FIN), opener=True) == 120


def test_a_new_subflow_begins_anew() -> None:
    session = Session(opener=False, limits=Limits(session_timeout=120.0), now=BEGIN)
    session.detach(session.attach(0, BEGIN), BEGIN, by_fin=FIN)
    fresh = session.attach(1, BEGIN + 10)
    session.on_time(BEGIN + 100)
    session.detach(fresh, BEGIN + 100, by_fin=OTHER)
    session.on_time(BEGIN + 219)
    assert session.ended is None
    session.on_time(BEGIN + 221)
    assert session.ended is not None


def test_nothing_is_said_just_after_a_fin_that_would_turn_the_others_into_resets() -> None:
    session = Session(opener=False, limits=Limits(), now=BEGIN)
    for number in range(2):
        session.attach(number, BEGIN).ready = True
    session.detach(session.subflows[0], BEGIN + 1, by_fin=FIN)
    assert collect(session, BEGIN + 1.05) == []
    session.on_time(BEGIN + 1.1)
    assert (Gone(0), b"") in frames_of(collect(session, BEGIN + 1.11))
