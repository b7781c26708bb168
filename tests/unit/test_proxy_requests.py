"""What applications ask of our proxy, read whole, byte by byte, and when it is garbage."""

from __future__ import annotations

import base64

import pytest
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.proxy.login import Login
from fastmtcp.proxy.requests import MAX_HEAD, ProxyRequest, RequestError
from hypothesis import given
from hypothesis import strategies as st

LOGIN = Login(b"me", "gehe\u00efm:1".encode())
NAME = b"\x0bexample.com"
CONNECT = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"
POST = b"POST http://example.com/form HTTP/1.1\r\nHost: example.com\r\n"
BASIC = base64.b64encode(LOGIN.user + b":" + LOGIN.password)
STEPS = [1, 2, 7, 100_000]


def socks_login(user: bytes = LOGIN.user, password: bytes = LOGIN.password) -> bytes:
    return b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password


def talk(
    said: bytes, login: Login | None = None, step: int = 100_000
) -> tuple[ProxyRequest, bytes, RequestError | None]:
    """Say it in pieces. The request, what was answered, and how it was refused."""
    request = ProxyRequest(login)
    answers = b""
    for at in range(0, len(said), step):
        if request.done:
            return request, answers, None
        try:
            answers += request.feed(said[at : at + step])
        except RequestError as error:
            return request, answers + error.answer, error
    return request, answers, None


def read(said: bytes, login: Login | None = None, step: int = 100_000) -> tuple[str, bytes]:
    request, answers, error = talk(said, login, step)
    assert error is None
    assert request.done
    return str(request.target), answers


def refusal(said: bytes, login: Login | None = None, step: int = 100_000) -> tuple[str, bytes]:
    request, answers, error = talk(said, login, step)
    assert error is not None
    assert not request.done
    return str(error), answers


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("address", "target"),
    [
        (b"\x03" + NAME + b"\x01\xbb", "example.com:443"),
        (b"\x03\x0bEXAMPLE.com\x01\xbb", "example.com:443"),
        (b"\x03\x0a10.1.2.255\x00\x50", "10.1.2.255:80"),
        (b"\x03\x03::1\x00\x50", "[::1]:80"),
        (b"\x01\x0a\x01\x02\xff\x00\x50", "10.1.2.255:80"),
        (b"\x04" + bytes(15) + b"\x01\x00\x50", "[::1]:80"),
    ],
)
def test_socks(address: bytes, target: str, step: int) -> None:
    said = b"\x05\x01\x00" + b"\x05\x01\x00" + address
    assert read(said, step=step) == (target, b"\x05\x00")


@pytest.mark.parametrize("step", STEPS)
def test_socks_with_a_login(step: int) -> None:
    said = b"\x05\x03\x00\x01\x02" + socks_login() + b"\x05\x01\x00\x03" + NAME + b"\x01\xbb"
    assert read(said, LOGIN, step) == ("example.com:443", b"\x05\x02\x01\x00")


