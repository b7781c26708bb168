"""The soak: its plan of faults, its two ends, and what it makes of what they saw."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from perf import faults, pauses, soak, soak_end
from perf.faults import Fault
from perf.network import Network
from perf.processes import Memory
from perf.soak_end import Content, Pauses, Wanted, WrongBytesError
from perf.transfer import PERIOD


class TestFaults:
    def test_a_seed_has_one_plan_with_all_kinds_in_time(self) -> None:
        plan = faults.plan(1, 300, 4)
        assert plan == faults.plan(1, 300, 4)
        assert plan != faults.plan(2, 300, 4)
        assert {fault.kind for fault in plan} == set(faults.KINDS)
        assert all(faults.FIRST <= fault.start <= fault.end < 300 for fault in plan)
        assert plan == sorted(plan, key=lambda fault: fault.start)

    def test_one_line_is_left_unless_all_are_gone(self) -> None:
        for fault in faults.plan(1, 3000, 4):
            if fault.kind == faults.GONE:
                assert fault.lines == (0, 1, 2, 3)
            elif fault.kind == faults.SILENT:
                assert 1 <= len(fault.lines) <= 2
            elif fault.kind == faults.SLOW:
                assert 0 < fault.part < 1

    PLAN = (
        Fault(faults.SILENT, 1, 5, (0,)),
        Fault(faults.SLOW, 2, 6, (1,), 0.25),
        Fault(faults.RESET, 3, 3),
        Fault(faults.GONE, 4, 8, (0, 1)),
    )

    def test_what_comes_together_adds_up_and_ends_by_itself(self) -> None:
        assert faults.state(self.PLAN, 0) == ((), {})
        assert faults.state(self.PLAN, 3) == ((0,), {1: 0.25})
        assert faults.state(self.PLAN, 5) == ((0, 1), {1: 0.25})
        assert faults.state(self.PLAN, 8) == ((), {})
        assert sorted(faults.moments(self.PLAN)) == [1, 2, 3, 4, 5, 6, 8]

    def test_the_time_without_any_line_is_that_within_the_pause(self) -> None:
        assert faults.without_any_line(self.PLAN, 2, 0, 10) == 4
        assert faults.without_any_line(self.PLAN, 2, 5, 6) == 1
        assert faults.without_any_line(self.PLAN, 2, 0, 4) == 0


class TestSoakEnd:
    WANTED = Wanted("down", 6_000_000, PERIOD - 10)

    def test_what_is_wanted_survives_the_way(self) -> None:
        assert Wanted.unpack(self.WANTED.pack()) == self.WANTED
        for garbage in (b"", b"\xff" * len(self.WANTED.pack())):
            with pytest.raises(WrongBytesError):
                Wanted.unpack(garbage)

    def test_sizes_go_from_one_byte_to_32_mb(self) -> None:
        chance = Random(1)
        chosen = [soak_end.choose(chance) for _ in range(2000)]
        sizes = sorted(wanted.size for wanted in chosen)
        assert 1 <= sizes[0] < 10
        assert 31_000_000 < sizes[-1] <= 32_000_000
        assert {wanted.kind for wanted in chosen} == {"up", "down", "echo"}

    def test_each_byte_counts(self) -> None:
        content = Content(self.WANTED)
        whole = b"".join(content.part(at, 250_000) for at in range(0, 6_000_000, 250_000))
        assert len(whole) == 6_000_000
        assert content.part(6_000_000, 100) == b""
        # In pieces of another length, across the place where the content comes again.
        for at in range(0, 6_000_000, 99_991):
            content.compare(at, whole[at : at + 99_991])
        wrong = bytearray(whole[:1000])
        wrong[700] ^= 1
        with pytest.raises(WrongBytesError, match="byte 700 of 6000000 is wrong"):
            content.compare(0, bytes(wrong))
        # Shifted by one: bytes lost, or there twice.
        with pytest.raises(WrongBytesError, match="is wrong"):
            content.compare(0, whole[1:1001])
        with pytest.raises(WrongBytesError, match="more than the 6000000 bytes"):
            content.compare(5_999_000, whole[5_999_000:] + b"x")
        with pytest.raises(WrongBytesError, match="a clean end after 5999999 of 6000000"):
            content.compare_end(5_999_999)
        content.compare_end(6_000_000)

    @pytest.mark.parametrize("kind", soak_end.KINDS)
    @pytest.mark.parametrize("size", [1, 500_000])
    def test_a_transfer_without_faults_is_right(self, kind: str, size: int) -> None:
        with _served(soak_end.serve_one) as address:
            wanted = Wanted(kind, size, 5)
            assert soak_end.attempt(address, wanted, 16_384, Pauses()) == (soak_end.RIGHT, "")

    @pytest.mark.parametrize("kind", soak_end.KINDS)
    def test_a_wrong_byte_is_found_at_either_end(self, kind: str) -> None:
        def spoil(sock: socket.socket) -> None:
            """Another transfer's content, as a mix-up of two streams would bring."""
            with sock, contextlib.suppress(OSError):  # the other end may go at once
                wanted = Wanted.unpack(sock.recv(17, socket.MSG_WAITALL))
                other = Content(wanted._replace(begin=wanted.begin + 1))
                if kind == "up":
                    try:
                        soak_end.receive(sock, other, 1 << 18, Pauses())
                    except WrongBytesError as error:
                        soak_end.read_all(sock)
                        sock.sendall(soak_end.answer(str(error), Pauses()))
                else:
                    soak_end.send(sock, other, 1000)
                    soak_end.read_all(sock)

        with _served(spoil) as address:
            wanted = Wanted(kind, 500_000, 5)
            outcome, detail = soak_end.attempt(address, wanted, 16_384, Pauses())
        assert (outcome, detail) == (soak_end.WRONG, "byte 0 of 500000 is wrong")

    @pytest.mark.parametrize(
        ("linger", "outcome"), [(b"", soak_end.WRONG), (struct.pack("ii", 1, 0), soak_end.FAILED)]
    )
    def test_an_early_end_is_wrong_and_a_reset_a_failure(self, linger: bytes, outcome: str) -> None:
        def leave(sock: socket.socket) -> None:
            with sock:
                wanted = Wanted.unpack(sock.recv(17, socket.MSG_WAITALL))
                soak_end.read_all(sock)
                sock.sendall(Content(wanted).part(0, 10))
                if linger:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        with _served(leave) as address:
            found, detail = soak_end.attempt(address, Wanted("down", 100, 0), 1000, Pauses())
        assert (found, bool(detail)) == (outcome, True)

    def test_an_answer_that_is_cut_off_is_wrong(self) -> None:
        whole = soak_end.answer("", Pauses())
        assert soak_end.read_answer(whole) == ("", 0, 0)
        for length in range(len(whole)):
            with pytest.raises(WrongBytesError, match="the server's answer"):
                soak_end.read_answer(whole[:length])

    def test_what_is_wanted_may_come_in_pieces(self) -> None:
        near, far = socket.socketpair()
        thread = threading.Thread(target=soak_end.serve_one, args=(far,))
        thread.start()
        with near:
            for byte in self.WANTED._replace(size=3).pack():
                near.sendall(bytes([byte]))
                time.sleep(0.001)
            near.shutdown(socket.SHUT_WR)
            assert soak_end.read_all(near) == Content(self.WANTED).part(0, 3)
        thread.join()

    def test_a_reset_is_no_clean_end_whichever_thread_hears_of_it(self) -> None:
        def reset(sock: socket.socket) -> None:
            with sock:
                sock.recv(17, socket.MSG_WAITALL)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        for _ in range(50):
            with _served(reset) as address:
                found = soak_end.attempt(address, Wanted("echo", 9_000_000, 0), 1000, Pauses())
            assert found[0] == soak_end.FAILED


