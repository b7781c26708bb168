"""The PROXY protocol, read whole, byte by byte, and when it is garbage; and written."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import PeerError
from fastmtcp.proxy.header import MAX_V1, MAX_V2, HeaderReader, Version, header, parse_source
from hypothesis import given
from hypothesis import strategies as st

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
V4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("198.51.100.1") + struct.pack("!HH", 4000, 80)
V6 = bytes(15) + b"\x01" + bytes(15) + b"\x02" + struct.pack("!HH", 4000, 80)
FOUR, SIX = Endpoint("192.0.2.7", 4000), Endpoint("2001:db8::7", 4000)
STEPS = [1, 3, 100_000]


def v2(command: int, family: int, body: bytes, size: int | None = None) -> bytes:
    size = len(body) if size is None else size
    return SIGNATURE + struct.pack("!BBH", command, family, size) + body


def read(said: bytes, step: int = 100_000) -> tuple[str | None, bytes]:
    """Source and the bytes behind the header. Raises PeerError."""
    reader = HeaderReader()
    at = 0
    while at < len(said) and not reader.done:
        assert reader.feed(said[at : at + step]) == b""
        at += step
    assert reader.done, "the header has no end"
    return (str(reader.source) if reader.source else None), reader.rest + said[at:]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("said", "source"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 80\r\n", "192.0.2.7:4000"),
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255:65535"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 0 80\r\n", "[2001:db8::7]:0"),
        (
            b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff ::1 65535 65535\r\n",
            "[" + "ffff:" * 7 + "ffff]:65535",
        ),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 80\r\n", "192.0.2.7:1"),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
        (v2(0x21, 0x11, V4), "192.0.2.7:4000"),
        (v2(0x21, 0x11, V4 + b"\x04\x00\x03abc"), "192.0.2.7:4000"),
        (v2(0x21, 0x21, V6), "[::1]:4000"),
        (
            v2(0x21, 0x21, socket.inet_pton(socket.AF_INET6, "::ffff:1.2.3.4") + V6[16:]),
            "1.2.3.4:4000",
        ),
        # A health check of the load balancer itself.
        (v2(0x20, 0x00, b""), None),
        (v2(0x20, 0x11, V4), None),
        (v2(0x20, 0x11, b"x"), None),
        # Unix sockets, no family, UDP: not of use here, but no reason to refuse.
        (v2(0x21, 0x31, bytes(216)), None),
        (v2(0x21, 0x00, b""), None),
        (v2(0x21, 0x12, V4), None),
        (v2(0x21, 0x00, bytes(MAX_V2)), None),
    ],
)
def test_a_header(said: bytes, source: str | None, step: int) -> None:
    assert read(said + b"hello", step) == (source, b"hello")
    assert read(said, step) == (source, b"")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"\x16\x03\x01",
        b"\x05\x01\x00",
        b"PROXY\r\n",
        b"PROXY \r\n",
        b"proxy TCP4 192.0.2.7 198.51.100.1 4000 80\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4000\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 80 \r\n",
        b"PROXY TCP4  192.0.2.7 198.51.100.1 4000 80\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 04000 80\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 80\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 -1\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.256 4000 80\r\n",
        b"PROXY TCP4 192.0.2.07 198.51.100.1 4000 80\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 4000 80\r\n",
        b"PROXY TCP6 192.0.2.7 198.51.100.1 4000 80\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 4000 80\r\n",
        b"PROXY UDP4 192.0.2.7 198.51.100.1 4000 80\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 80\nGET / HTTP/1.1\r\n",
        b"PROXY UNKNOWN " + b"x" * MAX_V1 + b"\r\n",
        b"PROXY " + b"x" * 200,
        b"\r\n\r\nGET / HTTP/1.1\r\n",
        SIGNATURE[:-1] + b"\r" + v2(0x21, 0x11, V4)[12:],
        v2(0x11, 0x11, V4),
        v2(0x22, 0x11, V4),
        v2(0x21, 0x11, V4[:-1]),
        v2(0x21, 0x21, V6[:-1]),
        v2(0x21, 0x31, bytes(215)),
        v2(0x21, 0x11, V4, MAX_V2 + 1),
        v2(0x20, 0x00, b"", 65535),
    ],
)
def test_what_is_none(said: bytes, step: int) -> None:
    with pytest.raises(PeerError, match="no PROXY protocol header"):
        read(said, step)


def test_half_a_header_is_waited_for() -> None:
    for whole in (b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 80\r\n", v2(0x21, 0x11, V4)):
        for size in range(len(whole)):
            reader = HeaderReader()
            reader.feed(whole[:size])
            assert not reader.done
            assert reader.rest == b""


@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00"]),
    st.binary(max_size=300),
    st.integers(1, 40),
)
def test_garbage_is_refused_or_read_however_it_is_cut(
    opener: bytes, tail: bytes, step: int
) -> None:
    def outcome(step: int) -> object:
        try:
            return read(opener + tail, step)
        except (PeerError, AssertionError) as error:
            return str(error).partition("\n")[0]

    assert outcome(step) == outcome(100_000)


@pytest.mark.parametrize(
    ("version", "source", "destination", "expected"),
    [
        (
            "v1",
            FOUR,
            Endpoint("198.51.100.1", 80),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 80\r\n",
        ),
        ("v1", SIX, Endpoint("::1", 80), b"PROXY TCP6 2001:db8::7 ::1 4000 80\r\n"),
        ("v1", FOUR, Endpoint("::1", 80), b"PROXY TCP6 ::ffff:192.0.2.7 ::1 4000 80\r\n"),
        ("v1", None, Endpoint("::1", 80), b"PROXY UNKNOWN\r\n"),
        ("v1", FOUR, None, b"PROXY UNKNOWN\r\n"),
        ("v2", FOUR, Endpoint("198.51.100.1", 80), v2(0x21, 0x11, V4)),
        ("v2", Endpoint("::1", 4000), Endpoint("::2", 80), v2(0x21, 0x21, V6)),
        ("v2", None, Endpoint("::1", 80), v2(0x21, 0x00, b"")),
    ],
)
def test_what_is_written(
    version: Version, source: Endpoint | None, destination: Endpoint | None, expected: bytes
) -> None:
    written = header(version, source, destination)
    # The same address in other digits, by the version of Python.
    assert written.replace(b"::ffff:c000:207", b"::ffff:192.0.2.7") == expected


ENDPOINTS = st.builds(
    Endpoint,
    st.ip_addresses().map(lambda a: str(getattr(a, "ipv4_mapped", None) or a)),
    st.integers(0, 65535),
)


@given(st.sampled_from(["v1", "v2"]), ENDPOINTS, ENDPOINTS, st.binary(max_size=20))
def test_what_is_written_is_read(
    version: Version, source: Endpoint, destination: Endpoint, rest: bytes
) -> None:
    written = header(version, source, destination)
    assert len(written) <= MAX_V1
    assert read(written + rest, 5) == (str(source), rest)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("192.0.2.7:4000", FOUR),
        ("[2001:db8::7]:4000", SIX),
        ("[fe80::1%eth0]:1", Endpoint("fe80::1", 1)),
        ("", None),
        ("example.com:80", None),
        ("*:80", None),
        ("192.0.2.7", None),
        ("192.0.2.7:4000\r\nGET /", None),
        ("x" * 400, None),
    ],
)
def test_a_source_as_the_client_says_it(text: str, source: Endpoint | None) -> None:
    assert parse_source(text) == source
    if source is not None:
        ipaddress.ip_address(source.host)