def test_first_bytes_behind_the_request() -> None:
    for said in (b"\x05\x01\x00" + b"\x05\x01\x00\x03" + NAME + b"\x01\xbb", CONNECT):
        request = ProxyRequest(None)
        request.feed(said + b"first bytes")
        assert request.done
        assert request.rest == b"first bytes"
        early = ProxyRequest(None)
        early.feed(said)
        assert early.rest == b""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("said", "login", "problem", "answers"),
    [
        (b"\x04\x01\x00\x50", None, "neither SOCKS5 nor HTTP", b""),
        (b"\x16\x03\x01\x02\x00", None, "neither SOCKS5 nor HTTP", b""),
        (b"\x05\x01\x02", None, "does not offer no login", b"\x05\xff"),
        (b"\x05\x00", None, "does not offer no login", b"\x05\xff"),
        (b"\x05\x01\x00", LOGIN, "does not offer a user name and password", b"\x05\xff"),
        (b"\x05\x01\x02" + socks_login(b"you"), LOGIN, "wrong user", b"\x05\x02\x01\x01"),
        (b"\x05\x01\x02" + socks_login(b"me", b"x"), LOGIN, "wrong user", b"\x05\x02\x01\x01"),
        (b"\x05\x01\x02" + socks_login(b"", b""), LOGIN, "wrong user", b"\x05\x02\x01\x01"),
        (b"\x05\x01\x02\x05", LOGIN, "does not speak SOCKS5", b"\x05\x02"),
        (b"\x05\x01\x00\x04\x01\x00\x01", None, "does not speak SOCKS5", b"\x05\x00"),
        # BIND and UDP ASSOCIATE; an address of an unknown type; a name that is none; port 0.
        (b"\x05\x01\x00\x05\x02\x00\x01\x0a", None, "command 2", b"\x05\x00\x05\x07"),
        (b"\x05\x01\x00\x05\x03\x00\x01\x0a", None, "command 3", b"\x05\x00\x05\x07"),
        (b"\x05\x01\x00\x05\x01\x00\x02\x0a", None, "type 2", b"\x05\x00\x05\x08"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", None, "no host", b"\x05\x00\x05\x01"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x01*\x00\x50", None, "no host", b"\x05\x00\x05\x01"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x02\xff.\x00\x50", None, "no host", b"\x05\x00\x05\x01"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x04a\r\nb\x00\x50", None, "no host", b"\x05\x00\x05\x01"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x01a\x00\x00", None, "no host", b"\x05\x00\x05\x01"),
    ],
)
def test_socks_that_is_refused(
    said: bytes, login: Login | None, problem: str, answers: bytes, step: int
) -> None:
    found, said_back = refusal(said, login, step)
    assert problem in found
    assert said_back.startswith(answers)
    assert len(said_back) in (len(answers), len(answers) + 8)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("said", "target"),
    [
        (CONNECT, "example.com:443"),
        (CONNECT.replace(b"\r\n", b"\n"), "example.com:443"),
        (b"CONNECT [2001:DB8::1]:22 HTTP/1.0\r\n\r\n", "[2001:db8::1]:22"),
        (b"CONNECT 10.0.0.1:1 HTTP/1.1\r\nX-Any: \xc3\xbc\tthing\r\nEmpty:\r\n\r\n", "10.0.0.1:1"),
    ],
)
def test_http(said: bytes, target: str, step: int) -> None:
    assert read(said, step=step) == (target, b"")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("line", "target", "sent"),
    [
        ("GET http://example.com/a?b HTTP/1.1", "example.com:80", "GET /a?b HTTP/1.1"),
        ("GET HTTP://Example.com:8080 HTTP/1.1", "example.com:8080", "GET / HTTP/1.1"),
        ("HEAD http://[::1]?q HTTP/1.0", "[::1]:80", "HEAD /?q HTTP/1.0"),
        ("OPTIONS http://example.com HTTP/1.1", "example.com:80", "OPTIONS * HTTP/1.1"),
        ("GET http://e.example:/ HTTP/1.1", "e.example:80", "GET / HTTP/1.1"),
        ("GET http://[::1]:/ HTTP/1.1", "[::1]:80", "GET / HTTP/1.1"),
        ("GET http://e.example/a#top HTTP/1.1", "e.example:80", "GET /a HTTP/1.1"),
        ("GET ws://e.example/a HTTP/1.1", "e.example:80", "GET /a HTTP/1.1"),
        # As in Latin-1; and the same bytes read as UTF-8.
        ("GET http://e.example/\xe4 HTTP/1.1", "e.example:80", "GET /\xe4 HTTP/1.1"),
        (
            "GET http://e.example/\xc3\xa4?\xc3\xbc HTTP/1.1",
            "e.example:80",
            "GET /\xc3\xa4?\xc3\xbc HTTP/1.1",
        ),
        ("GET http://b\xc3\xbccher.example/ HTTP/1.1", "b\xfccher.example:80", "GET / HTTP/1.1"),
    ],
)
def test_http_in_absolute_form(line: str, target: str, sent: str, step: int) -> None:
    said = (
        f"{line}\r\nHost: other.example\r\nAccept: */*\r\nConnection: X-Mine, keep-alive\r\n"
        "X-Mine: 1\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: trailers\r\n"
        "Cookie: \u00fc=1\r\nProxy-Authorization: Basic bWU6cHc=\r\nKeep-Alive: 5\r\n\r\n"
    ).encode("latin-1")
    request, answers, error = talk(said, None, step)
    assert error is None
    assert (str(request.target), answers, request.budget) == (target, b"", 0)
    authority = line.split(" ")[1].partition("//")[2].partition("/")[0].partition("?")[0]
    authority = authority.removesuffix(":")
    version = line[-3:]
    assert request.rest.decode("latin-1").split("\r\n") == [
        *(sent, f"Host: {authority}", "Accept: */*", "Cookie: \u00fc=1"),
        *(f"Via: {version} fastmtcp", "Connection: close", "", ""),
    ]
    # The answer is the server's.
    assert request.connected() == b""
    check_answer(request.refused(ResetCode.NOT_ALLOWED), 403)


