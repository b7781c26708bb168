"""The two ends of a soak's transfers: `python -m perf.soak_end serve|run HOST:PORT`.

A connection begins with what is wanted: up, down or echo, how many bytes, and where in the
content they begin. So both ends know each byte that has to come, and compare it.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any, NamedTuple

import click
from fastmtcp.endpoint import Endpoint

from perf.command import start
from perf.transfer import PERIOD, STALL

UP, DOWN, ECHO = KINDS = ("up", "down", "echo")
LARGEST = 32_000_000
LONG, TELL_EVERY = 1.0, 0.25
"""Seconds without a byte from which on it is told, and how often."""
RIGHT, WRONG, FAILED = "right", "wrong", "failed"

_WANTED = struct.Struct(">BQQ")
_CHUNKS = (1_000, 16_384, 262_144)


class WrongBytesError(Exception):
    """What arrived is not what was sent."""


class EarlyEndError(WrongBytesError):
    """A clean end where bytes have to come."""


class Wanted(NamedTuple):
    """One transfer: its kind, its bytes, and where in the content they begin."""

    kind: str
    size: int
    begin: int

    def pack(self) -> bytes:
        return _WANTED.pack(KINDS.index(self.kind), self.size, self.begin)

    @staticmethod
    def unpack(data: bytes) -> Wanted:
        try:
            kind, size, begin = _WANTED.unpack(data)
            return Wanted(KINDS[kind], size, begin)
        except (struct.error, IndexError):
            raise WrongBytesError(f"a transfer that begins with {data!r}") from None


def choose(chance: Random) -> Wanted:
    """A transfer of 1 byte to LARGEST: mostly as many of each length, some more large ones."""
    if chance.random() < 0.2:
        size = chance.randint(1, LARGEST)
    else:
        size = int(math.exp(chance.uniform(0, math.log(LARGEST))))
    return Wanted(chance.choice(KINDS), size, chance.randrange(PERIOD))


class Content:
    """The bytes that a transfer has to carry."""

    _data = Random(PERIOD).randbytes(PERIOD)
    _twice = _data + _data[: max(_CHUNKS)]

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def part(self, position: int, most: int) -> bytes:
        """The bytes from there on, at most so many; nothing at the end."""
        count = min(most, self._wanted.size - position)
        offset = (self._wanted.begin + position) % PERIOD
        return self._twice[offset : offset + count]

    def compare(self, position: int, data: bytes) -> None:
        """Raise WrongBytesError if `data` is not what stands there."""
        right = self.part(position, len(data))
        if data == right:
            return
        if len(right) < len(data) and data.startswith(right):
            raise WrongBytesError(f"more than the {self._wanted.size} bytes that were sent")
        first = next(i for i, (a, b) in enumerate(zip(data, right, strict=False)) if a != b)
        raise WrongBytesError(f"byte {position + first} of {self._wanted.size} is wrong")

    def compare_end(self, position: int) -> None:
        """Raise EarlyEndError if the end does not stand there."""
        if position != self._wanted.size:
            raise EarlyEndError(f"a clean end after {position} of {self._wanted.size} bytes")


class Pauses:
    """The longest time without a byte, and when it ended (time.monotonic())."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.longest = self.at = 0.0

    def note(self) -> None:
        """Something has come."""
        now = time.monotonic()
        if now - self.last > self.longest:
            self.longest, self.at = now - self.last, now
        self.last = now


Waits = dict[str, Any]
"""Who waits: kind, size, and `since` and `at` in seconds since the start."""


class Waiters:
    """Those who wait for bytes now; tells, again and again, who has had none for long."""

    def __init__(self) -> None:
        self._waiting: dict[Pauses, Wanted] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def waiting(self, pauses: Pauses, wanted: Wanted) -> Iterator[None]:
        with self._lock:
            self._waiting[pauses] = wanted
        try:
            yield
        finally:
            with self._lock:
                del self._waiting[pauses]

    def since(self, now: float, begin: float) -> list[Waits]:
        """Those who have had no byte for more than LONG."""
        with self._lock:
            waiting = [(p.last, w) for p, w in self._waiting.items() if now - p.last > LONG]
        return [
            {"kind": wanted.kind, "size": wanted.size, "since": last - begin, "at": now - begin}
            for last, wanted in waiting
        ]

    def tell(self, begin: float, say: Callable[[str], None]) -> None:
        """For ever: a line of JSON for each of them."""
        while True:
            time.sleep(TELL_EVERY)
            for waits in self.since(time.monotonic(), begin):
                say(json.dumps({"waits": waits}))


def send(sock: socket.socket, content: Content, chunk: int) -> None:
    """All of it, and the FIN."""
    position = 0
    while data := content.part(position, chunk):
        position += sock.send(data)
    sock.shutdown(socket.SHUT_WR)


def receive(sock: socket.socket, content: Content, chunk: int, pauses: Pauses) -> None:
    """Compare what comes up to the FIN. Raises WrongBytesError."""
    position = 0
    while data := sock.recv(chunk):
        pauses.note()
        content.compare(position, data)
        position += len(data)
    pauses.note()
    content.compare_end(position)


_waiters = Waiters()


