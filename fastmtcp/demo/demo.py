"""The demo: one stream over N connections on a simulated network that throttles each of them.

    this process -> fastmtcp-client -> N x throttle -> fastmtcp-server -> target

All of them are processes on this machine. The target (`traffic`) sends or receives, this
process is the application at the other end, and what is measured is what arrives there.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from fastmtcp.demo import traffic
from fastmtcp.demo.traffic import DOWN, STALL, UP, Sample
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import FastmtcpError

WARM_UP = 1.0
START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0
# The sender goes on a little longer than the time measured, so that its end is not in it.
_TAIL = 0.3
_DIRECTIONS = (UP, DOWN)
_PYTHON = (sys.executable, "-m")


class DemoError(FastmtcpError):
    """A process did not start, or a transfer failed."""


class Row(msgspec.Struct):
    """One line of the table: rates in bytes per second at the receiving application."""

    name: str
    connections: int | None
    rates: dict[str, float]


Progress = Callable[[str, str, Sample], None]


class Child:
    """A process of the demo: its lines of output, and the last words it logged."""

    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.ready_line = ""
        self._log: deque[str] = deque(maxlen=20)
        self._ready = threading.Event()
        # A session of its own: Ctrl-C at the terminal then reaches only the demo, which stops
        # its processes in order.
        self._process = subprocess.Popen(
            (*_PYTHON, *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for work in (self._read_output, self._read_log):
            threading.Thread(target=work, daemon=True).start()

    def wait_ready(self) -> None:
        """Wait for its `ready` line. Raises DemoError with what it said instead."""
        if not self._ready.wait(START_TIMEOUT) or not self.ready_line:
            raise DemoError(f"{self.name} did not start: {self.last_words()}")

    def check(self) -> None:
        """Raise DemoError if it has ended."""
        if self._process.poll() is not None:
            raise DemoError(f"{self.name} has ended: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of its log, or what else is known of its end."""
        if self._log:
            return self._log[-1]
        code = self._process.poll()
        return "it said nothing" if code is None else f"exit code {code} and not a word"

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def wait(self) -> None:
        """Wait for its end after `terminate`; kill it if it takes too long."""
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log.append(line.strip())
            if "ready" in line and not self._ready.is_set():
                self.ready_line = line.strip()
                self._ready.set()
        self._ready.set()


@contextlib.contextmanager
def running(name: str, *command: str) -> Iterator[Child]:
    """A Child that is ready, for the time of the `with` block."""
    child = Child(name, *command)
    try:
        child.wait_ready()
        yield child
    finally:
        child.terminate()
        child.wait()


