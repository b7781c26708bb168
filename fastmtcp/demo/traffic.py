"""The two ends of a demo transfer: a sender, a receiver that checks every byte, and a target.

As a module (`python -m fastmtcp.demo.traffic`) it is the target: it listens on a free port of
127.0.0.1, names it in a `ready` line on standard error, and serves one connection at a time until
SIGTERM. A connection starts with a Request; what the target counted goes to standard output as
lines of JSON, each a Sample.
"""

from __future__ import annotations

import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

UP = "up"
DOWN = "down"
SAMPLE_EVERY = 0.1
CHUNK = 256 * 1024
STALL = 10.0
"""Seconds without a byte after which a transfer has failed."""

# A prime length, so that no chunk of the forwarder's falls on the same bytes again soon: a lost,
# repeated or swapped chunk shows up in the comparison.
_PERIOD = 1_000_003
_PATTERN = random.Random(_PERIOD).randbytes(_PERIOD)
_PATTERN += _PATTERN[:CHUNK]
_REQUEST = struct.Struct("!4sd")


class CorruptionError(Exception):
    """What arrived is not what was sent."""


class Sample(msgspec.Struct, frozen=True):
    """How much had arrived `at` seconds after the first byte; or, at the end, was sent."""

    at: float
    total: int
    done: bool = False
    error: str = ""


def steady_rate(samples: Sequence[Sample], begin: float, end: float) -> float:
    """Bytes per second that arrived from `begin` to `end`, seconds after the first byte.

    Between samples the count is taken to grow evenly. Raises ValueError if the samples do not
    reach `end`.
    """
    if not begin < end:
        raise ValueError("the time measured is empty")
    return (_total_at(samples, end) - _total_at(samples, begin)) / (end - begin)


def _total_at(samples: Sequence[Sample], when: float) -> float:
    before = Sample(0.0, 0)
    for sample in samples:
        if sample.at >= when:
            if sample.at == before.at:
                return float(sample.total)
            share = (when - before.at) / (sample.at - before.at)
            return before.total + share * (sample.total - before.total)
        before = sample
    raise ValueError(f"the transfer ended {when - before.at:.2f} s too early")


def request(sock: socket.socket, direction: str, seconds: float) -> None:
    """Ask the target to send (`down`) or to receive (`up`); `seconds` is how long to send."""
    sock.sendall(_REQUEST.pack(direction.encode(), seconds))


def send_for(sock: socket.socket, seconds: float) -> int:
    """Send the pattern for `seconds`, then FIN; return the number of bytes."""
    view = memoryview(_PATTERN)
    total = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        start = total % _PERIOD
        total += sock.send(view[start : start + CHUNK])
    sock.shutdown(socket.SHUT_WR)
    return total


def receive(sock: socket.socket, on_sample: Callable[[Sample], None]) -> int:
    """Read to the FIN, checking every byte; return their number.

    `on_sample` is called about every SAMPLE_EVERY seconds, and once at the end.
    Raises CorruptionError, and OSError if the connection is reset or stalls.
    """
    buffer = memoryview(bytearray(CHUNK))
    total, first, due = 0, 0.0, 0.0
    while count := sock.recv_into(buffer):
        now = time.monotonic()
        if not total:
            first, due = now, now
        if not _PATTERN.startswith(buffer[:count], total % _PERIOD):
            raise CorruptionError(f"wrong data between bytes {total} and {total + count}")
        total += count
        if now >= due:
            on_sample(Sample(now - first, total))
            due = now + SAMPLE_EVERY
    if total:
        on_sample(Sample(time.monotonic() - first, total))
    return total


def _serve(listener: socket.socket) -> None:
    while True:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(STALL)
            try:
                _answer(sock)
            except (CorruptionError, OSError) as exc:
                _report(Sample(0.0, 0, done=True, error=f"target: {exc}"))


def _answer(sock: socket.socket) -> None:
    header = b""
    while len(header) < _REQUEST.size:
        part = sock.recv(_REQUEST.size - len(header))
        if not part:
            return
        header += part
    word, seconds = _REQUEST.unpack(header)
    if word.rstrip(b"\0").decode() == UP:
        total = receive(sock, _report)
    else:
        total = send_for(sock, seconds)
        # Closing with the application's FIN not read would be taken for an abort by some.
        sock.recv(1)
    _report(Sample(0.0, total, done=True))


def _report(sample: Sample) -> None:
    sys.stdout.write(msgspec.json.encode(sample).decode() + "\n")
    sys.stdout.flush()


def _stop(*_: object) -> None:
    raise SystemExit(0)


def main() -> None:
    """Be the target until SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        print(f"ready: {host}:{port}", file=sys.stderr, flush=True)
        _serve(listener)


if __name__ == "__main__":
    main()