@pytest.mark.parametrize("body", [b"", b"a=1", b"a=1&b=22", b"a=1&b=22GET http://evil/ HTTP/1.1"])
def test_of_a_body_only_what_belongs_to_it_is_passed_on(body: bytes) -> None:
    # Who names Content-Length a field of this connection does not get rid of it.
    said = POST + b"Connection: content-length\r\nContent-Length: 8\r\n\r\n"
    request, _, error = talk(said + body)
    assert error is None
    head, _, rest = request.rest.partition(b"\r\n\r\n")
    assert b"\r\nContent-Length: 8\r\n" in head
    assert rest == body[:8]
    assert request.budget == 8 - len(rest)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", [b"\r\n", b"\n", b"\r\n\r\n\r\n"])
def test_empty_lines_before_a_request(before: bytes, step: int) -> None:
    assert read(before + CONNECT, step=step) == ("example.com:443", b"")


@pytest.mark.parametrize("step", STEPS)
def test_a_websocket_has_no_end(step: int) -> None:
    said = (
        b"GET http://example.com/chat HTTP/1.1\r\nHost: example.com\r\nUpgrade: WebSocket\r\n"
        b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    request, _, error = talk(said, None, step)
    assert error is None
    assert (str(request.target), request.budget) == ("example.com:80", None)
    assert request.rest.decode().split("\r\n") == [
        *("GET /chat HTTP/1.1", "Host: example.com", "Sec-WebSocket-Version: 13"),
        *("Via: 1.1 fastmtcp", "Upgrade: websocket", "Connection: Upgrade, close", "", ""),
    ]


def test_other_upgrades_are_not_passed_on() -> None:
    for fields in (b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n"):
        request, _, _ = talk(b"GET http://example.com/ HTTP/1.1\r\n" + fields + b"\r\n")
        assert b"Upgrade" not in request.rest
        assert request.budget == 0


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (b"[::1]", "[::1]:80"),
        (b"::1", "[::1]:80"),
        (b"api-.example", "api-.example:80"),
        (b"-x.example", "-x.example:80"),
        (b"a+b.example", "a+b.example:80"),
        (b"host.1", "host.1:80"),
        ("b\u00fccher.example".encode(), "b\u00fccher.example:80"),
    ],
)
def test_names_that_a_look_up_takes(name: bytes, target: str) -> None:
    socks = b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(name)]) + name + b"\x00\x50"
    assert read(socks) == (target, b"\x05\x00")
    place = b"[::1]" if name == b"::1" else name
    assert read(b"CONNECT " + place + b":80 HTTP/1.1\r\n\r\n") == (target, b"")


