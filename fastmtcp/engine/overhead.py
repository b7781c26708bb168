"""What a session takes of its worker's memory beside the bytes of its streams."""

from __future__ import annotations

from fastmtcp.engine.limits import RANGE_COST, RECORD_COST, SESSION_COST, SUBFLOW_COST
from fastmtcp.engine.outbox import Outbox
from fastmtcp.engine.quota import Holding
from fastmtcp.engine.streams.table import StreamTable
from fastmtcp.engine.subflows.subflow import Subflow


class Overhead:
    """Counts it against the session's client, as its bytes are: an honest peer has little of it,
    and a hostile one could have ten times as much as of bytes.

    Gaps and streams are counted where they come and go. The rest is looked at when a peer has had
    its share of a turn, once a second, and with each sample of a subflow.
    """

    __slots__ = ("_holding", "_outbox", "_records", "_table")

    def __init__(self, holding: Holding, table: StreamTable, outbox: Outbox) -> None:
        self._holding = holding
        self._table = table
        self._outbox = outbox
        self._records = 0
        holding.add(SESSION_COST)

    def attach(self, subflow: Subflow, cost: int) -> None:
        """A subflow is there, which takes `cost` bytes beside what each takes."""
        subflow.cost = subflow.counted = SUBFLOW_COST + cost
        self._holding.add(subflow.cost)
        self._holding.client.subflows += 1

    def detach(self, subflow: Subflow) -> None:
        self._holding.client.subflows -= 1
        self._count(subflow, 0)

    def weigh(self, subflow: Subflow) -> None:
        """Count what `subflow` carries, what was read and not handled, and what its socket does not
        take."""
        bytes_ = subflow.unread + subflow.unsent
        self._count(subflow, subflow.cost + RANGE_COST * len(subflow.inflight) + bytes_)

    def check(self) -> None:
        """Count what waits to be said and what is remembered of streams, and make room if the
        worker's memory is used up."""
        records = self._outbox.records + self._table.skipped
        if records != self._records:
            self._holding.add(RECORD_COST * (records - self._records))
            self._records = records
        memory = self._holding.memory
        if memory.free < 0:
            memory.make_room()

    def end(self, subflows: list[Subflow]) -> None:
        """The session has ended, and its `subflows` are about to be closed."""
        for subflow in subflows:
            self._count(subflow, 0)
        self._holding.add(-SESSION_COST - RECORD_COST * self._records)
        self._records = 0

    def _count(self, subflow: Subflow, size: int) -> None:
        self._holding.add(size - subflow.counted)
        subflow.counted = size
