"""Connections between client and server that break, fall silent, or were never any good."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest
from fastmtcp.io.lines import MAX_LINES

from tests.io.net import Background
from tests.io.wires import Wire, WireBox
from tests.process.programs import ALL_UP, IN_BOTH_SETUPS, Program, Programs, eventually
from tests.process.targets import Target, ask_for_exchange, round_trip

MB = 1_000_000
IsFull = Callable[[], bool]


@pytest.fixture
def box() -> Iterator[WireBox]:
    with WireBox() as box:
        yield box


@pytest.fixture
def client(programs: Programs, exchange_target: Target[str], box: WireBox) -> Program:
    """A client, in the plain set-up with one worker, each of whose subflows the box can break."""
    server = programs.server(exchange_target.port, *programs.fixed("--workers", 2))
    port = box.listen(server.address)
    client = programs.client(port, *programs.fixed("--workers", 1, "--connections", 4))
    client.wait_for(f"ready.*{ALL_UP}")
    return client


@pytest.fixture
def is_full(programs: Programs, client: Program, box: WireBox) -> IsFull:
    """Whether the box has all subflows that the client wants: they go through it, and every one
    that died was replaced."""

    def is_full() -> bool:
        number = len(box.alive())
        # Each worker has two at least and the express one, or four and the express one.
        return number >= least if programs.is_quick_start else number == 5

    least = 3 * len(client.workers())
    eventually(is_full, "all subflows go through the box")
    return is_full


def start(client: Program, megabytes: int) -> Background[str]:
    return Background(ask_for_exchange, client.address, megabytes * MB, megabytes * MB)


def carried(box: WireBox) -> int:
    return sum(wire.carried for wire in list(box.wires))


@IN_BOTH_SETUPS
@pytest.mark.parametrize("end", [Wire.cut, Wire.hang_up], ids=["RST", "FIN"])
@pytest.mark.parametrize("which", ["one", "all"])
def test_subflows_broken_again_and_again(
    programs: Programs,
    client: Program,
    exchange_target: Target[str],
    box: WireBox,
    is_full: IsFull,
    end: Callable[[Wire], None],
    which: str,
) -> None:
    rng = random.Random(17)
    transfer = start(client, 70 if programs.is_quick_start else 40)
    broken = 0
    mark = 0
    while not transfer.done:
        time.sleep(0.002)  # between looks at how far it is
        # Not one whose handshake is still under way.
        alive = [wire for wire in box.alive() if wire.carried > 10_000]
        if carried(box) - mark > 7 * MB and len(alive) > 1:
            mark = carried(box)
            for victim in alive if which == "all" else [rng.choice(alive)]:
                end(victim)
                broken += 1
    assert transfer.result() == exchange_target.works[0].result()
    # The last one is spared. A quick start begins with two, and what breaks again and again is
    # replaced later and later.
    assert broken >= (2 if programs.is_quick_start else 3)
    # More of them in a short time are counted.
    client.wait_for(r"subflow to .* lost: ", min(broken, MAX_LINES))
    eventually(is_full, "the pool is full again")


def test_a_subflow_that_falls_silent(
    client: Program, exchange_target: Target[str], box: WireBox, is_full: IsFull
) -> None:
    """No RST and no FIN: only that nothing comes any more tells of it, after some 15 seconds."""
    transfer = start(client, 30)
    eventually(lambda: carried(box) > 8 * MB, "the transfer is under way")
    max(box.wires, key=lambda wire: wire.carried).silence()
    assert transfer.result() == exchange_target.works[0].result()
    client.wait_for(r"subflow to .* lost: ")
    eventually(is_full, "the pool is full again")


@IN_BOTH_SETUPS
def test_an_idle_pool_is_repaired(client: Program, box: WireBox, is_full: IsFull) -> None:
    for wire in box.alive():
        wire.cut()
    client.wait_for(ALL_UP, 2)
    eventually(is_full, "the pool is full again")


def test_a_relay_in_front_of_a_dead_server_is_no_server(
    programs: Programs, echo_target: Target[int], box: WireBox
) -> None:
    """It accepts connections and resets them: the client must not take that for success."""
    server = programs.server(echo_target.port)
    port = box.listen(server.address)
    server.end()
    client = programs.start(
        "fastmtcp-client",
        *("--listen", "127.0.0.1:0", "--server", f"127.0.0.1:{port}", "--workers", 1),
        *("--connections", 4),
    )
    client.wait_for(f"cannot use server 127.0.0.1:{port}: .*; trying again")
    programs.server(echo_target.port, port=server.port)
    client.wait_for("4 of 4 subflows up")
    client.wait_for("ready")
    assert round_trip(client.address)