@contextlib.contextmanager
def _served(serve: Callable[[socket.socket], None]) -> Iterator[tuple[str, int]]:
    """One connection's server, for the time of the `with` block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: serve(listener.accept()[0]))
        thread.start()
        yield listener.getsockname()
        thread.join()


class TestWaits:
    def test_who_waits_is_told_again_and_again(self) -> None:
        waiters = soak_end.Waiters()
        first, second = Pauses(), Pauses()
        second.last = first.last + 5
        with waiters.waiting(first, Wanted("up", 5, 0)):
            with waiters.waiting(second, Wanted("down", 6, 0)):
                assert waiters.since(first.last + 1, 0.0) == []
                now = first.last + 2
                told = {"kind": "up", "size": 5, "since": first.last - 9.0, "at": now - 9.0}
                assert waiters.since(now, 9.0) == waiters.since(now, 9.0) == [told]
                assert [one["size"] for one in waiters.since(second.last + 2, 9.0)] == [5, 6]
            assert [one["size"] for one in waiters.since(second.last + 2, 9.0)] == [5]
        assert waiters.since(second.last + 2, 9.0) == []

    def test_a_long_pause_with_a_line_is_written_down_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pauses, "ask", lambda namespace: {"program": namespace, "workers": []})
        plan = [
            Fault(faults.GONE, 10, 13, (0, 1)),
            Fault(faults.SILENT, 30, 40, (0,)),
            Fault(faults.RESET, 31, 31),
            Fault(faults.SLOW, 90, 99, (0,)),
        ]
        recorder = pauses.PauseRecorder(
            Network("client", "server"), 2, plan, [2.0, 31.0], time.monotonic() - 40
        )

        def hear(since: float, at: float) -> None:
            recorder.hear({"kind": "up", "size": 5, "since": since, "at": at})

        hear(10, 40.1)  # nobody was asked: 27 s with a line, and long
        hear(39.2, 40.1)  # not long
        hear(38, 30)  # told too late
        hear(10, 40.2)  # known
        (pause,) = recorder.pauses
        assert (pause.since, pause.at) == (10, 40.1)
        assert [fault.kind for fault in pause.faults] == [faults.GONE, faults.SILENT]
        assert pause.resets == [2.0, 31.0]
        assert (pause.client["program"], pause.server["program"]) == ("client", "server")

    def test_the_lines_in_words(self) -> None:
        plan = [Fault(faults.SILENT, 1, 5, (0,)), Fault(faults.SLOW, 2, 6, (1,), 0.25)]
        assert pauses.describe(plan, 3, 3) == "10.77.0.11 silent, 10.77.0.12 25%, 10.77.0.13 whole"

    def test_subflows_are_counted_by_the_clients_address(self) -> None:
        def document(program: str, *subflows: tuple[str, str]) -> object:
            ends = ("local", "remote") if "client" in program else ("remote", "local")
            made = [
                {ends[0]: f"{near}:1", ends[1]: "far:7700", "state": state}
                for near, state in subflows
            ]
            return {"program": program, "workers": [{"sessions": [{"subflows": made}]}]}

        those = (("a", "active"), ("b", "suspect"), ("a", "active"))
        for program in ("fastmtcp-client", "fastmtcp-server"):
            assert pauses.subflows_in(document(program, *those)) == "2 x a active, 1 x b suspect"
        assert pauses.subflows_in(None) == "no answer"


class TestSoak:
    @staticmethod
    def soaked(
        *outcomes: str, last: int = 100, replaced: Sequence[str] = (), times: int = 1
    ) -> soak.Soaked:
        transfers: list[soak.Transfer] = [
            {"kind": "up", "size": 1_000_000, "start": at, "end": at + 1.0, "outcome": outcome,
             "detail": "oh", "pause": 3.0, "pause_end": at + 1.0}
            for at, outcome in enumerate(outcomes)
        ]  # fmt: skip

        def sample(at: float, own: int) -> soak.Sample:
            return soak.Sample(at, Memory(50_000_000, own * 1_000_000), Memory(1, 1), (int(at), 7))

        samples = [sample(at * times, 100 if at < 30 else last) for at in range(40)]
        plan = [Fault(faults.GONE, 0, 2, (0, 1)), Fault(faults.SILENT, 35, 36, (0,))]
        return soak.Soaked(40 * times, 2, plan, [1.0, 2.0, 39.0], transfers, sample(0, 9), samples,
                           sample(41, 9), sample(90, 9), list(replaced), [])  # fmt: skip

    def test_nothing_is_wrong_if_all_is_right_and_memory_grows_by_less_than_a_twentieth(
        self,
    ) -> None:
        assert soak.problems(self.soaked("right", "right", last=105, times=60)) == []
        assert soak.problems(self.soaked("right", last=50, times=60)) == []
        assert soak.problems(self.soaked("right", last=125)) == []
        assert len(soak.problems(self.soaked("right", last=126))) == 1

    def test_whatever_is_wrong_is_said(self) -> None:
        found = soak.problems(self.soaked("right", "wrong", "failed", "failed", last=106, times=60,
                                          replaced=["fastmtcp-server"]))  # fmt: skip
        assert found == [
            "1 of 4 transfers had wrong bytes; the first: "
            "up of 1000000 bytes, from 1.0 to 2.0 s: oh",
            "2 of 4 transfers failed; the first: up of 1000000 bytes, from 2.0 to 3.0 s: oh",
            "a worker of fastmtcp-server is another one than before",
            "the client's memory is not flat: 6% more in the last quarter than in the second, "
            "with 2070 subflows, 870 then",
        ]
        assert soak.problems(self.soaked()) == ["not one transfer was done"]

    def test_a_row_for_each_quarter(self) -> None:
        rows = [
            [cell.strip() for cell in row.strip("|").split("|")]
            for row in soak.report(self.soaked(*["right"] * 12)).splitlines()[2:]
        ]
        names = [row[0] for row in rows]
        assert names == ["before", *(f"quarter {n}" for n in (1, 2, 3, 4)), "after", "at rest"]
        # 12 ends, at 1 to 12 s, of which 9 are within the first 10; a pause from -2 to 1 s has
        # one second without any line, one from 1 to 4 s another, from 2 s on none.
        assert rows[1][1:9] == ["9", "9", "2", "0", "0", "1", "3.00", "3.00"]
        assert rows[2][1:3] == ["3", "3"]
        assert rows[4][3:7] == ["1", "1", "0", "0"]
        assert rows[4][9:12] == ["50.0", "100.0", "34"]
        assert [row[11] for row in rows[-2:]] == ["41", "90"]
