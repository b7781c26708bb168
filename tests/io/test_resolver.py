"""Name look-up: at once for addresses, on a thread for names."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from fastmtcp.io.loop import Loop
from fastmtcp.io.resolver import (
    _IDLE_THREADS,
    MAX_THREADS,
    Address,
    Resolver,
    look_up,
    numeric,
)

from tests.io.net import WAIT, run_until, turn

Result = list[Address] | OSError


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def resolver(loop: Loop) -> Iterator[Resolver]:
    resolver = Resolver(loop)
    yield resolver
    resolver.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", (socket.AF_INET, ("127.0.0.1", 80))),
        ("::1", (socket.AF_INET6, ("::1", 80, 0, 0))),
        ("localhost", None),
        ("127.0.0.1.example", None),
        ("", None),
    ],
)
def test_numeric(host: str, expected: Address | None) -> None:
    assert numeric(host, 80) == (expected if host else numeric("", 80))


def test_an_address_is_answered_at_once_and_without_a_thread(resolver: Resolver) -> None:
    before = threading.active_count()
    answers: list[Result] = []
    for _ in range(3):
        resolver.resolve("127.0.0.1", 5201, answers.append)
    assert answers == [[(socket.AF_INET, ("127.0.0.1", 5201))]] * 3
    assert threading.active_count() == before


def test_a_name_is_answered_from_the_loop(loop: Loop, resolver: Resolver) -> None:
    answers: list[Result] = []
    threads: list[threading.Thread] = []

    def on_answer(result: Result) -> None:
        answers.append(result)
        threads.append(threading.current_thread())

    resolver.resolve("localhost", 5201, on_answer)
    assert answers == []
    run_until(loop, lambda: answers)
    assert threads == [threading.current_thread()]
    (found,) = answers
    assert isinstance(found, list)
    assert {address[0] for _, address in found} <= {"127.0.0.1", "::1"}
    assert all(address[1] == 5201 for _, address in found)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".invalid", "a..b"])
def test_an_unknown_name_is_an_error_and_not_a_crash(
    loop: Loop, resolver: Resolver, host: str
) -> None:
    answers: list[Result] = []
    resolver.resolve(host, 80, answers.append)
    run_until(loop, lambda: answers)
    assert isinstance(answers[0], OSError)
    assert answers[0].strerror or str(answers[0])


@pytest.mark.parametrize("error", [LookupError("unknown encoding: idna"), MemoryError()])
def test_whatever_goes_wrong_is_an_answer(
    loop: Loop, resolver: Resolver, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = socket.getaddrinfo

    def broken(*arguments: object, **options: object) -> object:
        if options.get("flags"):
            return real(*arguments, **options)  # type: ignore[arg-type]
        raise error

    monkeypatch.setattr("fastmtcp.io.resolver.socket.getaddrinfo", broken)
    answers: list[Result] = []
    for _ in range(5):  # more than there are threads
        resolver.resolve("localhost", 80, answers.append)
    run_until(loop, lambda: len(answers) == 5)
    assert all(isinstance(answer, OSError) for answer in answers)
    monkeypatch.undo()
    resolver.resolve("localhost", 80, answers.append)
    run_until(loop, lambda: len(answers) == 6)
    assert isinstance(answers[-1], list)


def test_without_a_thread_the_question_fails_and_the_next_one_is_answered(
    loop: Loop, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    answers: list[Result] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        resolver.resolve("localhost", 80, answers.append)
        assert isinstance(answers[0], OSError)
        assert "thread" in str(answers[0])
    resolver.resolve("localhost", 80, answers.append)
    run_until(loop, lambda: len(answers) == 2)
    assert isinstance(answers[1], list)


class Names:
    """A name service that is silent about `*.slow` until it is released, and knows all others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[bytes] = []
        self.release = threading.Event()
        self._real = socket.getaddrinfo
        monkeypatch.setattr("fastmtcp.io.resolver.socket.getaddrinfo", self._answer)

    def _answer(self, host: bytes, *arguments: object, **options: object) -> object:
        if not options.get("flags"):
            self.asked.append(host)
            if host.endswith(b".slow"):
                assert self.release.wait(WAIT)
            host = b"localhost"
        return self._real(host, *arguments, **options)  # type: ignore[arg-type]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names(monkeypatch)
    yield names
    names.release.set()


def threads() -> int:
    return sum(thread.name == "resolver" for thread in threading.enumerate())


def test_slow_names_do_not_hold_the_others_of_the_same_asker_up(
    loop: Loop, resolver: Resolver, names: Names
) -> None:
    late: list[Result] = []
    answers: list[Result] = []
    for number in range(20):
        resolver.resolve(f"{number}.slow", 80, late.append, "one")
    for _ in range(5):
        resolver.resolve("good", 80, answers.append, "one")
    run_until(loop, lambda: len(answers) == 5)
    assert late == []
    names.release.set()
    run_until(loop, lambda: len(late) == 20)


