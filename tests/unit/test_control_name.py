"""Names of control sockets: which are ours, and what others may have put among them."""

from __future__ import annotations

import os

import pytest
from fastmtcp.status.control_name import MAX_NAME, ControlName, is_name, parse_listed

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("text", ["client-7701", "a", "A.b_c-9", "x" * MAX_NAME])
def test_names(text: str) -> None:
    assert is_name(text)
    assert str(ControlName(text, 7)) == f"fastmtcp/7/{text}"


@pytest.mark.parametrize("text", ["", "a b", "a/b", "a\n", "ä", "\0a", "x" * (MAX_NAME + 1), HEX])
def test_what_is_no_name(text: str) -> None:
    assert not is_name(text)
    assert ControlName.parse(text) is None or "/" in text


@pytest.mark.parametrize(
    ("text", "uid", "name"),
    [
        ("client-7701", os.geteuid(), "client-7701"),
        ("fastmtcp/1000/web", 1000, "web"),
        ("@fastmtcp/0/web", 0, "web"),
    ],
)
def test_a_name_can_be_given_short_and_whole(text: str, uid: int, name: str) -> None:
    parsed = ControlName.parse(text)
    assert parsed is not None
    assert (parsed.uid, parsed.name) == (uid, name)
    assert parsed.address == f"\0fastmtcp/{uid}/{name}"
    again = ControlName.parse(str(parsed))
    assert again is not None
    assert again.address == parsed.address


@pytest.mark.parametrize(
    "text", ["fastmtcp/x/web", "fastmtcp/-1/web", "other/0/web", "fastmtcp/0/", "fastmtcp//web"]
)
def test_wrong_names(text: str) -> None:
    assert ControlName.parse(text) is None


LISTED = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000001: 00000002 00000000 00010000 0001 01 101 @fastmtcp/0/server-7700
0000000000000002: 00000002 00000000 00010000 0001 01 102 @fastmtcp/1000/client-7701
0000000000000003: 00000003 00000000 00000000 0001 03 103 @fastmtcp/0/server-7700
0000000000000004: 00000002 00000000 00010000 0001 01 104 /run/fastmtcp/0/x
0000000000000005: 00000003 00000000 00000000 0001 03 105
0000000000000006: 00000002 00000000 00010000 0001 01 106 @fastmtcp/0/a b
0000000000000007: 00000002 00000000 00010000 0001 01 107 @fastmtcp/0/\x1b[2J
0000000000000008: 00000002 00000000 00010000 0001 01 108 @/tmp/.X11-unix/X0
0000000000000009: 00000002 00000000 00010000 0001 01 109 @fastmtcp/0/a
000000000000000a: 00000002 00000000 00010000 0001 01 110 @web
"""


def test_only_listening_sockets_with_such_a_name_count() -> None:
    expected = ["fastmtcp/0/a", "fastmtcp/0/server-7700", "fastmtcp/1000/client-7701"]
    assert [str(name) for name in parse_listed(LISTED)] == expected


def test_an_empty_list_is_none() -> None:
    assert parse_listed("") == parse_listed(LISTED.splitlines()[0]) == []
