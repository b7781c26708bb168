"""What a client says to a proxy that shall connect it: SOCKS5 (RFC 1928, 1929), HTTP CONNECT
(RFC 9110, 9.3.6). Sans-IO: send what start() and feed() return, until `done`; `rest` then has the
bytes that came behind the proxy's last word. Names go to the proxy, which looks them up.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from typing import Protocol

from fastmtcp.config.path import Proxy
from fastmtcp.endpoint import Endpoint, ascii_name
from fastmtcp.errors import PeerError
from fastmtcp.proxy.wire import END, IPV4, IPV6, NAME, NO_LOGIN, NONE_FITS, PASSWORD

MAX_ANSWER = 16 * 1024
"""Bytes of an HTTP answer's head; a proxy that goes on and on would fill our memory."""

# RFC 1928, section 6.
_REPLIES = {
    1: "it failed",
    2: "it does not allow this connection",
    3: "the network cannot be reached",
    4: "the host cannot be reached",
    5: "connection refused",
    6: "the time ran out",
    7: "it has no CONNECT",
    8: "it does not know this type of address",
}
_LOGIN_WANTED = "it wants a user name and password; write via={}://USER:PASSWORD@HOST:PORT"
_LOGIN_REFUSED = "it refuses the user name or password"
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})(?: ([^\r\n]*))?")


class ProxyConversation(Protocol):
    """What SOCKS5 and HTTP have in common."""

    done: bool
    """The connection behind the proxy is there."""

    def start(self) -> bytes:
        """What to send first."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the proxy; return bytes to send. Raises PeerError: it says no, or is
        no such proxy."""

    @property
    def rest(self) -> bytes:
        """Bytes behind the proxy's last word."""


def conversation(proxy: Proxy, target: Endpoint) -> ProxyConversation:
    """The conversation that makes `proxy` connect to `target`."""
    return (Socks5 if proxy.kind == "socks5" else HttpConnect)(proxy, target)


class Socks5:
    """CONNECT with no login or with user name and password."""

    def __init__(self, proxy: Proxy, target: Endpoint) -> None:
        self._proxy = proxy
        self._target = target
        self._buffer = bytearray()
        self._step = self._on_method
        self.done = False

    def start(self) -> bytes:
        methods = [NO_LOGIN, PASSWORD] if self._proxy.user else [NO_LOGIN]
        return bytes([5, len(methods), *methods])

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        out = b""
        while not self.done and (answer := self._step()) is not None:
            out += answer
        return out

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _on_method(self) -> bytes | None:
        self._expect(5)
        if len(self._buffer) < 2:
            return None
        method = self._take(2)[1]
        if method == NO_LOGIN:
            self._step = self._on_reply
            return self._request()
        if method == PASSWORD and self._proxy.user:
            self._step = self._on_login
            user, password = self._proxy.user.encode(), self._proxy.password.encode()
            return bytes([1, len(user)]) + user + bytes([len(password)]) + password
        if method != NONE_FITS:
            raise PeerError("it is no SOCKS5 proxy")
        if self._proxy.user:
            raise PeerError("it accepts no login with user name and password")
        raise PeerError(_LOGIN_WANTED.format("socks5"))

    def _on_login(self) -> bytes | None:
        # Some servers answer with the SOCKS version here, against RFC 1929.
        self._expect(1, 5)
        if len(self._buffer) < 2:
            return None
        if self._take(2)[1] != 0:
            raise PeerError(_LOGIN_REFUSED)
        self._step = self._on_reply
        return self._request()

    def _on_reply(self) -> bytes | None:
        self._expect(5)
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        if buffer[1] != 0:
            raise PeerError(_REPLIES.get(buffer[1], f"it says error {buffer[1]}"))
        if len(buffer) < 5:
            return None
        # The address it connects from: of no use, but of a length of its own.
        lengths = {IPV4: 4, IPV6: 16, NAME: 1 + buffer[4]}
        if buffer[3] not in lengths:
            raise PeerError("it is no SOCKS5 proxy")
        length = 4 + lengths[buffer[3]] + 2
        if len(buffer) < length:
            return None
        self._take(length)
        self.done = True
        return b""

    def _request(self) -> bytes:
        host, port = self._target.host, self._target.port
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            name = (ascii_name(host) or host).encode()
            return bytes([5, 1, 0, NAME, len(name)]) + name + port.to_bytes(2)
        kind = IPV4 if address.version == 4 else IPV6
        return bytes([5, 1, 0, kind]) + address.packed + port.to_bytes(2)

    def _expect(self, *versions: int) -> None:
        if self._buffer and self._buffer[0] not in versions:
            raise PeerError("it is no SOCKS5 proxy")


class HttpConnect:
    """CONNECT with no login or with Basic authentication (RFC 7617)."""

    def __init__(self, proxy: Proxy, target: Endpoint) -> None:
        self._proxy = proxy
        self._target = target
        self._buffer = bytearray()
        self.done = False

    def start(self) -> bytes:
        host, port = self._target.host, self._target.port
        target = Endpoint(ascii_name(host) or host, port)
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self._proxy.user:
            login = f"{self._proxy.user}:{self._proxy.password}".encode()
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(login).decode()}")
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        while not self.done and self._next_answer():
            pass
        return b""

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def _next_answer(self) -> bool:
        """Take one answer off the buffer; false if it is not whole."""
        start = bytes(self._buffer[:7])
        if start != b"HTTP/1."[: len(start)]:
            raise PeerError("it is no HTTP proxy")
        end = END.search(self._buffer)
        if end is None or end.end() > MAX_ANSWER:
            if len(self._buffer) > MAX_ANSWER:
                raise PeerError("its answer has no end")
            return False
        head = bytes(self._buffer[: end.start()])
        del self._buffer[: end.end()]
        match = _STATUS.match(head)
        if match is None:
            raise PeerError("it is no HTTP proxy")
        status = int(match[1])
        if 100 <= status < 200 and status != 101:
            return True  # interim: the answer is still to come
        if not 200 <= status < 300:
            raise PeerError(self._refusal(status, match[2] or b""))
        self.done = True
        return True

    def _refusal(self, status: int, reason: bytes) -> str:
        # Some proxies say 401 to a wrong password, against RFC 9110.
        if status == 407 or (status == 401 and self._proxy.user):
            return _LOGIN_REFUSED if self._proxy.user else _LOGIN_WANTED.format("http")
        words = "".join(c if c.isprintable() else "?" for c in reason.decode("latin-1")[:100])
        return f"it says {status} {words}".rstrip()
