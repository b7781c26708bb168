"""Memory of fastmtcp: idle, and with a large transfer that waits for a reader that stopped."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time

import click
import psutil

from perf import chains, results, tools
from perf.command import repeat_option, start
from perf.processes import SAMPLE_EVERY, Meter, Process, memory_of, pss_of, running
from perf.results import Run, median_of
from perf.setups import PLAIN, QUICK_START
from perf.transfer import CHUNK, ECHO, SEND, STALL, TAKE

SETTLE = 3.0
WARM_UP = 100
# Far enough for the windows to have grown to what a fast line gets.
STOP_AFTER = 100_000_000
APPLICATION = (sys.executable, "-m", "perf.transfer")
SIDES = ("client", "server")
_SETUPS = (PLAIN, QUICK_START)


def measure_idle(setup: str) -> Run:
    """PSS of both sides a few seconds after they are ready, and of the largest process."""
    with chains.fastmtcp(chains.free_endpoint(), setup) as chain:
        # Not a wait for something: it is idleness itself that is measured.
        time.sleep(SETTLE)
        run: Run = {"setup": setup, "case": "idle"}
        for side, root in zip(SIDES, chain.pids, strict=True):
            sizes = [size / 1e6 for size in sizes_of(root)]
            run[side] = sum(sizes)
            run[f"{side}_largest_process"] = max(sizes)
            run[f"{side}_processes"] = len(sizes)
    return run


def sizes_of(root: int) -> list[int]:
    """PSS of a process and of each of its children, in bytes."""
    children = psutil.Process(root).children(recursive=True)
    return [pss_of(pid) for pid in (root, *(child.pid for child in children))]


def measure_growth(name: str, open_chain: chains.OpenChain, count: int, size: int) -> Run:
    """Memory of both sides together: PSS idle, what each of `count` idle connections adds, and PSS
    after transfers of `size` bytes, one each way."""
    target = chains.free_endpoint()
    with (
        running("serve", [*APPLICATION, "serve", "--listen", str(target)]),
        open_chain(target) as chain,
        contextlib.ExitStack() as held,
    ):

        def connect(kind: bytes) -> socket.socket:
            sock = socket.create_connection((chain.entry.host, chain.entry.port), STALL)
            sock.sendall(kind)
            return sock

        def hold(count: int) -> None:
            for _ in range(count):
                sock = held.enter_context(connect(ECHO))
                sock.sendall(b"?")
                sock.recv(1)

        # Not waits for something: it is idleness itself that is measured.
        time.sleep(SETTLE)
        idle = sum(memory_of(pid).pss for pid in chain.pids)
        # The first ones bring what all have in common.
        hold(WARM_UP)
        before = sum(memory_of(pid).own for pid in chain.pids)
        hold(count)
        time.sleep(SETTLE)
        each = (sum(memory_of(pid).own for pid in chain.pids) - before) / count
        held.close()
        for kind in (TAKE, SEND):
            with connect(kind) as sock:
                if kind == TAKE:
                    sock.sendall(bytes(size))
                    sock.shutdown(socket.SHUT_WR)
                left = size
                while left > 0 and (got := len(sock.recv(CHUNK))):
                    left -= got
        time.sleep(SETTLE)
        after = sum(memory_of(pid).pss for pid in chain.pids)
    return {
        "through": name,
        "idle_mb": idle / 1e6,
        "kb_each": each / 1e3,
        "after_mb": after / 1e6,
    }


def measure_stopped(setup: str, direction: str, size: int, hold: float) -> Run:
    """Peak PSS of both sides while a transfer waits `hold` seconds for its reader."""
    target = chains.free_endpoint()
    up = direction == tools.UP
    jobs = {"send": ("--size", str(size)), "receive": ("--stop-after", str(STOP_AFTER))}
    far_role, near_role = ("receive", "send") if up else ("send", "receive")
    far_command = [*APPLICATION, far_role, "--listen", str(target), *jobs[far_role]]
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(running(far_role, far_command, stdin=True, stdout=True))
        chain = stack.enter_context(chains.fastmtcp(target, setup))
        near_command = [*APPLICATION, near_role, "--connect", str(chain.entry), *jobs[near_role]]
        meters = [stack.enter_context(Meter([pid])) for pid in chain.pids]
        near = Process(near_role, near_command, stdin=True, stdout=True)
        stack.callback(near.stop)
        # The reader has stopped by now, and the sender fills whatever there is to fill.
        time.sleep(hold)
        run: Run = {"setup": setup, "case": f"stopped reader, {direction}"}
        for side, meter in zip(SIDES, meters, strict=True):
            run[side] = meter.peak_pss / 1e6
        reader = far if up else near
        assert reader.popen.stdin is not None
        reader.popen.stdin.write("\n")
        reader.popen.stdin.flush()
        ends = {near_role: json.loads(near.output(120)), far_role: json.loads(far.output(60))}
        for side, meter in zip(SIDES, meters, strict=True):
            run[f"{side}_to_the_end"] = meter.peak_pss / 1e6
    run["equal"] = ends["send"]["sha256"] == ends["receive"]["sha256"]
    return run


@click.command("memory.sh")
@click.option("--size", default=600, show_default=True, metavar="MB", help="Of the transfer.")
@click.option(
    "--hold",
    default=8.0,
    show_default=True,
    type=click.FloatRange(2 * SAMPLE_EVERY),
    help="Seconds that the reader stands still.",
)
@repeat_option
def memory(size: int, hold: float, repeat: int) -> None:
    """Memory (PSS) of each side in MB, with one worker and four subflows and as in the quick start.

    Idle, and the peak while a transfer waits for a reader that took 100 MB and stopped; then the
    reader goes on, and SHA-256 is compared.
    """
    runs: list[Run] = []
    for turn in range(repeat):
        results.progress(f"run {turn + 1} of {repeat}")
        for setup in _SETUPS:
            runs.append(measure_idle(setup))
            for way in tools.DIRECTIONS:
                runs.append(measure_stopped(setup, way, size * 1_000_000, hold))
    rows = []
    for setup in _SETUPS:
        own = [run for run in runs if run["setup"] == setup]
        for case in dict.fromkeys(run["case"] for run in own):
            values = [median_of(own, side, case=case) for side in SIDES]
            rows.append([f"{setup}: {case}", *(f"{value:.1f}" for value in values)])
            if case == "idle":
                values = [median_of(own, f"{side}_largest_process", case=case) for side in SIDES]
                head = f"{setup}: idle, the largest process"
                rows.append([head, *(f"{value:.1f}" for value in values)])
    text = results.table(["PSS in MB, all processes of a side", *SIDES], rows)
    settings = {"size_mb": size, "hold_s": hold, "repeat": repeat, "connections": 4}
    results.finish("memory", settings, runs, text)
    if not all(run.get("equal", True) for run in runs):
        raise click.ClickException("what arrived is not what was sent")


if __name__ == "__main__":
    start(memory)
