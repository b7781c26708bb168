"""Frames on the wire for a transfer, on the simulated network: the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fastmtcp.engine.limits import KIB, Limits

from tests.cost import budgets
from tests.sim.hosts import Script
from tests.sim.network import Path, Pipe
from tests.sim.world import World
from tests.unit.wire import parse

MB = 1_000_000
SIZE = 16 * MB
LINE = Path(latency=0.01, rate=20e6, buffer=256 * KIB)


def recorded(pipe: Pipe) -> bytearray:
    """What arrives through `pipe` from now on."""
    record = bytearray()

    def on_bytes(data: bytes, then: Callable[[bytes], None] = pipe.on_bytes) -> None:
        record.extend(data)
        then(data)

    pipe.on_bytes = on_bytes
    return record


def payload_sizes(records: list[bytearray]) -> Iterator[int]:
    """Of each frame."""
    for record in records:
        yield from (len(payload) for _, payload in parse(bytes(record)))


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_mb(way: str) -> None:
    world = World(seed=1, paths=[LINE] * 4, limits=Limits())
    records = [[recorded(link.up) for link in world.links], []]
    records[1] = [recorded(link.down) for link in world.links]
    scripts = [Script(writes=((0.0, SIZE),)), Script()]
    if way == "down":
        records.reverse()
        scripts.reverse()
    world.open(*scripts)
    world.run_all()
    sent, back = (list(payload_sizes(part)) for part in records)
    assert sum(sent) >= SIZE
    budgets.FRAMES_WITH_DATA.check(sum(map(bool, sent)) * MB / SIZE)
    budgets.FRAMES_BESIDE.check(sent.count(0) * MB / SIZE)
    budgets.FRAMES_BACK.check(len(back) * MB / SIZE)
    budgets.BYTES_BACK.check(sum(map(len, records[1])) * MB / SIZE)
    budgets.BYTES_TWICE.check((sum(sent) - SIZE) * MB / SIZE)
