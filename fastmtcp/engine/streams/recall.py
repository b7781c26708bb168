"""Asking the peer for credit that streams have and do not use.

Who holds credit cannot be seen from here: it may be about to use it. So the peer is asked, and
gives back what its applications have written nothing for.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastmtcp.engine.streams.table import StreamTable
from fastmtcp.engine.wire.frames import Recall


def unused_credit(table: StreamTable) -> Iterator[Recall]:
    """To be called once a second. While the session's pool is tight, what to ask the peer for: of
    those that have not answered again, so that a frame that is lost does no harm."""
    if not table.windows.is_tight:
        return
    for stream in table.streams.values():
        window = stream.receive.window
        unused = window.unused(len(table.streams))
        if unused:
            yield Recall(stream.stream_id, window.returned + unused)
