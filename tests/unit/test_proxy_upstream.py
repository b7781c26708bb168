"""SOCKS5 and HTTP CONNECT: whole, byte by byte, with bytes behind, and with garbage."""

from __future__ import annotations

import base64
import contextlib

import pytest
from fastmtcp.config.path import Proxy
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import PeerError
from fastmtcp.proxy.upstream import MAX_ANSWER, ProxyConversation, conversation
from hypothesis import given
from hypothesis import strategies as st

PROXY = Endpoint("proxy", 1080)
NAME = Endpoint("server.example", 7700)
SOCKS = Proxy("socks5", PROXY)
SOCKS_LOGIN = Proxy("socks5", PROXY, "bob", "sécret")
HTTP = Proxy("http", PROXY)
HTTP_LOGIN = Proxy("http", PROXY, "bob", "sécret")

CONNECT_NAME = b"\x05\x01\x00\x03\x0eserver.example\x1e\x14"
LOGIN = b"\x01\x03bob\x07s\xc3\xa9cret"
OK_IPV4 = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
OK_IPV6 = b"\x05\x00\x00\x04" + bytes(18)
OK_NAME = b"\x05\x00\x00\x03\x03abc\x00\x00"


class Script:
    """What the proxy says, and what the client has to say before and after it."""

    def __init__(self, proxy: Proxy, said: list[bytes], answers: list[bytes]) -> None:
        self.proxy = proxy
        self.said = said
        self.answers = answers


