from __future__ import annotations

import pytest
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError
from fastmtcp.security.link import Link, parse_fingerprint, show_fingerprint
from fastmtcp.security.redaction import redact

KEY = bytes(range(32))
PIN = bytes(range(32, 64))
HEX = KEY.hex()


@pytest.mark.parametrize(
    "link",
    [
        Link("laptop", KEY, Endpoint("vps.example.com", 7700), PIN),
        Link("a", KEY, Endpoint("192.0.2.7", 1)),
        Link("Some_one.2-x", KEY, Endpoint("2001:db8::7", 65535), PIN),
    ],
)
def test_there_and_back(link: Link) -> None:
    text = link.text()
    assert Link.parse(text) == link
    assert Link.parse(f"  {text}\n") == link
    assert text.isascii()
    assert not set(text) & set(" \"'<>\\`&;|$*?!()")  # for a shell and a chat
    assert redact(f"see {text} there") == "see (hidden) there"
    assert HEX not in repr(link)


def test_what_it_looks_like() -> None:
    link = Link("laptop", KEY, Endpoint("vps.example.com", 7700), PIN)
    assert link.text() == f"fastmtcp://laptop:{HEX}@vps.example.com:7700#{PIN.hex()}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "laptop",
        "https://example.com/",
        f"fastmtcp://laptop:{HEX}@",
        f"fastmtcp://laptop:{HEX}@host",
        f"fastmtcp://laptop:{HEX}@host:0",
        f"fastmtcp://laptop:{HEX}@*:7700",
        f"fastmtcp://laptop:{HEX}@host:99999",
        f"fastmtcp://laptop:{HEX[:-1]}@host:7700",
        f"fastmtcp://laptop:{HEX}0@host:7700",
        f"fastmtcp://:{HEX}@host:7700",
        f"fastmtcp://-x:{HEX}@host:7700",
        f"fastmtcp://{'x' * 65}:{HEX}@host:7700",
        f"fastmtcp://laptop:{HEX}@host:7700#",
        f"fastmtcp://laptop:{HEX}@host:7700#{HEX[1:]}",
        f"fastmtcp://laptop:{HEX}@host:7700#{HEX} and more",
    ],
)
def test_anything_else_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigError, match="link") as caught:
        Link.parse(text)
    assert HEX[:20] not in str(caught.value)


def test_fingerprints() -> None:
    assert show_fingerprint(PIN).startswith("20:21:22:")
    for text in (show_fingerprint(PIN), PIN.hex(), PIN.hex().upper(), f" {PIN.hex(':')} "):
        assert parse_fingerprint(text) == PIN
    for text in ("", "sha256", PIN.hex()[:-1], PIN.hex() + "0", "g" * 64):
        with pytest.raises(ConfigError, match="is no fingerprint"):
            parse_fingerprint(text)
