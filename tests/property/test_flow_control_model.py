"""Windows that share a pool: the limit never goes back, the pool is never overdrawn."""

from __future__ import annotations

from unittest.mock import patch

from fastmtcp.engine.limits import Limits
from fastmtcp.engine.streams import flow_control
from fastmtcp.engine.streams.flow_control import ReceiveWindow, WindowPool
from hypothesis import given, settings
from hypothesis import strategies as st

ACTIONS = ["send", "send", "take", "take", "tell", "blocked", "blocked", "start", "close"]


class Flow:
    """One stream: what its peer sent within the credit, what its application took."""

    def __init__(self, limits: Limits, pool: WindowPool) -> None:
        self.window = ReceiveWindow(limits, pool)
        self.told = self.window.limit
        self.sent = 0
        self.closed = False


@settings(max_examples=200)
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
    now = 0.0
    pool = WindowPool(limits.window_pool)
    flows = [Flow(limits, pool) for _ in range(data.draw(st.integers(1, 4)))]
    for _ in range(data.draw(st.integers(1, 80))):
        flow = data.draw(st.sampled_from(flows))
        window = flow.window
        action = data.draw(st.sampled_from(ACTIONS))
        now += data.draw(st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.1, 0.3, 6.0]))
        if flow.closed:
            continue
        if action == "send":
            flow.sent += data.draw(st.integers(0, flow.told - flow.sent))
        elif action == "take":
            window.take(data.draw(st.integers(0, flow.sent - window.taken)), now)
        elif action == "tell":
            told = window.tell()
            assert told >= flow.told
            assert not window.worth_telling
            flow.told = told
        elif action == "blocked":
            waiting = data.draw(st.integers(0, flow.sent - window.taken))
            size = window.size
            if window.on_blocked(data.draw(st.integers(0, flow.told)), waiting, now):
                assert waiting * 4 <= size < window.size <= 2 * size
            else:
                assert window.size == size
        elif action == "start":
            window.start()
        else:
            window.close()
            flow.closed = True
            assert window.tell() >= flow.told
        grown = sum(other.window.size + other.window.excess - floor for other in flows)
        assert pool.free >= 0
        assert pool.free + grown == limits.window_pool
        for other in flows:
            assert other.window.size >= floor
            assert other.window.excess >= 0
            assert other.window.size <= max(limits.max_window, limits.start_window)
            if not other.closed:
                # What the peer may make us hold, now and with what it has been told.
                most = other.window.size + other.window.excess
                assert other.told - other.window.taken <= most
                assert other.sent <= other.told == other.window.limit
    for flow in flows:
        flow.window.close()
    assert pool.free == limits.window_pool


@given(st.integers(1, 4096), st.integers(0, 100_000), st.lists(st.integers(1, 5000), max_size=50))
def test_a_sender_never_waits_for_ever(floor: int, pool: int, takes: list[int]) -> None:
    """Whenever the application has taken everything there is credit, told or worth telling."""
    limits = Limits(floor_window=floor, start_window=4 * floor, window_pool=pool)
    window = ReceiveWindow(limits, WindowPool(pool))
    told = window.limit
    for take in takes:
        size = min(take, told - window.taken)
        window.take(size, 0.0)
        if window.worth_telling:
            told = window.tell()
        assert told - window.taken > window.size // 2
