"""What is fuzzed: each target takes any bytes, and raises if something is wrong with the code.

To add one, write a function and decorate it; its seeds go into corpus/NAME/.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastmtcp.config import settings
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.ingress import Forward
from fastmtcp.config.path import PathSpec, Proxy
from fastmtcp.config.server import ServerConfig
from fastmtcp.config.targets import Rule
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.wire.codec import FrameReader
from fastmtcp.engine.wire.errors import RemoteError, SessionCode
from fastmtcp.engine.wire.frames import (
    Ack,
    Blocked,
    Busy,
    Closed,
    Data,
    Frame,
    Goaway,
    Gone,
    Got,
    Open,
    Ping,
    Pong,
    Recall,
    Reset,
    ResetAck,
    Retire,
    Return,
    Stalled,
)
from fastmtcp.errors import ConfigError, PeerError
from fastmtcp.proxy.header import HeaderReader
from fastmtcp.proxy.login import Login
from fastmtcp.proxy.requests import ProxyRequest
from fastmtcp.proxy.upstream import ProxyConversation, conversation
from fastmtcp.security.handshake import (
    PREAMBLE_SIZE,
    ClientHandshake,
    Membership,
    Preamble,
    ServerHandshake,
)
from fastmtcp.security.identity import UNNAMED, Identity, unnamed
from fastmtcp.security.link import Link
from fastmtcp.status.control_name import ControlName, parse_listed
from fastmtcp.units import parse_delay, parse_rate
from msgspec.structs import replace

from tests.property.victim import LIMITS, Victim
from tests.unit.wire import collect, is_between_frames, pack

CORPUS = Path(__file__).parent / "corpus"

KEY = bytes(range(32))
CLIENT_NONCE = b"c" * 32
SERVER_NONCE = b"s" * 32
MEMBERSHIP = Membership(b"m" * 16, b"x" * 32)

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    TARGETS[function.__name__] = function
    return function


def steps(data: bytes) -> Iterator[bytes]:
    """All but the first byte, in pieces whose size the first byte says."""
    size = (data[0] if data else 0) + 1
    for start in range(1, len(data), size):
        yield data[start : start + size]


def one_line(error: Exception) -> str:
    """What a user would see of it."""
    text = str(error)
    assert text.isprintable()
    return text


# --- the wire ---------------------------------------------------------------------------------


class _Seen:
    """What a FrameReader has said, with payloads joined, and how it ended."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def on_data(self, stream: int, offset: int, piece: memoryview, fin: bool) -> None:
        last = self.said[-1] if self.said else None
        if isinstance(last, list) and last[0] == stream and last[1] + len(last[2]) == offset:
            last[2] += bytes(piece)
            last[3] = fin
        else:
            self.said.append([stream, offset, bytes(piece), fin])

    def read(self, pieces: Iterator[bytes], work: int) -> _Seen:
        reader = FrameReader(self.said.append, self.on_data)
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[reader.feed(view, work) :]
        except RemoteError as error:
            self.said.append(error.code)
        else:
            self.said.append(is_between_frames(reader))
        return self


@target
def codec(data: bytes) -> None:
    """However the bytes are cut, they are the same frames."""
    whole = _Seen().read(iter([data[1:]]), 1 << 30)
    assert _Seen().read(steps(data), 1).said == whole.said


@target
def handshake_server(data: bytes) -> None:
    """The first byte says how the rest is cut, and whether it joins a session."""
    join = MEMBERSHIP.session if data[:1] > b"\x7f" else b""
    handshake = ServerHandshake(unnamed(KEY), SERVER_NONCE, Preamble.of(join, tls=False))
    with contextlib.suppress(PeerError):
        for piece in steps(data):
            handshake.feed(piece)
            assert len(handshake.early) <= len(data)
    if handshake.request is not None:
        assert not handshake.may_join(MEMBERSHIP.secret) or handshake.request.session


@target
def handshake_client(data: bytes) -> None:
    join = MEMBERSHIP if data[:1] > b"\x7f" else None
    handshake = ClientHandshake(Identity.from_key(UNNAMED, KEY), CLIENT_NONCE, 1, join)
    with contextlib.suppress(PeerError):
        for piece in steps(data):
            handshake.feed(piece)


@target
def preamble(data: bytes) -> None:
    with contextlib.suppress(PeerError):
        decoded = Preamble.decode(data[:PREAMBLE_SIZE])
        assert decoded is None or decoded.encode() == data[:PREAMBLE_SIZE]


# --- proxies ----------------------------------------------------------------------------------


def _converse(proxy: str, pieces: Iterator[bytes]) -> tuple[bytes, object, bytes]:
    talk: ProxyConversation = conversation(Proxy.parse(proxy), Endpoint("example.com", 7700))
    said = talk.start()
    rest = b""
    try:
        for piece in pieces:
            if talk.done:
                rest += piece
            else:
                said += talk.feed(piece)
    except PeerError as error:
        return said, one_line(error), b""
    return said, talk.done, talk.rest + rest if talk.done else b""


@target
def socks5_client(data: bytes) -> None:
    """However the proxy's bytes are cut, they mean the same."""
    for proxy in ("socks5://proxy:1", "socks5://me:secret@proxy:1"):
        whole = _converse(proxy, iter([data[1:]]))
        cut = _converse(proxy, steps(data))
        assert cut[1:] == whole[1:]


@target
def http_client(data: bytes) -> None:
    for proxy in ("http://proxy:1", "http://me:secret@proxy:1"):
        whole = _converse(proxy, iter([data[1:]]))
        cut = _converse(proxy, steps(data))
        if "too long" not in str(whole[1]) and "too long" not in str(cut[1]):
            assert cut == whole


