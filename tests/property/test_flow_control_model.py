"""Windows that share a pool: what is out never exceeds it, whatever becomes of the frames."""

from __future__ import annotations

from unittest.mock import patch

from fastmtcp.engine.limits import Limits
from fastmtcp.engine.streams import flow_control
from fastmtcp.engine.streams.flow_control import ReceiveWindow, WindowPool
from fastmtcp.engine.streams.reassembly import GapPool
from fastmtcp.engine.streams.receive_side import ReceiveSide
from fastmtcp.engine.streams.send_side import SendSide
from fastmtcp.engine.wire.frames import Ack, Blocked, Data, Frame, Recall, Return
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.wire import START

ACTIONS = [
    *("write", "write", "send", "send", "take", "take"),
    *("ack", "ask", "ask", "recall", "recall", "finish", "close"),
]


class Flow:
    """One direction of a stream: a sender and a receiver, and all frames there ever were between
    them. Any of them may arrive at any time, and again."""

    def __init__(self, limits: Limits, pool: WindowPool) -> None:
        self.send = SendSide(opener=False, limit=limits.floor_window)
        self.receive = ReceiveSide(limits, pool, GapPool(1000), START)
        self.to_receiver: list[Frame] = []
        self.to_sender: list[Frame] = []
        self.closed = False

    def act(self, action: str, size: int, streams: int, now: float) -> None:
        send, window = self.send, self.receive.window
        if action == "write" and not send.finished:
            send.write(memoryview(bytes(max(0, min(size, send.limit - send.buffer.end)))))
        elif action == "send" and send.sendable:
            start, stop = send.pull(max(size, 1))
            self.to_receiver.append(Data(start, stop, send.finished and stop > send.buffer.end))
        elif action == "take":
            count = min(size, self.receive.data.ready_bytes)
            self.receive.data.take(count)
            window.take(count, now)
        elif action == "ack":
            self.to_sender.append(Ack(0, self.receive.received, window.tell()))
        elif action == "ask":
            self.to_receiver.append(Blocked(0, send.limit + send.returned))
        elif action == "recall":
            unused = window.unused(streams)
            if unused:
                self.to_sender.append(Recall(0, window.returned + unused))
        elif action == "finish":
            send.finished = True
        elif action == "close":
            window.close()
            self.closed = True

    def deliver_up(self, frame: Frame, now: float) -> None:
        receive = self.receive
        if isinstance(frame, Data):
            start, stop, fin = frame.stream, frame.offset, frame.fin
            receive.accept(start, memoryview(bytes(stop - fin - start)), fin)
        elif isinstance(frame, Blocked):
            receive.window.on_blocked(frame.limit, receive.data.ready_bytes, now)
        elif isinstance(frame, Return):
            receive.window.on_return(frame.credit, receive.data.highest)

    def deliver_down(self, frame: Frame) -> None:
        if isinstance(frame, Ack):
            self.send.on_ack(frame.received, frame.limit)
        elif isinstance(frame, Recall):
            self.to_receiver.append(Return(0, self.send.give_back(frame.credit)))

    @property
    def most(self) -> int:
        """How many bytes beyond what the application took the peer may make us hold."""
        send = self.send
        return (send.buffer.end if send.finished else send.limit) - self.receive.window.taken


@settings(max_examples=300)
@given(st.data())
def test_windows_of_one_session(data: st.DataObject) -> None:
    floor = data.draw(st.integers(1, 1000))
    limits = Limits(
        floor_window=floor,
        start_window=floor * data.draw(st.integers(1, 8)),
        max_window=floor * data.draw(st.integers(8, 64)),
        window_pool=data.draw(st.integers(0, floor * 100)),
    )
    with patch.object(flow_control, "_LARGE", floor * data.draw(st.integers(4, 64))):
        check_windows(data, floor, limits)


def check_windows(data: st.DataObject, floor: int, limits: Limits) -> None:
    now = START
    pool = WindowPool(limits.window_pool)
    flows = [Flow(limits, pool) for _ in range(data.draw(st.integers(1, 4)))]
    for _ in range(data.draw(st.integers(1, 100))):
        flow = data.draw(st.sampled_from(flows))
        now += data.draw(st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.1, 0.3, 6.0]))
        if flow.closed:
            continue
        told = flow.receive.window.limit + flow.receive.window.returned
        kind = data.draw(st.sampled_from(["act", "act", "up", "down"]))
        if kind == "act":
            size = data.draw(st.integers(0, 8 * floor))
            flow.act(data.draw(st.sampled_from(ACTIONS)), size, len(flows), now)
        elif kind == "up" and flow.to_receiver:
            flow.deliver_up(data.draw(st.sampled_from(flow.to_receiver)), now)
        elif kind == "down" and flow.to_sender:
            flow.deliver_down(data.draw(st.sampled_from(flow.to_sender)))
        window = flow.receive.window
        assert window.limit + window.returned >= told, "the limit of the wire never goes back"
        check_pool(flows, pool, floor, limits)
    for flow in flows:
        if not flow.closed:
            check_progress(flow, floor, now)
        flow.receive.window.close()
    assert pool.free == limits.window_pool
    assert pool.hungry == pool.satisfied == 0


def check_pool(flows: list[Flow], pool: WindowPool, floor: int, limits: Limits) -> None:
    alive = [flow for flow in flows if not flow.closed]
    out = sum(flow.receive.window.out for flow in alive)
    assert pool.free == limits.window_pool - out >= 0
    # The bound: all that peers can make this session hold, beyond the floor of each stream.
    assert sum(max(0, flow.most - floor) for flow in alive) <= limits.window_pool
    hungry = [flow.receive.window for flow in alive if flow.receive.window.hungry]
    assert pool.hungry == len(hungry)
    assert pool.satisfied == out - sum(window.out for window in hungry)
    for flow in alive:
        send, window = flow.send, flow.receive.window
        assert window.out >= 0
        assert floor <= window.wanted <= max(limits.max_window, limits.start_window, floor)
        assert send.limit <= window.limit, (
            "no frame, however old, lets more be sent than is counted"
        )
        assert send.returned >= window.returned
        assert send.next - (send.next > send.buffer.end) <= send.limit


def check_progress(flow: Flow, floor: int, now: float) -> None:
    """Nobody waits for ever: once everything has arrived there is credit again."""
    while flow.send.sendable:
        flow.act("send", 1 << 30, 1, now)
    for frame in flow.to_receiver:
        flow.deliver_up(frame, now)
    flow.act("take", 1 << 30, 1, now)
    flow.act("ack", 0, 1, now)
    flow.deliver_down(flow.to_sender[-1])
    send, window = flow.send, flow.receive.window
    assert window.taken == send.buffer.end
    if not send.finished:
        assert send.limit - window.taken >= floor


@given(st.integers(1, 4096), st.integers(0, 100_000), st.lists(st.integers(1, 5000), max_size=50))
def test_a_sender_never_waits_for_ever(floor: int, pool: int, takes: list[int]) -> None:
    """Whenever the application has taken everything there is credit, told or worth telling."""
    limits = Limits(floor_window=floor, start_window=4 * floor, window_pool=pool)
    window = ReceiveWindow(limits, WindowPool(pool), START)
    told = window.limit
    for take in takes:
        size = min(take, told - window.taken)
        window.take(size, START)
        if window.worth_telling:
            told = window.tell()
        assert told - window.taken > window.size // 2