def test_whoever_asks_for_the_first_time_finds_a_thread_left(
    loop: Loop, resolver: Resolver, names: Names
) -> None:
    """However many names of others hang, and however many of them wait."""
    for asker in ("one", "two", "three"):
        for number in range(300):
            resolver.resolve(f"{number}.slow", 80, lambda _: None, asker)
    answers: list[Result] = []
    resolver.resolve("good", 80, answers.append, "four")
    run_until(loop, lambda: answers)
    assert isinstance(answers[0], list)
    assert threads() <= MAX_THREADS


def test_a_share_comes_back_when_its_names_are_answered(
    loop: Loop, resolver: Resolver, names: Names
) -> None:
    late: list[Result] = []
    for number in range(100):
        resolver.resolve(f"{number}.slow", 80, late.append, "one")
    run_until(loop, lambda: len(names.asked) == MAX_THREADS // 2)
    names.release.set()
    run_until(loop, lambda: len(late) == 100)
    # What is left of the threads waits for the next names.
    run_until(loop, lambda: threads() <= _IDLE_THREADS)
    resolver.resolve("good", 80, late.append, "one")
    run_until(loop, lambda: len(late) == 101)


def test_many_questions_need_few_threads(loop: Loop, resolver: Resolver) -> None:
    answers: list[Result] = []
    for _ in range(500):
        resolver.resolve("localhost", 80, answers.append)
    assert threads() <= MAX_THREADS // 2
    run_until(loop, lambda: len(answers) == 500)


def test_what_nobody_waits_for_leaves_the_queue(
    loop: Loop, resolver: Resolver, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmtcp.io.resolver.MAX_THREADS", 4)
    monkeypatch.setattr("fastmtcp.io.resolver.MAX_QUESTIONS", 10)
    answers: list[Result] = []
    waiting = [resolver.resolve(f"{n}.slow", 80, answers.append, "one") for n in range(7)]
    assert answers == []
    # Two are on their way, and five wait: half of the places.
    resolver.resolve("more.slow", 80, answers.append, "one")
    (refused,) = answers
    assert isinstance(refused, OSError)
    # The other half is for others.
    resolver.resolve("other.slow", 80, answers.append, "two")
    assert len(answers) == 1
    for question in waiting:
        question.cancel()
    resolver.resolve("again.slow", 80, answers.append, "one")
    assert len(answers) == 1
    names.release.set()
    run_until(loop, lambda: len(answers) == 3)
    assert sorted(names.asked) == [b"0.slow", b"1.slow", b"again.slow", b"other.slow"]


def test_what_peers_choose_is_not_remembered_without_end(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmtcp.io.resolver._CACHED", 10)
    for port in range(100):
        resolver.resolve("127.0.0.1", port, lambda _result: None)
    assert len(resolver._numeric) <= 10


def test_a_look_up_that_ends_after_the_close_harms_nobody(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(loop)
    release = threading.Event()
    left = threading.Event()
    real = socket.getaddrinfo

    def slow(host: bytes, *arguments: object, **options: object) -> object:
        if options.get("flags"):
            raise socket.gaierror
        assert release.wait(WAIT)
        left.set()
        return real(host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("fastmtcp.io.resolver.socket.getaddrinfo", slow)
    answers: list[Result] = []
    resolver.resolve("localhost", 80, answers.append)
    resolver.close()
    release.set()
    assert left.wait(WAIT)
    deadline = time.monotonic() + WAIT
    while any(t.name == "resolver" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        turn(loop)
    assert answers == []


@pytest.mark.parametrize(
    ("host", "known", "asked"),
    [
        ("-a.+b", b"-a.+b", [b"-a.+b"]),
        ("x" * 64, b"", [b"x" * 64]),
        ("b\u00fccher.example", b"b\xc3\xbccher.example", [b"b\xc3\xbccher.example"]),
        (
            "b\u00fccher.example",
            b"xn--bcher-kva.example",
            [b"b\xc3\xbccher.example", b"xn--bcher-kva.example"],
        ),
        ("\ud800", b"", []),
    ],
)
def test_a_name_is_asked_for_as_it_is_and_then_as_the_dns_has_it(
    host: str, known: bytes, asked: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[object] = []

    def resolve(name: object, port: int, **_more: object) -> list[object]:
        questions.append(name)
        if name != known:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    if known:
        assert look_up(host, 80) == [(socket.AF_INET, ("192.0.2.1", 80))]
    else:
        with pytest.raises(OSError, match=r"unknown|no valid name"):
            look_up(host, 80)
    assert questions == asked