def test_a_tunnel_has_no_end() -> None:
    for said in (CONNECT, b"\x05\x01\x00\x05\x01\x00\x03" + NAME + b"\x01\xbb"):
        request, _, _ = talk(said)
        assert request.budget is None


@pytest.mark.parametrize("name", [b"Proxy-Authorization", b"proxy-authorization"])
@pytest.mark.parametrize("scheme", [b"Basic", b"basic"])
def test_http_with_a_login(name: bytes, scheme: bytes) -> None:
    said = CONNECT.replace(
        b"\r\n\r\n", b"\r\n" + name + b": " + scheme + b" " + BASIC + b"\r\n\r\n"
    )
    assert read(said, LOGIN, 3) == ("example.com:443", b"")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", 400, "this is a proxy"),
        (b"GET https://example.com/ HTTP/1.1\r\n\r\n", 400, "this is a proxy"),
        (b"GET http:///x HTTP/1.1\r\n\r\n", 400, "this is a proxy"),
        (b"GET http://me:pw@example.com/ HTTP/1.1\r\n\r\n", 400, "this is a proxy"),
        (b"GET http://example.com:0/ HTTP/1.1\r\n\r\n", 400, "this is a proxy"),
        (b"GET http://*/ HTTP/1.1\r\n\r\n", 400, "this is a proxy"),
        (b"GET http://:80/ HTTP/1.1\r\n\r\n", 400, "this is a proxy"),
        (b"GET http://\xfc.example/ HTTP/1.1\r\n\r\n", 400, "this is a proxy"),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 400, "this is a proxy"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", 411, "Content-Length only"),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 411, "Content-Length only"),
        (POST + b"Content-Length: 1, 1\r\n\r\n", 400, "Content-Length only"),
        (POST + b"Content-Length: -1\r\n\r\n", 400, "Content-Length only"),
        (POST + b"Content-Length: " + b"9" * 19 + b"\r\n\r\n", 400, "Content-Length only"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 400, "no HTTP request"),
        (b"CONNECT example.com:443\r\n\r\n", 400, "no HTTP request"),
        (b"CONNECT example.com:443 HTTP/2\r\n\r\n", 400, "no HTTP request"),
        (b"CONNECT  example.com:443 HTTP/1.1\r\n\r\n", 400, "no HTTP request"),
        (b"CONNECT example.com:443 HTTP/1.1\r\nno field\r\n\r\n", 400, "no HTTP request"),
        (b"CONNECT example.com:443 HTTP/1.1\r\na: b\r\n folded\r\n\r\n", 400, "no HTTP request"),
        (b"CONNECT example.com:443 HTTP/1.1\r\na : b\r\n\r\n", 400, "no HTTP request"),
        (b"CONNECT example.com:443 HTTP/1.1\r\na: \x00\r\n\r\n", 400, "no HTTP request"),
        (b"CONNECT example.com HTTP/1.1\r\n\r\n", 400, "needs HOST:PORT"),
        (b"CONNECT example.com:0 HTTP/1.1\r\n\r\n", 400, "needs HOST:PORT"),
        (b"CONNECT :443 HTTP/1.1\r\n\r\n", 400, "needs HOST:PORT"),
        (b"CONNECT me@example.com:443 HTTP/1.1\r\n\r\n", 400, "needs HOST:PORT"),
        (b"CONNECT http://example.com:443 HTTP/1.1\r\n\r\n", 400, "needs HOST:PORT"),
        (b"GET /" + b"x" * MAX_HEAD, 431, "too large"),
    ],
)
def test_http_that_is_refused(said: bytes, status: int, words: str, step: int) -> None:
    _, answer = refusal(said, step=step)
    check_answer(answer, status)
    assert words.encode() in answer