GOOD = {
    "socks": Script(SOCKS, [b"\x05\x01\x00", CONNECT_NAME], [b"\x05\x00", OK_IPV4]),
    "socks, IPv6 answer": Script(SOCKS, [b"\x05\x01\x00", CONNECT_NAME], [b"\x05\x00", OK_IPV6]),
    "socks, name in the answer": Script(
        SOCKS, [b"\x05\x01\x00", CONNECT_NAME], [b"\x05\x00", OK_NAME]
    ),
    "socks login": Script(
        SOCKS_LOGIN,
        [b"\x05\x02\x00\x02", LOGIN, CONNECT_NAME],
        [b"\x05\x02", b"\x01\x00", OK_IPV4],
    ),
    "socks login not wanted": Script(
        SOCKS_LOGIN, [b"\x05\x02\x00\x02", CONNECT_NAME], [b"\x05\x00", OK_IPV4]
    ),
    "socks login answered with the wrong version": Script(
        SOCKS_LOGIN,
        [b"\x05\x02\x00\x02", LOGIN, CONNECT_NAME],
        [b"\x05\x02", b"\x05\x00", OK_IPV4],
    ),
    "http": Script(
        HTTP,
        [b"CONNECT server.example:7700 HTTP/1.1\r\nHost: server.example:7700\r\n\r\n"],
        [b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n"],
    ),
    "http, short": Script(
        HTTP,
        [b"CONNECT server.example:7700 HTTP/1.1\r\nHost: server.example:7700\r\n\r\n"],
        [b"HTTP/1.0 204\n\n"],
    ),
    "http login, interim answer": Script(
        HTTP_LOGIN,
        [
            b"CONNECT server.example:7700 HTTP/1.1\r\nHost: server.example:7700\r\n"
            b"Proxy-Authorization: Basic " + base64.b64encode("bob:sécret".encode()) + b"\r\n\r\n"
        ],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"],
    ),
}


def run(script: Script, pieces: list[bytes]) -> ProxyConversation:
    talk = conversation(script.proxy, NAME)
    said = talk.start()
    for piece in pieces:
        said += talk.feed(piece)
    assert said == b"".join(script.said)
    return talk


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("rest", [b"", b"\x00\x05HTTP/1.1 500 no\r\n\r\n"], ids=["", "early"])
def test_whole_and_byte_by_byte(name: str, rest: bytes) -> None:
    script = GOOD[name]
    whole = b"".join(script.answers)
    for pieces in (
        [*script.answers[:-1], script.answers[-1] + rest],
        [whole + rest],
        [bytes([byte]) for byte in whole + rest],
    ):
        talk = run(script, pieces)
        assert talk.done
        assert talk.rest == rest


@pytest.mark.parametrize("name", GOOD)
def test_not_done_before_the_last_byte(name: str) -> None:
    script = GOOD[name]
    whole = b"".join(script.answers)
    talk = conversation(script.proxy, NAME)
    talk.start()
    for byte in whole[:-1]:
        talk.feed(bytes([byte]))
        assert not talk.done
    talk.feed(whole[-1:])
    assert talk.done


@pytest.mark.parametrize(
    ("target", "address"),
    [
        (Endpoint("10.0.0.1", 80), b"\x01\x0a\x00\x00\x01\x00\x50"),
        (Endpoint("2001:db8::1", 65535), b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\xff\xff"),
    ],
)
def test_socks_addresses_are_not_sent_as_names(target: Endpoint, address: bytes) -> None:
    talk = conversation(SOCKS, target)
    talk.start()
    assert talk.feed(b"\x05\x00") == b"\x05\x01\x00" + address


def test_http_puts_brackets_around_ipv6() -> None:
    said = conversation(HTTP, Endpoint("2001:db8::1", 80)).start()
    assert said.startswith(b"CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n")


def feed(talk: ProxyConversation, pieces: list[bytes]) -> None:
    for piece in pieces:
        talk.feed(piece)


WANTED = "it wants a user name and password; write via={}://USER:PASSWORD@HOST:PORT"
REFUSED = "it refuses the user name or password"


@pytest.mark.parametrize(
    ("proxy", "answer", "problem"),
    [
        (SOCKS, b"\x05\xff", WANTED.format("socks5")),
        (SOCKS_LOGIN, b"\x05\xff", "it accepts no login with user name and password"),
        (SOCKS, b"\x05\x02", "it is no SOCKS5 proxy"),  # never offered
        (SOCKS, b"\x05\x01", "it is no SOCKS5 proxy"),  # GSSAPI
        (SOCKS, b"\x04\x5a", "it is no SOCKS5 proxy"),
        (SOCKS, b"H", "it is no SOCKS5 proxy"),
        (SOCKS_LOGIN, b"\x05\x02\x01\x01", REFUSED),
        (SOCKS_LOGIN, b"\x05\x02\x07", "it is no SOCKS5 proxy"),
        (SOCKS, b"\x05\x00\x05\x05", "connection refused"),
        (SOCKS, b"\x05\x00\x05\x02\x00\x01", "it does not allow this connection"),
        (SOCKS, b"\x05\x00\x05\x63", "it says error 99"),
        (SOCKS, b"\x05\x00\x05\x00\x00\x02\x00", "it is no SOCKS5 proxy"),
        (SOCKS, b"\x05\x00\x01", "it is no SOCKS5 proxy"),
        (HTTP, b"HTTP/1.1 407 Auth\r\n\r\n", WANTED.format("http")),
        (HTTP_LOGIN, b"HTTP/1.1 407 Auth\r\n\r\n", REFUSED),
        (HTTP_LOGIN, b"HTTP/1.0 401 Unauthorized\r\n\r\n", REFUSED),
        (HTTP, b"HTTP/1.1 403 For\x1b[31mbidden\r\nX: y\r\n\r\n", "it says 403 For?[31mbidden"),
        (HTTP, b"HTTP/1.1 502\r\n\r\n", "it says 502"),
        (HTTP, b"HTTP/1.1 500 " + b"x" * 500 + b"\r\n\r\n", "it says 500 " + "x" * 100),
        (HTTP, b"HTTP/1.1 101 Switching\r\n\r\n", "it says 101 Switching"),
        (HTTP, b"HTTP/1.1 2x0 OK\r\n\r\n", "it is no HTTP proxy"),
        (HTTP, b"HTTP/1.1\r\n\r\n", "it is no HTTP proxy"),
        (HTTP, b"HTTP/2", "it is no HTTP proxy"),
        (HTTP, b"SSH-2.0-x", "it is no HTTP proxy"),
        (HTTP, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_ANSWER, "its answer has no end"),
    ],
)
def test_a_no_and_garbage(proxy: Proxy, answer: bytes, problem: str) -> None:
    for pieces in ([answer], [bytes([byte]) for byte in answer]):
        talk = conversation(proxy, NAME)
        talk.start()
        with pytest.raises(PeerError) as caught:
            feed(talk, pieces)
        assert str(caught.value) == problem
        assert not talk.done


@given(st.sampled_from([SOCKS, SOCKS_LOGIN, HTTP, HTTP_LOGIN]), st.lists(st.binary(max_size=20)))
def test_anything_is_an_answer_or_a_peer_error(proxy: Proxy, pieces: list[bytes]) -> None:
    talk = conversation(proxy, NAME)
    talk.start()
    with contextlib.suppress(PeerError):
        feed(talk, pieces)
    assert len(talk.rest) <= sum(map(len, pieces))


def test_a_proxy_is_told_the_name_that_the_dns_has() -> None:
    target = Endpoint("b\u00fccher.example", 80)
    assert b"CONNECT xn--bcher-kva.example:80 " in conversation(HTTP, target).start()
    socks = conversation(SOCKS, target)
    socks.start()
    assert socks.feed(b"\x05\x00")[4:] == b"\x15xn--bcher-kva.example\x00\x50"
    # What has no such form goes as it is.
    assert (
        "CONNECT stra\u00dfe:80 ".encode()
        in conversation(HTTP, Endpoint("stra\u00dfe", 80)).start()
    )
