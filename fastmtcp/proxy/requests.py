"""What an application says to us as a proxy, and what it is told: SOCKS5 (RFC 1928, 1929) and HTTP
(CONNECT, RFC 9110, 9.3.6; and http:// in absolute form, RFC 9112, 3.2.2) on one port. Sans-IO, as
fastmtcp.proxy.upstream, which is the other side.

The answer waits until it is known whether the target is connected: connected() and refused() have
its bytes. Names are not looked up here: the server does it.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from typing import Protocol

from fastmtcp.endpoint import ANY_HOST, Endpoint
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.errors import ConfigError, PeerError
from fastmtcp.proxy.login import Login
from fastmtcp.proxy.wire import END, IPV4, IPV6, NAME, NO_LOGIN, NONE_FITS, PASSWORD

MAX_HEAD = 16 * 1024
"""Bytes of an HTTP request's head: one that never ends would fill our memory. (A SOCKS5 request
cannot be longer than 262.)"""

# RFC 1928, section 6.
_FAILED, _NOT_ALLOWED, _UNREACHABLE, _REFUSED, _NO_COMMAND, _NO_ADDRESS = 1, 2, 4, 5, 7, 8
_SOCKS_REPLIES = {
    ResetCode.NOT_ALLOWED: _NOT_ALLOWED,
    ResetCode.UNREACHABLE: _UNREACHABLE,
    ResetCode.UNRESOLVED: _UNREACHABLE,
    ResetCode.REFUSED: _REFUSED,
}
# RFC 9110, section 15.
_HTTP_STATUS = {
    ResetCode.NOT_ALLOWED: "403 Forbidden",
    ResetCode.REFUSED: "502 Bad Gateway",
    ResetCode.UNRESOLVED: "502 Bad Gateway",
    ResetCode.UNREACHABLE: "504 Gateway Timeout",
}
_HTTP_OTHERWISE = "503 Service Unavailable"

# Of our own and not h11's, which refuses what browsers and curl send and servers take: bytes above
# ASCII in a URL (RFC 9112, 3, wants them encoded), empty lines before a request, one without Host.
_REQUEST_LINE = re.compile(r"([!-~]+) ([!-~\x80-\xff]+) HTTP/(1\.[0-9])")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_ABSOLUTE = re.compile(r"(?:http|ws)://([^/?#]+)([/?][^#]*)?(?:#.*)?", re.IGNORECASE)
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_HOP_BY_HOP = frozenset(
    ("connection", "host", "keep-alive", "proxy-authorization", "proxy-connection", "te", "upgrade")
)
"""Fields that are for us, and Host, which is made anew of the target (RFC 9110, 7.6.1)."""
_NO_TARGET = "it names no host and port"
_ONLY = "this is a proxy: write CONNECT HOST:PORT, or the whole of http://HOST/"
_LENGTH_ONLY = "this proxy takes a body with one Content-Length only"


class RequestError(PeerError):
    """The request is refused, or is none; `answer` is what the application is told, if anything."""

    def __init__(self, message: str, answer: bytes = b"") -> None:
        super().__init__(message)
        self.answer = answer


class Request(Protocol):
    """What SOCKS5 and HTTP have in common."""

    target: Endpoint | None
    """Where the application wants to go; None until its request is whole."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the application; return bytes to send. Raises RequestError."""

    @property
    def rest(self) -> bytes:
        """Bytes behind the request: the first of the stream."""

    @property
    def budget(self) -> int | None:
        """How many bytes of the application belong to the stream, behind `rest`; None is all."""

    def connected(self) -> bytes:
        """The answer when the target is connected."""

    def refused(self, code: ResetCode) -> bytes:
        """The answer when it is not."""


