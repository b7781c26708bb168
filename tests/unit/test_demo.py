"""The demo's parts: numbers, table, and the check of every byte."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from fastmtcp.demo import traffic
from fastmtcp.demo.demo import Row, format_table, parse_connections
from fastmtcp.demo.traffic import CorruptionError, Sample, steady_rate


class TestConnections:
    def test_a_list_of_numbers(self) -> None:
        assert parse_connections("1,3, 64") == (1, 3, 64)

    @pytest.mark.parametrize("text", ["", "0", "65", "1,,2", "a", "1;2", "-1"])
    def test_anything_else_names_the_remedy(self, text: str) -> None:
        with pytest.raises(ValueError, match="write it like 1,3,4,5,8"):
            parse_connections(text)


class TestSteadyRate:
    samples = (Sample(0.0, 500), Sample(1.0, 1500), Sample(2.0, 2500), Sample(4.0, 6500))

    def test_only_the_time_asked_for_counts(self) -> None:
        assert steady_rate(self.samples, 1.0, 2.0) == 1000

    def test_between_samples_the_count_grows_evenly(self) -> None:
        assert steady_rate(self.samples, 1.5, 3.0) == pytest.approx((4500 - 2000) / 1.5)

    def test_a_transfer_that_ended_too_early_has_no_rate(self) -> None:
        with pytest.raises(ValueError, match=r"0\.50 s too early"):
            steady_rate(self.samples, 1.0, 4.5)

    def test_an_empty_time_has_no_rate(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            steady_rate(self.samples, 1.0, 1.0)


def test_the_table_compares_with_the_first_row() -> None:
    rows = [
        Row("one plain connection", None, {"up": 20e6, "down": 19e6}),
        Row("fastmtcp, 4 connections", 4, {"up": 79e6, "down": 76e6}),
    ]
    lines = [line.split() for line in format_table(rows).splitlines()]
    assert lines[2] == ["one", "plain", "connection", "20.0", "1.00x", "19.0", "1.00x"]
    assert lines[3] == ["fastmtcp,", "4", "connections", "79.0", "3.95x", "76.0", "4.00x"]


class TestTraffic:
    def received(self, *chunks: bytes) -> int:
        """What `receive` counts when the chunks come in and the connection ends."""
        near, far = socket.socketpair()

        def send() -> None:
            # The receiver hangs up at the first wrong byte.
            with near, contextlib.suppress(BrokenPipeError):
                for chunk in chunks:
                    near.sendall(chunk)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        with far:
            far.settimeout(20)
            return traffic.receive(far, self.samples.append)

    def pattern(self, size: int) -> bytes:
        """What a sender sends first."""
        near, far = socket.socketpair()
        with near, far:
            sender = threading.Thread(target=self.send_briefly, args=(near,), daemon=True)
            sender.start()
            data = b""
            while len(data) < size:
                data += far.recv(size - len(data))
        sender.join(20)
        return data

    @staticmethod
    def send_briefly(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            traffic.send_for(sock, 20)

    @pytest.fixture(autouse=True)
    def _samples(self) -> None:
        self.samples: list[Sample] = []

    def test_a_whole_transfer_is_counted(self) -> None:
        near, far = socket.socketpair()
        sent: list[int] = []

        def send() -> None:
            with near:
                sent.append(traffic.send_for(near, 0.2))

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        with far:
            far.settimeout(20)
            total = traffic.receive(far, self.samples.append)
        sender.join(20)
        assert [total] == sent
        assert total > 0
        assert self.samples[-1].total == total

    def test_what_was_sent_is_accepted_and_a_changed_byte_is_not(self) -> None:
        data = bytearray(self.pattern(600_000))
        assert self.received(bytes(data)) == 600_000
        data[400_000] ^= 1
        with pytest.raises(CorruptionError, match="wrong data between"):
            self.received(bytes(data))

    @pytest.mark.parametrize("order", [(0, 2, 1), (0, 1, 1, 2), (0, 2)])
    def test_swapped_repeated_and_lost_chunks_are_noticed(self, order: tuple[int, ...]) -> None:
        data, size = self.pattern(3 * 65536), 65536
        chunks = [data[index * size : (index + 1) * size] for index in order]
        with pytest.raises(CorruptionError):
            self.received(*chunks)
