"""Where a client accepts applications."""

from __future__ import annotations

import pytest
from fastmtcp.config import settings
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.ingress import Forward, Place, UnixPath, WayIn
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

LONG = "x" * 105


@pytest.mark.parametrize(
    ("text", "place", "target"),
    [
        ("8080:web:80", Endpoint("127.0.0.1", 8080), Endpoint("web", 80)),
        ("127.0.0.2:8080:10.0.0.1:80", Endpoint("127.0.0.2", 8080), Endpoint("10.0.0.1", 80)),
        ("localhost:0:web:80", Endpoint("localhost", 0), Endpoint("web", 80)),
        ("*:8080:web:80", Endpoint("*", 8080), Endpoint("web", 80)),
        (":8080:web:80", Endpoint("*", 8080), Endpoint("web", 80)),
        ("[::1]:8080:[2001:db8::1]:80", Endpoint("::1", 8080), Endpoint("2001:db8::1", 80)),
        ("8080:[::1]:80", Endpoint("127.0.0.1", 8080), Endpoint("::1", 80)),
        ("unix:/run/a.sock:web:80", UnixPath("/run/a.sock"), Endpoint("web", 80)),
        ("unix:/run/a:1:b:web:80", UnixPath("/run/a:1:b"), Endpoint("web", 80)),
        ("unix:/a:[::1]:80", UnixPath("/a"), Endpoint("::1", 80)),
    ],
)
def test_a_forward_is_read_and_written(text: str, place: Place, target: Endpoint) -> None:
    forward = Forward.parse(text)
    assert forward == Forward(place, target)
    assert Forward.parse(str(forward)) == forward


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must be [BIND:]PORT:HOST:PORT or unix:/PATH:HOST:PORT"),
        ("8080", "must be [BIND:]PORT:HOST:PORT"),
        ("web:80", "must be [BIND:]PORT:HOST:PORT"),
        ("8080:web", "must be [BIND:]PORT:HOST:PORT"),
        ("a:b:8080:web:80", "must be [BIND:]PORT:HOST:PORT"),
        ("::1:8080:web:80", "must be [BIND:]PORT:HOST:PORT"),
        ("x:web:80", "must be [BIND:]PORT:HOST:PORT"),
        ("8080:web:0", "names no host and port to forward to"),
        ("8080:*:80", "names no host and port to forward to"),
        ("8080::80", "names no host and port to forward to"),
        ("8080:0.0.0.0:80", "names no host and port to forward to"),
        ("80800:web:80", "no valid port"),
        ("8080:web:80800", "no valid port"),
        ("8080:we b:80", "no valid host name"),
        ("[::z]:8080:web:80", "no IPv6 address in its brackets"),
        ("unix:a.sock:web:80", "needs the whole path of the socket"),
        ("unix:/run/:web:80", "needs the whole path of the socket"),
        ("unix:/run/\x00:web:80", "needs the whole path of the socket"),
        (f"unix:/{LONG}xx:web:80", "more than 107 bytes"),
    ],
)
def test_a_wrong_forward_says_what_to_write(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Forward.parse(text)
    assert complaint in str(caught.value)


@given(st.text(max_size=60) | st.text(alphabet="[]:/*1a.unix", max_size=30))
def test_whatever_stands_there_is_a_forward_or_an_error(text: str) -> None:
    try:
        forward = Forward.parse(text)
    except ConfigError:
        return
    assert Forward.parse(str(forward)) == forward


def ways(**options: object) -> list[WayIn]:
    return list(settings.load(ClientConfig, None, options).ways_in)


def test_the_usual_port_is_there_if_nothing_else_is() -> None:
    usual = WayIn(Endpoint("127.0.0.1", 7701))
    web = WayIn(Endpoint("127.0.0.1", 8080), target="web:80")
    assert ways() == [usual]
    assert ways(target="a:1") == [WayIn(usual.place, target="a:1")]
    assert ways(forward=["8080:web:80"]) == [web]
    assert ways(forward=["8080:web:80"], listen=["127.0.0.1:7701"]) == [usual, web]


@pytest.mark.parametrize(
    "options",
    [
        {"listen": ["127.0.0.1:1"], "forward": ["1:web:80"]},
        {"forward": ["1:web:80", "1:other:80"]},
        {"forward": ["unix:/a:web:80", "unix:/a:web:81"]},
    ],
)
def test_a_place_is_there_once(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="is there twice; choose another place"):
        ways(**options)
    ways(forward=["0:web:80", "0:other:80"])
