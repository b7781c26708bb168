"""A peer that sends anything: nothing but RemoteError comes out, and memory stays bounded."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.wire.errors import RemoteError, SessionCode
from fastmtcp.engine.wire.frames import (
    Ack,
    Blocked,
    Busy,
    Closed,
    Data,
    Frame,
    Goaway,
    Gone,
    Open,
    Ping,
    Pong,
    Recall,
    Reset,
    ResetAck,
    Retire,
    Return,
)
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.property.victim import LIMITS, Victim
from tests.unit.wire import collect, frames_of, pack

STREAMS = st.one_of(st.integers(0, 6), st.integers(-2, 40), st.sampled_from([-(2**63), 2**64 - 1]))
OFFSETS = st.one_of(
    st.integers(0, 20), st.integers(-5, 5000), st.sampled_from([-(2**63), 2**63, 2**64 - 1])
)
BYTES = st.binary(max_size=40)
TEXTS = st.sampled_from(["", "a:1"]) | st.text(max_size=30)
FRAMES: st.SearchStrategy[tuple[Frame, bytes]] = st.one_of(
    st.tuples(st.builds(Open, STREAMS, OFFSETS, st.booleans(), TEXTS, TEXTS), BYTES),
    st.tuples(st.builds(Data, STREAMS, OFFSETS, st.booleans()), BYTES),
    st.tuples(st.builds(Data, st.integers(0, 4), st.integers(0, 60), st.booleans()), BYTES),
    st.tuples(st.builds(Ack, STREAMS, OFFSETS, OFFSETS, st.booleans()), st.just(b"")),
    st.tuples(st.builds(Ack, st.integers(0, 4), st.integers(0, 5), OFFSETS), st.just(b"")),
    st.tuples(st.builds(Reset, STREAMS, OFFSETS, OFFSETS), st.just(b"")),
    st.tuples(st.builds(Reset, st.integers(0, 4), st.just(0), st.integers(0, 60)), st.just(b"")),
    st.tuples(st.builds(ResetAck, STREAMS), st.just(b"")),
    st.tuples(st.builds(Closed, STREAMS), st.just(b"")),
    st.tuples(st.builds(Busy), st.just(b"")),
    st.tuples(st.builds(Gone, st.integers(0, 12)), st.just(b"")),
    st.tuples(st.builds(Retire, OFFSETS), st.just(b"")),
    st.tuples(st.builds(Blocked, STREAMS, OFFSETS), st.just(b"")),
    st.tuples(st.builds(Recall, STREAMS, OFFSETS), st.just(b"")),
    st.tuples(st.builds(Return, STREAMS, OFFSETS), st.just(b"")),
    st.tuples(st.builds(Ping, OFFSETS), st.just(b"")),
    st.tuples(st.builds(Pong, OFFSETS), st.just(b"")),
    st.tuples(st.builds(Goaway, st.integers(0, 9), st.text(max_size=5)), st.just(b"")),
)


VERBS = ["pull", "pull", "time", "open", "detach", "write", "write", "take", "finish", "reset"]
ACTIONS = st.tuples(st.sampled_from([*VERBS, "events", "confirm"]), st.integers(0, 3000))


@settings(max_examples=300)
@given(
    opener=st.booleans(),
    steps=st.lists(
        st.one_of(st.lists(FRAMES, min_size=1, max_size=4), ACTIONS, st.binary(max_size=30)),
        max_size=60,
    ),
    cut=st.integers(1, 100),
)
def test_any_frames_in_any_order(
    opener: bool, steps: list[list[tuple[Frame, bytes]] | tuple[str, int] | bytes], cut: int
) -> None:
    victim = Victim(opener=opener)
    session = victim.session
    if opener:
        for _ in range(3):
            victim.act("open", 0)
        victim.act("pull", 0)
    for turn, step in enumerate(steps):
        if session.ended is not None:
            break
        if isinstance(step, tuple):
            victim.act(*step)
        else:
            wire = step if isinstance(step, bytes) else b"".join(pack(*frame) for frame in step)
            numbers = sorted(session.subflows)
            subflow = session.subflows[numbers[turn % len(numbers)]]
            try:
                for position in range(0, len(wire), cut):
                    session.receive(
                        subflow, memoryview(wire)[position : position + cut], victim.now
                    )
            except RemoteError as error:
                session.end(error.code, str(error))
        victim.check()
    event(f"ended: {session.ended[0].name if session.ended else None}")
    session.end(SessionCode.NORMAL, "")
    victim.check()
    assert session.streams == {}
    assert session.held == 0
    assert session.table.windows.free == LIMITS.window_pool
    assert session.table.gaps.free == LIMITS.max_gaps
    assert collect(session, victim.now) == []


TAMPER = st.sampled_from(["pass"] * 6 + ["twice", "never", "late", "byte", "number"])


@settings(max_examples=200)
@given(st.data())
def test_real_traffic_that_was_tampered_with(data: st.DataObject) -> None:
    """Frames of two real sessions, dropped, repeated, swapped or changed on the way."""
    client, server = Victim(opener=True), Victim(opener=False)
    sides = {client: server, server: client}
    late: dict[Victim, list[bytes]] = {client: [], server: []}
    for _ in range(data.draw(st.integers(1, 40))):
        actor = data.draw(st.sampled_from([client, server]))
        actor.act(*data.draw(ACTIONS))
        actor.act("events", 0)
        other = sides[actor]
        for frame, payload in frames_of(collect(actor.session, actor.now)):
            tamper = data.draw(TAMPER)
            wire = bytearray(pack(frame, payload))
            if tamper == "late":
                late[other].append(bytes(wire))
                continue
            if tamper == "never":
                continue
            if tamper == "byte":
                wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
            elif tamper == "number" and not isinstance(frame, Ping | Pong | Goaway):
                frame = type(frame)(*_fields(frame, data.draw(st.integers(-1, 4000))))
                wire = bytearray(pack(frame, payload))
            deliver(other, bytes(wire) * (2 if tamper == "twice" else 1))
        for wire_late in late[actor][:2]:
            deliver(actor, wire_late)
        del late[actor][:2]
        for side in sides:
            side.check()
            if side.session.ended is not None:
                return


def _fields(frame: Frame, number: int) -> list[Any]:
    """The fields of a frame with another second number (offset, received, code ...), if any."""
    fields = [getattr(frame, name) for name in frame.__struct_fields__]
    if fields:
        fields[1 if len(fields) > 1 else 0] = number
    return fields


def deliver(victim: Victim, wire: bytes) -> None:
    session = victim.session
    if session.ended is None:
        try:
            session.receive(session.subflows[min(session.subflows)], memoryview(wire), victim.now)
        except RemoteError as error:
            session.end(error.code, str(error))


# --- floods ---------------------------------------------------------------------------------------


def every_other_byte() -> Iterator[bytes]:
    for stream in range(100):
        yield pack(Open(stream, 0, False))
        for offset in range(1, 2000, 2):
            yield pack(Data(stream, offset, False), b"x")


def single_bytes_in_order() -> Iterator[bytes]:
    for stream in range(20):
        yield pack(Open(stream, 0, False))
        for offset in range(5000):
            yield pack(Data(stream, offset, False), b"x")


def single_bytes_backwards() -> Iterator[bytes]:
    for stream in range(20):
        yield pack(Open(stream, 0, False))
        for offset in range(5000, 0, -1):
            yield pack(Data(stream, offset, False), b"x")


def opens() -> Iterator[bytes]:
    for stream in range(100_000):
        yield pack(Open(stream, 0, False, "target" * 10), b"x" * 30)


def opens_and_resets() -> Iterator[bytes]:
    for stream in range(50_000):
        yield pack(Open(stream, 0, False), b"x") + pack(Reset(stream, 0))


def resets() -> Iterator[bytes]:
    for stream in range(200_000):
        yield pack(Reset(stream, 0))


def late_data() -> Iterator[bytes]:
    yield from (pack(Reset(stream, 0)) for stream in range(1000))
    for _ in range(100):
        yield from (pack(Data(stream, 5, False), b"x") for stream in range(1000))


def skipped_ids() -> Iterator[bytes]:
    for stream in range(0, 200_000, 2):
        yield pack(Reset(stream, 0))


def pings() -> Iterator[bytes]:
    for token in range(100_000):
        yield pack(Ping(token))


def begging() -> Iterator[bytes]:
    yield pack(Open(0, 0, False))
    for limit in range(50_000):
        yield pack(Blocked(0, 2**62 + limit))


FLOODS = [
    every_other_byte,
    single_bytes_in_order,
    single_bytes_backwards,
    opens,
    opens_and_resets,
    resets,
    late_data,
    skipped_ids,
    pings,
    begging,
]


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
def test_a_flood_costs_no_more_than_the_limits(flood: Callable[[], Iterator[bytes]]) -> None:
    """Nobody reads, nobody sends: all that the flood can make us keep is kept."""
    limits = Limits(max_streams=200, max_gaps=4000, window_pool=1 * MIB)
    session = Session(opener=False, limits=limits, now=0.0)
    subflow = session.attach(0, 0.0)
    wire = memoryview(b"".join(flood()))
    tracemalloc.start()
    try:
        for position in range(0, len(wire), 64 * KIB):
            session.receive(subflow, wire[position : position + 64 * KIB], 0.0)
            # The caller looks at what has happened after each read.
            session.take_events()
    except RemoteError as error:
        assert error.code in (SessionCode.LIMIT, SessionCode.FLOW_CONTROL)  # noqa: PT017
    finally:
        used, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert used < 10 * MIB
    assert peak < 12 * MIB
