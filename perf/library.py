"""The library at both ends of a stream, beside plain sockets through the commands."""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import click
import fastmtcp
from fastmtcp.endpoint import Endpoint

from perf import chains, results
from perf.command import repeat_option, seconds_option, start
from perf.library_end import receive, send
from perf.processes import running
from perf.results import Run, median_of

COMMANDS = "commands"
LIBRARY = "library"
EAGER = "library, not waiting"
"""connect(wait=False): the first byte travels with the opening, as through the commands."""

Connect = Callable[[], socket.socket]


@contextlib.contextmanager
def server_end(kind: str, endpoint: Endpoint) -> Iterator[None]:
    command = [sys.executable, "-m", "perf.library_end", kind, str(endpoint)]
    with running(f"{kind} end", command):
        yield


@contextlib.contextmanager
def connections(through: str) -> Iterator[Connect]:
    """What connects with the server end."""
    where = chains.free_endpoint()
    if through == COMMANDS:
        with server_end("tcp", where), chains.fastmtcp(where) as chain:
            entry = (chain.entry.host, chain.entry.port)
            yield lambda: socket.create_connection(entry, 60)
        return
    with (
        server_end("library", where),
        fastmtcp.Client((where.host, where.port), connections=4) as client,
    ):
        wait = through != EAGER
        yield lambda: client.connect(timeout=60, wait=wait)


def throughput(connect: Connect, direction: str, seconds: int) -> float:
    """Gbit/s of one stream."""
    with connect() as sock:
        begin = time.monotonic()
        if direction == "up":
            sock.sendall(b"u")
            send(sock, seconds)
            count = int.from_bytes(sock.recv(8, socket.MSG_WAITALL), "big")
        else:
            sock.sendall(b"d" + bytes([seconds]))
            count = receive(sock)
        return count * 8 / (time.monotonic() - begin) / 1e9


def first_byte(connect: Connect, times: int = 200) -> float:
    """Milliseconds from the call to the first byte of the answer, median."""
    taken = []
    for _ in range(times):
        begin = time.monotonic()
        with connect() as sock:
            sock.sendall(b"ex")
            sock.recv(1)
            taken.append((time.monotonic() - begin) * 1e3)
    return statistics.median(taken)


def many(connect: Connect, count: int) -> tuple[float, int]:
    """Seconds until `count` connections that are open at once have answered, and failures."""
    begin = time.monotonic()
    sockets = [connect() for _ in range(count)]
    failed = 0
    for sock in sockets:
        sock.sendall(b"ex")
    for sock in sockets:
        failed += sock.recv(1) != b"x"
        sock.close()
    return time.monotonic() - begin, failed


def import_time(times: int = 21) -> float:
    """Milliseconds that `import fastmtcp` takes more than bare Python, of medians."""

    def run(program: str) -> float:
        begin = time.monotonic()
        subprocess.run([sys.executable, "-c", program], check=True)
        return (time.monotonic() - begin) * 1e3

    pairs = [(run("pass"), run("import fastmtcp")) for _ in range(times)]
    return statistics.median(b for _, b in pairs) - statistics.median(a for a, _ in pairs)


def measure(through: str, seconds: int, count: int) -> list[Run]:
    with connections(through) as connect:
        # Until the pool is up.
        for _ in range(20):
            connect().close()
            time.sleep(0.05)
        run: Run = {"through": through, "first_byte_ms": first_byte(connect)}
        if through != EAGER:
            for direction in ("up", "down"):
                run[f"{direction}_gbit_per_s"] = throughput(connect, direction, seconds)
            run["many_s"], run["many_failed"] = many(connect, count)
        return [run]


def report(runs: list[Run], count: int, imported: float) -> str:
    head = ["through", "up Gbit/s", "down Gbit/s", "first byte ms", f"{count} at once s", "failed"]
    rows = []
    for through in (COMMANDS, LIBRARY, EAGER):
        row = [through]
        for figure, digits in (
            ("up_gbit_per_s", 2),
            ("down_gbit_per_s", 2),
            ("first_byte_ms", 2),
            ("many_s", 2),
            ("many_failed", 0),
        ):
            known = [run for run in runs if run["through"] == through and figure in run]
            row.append(f"{median_of(known, figure):.{digits}f}" if known else "-")
        rows.append(row)
    return f"{results.table(head, rows)}\nimport fastmtcp: {imported:.1f} ms more than bare Python"


@click.command("library.sh")
@seconds_option(5)
@click.option(
    "--count",
    default=1000,
    show_default=True,
    type=click.IntRange(1, 3000),
    help="Connections that are open at once.",
)
@repeat_option
def library(seconds: int, count: int, repeat: int) -> None:
    """Streams of the Python library at both ends, beside plain sockets through the commands."""
    runs: list[Run] = []
    for turn in range(repeat):
        for through in (COMMANDS, LIBRARY, EAGER):
            results.progress(f"run {turn + 1} of {repeat}: {through}")
            runs += measure(through, seconds, count)
    imported = import_time()
    settings = {"seconds": seconds, "repeat": repeat, "count": count, "import_ms": imported}
    results.finish("library", settings, runs, report(runs, count, imported))


if __name__ == "__main__":
    start(library)
