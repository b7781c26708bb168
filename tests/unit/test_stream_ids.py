"""Which stream ids are new."""

from __future__ import annotations

import pytest
from fastmtcp.engine.streams.ids import StreamIds
from fastmtcp.engine.wire.errors import RemoteError, SessionCode


def test_allocate_counts_up() -> None:
    ids = StreamIds(10)
    assert not ids.was_allocated(0)
    assert [ids.allocate() for _ in range(3)] == [0, 1, 2]
    assert [ids.was_allocated(i) for i in (-1, 0, 2, 3)] == [False, True, True, False]


def test_an_id_is_new_once() -> None:
    ids = StreamIds(10)
    assert ids.is_new(0)
    assert not ids.is_new(0)
    assert ids.is_new(1)
    assert not ids.is_new(0)


def test_a_skipped_id_may_come_later_once() -> None:
    ids = StreamIds(10)
    assert ids.is_new(3)
    assert ids.is_new(1)
    assert not ids.is_new(1)
    assert ids.is_new(0)
    assert ids.is_new(2)
    assert not ids.is_new(2)
    assert ids.is_new(4)


def test_skipping_is_bounded_in_one_step_and_in_many() -> None:
    ids = StreamIds(4)
    assert ids.is_new(4)
    with pytest.raises(RemoteError) as caught:
        ids.is_new(6)
    assert caught.value.code == SessionCode.LIMIT
    assert ids.is_new(0)
    assert ids.is_new(6)
    with pytest.raises(RemoteError):
        ids.is_new(2**62)


def test_negative_ids_are_refused() -> None:
    with pytest.raises(RemoteError) as caught:
        StreamIds(4).is_new(-1)
    assert caught.value.code == SessionCode.PROTOCOL
