"""The pool of receive buffers: used again, but never while anybody looks."""

from __future__ import annotations

import os
import random
from collections.abc import Sized
from typing import cast

import pytest
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.wire.frames import Data, Ping
from fastmtcp.io.buffers import KIB, BufferPool

from tests.unit.wire import START, pack

SLAB = 64 * KIB
MIN_READ = 16 * KIB
BIG = 8 * KIB
"""What is smaller is copied, so that it does not pin a slab."""


@pytest.fixture
def pool() -> BufferPool:
    return BufferPool(SLAB, MIN_READ, soft_limit=16 * SLAB)


def read(pool: BufferPool, content: bytes) -> memoryview:
    """As a socket does it."""
    space = pool.reserve()
    space[: len(content)] = content
    return pool.commit(len(content))


def test_reads_lie_one_behind_the_other(pool: BufferPool) -> None:
    views = [read(pool, bytes([i]) * BIG) for i in range(4)]
    assert len({id(view.obj) for view in views}) == 1
    assert pool.slabs == 1
    assert [bytes(view) for view in views] == [bytes([i]) * BIG for i in range(4)]


def test_a_read_is_offered_enough_space(pool: BufferPool) -> None:
    for size in (BIG, 3 * BIG, 100, BIG + 1, MIN_READ, 1) * 20:
        space = pool.reserve()
        assert MIN_READ <= len(space) <= SLAB
        space[:size] = b"x" * size
        pool.commit(size)


def test_a_slab_is_used_again_when_the_last_view_is_gone(pool: BufferPool) -> None:
    for i in range(200):
        view = read(pool, bytes([i % 251]) * MIN_READ)
        assert view == bytes([i % 251]) * MIN_READ
        del view
    assert pool.slabs <= 2


def test_a_slice_of_a_slice_keeps_the_slab(pool: BufferPool) -> None:
    whole = read(pool, b"keep" * MIN_READ)
    crumb = whole[4:][:4].cast("B")[1:3]
    del whole
    for _ in range(100):
        read(pool, b"\xff" * MIN_READ)
    assert bytes(crumb) == b"ee"


