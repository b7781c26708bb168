"""Frames to bytes and back.

A frame is a 6-byte prefix (header length u16, payload length u32, big endian), the msgpack header
and the payload. The reader is cut-through: it hands on a payload as it comes and never waits for
a whole frame, so nothing is joined or copied but the few bytes of a header that was cut in two.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from fastmtcp.engine.limits import Limits
from fastmtcp.engine.wire.errors import RemoteError, SessionCode
from fastmtcp.engine.wire.frames import Data, Frame, Open

PREFIX = struct.Struct("!HI")
_PREFIX_SIZE = PREFIX.size
_DEFAULTS = Limits()

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[memoryview | bytearray], Frame] = msgspec.msgpack.Decoder(Frame).decode
_pack = PREFIX.pack
_unpack_from: Callable[..., tuple[int, int]] = PREFIX.unpack_from


def encode(frame: Frame, payload_size: int = 0) -> bytes:
    """Prefix and header of `frame`; the caller sends `payload_size` bytes of payload behind."""
    header = _encode(frame)
    return _pack(len(header), payload_size) + header


class FrameReader:
    """Cuts one subflow's bytes into frames.

    `on_frame` gets every frame but Data, `on_data(stream, offset, piece, fin)` every piece of
    payload, also that of an Open (right after its frame). `fin` is set on a frame's last piece.
    """

    __slots__ = (
        "_fin",
        "_left",
        "_max_header",
        "_max_payload",
        "_offset",
        "_on_data",
        "_on_frame",
        "_partial",
        "_stream",
        "work_left",
    )

    def __init__(
        self,
        on_frame: Callable[[Frame], None],
        on_data: Callable[[int, int, memoryview, bool], None],
        limits: Limits = _DEFAULTS,
    ) -> None:
        self._on_frame = on_frame
        self._on_data = on_data
        self._max_header = limits.max_header
        self._max_payload = limits.max_payload
        self.work_left = 0
        """Frames that feed() may still handle; its callbacks may charge more than one for each."""
        self._partial = bytearray()
        self._left = 0
        self._stream = 0
        self._offset = 0
        self._fin = False

    def feed(self, view: memoryview, work: int = 1 << 62) -> int:
        """Take the next bytes of the subflow, up to about `work` frames. Returns how many bytes
        were taken; the caller comes again with the rest.

        Raises:
            RemoteError: the bytes are not a frame of this version, or break a limit.
        """
        position = 0
        size = len(view)
        self.work_left = work
        while position < size and self.work_left > 0:
            if self._left:
                take = min(self._left, size - position)
                self._left -= take
                offset = self._offset
                self._offset = offset + take
                piece = view[position : position + take]
                position += take
                self._on_data(self._stream, offset, piece, self._fin and not self._left)
            elif self._partial:
                position += self._complete(view[position:])
            else:
                position = self._header(view, position, size)
        return position

    def _header(self, view: memoryview, position: int, size: int) -> int:
        body = position + _PREFIX_SIZE
        if body > size:
            self._partial += view[position:]
            return size
        header_size, payload_size = _unpack_from(view, position)
        end = body + header_size
        if end > size:
            self._check_sizes(header_size, payload_size)
            self._partial += view[position:]
            return size
        self._frame(view[body:end], header_size, payload_size)
        return end

    def _complete(self, view: memoryview) -> int:
        """A header that was cut in two: gather it. Returns how many bytes of `view` it took."""
        partial = self._partial
        taken = 0
        if len(partial) < _PREFIX_SIZE:
            taken = min(_PREFIX_SIZE - len(partial), len(view))
            partial += view[:taken]
            if len(partial) < _PREFIX_SIZE:
                return taken
        header_size, payload_size = _unpack_from(partial)
        self._check_sizes(header_size, payload_size)
        more = min(_PREFIX_SIZE + header_size - len(partial), len(view) - taken)
        partial += view[taken : taken + more]
        if len(partial) == _PREFIX_SIZE + header_size:
            self._partial = bytearray()
            self._frame(partial[_PREFIX_SIZE:], header_size, payload_size)
        return taken + more

    def _frame(self, header: memoryview | bytearray, header_size: int, payload_size: int) -> None:
        self._check_sizes(header_size, payload_size)
        self.work_left -= 1
        try:
            frame = _decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the latter: text not UTF-8
            raise RemoteError(SessionCode.PROTOCOL, f"bad frame header: {error}") from None
        if type(frame) is Data:
            self._begin(frame.stream, frame.offset, frame.fin, payload_size)
            if not payload_size:
                self._on_data(frame.stream, frame.offset, _EMPTY, frame.fin)
        elif type(frame) is Open:
            self._on_frame(frame)
            self._begin(frame.stream, 0, frame.fin, payload_size)
            if not payload_size:
                self._on_data(frame.stream, 0, _EMPTY, frame.fin)
        elif payload_size:
            raise RemoteError(SessionCode.PROTOCOL, f"{type(frame).__name__} with a payload")
        else:
            self._on_frame(frame)

    def _begin(self, stream: int, offset: int, fin: bool, payload_size: int) -> None:
        self._stream = stream
        self._offset = offset
        self._fin = fin
        self._left = payload_size

    def _check_sizes(self, header_size: int, payload_size: int) -> None:
        if not 0 < header_size <= self._max_header:
            raise RemoteError(SessionCode.PROTOCOL, f"header of {header_size} bytes")
        if payload_size > self._max_payload:
            raise RemoteError(SessionCode.PROTOCOL, f"payload of {payload_size} bytes")


_EMPTY = memoryview(b"")
