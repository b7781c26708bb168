"""Receive buffers that are used again as soon as nobody looks at them.

A fresh buffer of 256 KiB costs up to 93 us of page faults, so slabs are recycled. Sockets read
into the current slab one behind the other; the engine keeps memoryviews of what it still needs.

A slab is free when nothing but the pool refers to it. CPython tells that by the reference count:
all views of an object share one managed buffer, which holds exactly one reference while any of
them is alive (Objects/memoryobject.c). So no view can be used after its slab was recycled, and
none can leak, without a single retain() or release() in the code.

Slabs are anonymous mappings: malloc() would keep what a burst has used once. They are private: what
is forked from this process must not see our bytes change, and Python maps them shared by default.
"""

from __future__ import annotations

import mmap
import sys

KIB = 1024

Buffer = memoryview | bytes
"""What a socket sends: views of slabs, and bytes."""

_getrefcount = sys.getrefcount


def _new_slab(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _free_count() -> int:
    """The reference count of a slab that only its list refers to."""
    slabs = [_new_slab(1)]
    return _getrefcount(slabs[0])


_FREE = _free_count()


class BufferPool:
    """Slabs for one worker.

    `slab_size` and `min_read` are bytes: a read is offered at least `min_read`. Beyond
    `soft_limit` bytes in use, reads get exact copies instead of views: a small view pins a whole
    slab, and many slow readers could pin many. What stays of a copy is the engine's to count
    (fastmtcp.engine.streams.reassembly: is_small).
    """

    __slots__ = (
        "_current",
        "_limit",
        "_min_read",
        "_others",
        "_position",
        "_view",
        "scratch",
        "slab_size",
    )

    def __init__(
        self,
        slab_size: int = 512 * KIB,
        min_read: int = 128 * KIB,
        soft_limit: int = 48 * 1024 * KIB,
    ) -> None:
        self.slab_size = slab_size
        self.scratch = memoryview(_new_slab(_SCRATCH))
        """For ciphertext on its way from a socket to OpenSSL. Nothing stays in it, so all
        connections of the worker have one.

        It begins with a page, as mappings do. On some processors memcpy() is seven times slower
        if both places have nearly the same offset in their pages, as two pieces of the heap of
        equal size easily have: deciphering then took half as much time again.
        """
        self._min_read = min_read
        self._limit = soft_limit // slab_size
        self._others: list[mmap.mmap] = []
        self._current = _new_slab(slab_size)
        self._view = memoryview(self._current)
        self._position = 0

    @property
    def slabs(self) -> int:
        """Slabs allocated, free ones included."""
        return len(self._others) + 1

    def reserve(self) -> memoryview:
        """Space to read into, until the next call of commit() or reserve()."""
        if self.slab_size - self._position < self._min_read:
            self._next_slab()
        return self._view[self._position :]

    def commit(self, count: int) -> memoryview:
        """Keep the first `count` bytes of the space reserved last."""
        start = self._position
        if len(self._others) > self._limit or count < _COPY_BELOW:
            return memoryview(bytes(self._view[start : start + count]))
        self._position = start + count
        return self._view[start : self._position]

    def trim(self) -> None:
        """Give free slabs back to the operating system, down to a few."""
        keep = _KEEP
        kept = []
        for _ in range(len(self._others)):
            slab = self._others.pop()
            if _getrefcount(slab) > _FREE:
                kept.append(slab)
            elif keep:
                keep -= 1
                kept.append(slab)
        kept.reverse()
        self._others = kept

    def _next_slab(self) -> None:
        """Take a free slab, the one used last if possible: it is still in the cache. Going round
        all of them costs a third of the throughput."""
        self._view = _NOTHING
        others = self._others
        others.append(self._current)
        for index in range(len(others) - 1, max(-1, len(others) - _LOOK - 1), -1):
            if _getrefcount(others[index]) <= _FREE:
                self._current = others.pop(index)
                break
        else:
            # All the last ones are in use: a burst, or a stream that stalls. Whatever became free
            # among the older ones goes to the end, to be found next time.
            self._current = self._oldest_free() or _new_slab(self.slab_size)
        self._view = memoryview(self._current)
        self._position = 0

    def _oldest_free(self) -> mmap.mmap | None:
        others = self._others
        for index in range(len(others)):
            if _getrefcount(others[index]) <= _FREE:
                return others.pop(index)
        return None


_SCRATCH = 32 * KIB
"""Bytes of ciphertext read at once. OpenSSL's memory grows to twice that, for each connection and
for good; more at once is hardly faster."""

_COPY_BELOW = 8 * KIB
_KEEP = 4
_LOOK = 8
_NOTHING = memoryview(b"")