def test_nothing_is_overwritten_while_a_view_of_it_lives() -> None:
    """Views live for random times, as those of slow and fast streams do."""
    rng = random.Random(11)
    pool = BufferPool(SLAB, MIN_READ, soft_limit=1 << 30)
    alive: list[tuple[memoryview, bytes]] = []
    for step in range(5000):
        content = step.to_bytes(4, "big") * rng.randrange(1, MIN_READ // 4)
        alive.append((read(pool, content), content))
        if rng.random() < 0.1:
            kept, expected = alive[rng.randrange(len(alive))]
            alive.append((kept[len(kept) // 2 :], expected[len(kept) // 2 :]))
        while len(alive) > 60 or (alive and rng.random() < 0.4):
            view, expected = alive.pop(rng.randrange(len(alive)))
            assert view == expected
            del view
            kept = memoryview(b"")
        if step % 500 == 0:
            pool.trim()
    for view, expected in alive:
        assert view == expected
    assert pool.slabs < 60 * 2


def test_small_reads_do_not_pin_a_slab(pool: BufferPool) -> None:
    crumbs = [read(pool, bytes([i % 256]) * 10) for i in range(10_000)]
    assert pool.slabs == 1
    assert all(crumb == bytes([i % 256]) * 10 for i, crumb in enumerate(crumbs))


def test_beyond_the_soft_limit_reads_are_copied_and_nothing_is_allocated(pool: BufferPool) -> None:
    views = [read(pool, bytes([i % 256]) * MIN_READ) for i in range(400)]
    # Without the limit these would be 100 slabs.
    assert pool.slabs <= 18
    copies = [view.obj for view in views if isinstance(view.obj, bytes)]
    assert len(copies) > 300
    assert all(len(copy) == MIN_READ for copy in copies)
    assert all(view == bytes([i % 256]) * MIN_READ for i, view in enumerate(views))


def test_after_the_crowd_has_gone_slabs_are_used_again(pool: BufferPool) -> None:
    views = [read(pool, b"x" * MIN_READ) for _ in range(400)]
    before = pool.slabs
    views.clear()
    fresh = [read(pool, b"y" * MIN_READ) for _ in range(20)]
    pool.trim()
    assert pool.slabs <= before
    fresh += [read(pool, b"y" * MIN_READ) for _ in range(20)]
    assert any(not isinstance(view.obj, bytes) for view in fresh)


def test_trim_gives_free_slabs_back_and_keeps_those_in_use(pool: BufferPool) -> None:
    views = [read(pool, bytes([i]) * MIN_READ) for i in range(60)]
    assert pool.slabs == 15
    keep = views[::12]
    del views
    pool.trim()
    # Those in use, a few free ones, and the current one.
    assert len(keep) <= pool.slabs <= len(keep) + 5
    for view, i in zip(keep, range(0, 60, 12), strict=True):
        assert view == bytes([i]) * MIN_READ
    keep.clear()
    del view
    pool.trim()
    assert pool.slabs <= 5
    assert read(pool, b"again" * 4000) == b"again" * 4000


def test_a_stalled_stream_in_front_does_not_stop_the_recycling(pool: BufferPool) -> None:
    stalled = [read(pool, b"s" * MIN_READ) for _ in range(12)]
    before = pool.slabs
    for _ in range(400):
        read(pool, b"f" * MIN_READ)
    assert pool.slabs <= before + 3
    assert all(view == b"s" * MIN_READ for view in stalled)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_nothing_is_shared_with_a_process_that_is_forked(pool: BufferPool) -> None:
    """Workers that shared a buffer would overwrite one another's bytes."""
    views = (pool.reserve(), pool.scratch)
    for view in views:
        view[:2] = b"us"
    pid = os.fork()
    if pid == 0:
        for view in views:
            view[:2] = b"it"
        os._exit(0)
    os.waitpid(pid, 0)
    assert [bytes(view[:2]) for view in views] == [b"us", b"us"]


def test_what_is_below_8_kib_is_copied_and_takes_no_space(pool: BufferPool) -> None:
    small, large = read(pool, b"s" * (BIG - 1)), read(pool, b"l" * BIG)
    assert isinstance(small.obj, bytes)
    assert not isinstance(large.obj, bytes)
    assert len(pool.reserve()) == SLAB - BIG
    assert (bytes(small), bytes(large)) == (b"s" * (BIG - 1), b"l" * BIG)


def test_a_slab_is_used_until_less_than_a_read_is_left(pool: BufferPool) -> None:
    kept = read(pool, b"x" * (SLAB - MIN_READ))
    assert len(pool.reserve()) == MIN_READ
    kept2 = read(pool, b"y" * BIG)
    assert len(pool.reserve()) == SLAB
    assert pool.slabs == 2
    assert (kept[0], kept2[0]) == (ord("x"), ord("y"))


def test_views_up_to_the_soft_limit_and_copies_beyond() -> None:
    pool = BufferPool(SLAB, MIN_READ, soft_limit=2 * SLAB)
    kept = [read(pool, b"x" * SLAB) for _ in range(3)]
    assert [isinstance(view.obj, bytes) for view in kept] == [False, False, False]
    assert isinstance(read(pool, b"x" * SLAB).obj, bytes)


def test_trim_keeps_four_free_ones_those_used_last(pool: BufferPool) -> None:
    views = [read(pool, b"x" * SLAB) for _ in range(10)]
    pool.reserve()
    assert pool.slabs == 11
    last = [id(view.obj) for view in views[-4:]]
    held = views[2]
    views.clear()
    pool.trim()
    assert pool.slabs == 6
    assert {id(slab) for slab in pool._others} == {id(held.obj), *last}
    assert id(pool._others[-1]) == last[-1]
    pool.trim()
    assert pool.slabs == 6


def test_the_one_used_last_is_used_again(pool: BufferPool) -> None:
    views = [read(pool, b"x" * SLAB) for _ in range(4)]
    wanted = id(views[2].obj)
    del views[1:3]
    pool.reserve()
    assert id(read(pool, b"y" * SLAB).obj) == wanted


def test_space_that_is_reserved_twice_is_the_same(pool: BufferPool) -> None:
    read(pool, b"x" * BIG)
    first, second = pool.reserve(), pool.reserve()
    assert len(first) == len(second) == SLAB - BIG
    first[:1] = b"z"
    assert second[0] == ord("z")


def test_sizes_unless_told_otherwise() -> None:
    pool = BufferPool()
    assert pool.slab_size == len(pool.reserve()) == 512 * KIB
    assert len(pool.scratch) == 32 * KIB
    pool.reserve()[:1] = b"x"
    kept = pool.commit(384 * KIB)
    assert len(pool.reserve()) == 128 * KIB
    del kept
    assert pool._limit == 48 * 1024 // 512


STALLED = 40
ROUNDS = 10
PIECE = 4 * KIB


@pytest.mark.parametrize("first", [0, 1], ids=["in order", "behind a gap"])
@pytest.mark.parametrize("soft_limit", [16 * SLAB, SLAB], ids=["of a slab", "of a copied read"])
def test_little_that_stays_of_a_read_does_not_keep_all_of_it(soft_limit: int, first: int) -> None:
    """A peer within its limits: most of each read goes straight on, a few KiB of it are for
    applications that do not read. 1.6 MB that were accounted for took 26 MB."""
    pool = BufferPool(SLAB, MIN_READ, soft_limit)
    session = Session(opener=False, limits=Limits(), now=START)
    subflow = session.attach(0, START)
    kept = [0] * STALLED
    reads = 0
    for _ in range(ROUNDS):
        for number in range(STALLED):
            frame = pack(Data(1 + number, first + kept[number], False), bytes(PIECE))
            kept[number] += PIECE
            rest = pack(Ping(0)) * ((SLAB - len(frame)) // len(pack(Ping(0))))
            taken = memoryview(frame + rest)
            while taken:
                space = pool.reserve()
                count = min(len(space), len(taken))
                space[:count] = taken[:count]
                del space
                session.receive(subflow, pool.commit(count), START)
                taken = taken[count:]
                reads += 1
                while session.take_events():
                    pass
    # The pieces, and what their objects, streams and subflow take beside them.
    accounted = session.holding.bytes - STALLED * ROUNDS * PIECE
    assert 0 <= accounted <= STALLED * ROUNDS * 512
    assert reads >= STALLED * ROUNDS
    assert pool.slabs <= 3
    bases = {
        id(piece.obj): len(cast("Sized", piece.obj))
        for stream in session.streams.values()
        for pieces in (stream.receive.data.ready, *(r.pieces for r in stream.receive.data._runs))
        for piece in pieces
        if isinstance(piece, memoryview)
    }
    assert sum(bases.values()) <= session.holding.bytes
