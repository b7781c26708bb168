"""SendBuffer against bytes, SendSide against a table of what happened to each byte."""

from __future__ import annotations

from fastmtcp.engine.streams.send_buffer import Buffer, SendBuffer
from fastmtcp.engine.streams.send_side import SendSide
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

TEXT = bytes((offset * 11 + offset // 253) % 256 for offset in range(5000))


@settings(max_examples=200)
@given(st.data())
def test_send_buffer_is_bytes_with_a_start(data: st.DataObject) -> None:
    buffer = SendBuffer()
    model = b""
    base = 0
    for _ in range(data.draw(st.integers(1, 120))):
        action = data.draw(st.sampled_from(["append", "append", "slice", "release"]))
        if action == "append":
            piece = bytes([len(model) % 256]) * data.draw(st.integers(0, 9))
            buffer.append(memoryview(piece))
            model += piece
        elif action == "slice":
            start = data.draw(st.integers(base, len(model)))
            end = data.draw(st.integers(start, len(model)))
            out: list[Buffer] = []
            buffer.slice(start, end, out)
            assert b"".join(out) == model[start:end]
        else:
            base = data.draw(st.integers(base, len(model)))
            buffer.release(base)
        assert (buffer.base, buffer.end) == (base, len(model))
    out = []
    buffer.slice(base, len(model), out)
    assert b"".join(out) == model[base:]
    buffer.clear()
    assert buffer.base == buffer.end == len(model)


class SendSideMachine(RuleBasedStateMachine):
    """Ranges are pulled, lost, acknowledged in any order, until everything is acknowledged.

    `arrived` is what the receiver holds, `flying` what may still arrive or be lost. Nothing may be
    forgotten: whatever has not arrived is flying, lost, or not sent yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.side = SendSide(opener=True, limit=100)
        self.written = 0
        self.flying: list[tuple[int, int]] = []
        self.arrived: set[int] = set()
        self.limit = 100
        self.received = -1

    @precondition(lambda self: not self.side.finished)
    @rule(size=st.integers(0, 90))
    def write(self, size: int) -> None:
        self.side.write(memoryview(TEXT)[self.written : self.written + size])
        self.written = min(self.written + size, len(TEXT))

    @precondition(lambda self: not self.side.finished)
    @rule()
    def finish(self) -> None:
        self.side.finished = True

    @precondition(lambda self: self.side.sendable)
    @rule(most=st.integers(1, 150))
    def pull(self, most: int) -> None:
        start, stop = self.side.pull(most)
        # The FIN may come on top of `most`: it costs no bytes.
        assert start < stop <= start + most + 1
        self.flying.append((start, stop))
        low, high = max(start, 0), min(stop, self.written)
        assert high <= self.side.limit
        if low < high:
            out: list[Buffer] = []
            self.side.buffer.slice(low, high, out)
            assert b"".join(out) == TEXT[low:high]

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), lost=st.booleans())
    def resolve(self, data: st.DataObject, lost: bool) -> None:
        index = data.draw(st.integers(0, len(self.flying) - 1))
        start, stop = self.flying.pop(index)
        if lost:
            # A part may have arrived before the subflow died.
            cut = data.draw(st.integers(start, stop))
            self.arrived |= set(range(start, cut))
            self.side.on_lost(start, stop)
        else:
            self.arrived |= set(range(start, stop))

    @rule(more=st.integers(0, 200), back=st.integers(0, 30))
    def ack(self, more: int, back: int) -> None:
        """An ACK of what the receiver holds now, or an older one that was overtaken."""
        while self.received in self.arrived:
            self.received += 1
        if -1 in self.arrived:
            self.limit += more
            received = max(self.received - back, 0)
            self.side.on_ack(received, self.limit - back)
            self.limit = max(self.limit - back, self.side.limit)

    @invariant()
    def nothing_is_forgotten(self) -> None:
        side = self.side
        accounted = set(self.arrived)
        for start, stop in [*self.flying, *side.lost]:
            accounted |= set(range(start, stop))
        assert set(range(-1, side.next)) <= accounted
        assert side.acked <= max(self.received, -1)
        assert side.acked <= side.next <= side.buffer.end + side.finished
        assert side.held == side.buffer.end - max(side.acked, 0) or side.acked > side.buffer.end
        assert side.held >= 0
        assert side.backlog == self.written - min(max(side.next, 0), self.written)
        assert all(start >= side.acked for start, _ in side.lost)

    def teardown(self) -> None:
        """From any state everything comes to its end."""
        self.side.finished = True
        for start, stop in self.flying:
            self.side.on_lost(start, stop)
        self.side.on_ack(-1, self.written)
        while self.side.sendable:
            start, stop = self.side.pull(40)
            self.arrived |= set(range(start, stop))
        while self.received in self.arrived:
            self.received += 1
        self.side.on_ack(self.received, 0)
        assert self.side.complete
        assert self.side.held == 0
        assert not self.side.unacked
        assert self.arrived == set(range(-1, self.written + 1))


SendSideMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestSendSide = SendSideMachine.TestCase