def _read(reader: ProxyRequest | HeaderReader, pieces: Iterator[bytes]) -> tuple[object, ...]:
    """What it makes of these pieces: whether it is done, what it wants, what lies behind."""
    behind = b""
    try:
        for piece in pieces:
            if reader.done:
                behind += piece
            else:
                reader.feed(piece)
    except PeerError as error:
        return (one_line(error),)
    if not reader.done:
        return (False,)
    if isinstance(reader, HeaderReader):
        return reader.source, reader.rest + behind
    return reader.target, reader.rest + behind[: reader.budget]


@target
def proxy_request(data: bytes) -> None:
    """However an application's request is cut, it asks for the same."""
    for login in (None, Login(b"me", b"secret")):
        whole = _read(ProxyRequest(login), iter([data[1:]] if data[1:] else []))
        cut = _read(ProxyRequest(login), steps(data))
        assert whole == cut


@target
def proxy_header(data: bytes) -> None:
    whole = _read(HeaderReader(), iter([data[1:]]))
    assert whole == _read(HeaderReader(), steps(data))


# --- what users write -------------------------------------------------------------------------


@target
def texts(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for parse in (
        Endpoint.parse,
        PathSpec.parse,
        Proxy.parse,
        Link.parse,
        Rule.parse,
        Forward.parse,
        parse_rate,
        parse_delay,
    ):
        with contextlib.suppress(ConfigError):
            parse(text)
    with contextlib.suppress(ConfigError):
        endpoint = Endpoint.parse(text)
        assert Endpoint.parse(str(endpoint)) == endpoint
    with contextlib.suppress(ConfigError):
        spec = PathSpec.parse(text)
        if spec.via is None:
            assert PathSpec.parse(str(spec)) == spec
        else:
            # What is shown does not depend on the password.
            other = replace(spec, via=replace(spec.via, password="another"))
            assert (str(spec), repr(spec), spec.label) == (str(other), repr(other), other.label)
    ControlName.parse(text)
    for name in parse_listed(text):
        assert ControlName.parse(str(name)) is not None


@target
def config(data: bytes) -> None:
    path = f"/dev/shm/fuzzed-{os.getpid()}.toml"
    try:
        Path(path).write_bytes(data)
        for kind in (ServerConfig, ClientConfig):
            try:
                settings.load(kind, path, {})
            except ConfigError as error:
                one_line(error)
    finally:
        os.unlink(path)


# --- the engine -------------------------------------------------------------------------------

_ACTIONS = [
    "pull",
    "time",
    "open",
    "detach",
    "write",
    "take",
    "finish",
    "reset",
    "events",
    "confirm",
]
_NUMBERS = [-(2**63), -1, 2**31, 2**62, 2**63 - 1, 2**64 - 1, 1000, 2000, 4000]


class _Plan:
    """Reads decisions off the fuzzer's bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def bytes(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self) -> int:
        """Small mostly, sometimes one at the edge of something."""
        value = self.byte()
        return value if value < 240 else _NUMBERS[value % len(_NUMBERS)]

    def offset(self) -> int:
        value = self.number()
        return value * 16 if self.byte() & 1 and 0 <= value < 256 else value

    def frame(self) -> Frame:
        stream, kind = self.byte(), self.byte() % 18
        number = stream if stream < 250 else _NUMBERS[stream % len(_NUMBERS)]
        frames: list[Callable[[], Frame]] = [
            lambda: Open(number, self.offset(), bool(self.byte() & 1), "a:1"),
            lambda: Data(number, self.offset(), bool(self.byte() & 1)),
            lambda: Ack(number, self.offset(), self.offset(), bool(self.byte() & 1)),
            lambda: Reset(number, self.byte(), self.offset()),
            lambda: ResetAck(number),
            lambda: Closed(number),
            lambda: Blocked(number, self.offset()),
            lambda: Busy(),
            lambda: Ping(number),
            lambda: Pong(number),
            lambda: Gone(number),
            lambda: Goaway(self.byte(), "?"),
            Busy,
            lambda: Got(number, self.offset()),
            lambda: Stalled(number),
            lambda: Retire(self.offset()),
            lambda: Recall(number, self.offset()),
            lambda: Return(number, self.offset()),
        ]
        return frames[kind]()


@target
def engine(data: bytes) -> None:
    """A session, driven by its applications and by a peer that sends anything."""
    plan = _Plan(data)
    victim = Victim(opener=bool(plan.byte() & 1))
    session = victim.session
    if session.opener:
        for _ in range(3):
            victim.act("open", 0)
        victim.act("pull", 0)
    while plan and session.ended is None:
        choice = plan.byte()
        if choice < 64:
            victim.act(_ACTIONS[choice % len(_ACTIONS)], plan.offset() % 5000)
            continue
        if choice < 224:
            frame = plan.frame()
            payload = plan.bytes(plan.byte()) if isinstance(frame, Open | Data) else b""
            wire = pack(frame, payload) * (choice % 3 + 1)
        else:
            wire = plan.bytes(plan.byte())
        numbers = sorted(session.subflows)
        subflow = session.subflows[numbers[choice % len(numbers)]]
        view = memoryview(wire)
        try:
            while view:
                view = view[session.receive(subflow, view, victim.now, choice % 5 + 1) :]
        except RemoteError as error:
            session.end(error.code, str(error))
        victim.check()
    session.end(SessionCode.NORMAL, "")
    victim.check()
    assert session.streams == {}
    assert session.held == session.holding.client.streams == 0
    assert session.table.windows.free == LIMITS.window_pool
    assert session.table.gaps.free == LIMITS.max_gaps
    assert collect(session, victim.now) == []