class Demo:
    """Measures plain connections and fastmtcp over a throttled network, row by row.

    `rate` (bytes per second) limits each connection, `seconds` is how long each transfer is
    measured after WARM_UP, and `progress` is called with (row's name, direction, sample) about
    ten times a second. Raises DemoError.
    """

    def __init__(self, rate: int, seconds: float, progress: Progress) -> None:
        self._rate = rate
        self._seconds = seconds
        self._progress = progress

    def run(self, connections: Sequence[int]) -> Iterator[Row]:
        """Yield one Row for a plain connection, then one for each number of connections."""
        with running("the target", "fastmtcp.demo.traffic") as target:
            address = target.ready_line.split()[1]
            with self._throttle(address) as entrance:
                yield self._measure("one plain connection", None, entrance, target)
            port = str(_free_address())
            with (
                running(
                    "fastmtcp-server",
                    *("fastmtcp.cli.server", "--workers", "1", "--drain-timeout", "1"),
                    *("--listen", port, "--target", address),
                ) as server,
                self._throttle(port) as throttled,
            ):
                for count in connections:
                    server.check()
                    yield self._through_fastmtcp(count, str(throttled), target)

    def _through_fastmtcp(self, count: int, server: str, target: Child) -> Row:
        entrance = _free_address()
        with running(
            "fastmtcp-client",
            *("fastmtcp.cli.client", "--workers", "1", "--drain-timeout", "1"),
            *("--listen", str(entrance), "--server", server, "--connections", str(count)),
        ):
            name = f"fastmtcp, {count} connection{'s' if count > 1 else ''}"
            return self._measure(name, count, entrance, target)

    @contextlib.contextmanager
    def _throttle(self, target: str) -> Iterator[Endpoint]:
        with running(
            "the throttle",
            *("fastmtcp.cli.throttle", "--listen", "127.0.0.1:0", "--target", target),
            *("--rate", str(self._rate)),
        ) as throttle:
            yield Endpoint.parse(throttle.ready_line.split()[1])

    def _measure(self, name: str, count: int | None, entrance: Endpoint, target: Child) -> Row:
        rates = {}
        for direction in _DIRECTIONS:
            samples: list[Sample] = []

            def on_sample(
                sample: Sample, direction: str = direction, samples: list[Sample] = samples
            ) -> None:
                samples.append(sample)
                self._progress(name, direction, sample)

            try:
                sent, received = self._transfer(direction, entrance, target, on_sample)
                if sent != received:
                    raise DemoError(f"{sent} bytes were sent and {received} arrived")
                rates[direction] = traffic.steady_rate(samples, WARM_UP, WARM_UP + self._seconds)
            except (OSError, ValueError, traffic.CorruptionError, DemoError) as exc:
                target.check()
                raise DemoError(f"{name}, {direction}: {exc}") from None
        return Row(name, count, rates)

    def _transfer(
        self,
        direction: str,
        entrance: Endpoint,
        target: Child,
        on_sample: Callable[[Sample], None],
    ) -> tuple[int, int]:
        """One transfer; return the bytes sent and the bytes that arrived intact."""
        duration = WARM_UP + self._seconds + _TAIL
        with socket.create_connection((entrance.host, entrance.port), STALL) as sock:
            traffic.request(sock, direction, duration)
            if direction == DOWN:
                received = traffic.receive(sock, on_sample)
                sock.close()
                return _read_samples(target, on_sample), received
            sender = _Sender(sock, duration)
            received = _read_samples(target, on_sample)
            return sender.result(), received


class _Sender(threading.Thread):
    """Sends on a thread, while the caller follows what has arrived."""

    def __init__(self, sock: socket.socket, duration: float) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._duration = duration
        self._sent = 0
        self._error: OSError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._sent = traffic.send_for(self._sock, self._duration)
        except OSError as exc:
            self._error = exc

    def result(self) -> int:
        """The bytes sent, once it has ended. Raises OSError if sending failed."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._sent


def _read_samples(target: Child, on_sample: Callable[[Sample], None]) -> int:
    """Hand on what the target counts, and return its total. Raises DemoError."""
    while True:
        try:
            line = target.lines.get(timeout=STALL + 5)
        except queue.Empty:
            raise DemoError(f"nothing arrived for {STALL + 5:g} seconds") from None
        if line is None:
            raise DemoError(f"the target has ended: {target.last_words()}")
        sample = msgspec.json.decode(line, type=Sample)
        if sample.error:
            raise DemoError(sample.error)
        if sample.done:
            return sample.total
        on_sample(sample)


def _free_address() -> Endpoint:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint("127.0.0.1", probe.getsockname()[1])


def parse_connections(text: str) -> tuple[int, ...]:
    """Read `1,3,4`: numbers from 1 to 64. Raises ValueError."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or not all(1 <= count <= 64 for count in counts):
        raise ValueError(f"{text!r} is not a list of numbers from 1 to 64; write it like 1,3,4,5,8")
    return counts


def format_table(rows: Sequence[Row]) -> str:
    """The rates in MB/s and, against the first row (the plain connection), the speed-up."""
    base = rows[0].rates
    lines = [
        f"{'':<24}{'up (to the target)':>22}{'down (from the target)':>26}",
        f"{'':<24}{'MB/s':>12}{'speed-up':>10}{'MB/s':>16}{'speed-up':>10}",
    ]
    for row in rows:
        line = f"{row.name:<24}"
        for direction, width in zip(_DIRECTIONS, (12, 16), strict=True):
            rate = row.rates[direction]
            line += f"{rate / 1e6:>{width}.1f}{rate / base[direction]:>9.2f}x"
        lines.append(line)
    return "\n".join(lines)


@contextlib.contextmanager
def stop_signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: by an exception that cleans up.

    SIGINT is set too: shells start background jobs with it ignored.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