@pytest.mark.parametrize(
    "field",
    [
        b"",
        b"Proxy-Authorization: Basic " + base64.b64encode(b"me:wrong"),
        b"Proxy-Authorization: Basic " + base64.b64encode(b"me"),
        b"Proxy-Authorization: Basic !!!",
        b"Proxy-Authorization: Basic \xff",
        b"Proxy-Authorization: Digest " + BASIC,
        b"Proxy-Authorization:",
        b"Authorization: Basic " + BASIC,
        # Two of them: which one would count?
        b"Proxy-Authorization: Basic %b\r\nProxy-Authorization: Basic %b" % (BASIC, BASIC),
    ],
)
@pytest.mark.parametrize("method", [b"CONNECT example.com:443", b"GET http://example.com/"])
def test_http_without_the_right_login(method: bytes, field: bytes) -> None:
    said = b"\r\n".join([method + b" HTTP/1.1", *([field] if field else []), b"", b""])
    _, answer = refusal(said, LOGIN)
    check_answer(answer, 407)
    assert b'\r\nProxy-Authenticate: Basic realm="fastmtcp"' in answer


def check_answer(answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert b"\r\nConnection: close" in head
    assert body.startswith(b"fastmtcp: ")


@pytest.mark.parametrize(
    ("code", "socks", "http"),
    [
        (ResetCode.NOT_ALLOWED, 2, 403),
        (ResetCode.UNREACHABLE, 4, 504),
        (ResetCode.UNRESOLVED, 4, 502),
        (ResetCode.REFUSED, 5, 502),
        (ResetCode.OVERLOADED, 1, 503),
        (ResetCode.SESSION_LOST, 1, 503),
        (ResetCode.DRAINING, 1, 503),
        (ResetCode.CANCELLED, 1, 503),
        (ResetCode.INTERNAL, 1, 503),
    ],
)
def test_each_refusal_of_the_server_in_the_words_of_the_protocol(
    code: ResetCode, socks: int, http: int
) -> None:
    request, _, _ = talk(b"\x05\x01\x00\x05\x01\x00\x03" + NAME + b"\x01\xbb")
    assert request.refused(code) == bytes([5, socks, 0, 1, 0, 0, 0, 0, 0, 0])
    request, _, _ = talk(CONNECT)
    check_answer(request.refused(code), http)
    assert code.explanation.encode() in request.refused(code)


def test_the_good_news() -> None:
    request, _, _ = talk(b"\x05\x01\x00\x05\x01\x00\x03" + NAME + b"\x01\xbb")
    assert request.connected() == bytes([5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    request, _, _ = talk(CONNECT)
    assert request.connected() == b"HTTP/1.1 200 Connection established\r\n\r\n"


OPENERS = st.sampled_from(
    [
        b"",
        b"\x05",
        b"\x05\x01\x00",
        b"\x05\x01\x00\x05\x01\x00\x03",
        b"\x05\x01\x02\x01",
        *(b"CONNECT ", b"GET http://a/ HTTP/1.1\r\n"),
    ]
)


@given(OPENERS, st.binary(max_size=600), st.integers(1, 50), st.booleans())
def test_garbage_is_refused_and_bounded_however_it_is_cut(
    opener: bytes, garbage: bytes, step: int, has_login: bool
) -> None:
    login = LOGIN if has_login else None
    whole = talk(opener + garbage, login)
    cut = talk(opener + garbage, login, step)
    assert str(whole[0].target) == str(cut[0].target)
    assert (whole[2] is None) == (cut[2] is None)
    assert len(whole[1]) < 1000
    if has_login and garbage.find(LOGIN.password) < 0:
        assert not whole[0].done


def test_an_endless_request_is_held_no_longer_than_its_limit() -> None:
    request = ProxyRequest(None)
    request.feed(b"A" * MAX_HEAD)
    with pytest.raises(RequestError):
        request.feed(b"A")
    # SOCKS5 has lengths of one byte.
    request = ProxyRequest(LOGIN)
    with pytest.raises(RequestError):
        request.feed(b"\x05\xff" + b"\x02" * 255 + b"\x01\xff" + b"x" * 255 + b"\xff" + b"y" * 255)