class ProxyRequest:
    """A connection to the proxy; its first byte says which protocol it is."""

    def __init__(self, login: Login | None) -> None:
        self._login = login
        self._request: Request | None = None

    @property
    def done(self) -> bool:
        return self._request is not None and self._request.target is not None

    @property
    def target(self) -> Endpoint | None:
        return self._request.target if self._request is not None else None

    @property
    def rest(self) -> bytes:
        return self._request.rest if self._request is not None else b""

    @property
    def budget(self) -> int | None:
        return self._request.budget if self._request is not None else None

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the application; return bytes to send. Raises RequestError."""
        if self._request is None:
            # Empty lines that some applications send behind an earlier request (RFC 9112, 2.2).
            data = data.lstrip(b"\r\n")
            if not data:
                return b""
            if data[:1] == b"\x05":
                self._request = SocksRequest(self._login)
            elif data[:1].isalpha():
                self._request = HttpRequest(self._login)
            else:
                raise RequestError("it speaks neither SOCKS5 nor HTTP")
        return self._request.feed(data)

    def connected(self) -> bytes:
        return self._request.connected() if self._request is not None else b""

    def refused(self, code: ResetCode) -> bytes:
        return self._request.refused(code) if self._request is not None else b""


class SocksRequest:
    """SOCKS5: CONNECT, without a login or with user name and password."""

    budget: int | None = None

    def __init__(self, login: Login | None) -> None:
        self.target: Endpoint | None = None
        self._login = login
        self._buffer = bytearray()
        self._step = self._on_methods

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        out = b""
        try:
            while self.target is None and (answer := self._step()) is not None:
                out += answer
        except RequestError as error:
            error.answer = out + error.answer
            raise
        return out

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def connected(self) -> bytes:
        return _socks_reply(0)

    def refused(self, code: ResetCode) -> bytes:
        return _socks_reply(_SOCKS_REPLIES.get(code, _FAILED))

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _expect(self, version: int) -> None:
        if self._buffer and self._buffer[0] != version:
            raise RequestError("it does not speak SOCKS5")

    def _on_methods(self) -> bytes | None:
        self._expect(5)
        buffer = self._buffer
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return None
        methods = self._take(2 + buffer[1])[2:]
        wanted = NO_LOGIN if self._login is None else PASSWORD
        if wanted not in methods:
            what = "no login" if self._login is None else "a user name and password"
            raise RequestError(f"it does not offer {what}", bytes([5, NONE_FITS]))
        self._step = self._on_request if self._login is None else self._on_login
        return bytes([5, wanted])

    def _on_login(self) -> bytes | None:
        self._expect(1)
        buffer = self._buffer
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return None
        user_end = 2 + buffer[1]
        end = user_end + 1 + buffer[user_end]
        if len(buffer) < end:
            return None
        taken = self._take(end)
        user, password = taken[2:user_end], taken[user_end + 1 :]
        if self._login is None or not self._login.matches(user, password):
            raise RequestError("wrong user name or password", bytes([1, 1]))
        self._step = self._on_request
        return bytes([1, 0])

    def _on_request(self) -> bytes | None:
        self._expect(5)
        buffer = self._buffer
        if len(buffer) < 5:
            return None
        command, kind = buffer[1], buffer[3]
        if command != 1:
            raise RequestError(f"it wants command {command}", _socks_reply(_NO_COMMAND))
        sizes = {IPV4: 4, IPV6: 16, NAME: 1 + buffer[4]}
        if kind not in sizes:
            raise RequestError(f"it has an address of type {kind}", _socks_reply(_NO_ADDRESS))
        if len(buffer) < 4 + sizes[kind] + 2:
            return None
        taken = self._take(4 + sizes[kind] + 2)
        address, port = taken[4:-2], int.from_bytes(taken[-2:])
        is_name = kind == NAME
        try:
            # Some applications have an address for a name.
            host = address[1:].decode() if is_name else str(ipaddress.ip_address(address))
            self.target = _connectable(Endpoint.of(host, port))
        except (ConfigError, UnicodeError):
            raise RequestError(_NO_TARGET, _socks_reply(_FAILED)) from None
        return b""


class HttpRequest:
    """HTTP, without a login or with Basic authentication (RFC 7617).

    CONNECT makes a tunnel. Any other request is passed on in the form that a server wants, one for
    each connection: a second one may be for another server, and must not reach this one. If it asks
    for a WebSocket (RFC 6455, 4.1) the connection is the server's for good.
    """

    def __init__(self, login: Login | None) -> None:
        self.target: Endpoint | None = None
        self.budget: int | None = None
        self._login = login
        self._buffer = bytearray()
        self._tunnel = True

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        if self.target is not None:
            return b""
        end = END.search(self._buffer)
        if (end.end() if end else len(self._buffer)) > MAX_HEAD:
            text = "the head of the request is too large"
            raise RequestError(text, _http_answer("431 Request Header Fields Too Large", text))
        if end is not None:
            head = bytes(self._buffer[: end.start()])
            del self._buffer[: end.end()]
            self.target = self._read(head.decode("latin-1").split("\n"))
        return b""

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def connected(self) -> bytes:
        # Without a tunnel the server's own answer is the answer.
        return b"HTTP/1.1 200 Connection established\r\n\r\n" if self._tunnel else b""

    def refused(self, code: ResetCode) -> bytes:
        return _http_answer(_HTTP_STATUS.get(code, _HTTP_OTHERWISE), code.explanation)

    def _read(self, lines: list[str]) -> Endpoint:
        first, *rest = (line.removesuffix("\r") for line in lines)
        request = _REQUEST_LINE.fullmatch(first)
        matches = [_FIELD.fullmatch(line) for line in rest]
        fields = [(match[1], match[2].rstrip()) for match in matches if match is not None]
        if request is None or len(fields) < len(rest):
            text = "this is no HTTP request"
            raise RequestError("it does not speak HTTP", _http_answer("400 Bad Request", text))
        self._check_login(_values(fields, "proxy-authorization"))
        if request[1] == "CONNECT":
            text = "CONNECT needs HOST:PORT"
            return _target(request[2], _http_answer("400 Bad Request", text))
        self._tunnel = False
        method, url, version = request[1], request[2], request[3]
        return self._rewrite(method, url, version, fields)

    def _rewrite(
        self, method: str, url: str, version: str, fields: list[tuple[str, str]]
    ) -> Endpoint:
        """Put the request, in the form for the server, in front of what came of its body."""
        absolute = _ABSOLUTE.fullmatch(url)
        if absolute is None:
            answer = _http_answer("400 Bad Request", _ONLY)
            raise RequestError("it is no request to a proxy", answer)
        # An empty port is the default (RFC 3986, 6.2.3).
        authority, path = absolute[1].removesuffix(":"), absolute[2] or ""
        if not path.startswith("/"):
            path = "*" if method == "OPTIONS" and not path else f"/{path}"
        target = _target(authority, _http_answer("400 Bad Request", _ONLY), default_port=80)
        lengths = _values(fields, "content-length")
        if _values(fields, "transfer-encoding") or len(lengths) > 1:
            answer = _http_answer("411 Length Required", _LENGTH_ONLY)
            raise RequestError("it has a body of unknown length", answer)
        if lengths and not _LENGTH.fullmatch(lengths[0]):
            answer = _http_answer("400 Bad Request", _LENGTH_ONLY)
            raise RequestError("it has a body of unknown length", answer)
        named = _tokens(fields, "connection")
        dropped = _HOP_BY_HOP.union(named) - {"content-length"}
        upgrades = "upgrade" in named and "websocket" in _tokens(fields, "upgrade")
        head = [
            f"{method} {path} HTTP/{version}",
            f"Host: {authority}",
            *(f"{name}: {value}" for name, value in fields if name.lower() not in dropped),
            f"Via: {version} fastmtcp",
            *(["Upgrade: websocket"] if upgrades else []),
            # A server that does not change the protocol takes no second request either.
            f"Connection: {'Upgrade, ' if upgrades else ''}close",
        ]
        first = "".join(f"{line}\r\n" for line in [*head, ""]).encode("latin-1")
        if upgrades:
            self._buffer[:0] = first
            return target
        size = int(lengths[0]) if lengths else 0
        # What is behind the body is dropped, here and in the relay.
        body = bytes(self._buffer[:size])
        self.budget = size - len(body)
        self._buffer[:] = first + body
        return target

    def _check_login(self, values: list[str]) -> None:
        if self._login is None:
            return
        user, colon, password = _basic(values[0] if len(values) == 1 else "").partition(b":")
        if not self._login.matches(user, password) or not colon:
            text = "this proxy wants a user name and password"
            field = 'Proxy-Authenticate: Basic realm="fastmtcp", charset="UTF-8"'
            answer = _http_answer("407 Proxy Authentication Required", text, field)
            raise RequestError("wrong user name or password" if values else "no login", answer)


def _socks_reply(code: int) -> bytes:
    """The address that it connects from is not known here, and of no use to anybody."""
    return bytes([5, code, 0, IPV4, 0, 0, 0, 0, 0, 0])


def _http_answer(status: str, text: str, *fields: str) -> bytes:
    body = f"fastmtcp: {text}\n"
    head = [
        f"HTTP/1.1 {status}",
        *fields,
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "".join(f"{line}\r\n" for line in [*head, ""]).encode() + body.encode()


def _values(fields: list[tuple[str, str]], wanted: str) -> list[str]:
    return [value for name, value in fields if name.lower() == wanted]


def _tokens(fields: list[tuple[str, str]], wanted: str) -> frozenset[str]:
    """The elements of a list of words (RFC 9110, 5.6.1)."""
    return frozenset(word.strip() for word in ",".join(_values(fields, wanted)).lower().split(","))


def _basic(value: str) -> bytes:
    scheme, _, encoded = value.strip().partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _target(text: str, answer: bytes, default_port: int | None = None) -> Endpoint:
    """What a request has where its target stands, its bytes read as Latin-1."""
    try:
        text = text.encode("latin-1").decode()
        return _connectable(Endpoint.parse(text, default_port=default_port))
    except (ConfigError, UnicodeError):
        raise RequestError(_NO_TARGET, answer) from None


def _connectable(target: Endpoint) -> Endpoint:
    if target.host == ANY_HOST or not target.port:
        raise ConfigError(_NO_TARGET)
    return target