def do(address: tuple[str, int], wanted: Wanted, chunk: int, pauses: Pauses) -> None:
    """One transfer. Raises OSError, or WrongBytesError for what either end has found."""
    content = Content(wanted)
    with socket.create_connection(address, STALL) as sock:
        sock.sendall(wanted.pack())
        if wanted.kind == DOWN:
            sock.shutdown(socket.SHUT_WR)
            with _waiters.waiting(pauses, wanted):
                receive(sock, content, chunk, pauses)
        elif wanted.kind == UP:
            send(sock, content, chunk)
            wrong, pauses.longest, pauses.at = read_answer(read_all(sock))
            if wrong:
                raise WrongBytesError(wrong)
        else:
            with _waiters.waiting(pauses, wanted), sending(sock, content, chunk):
                receive(sock, content, chunk, pauses)


@contextlib.contextmanager
def sending(sock: socket.socket, content: Content, chunk: int) -> Iterator[None]:
    """Send for the time of the `with` block; what goes wrong is told at its end.

    The socket must not be closed before that: the sender might then write into another one that
    got its number. And the kernel tells of a reset once: if the sender hears of it, the reader sees
    what looks like an end.
    """
    errors: list[OSError] = []

    def run() -> None:
        try:
            send(sock, content, chunk)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    except EarlyEndError:
        _end(sock, thread)
        # Behind a FIN it would be a broken pipe.
        if errors and isinstance(errors[0], ConnectionResetError):
            raise errors[0] from None
        raise
    except BaseException:
        _end(sock, thread)
        raise
    thread.join()
    if errors:
        raise errors[0]


def _end(sock: socket.socket, sender: threading.Thread) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sender.join()


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(4096), b""))


def answer(wrong: str, pauses: Pauses) -> bytes:
    """What the server says of an upload: what is wrong, if anything, and its longest pause."""
    return json.dumps([wrong, pauses.longest, pauses.at]).encode()


def read_answer(data: bytes) -> tuple[str, float, float]:
    try:
        wrong, longest, at = json.loads(data)
        return str(wrong), float(longest), float(at)
    except (ValueError, TypeError):
        raise WrongBytesError(f"the server's answer, of {len(data)} bytes, is none") from None


def serve_one(sock: socket.socket) -> None:
    """The server's end of one transfer."""
    with sock, contextlib.suppress(OSError):
        sock.settimeout(STALL)
        pauses = Pauses()
        try:
            first = b""
            # Not MSG_WAITALL, which does nothing on a socket with a time limit.
            while len(first) < _WANTED.size and (more := sock.recv(_WANTED.size - len(first))):
                first += more
            wanted = Wanted.unpack(first)
            content = Content(wanted)
            if wanted.kind == UP:
                with _waiters.waiting(pauses, wanted):
                    receive(sock, content, max(_CHUNKS), pauses)
                sock.sendall(answer("", pauses))
            elif wanted.kind == DOWN:
                send(sock, content, max(_CHUNKS))
            else:
                while data := sock.recv(max(_CHUNKS)):
                    sock.sendall(data)
        except WrongBytesError as error:
            # What comes after it has to go, or the close is a reset that overtakes the answer.
            while sock.recv(max(_CHUNKS)):
                pass
            sock.sendall(answer(f"at the server: {error}", pauses))


@click.group()
def soak_end() -> None:
    """One end of a soak."""


@soak_end.command()
@click.argument("where", type=Endpoint.parse)
@click.option("--begin", type=float, required=True, help="The start, by time.monotonic().")
def serve(where: Endpoint, begin: float) -> None:
    """Serve transfers until SIGTERM, and tell who waits for bytes."""
    say = partial(print, flush=True)
    threading.Thread(target=_waiters.tell, args=(begin, say), daemon=True).start()
    with socket.create_server((where.host, where.port), backlog=128) as listener:
        print("ready", file=sys.stderr, flush=True)
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve_one, args=(sock,), daemon=True).start()


@soak_end.command()
@click.argument("where", type=Endpoint.parse)
@click.option("--seed", type=int, required=True)
@click.option("--begin", type=float, required=True, help="The start, by time.monotonic().")
@click.option("--seconds", type=float, required=True, help="None begins so long after the start.")
@click.option("--at-once", type=int, required=True)
def run(where: Endpoint, seed: int, begin: float, seconds: float, at_once: int) -> None:
    """Do transfers, and print each one as a line of JSON when it is over, and who waits."""
    address = (where.host, where.port)
    lock = threading.Lock()

    def say(line: str) -> None:
        with lock:
            print(line, flush=True)

    def note(wanted: Wanted, started: float, outcome: str, detail: str, pauses: Pauses) -> None:
        done = {
            **wanted._asdict(),
            "start": started - begin,
            "end": time.monotonic() - begin,
            "outcome": outcome,
            "detail": detail,
            "pause": pauses.longest,
            "pause_end": pauses.at - begin,
        }
        say(json.dumps(done))

    def work(number: int) -> None:
        chance = Random(f"{seed} {number}")
        while (started := time.monotonic()) < begin + seconds:
            wanted, chunk, pauses = choose(chance), chance.choice(_CHUNKS), Pauses()
            note(wanted, started, *attempt(address, wanted, chunk, pauses), pauses)

    threading.Thread(target=_waiters.tell, args=(begin, say), daemon=True).start()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def attempt(
    address: tuple[str, int], wanted: Wanted, chunk: int, pauses: Pauses
) -> tuple[str, str]:
    """The outcome of one transfer, and what there is to say about it."""
    try:
        do(address, wanted, chunk, pauses)
    except WrongBytesError as error:
        return WRONG, str(error)
    except OSError as error:
        return FAILED, f"{type(error).__name__}: {error}"
    return RIGHT, ""


if __name__ == "__main__":
    start(soak_end)
