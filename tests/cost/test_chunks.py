"""What a chunk costs in Python: calls, and memory. The engine alone, its frames passed by hand."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Protocol

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.session import Session

from tests.cost import budgets
from tests.unit.wire import Pair

CHUNK = bytes(64 * KIB)
CHUNKS = 4
WARM_UP = 50


class Meter(Protocol):
    """Measures what is done in its `with` blocks."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class Calls:
    """Counts calls of Python functions and, from Python, of C functions."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        sys.setprofile(self._count)

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        # The profiler is switched off by a call, too.
        if event in ("call", "c_call") and argument is not sys.setprofile:
            self.count += frame.f_code.co_name != "__exit__"


class Peak:
    """The most bytes that were allocated at a time beyond those at the start of a block."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> None:
        tracemalloc.reset_peak()
        self._before = tracemalloc.get_traced_memory()[0]

    def __exit__(self, *error: object) -> None:
        self.bytes = max(self.bytes, tracemalloc.get_traced_memory()[1] - self._before)


class Transfer:
    """A stream over one subflow that never has to wait."""

    def __init__(self) -> None:
        self.pair = Pair(subflows=1, limits=Limits(floor_window=MIB))
        self.source, self.sink = self.pair.open(b"x")
        self.pair.take(self.sink)
        nothing = Nothing()
        for _ in range(WARM_UP):
            self.round(nothing, nothing, nothing)

    def round(self, sending: Meter, receiving: Meter, acknowledging: Meter) -> None:
        """CHUNKS go over, are taken and acknowledged."""
        pair, sink = self.pair, self.sink
        with sending:
            for _ in range(CHUNKS):
                self.source.write(memoryview(CHUNK))
            sent = self.said_by(pair.client)
        wire = memoryview(b"".join(sent))
        assert len(wire) > CHUNKS * len(CHUNK)
        del sent
        subflow = pair.server.subflows[0]
        with receiving:
            pair.server.receive(subflow, wire, pair.now)
            ready = sink.receive.data.ready
            while ready:
                sink.take(len(ready[0]), pair.now)
        pair.now += 0.03
        with acknowledging:
            pair.server.on_time(pair.now)
            sent = self.said_by(pair.server)
        wire = memoryview(b"".join(sent))
        subflow = pair.client.subflows[0]
        with acknowledging:
            pair.client.receive(subflow, wire, pair.now)
        pair.client.on_time(pair.now)

    def said_by(self, session: Session) -> list[bytes | bytearray | memoryview]:
        said: list[bytes | bytearray | memoryview] = []
        while (subflow := session.pick(self.pair.now)) is not None:
            said += session.pull(subflow, self.pair.now)[0]
        return said


@pytest.fixture
def transfer() -> Iterator[Transfer]:
    """In its steady state, and no collector that comes in between."""
    gc.collect()
    gc.disable()
    yield Transfer()
    gc.enable()


def test_calls(transfer: Transfer) -> None:
    sending, receiving, acknowledging = Calls(), Calls(), Calls()
    rounds = 10
    for _ in range(rounds):
        transfer.round(sending, receiving, acknowledging)
    budgets.CALLS_SENDING.check(sending.count / rounds / CHUNKS)
    budgets.CALLS_RECEIVING.check(receiving.count / rounds / CHUNKS)
    budgets.CALLS_ACK.check(acknowledging.count / rounds)


def test_no_payload_is_copied(transfer: Transfer) -> None:
    sending, receiving, acknowledging = Peak(), Peak(), Peak()
    tracemalloc.start()
    try:
        for _ in range(10):
            transfer.round(sending, receiving, acknowledging)
    finally:
        tracemalloc.stop()
    budgets.PEAK_SENDING.check(sending.bytes / CHUNKS)
    budgets.PEAK_RECEIVING.check(receiving.bytes / CHUNKS)


def test_what_a_chunk_on_its_way_holds(transfer: Transfer) -> None:
    views = [memoryview(CHUNK) for _ in range(CHUNKS)]
    before = sys.getallocatedblocks()
    for view in views:
        transfer.source.write(view)
    said = transfer.said_by(transfer.pair.client)
    del said
    held = sys.getallocatedblocks() - before
    budgets.BLOCKS_IN_FLIGHT.check(held / CHUNKS)


def test_a_chunk_leaves_nothing_behind(transfer: Transfer) -> None:
    nothing = Nothing()
    rounds = 500
    before = sys.getallocatedblocks()
    for _ in range(rounds):
        transfer.round(nothing, nothing, nothing)
    kept = sys.getallocatedblocks() - before
    budgets.BLOCKS_KEPT.check(kept / rounds / CHUNKS)
