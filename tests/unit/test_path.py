from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest
from fastmtcp.config import settings
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.connections import Connections
from fastmtcp.config.path import PathSpec, Proxy
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

A = Endpoint("a", 1)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("a:1", PathSpec(A)),
        (" a:1 , backup ", PathSpec(A, backup=True)),
        ("a:1,backup=false", PathSpec(A)),
        ("a:1,bind=10.0.0.2", PathSpec(A, bind="10.0.0.2")),
        ("a:1,bind=[2001:DB8::2]", PathSpec(A, bind="2001:db8::2")),
        ("a:1,bind=2001:db8::2", PathSpec(A, bind="2001:db8::2")),
        ("[::1]:2,dev=eth0.7", PathSpec(Endpoint("::1", 2), dev="eth0.7")),
        (
            "a:1,connections=64,direction=up",
            PathSpec(A, connections=Connections(64, 64), direction="up"),
        ),
        ("a:1,connections=2-16", PathSpec(A, connections=Connections(2, 16))),
        ("a:1,direction=both", PathSpec(A)),
        (
            "a:1,via=socks5://p:1080",
            PathSpec(A, via=Proxy("socks5", Endpoint("p", 1080))),
        ),
        (
            "a:1,via=socks5h://u:@p:1080/,dev=x",
            PathSpec(A, dev="x", via=Proxy("socks5", Endpoint("p", 1080), "u")),
        ),
        (
            "a:1,via=http://u%3Aer:p%2Cw%40/%25@[::1]:80",
            None,  # a colon in an HTTP user
        ),
        (
            "a:1,via=http://us%C3%A9r:p%2Cw@%2F%25@[::1]:80",
            PathSpec(A, via=Proxy("http", Endpoint("::1", 80), "usér", "p,w@/%")),
        ),
    ],
)
def test_parse(text: str, spec: PathSpec | None) -> None:
    if spec is None:
        with pytest.raises(ConfigError):
            PathSpec.parse(text)
    else:
        assert PathSpec.parse(text) == spec


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the address is empty; write HOST:PORT"),
        (",backup", "the address is empty; write HOST:PORT"),
        ("a", "'a' has no port; write HOST:PORT, for example a:7700"),
        ("a:1,", "a:1: something is not an option of a path; they are bind, dev, connections, dir"),
        ("a:1,bnd=1.2.3.4", "a:1: 'bnd' is not an option of a path; they are bind, dev, "),
        ("a:1,bind=eth0", "a:1: bind=eth0 must be an IP address of this machine"),
        ("a:1,bind", "a:1: bind= must be an IP address of this machine"),
        ("a:1,bind=0.0.0.0", "a:1: bind=0.0.0.0 must be an IP address of this machine, or left"),
        ("a:1,dev=", "a:1: dev= must be the name of a network interface, for example eth0"),
        ("a:1,dev=0123456789abcdef", "a:1: dev=0123456789abcdef must be the name of a network"),
        ("a:1,dev=..", "a:1: dev=.. must be the name of a network interface, for example eth0"),
        ("a:1,connections=0", "a:1: connections=0 must be a whole number from 1 to 64"),
        ("a:1,connections=65", "a:1: connections=65 must be a whole number from 1 to 64"),
        ("a:1,connections=8-2", "a:1: connections=8-2 must be a whole number from 1 to 64, or a"),
        ("a:1,connections=2-65", "a:1: connections=2-65 must be a whole number from 1 to 64, or"),
        ("a:1,connections=2-", "a:1: connections=2- must be a whole number from 1 to 64, or a"),
        ("a:1,connections=٣", "a:1: connections=٣ must be a whole number from 1 to 64"),
        ("a:1,direction=left", "a:1: direction=left must be one of both, up, down"),
        ("a:1,backup=maybe", "a:1: backup=maybe must be true or false"),
        ("a:1,dev=x,dev=y", "a:1: dev= is there twice; remove one of them"),
        ("a:1,dev=" + "x" * 99, "a:1: dev=" + "x" * 37 + "... must be the name"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PathSpec.parse(text)
    assert str(caught.value).startswith(problem)


SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"socks5://u:{SECRET}@p:1080",
        f"u:{SECRET}@p:1080",
        f"a:1,via=u:{SECRET}@p:1080",
        f"a:1,via=https://u:{SECRET}@p:1080",
        f"a:1,via=socks5://u:{SECRET}",
        f"a:1,via=socks5://{SECRET}@p:1080",
        f"a:1,via=socks5://u:{SECRET}@p",
        f"a:1,via=socks5://u:{SECRET}@p:0",
        f"a:1,via=socks5://u:{SECRET}@*:1080",
        f"a:1,via=socks5://u:{SECRET}%FF@p:1080",
        f"a:1,via=socks5://u:{SECRET * 40}@p:1080",
        f"a:1,via=http://u%3A:{SECRET}@p:1080",
        f"a:1,via=socks5://u:x,{SECRET}@p:1080",
        f"a:1,via=socks5://u:1080,{SECRET}@p:1080",
        f"a:1,via=socks5://u:1080,{SECRET}=x@p:1080",
        f"a:1,via=socks5://u:x,bind={SECRET}@p:1080",
        f"a:1,via=socks5://u:x,via={SECRET}@p:1080",
        f"a:1,vja=socks5://u:{SECRET}@p:1080",
    ],
)
def test_no_error_shows_a_password(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.load(ClientConfig, None, {"server": (text,)})
    message = str(caught.value)
    assert message.startswith("--server: ")
    assert SECRET not in message
    assert "\n" not in message


def test_nothing_else_shows_a_password_either(tmp_path: Path) -> None:
    spec = PathSpec.parse(f"a:1,via=socks5://us%2Cer:{SECRET}@p:1080,dev=x")
    assert spec.via is not None
    assert spec.via.password == SECRET
    shown = [str(spec), repr(spec), spec.label, str(spec.via), repr(spec.via), f"{spec}"]
    shown.append(repr(ClientConfig(server=(spec,))))
    assert not [text for text in shown if SECRET in text]
    assert str(spec) == "a:1,dev=x,via=socks5://us%2Cer@p:1080"
    path = tmp_path / "c.toml"
    path.write_text(f"[[server]]\naddress = 'a:1'\nvia = 'socks4://u:{SECRET}@p:1'\n")
    with pytest.raises(ConfigError) as caught:
        settings.load(ClientConfig, str(path), {})
    assert SECRET not in str(caught.value)


devices = st.from_regex(r"[a-z][a-z0-9.]{0,14}", fullmatch=True)
specs = st.builds(
    PathSpec,
    endpoint=st.builds(Endpoint, st.sampled_from(["a", "::1", "10.0.0.1"]), st.integers(1, 65535)),
    bind=st.none() | st.ip_addresses().filter(lambda a: not a.is_multicast).map(str),
    dev=st.none() | devices,
    connections=st.none()
    | st.builds(lambda *ends: Connections(*sorted(ends)), st.integers(1, 64), st.integers(1, 64)),
    direction=st.sampled_from(["both", "up", "down"]),
    backup=st.booleans(),
    via=st.none()
    | st.builds(
        Proxy,
        st.sampled_from(["socks5", "http"]),
        st.builds(Endpoint, st.sampled_from(["p", "::1"]), st.integers(1, 65535)),
    ),
)


@given(specs)
def test_what_is_shown_reads_back_the_same(spec: PathSpec) -> None:
    if spec.bind in ("0.0.0.0", "::"):
        spec = msgspec.structs.replace(spec, bind=None)
    assert PathSpec.parse(str(spec)) == spec


@given(st.text(max_size=60))
def test_any_text_is_a_path_or_a_config_error(text: str) -> None:
    for candidate in (text, f"a:1,{text}", f"a:1,via={text}", f"a:1,via=socks5://{text}"):
        with contextlib.suppress(ConfigError):
            assert PathSpec.parse(candidate).endpoint.port <= 65535


def test_label_says_how_it_goes() -> None:
    text = "a:1,dev=eth1,bind=10.0.0.2,via=socks5://u:p@q:3,direction=up,backup"
    assert PathSpec.parse(text).label == (
        "a:1 via eth1 from 10.0.0.2 through socks5 proxy q:3 (up) (backup)"
    )
    assert PathSpec.parse("a:1").label == "a:1"
    assert PathSpec.parse("a:1").first_hop == A
    assert PathSpec.parse("a:1,via=http://q:3").first_hop == Endpoint("q", 3)


# --- in the configuration -----------------------------------------------------------------------


def load(tmp_path: Path, text: str) -> ClientConfig:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return settings.load(ClientConfig, str(path), {})


def test_tables_and_texts_say_the_same(tmp_path: Path) -> None:
    texts = load(
        tmp_path,
        "server = ['a:1,bind=10.0.0.2,connections=3', 'b:2,direction=down,backup', "
        "{address = 'c:3', connections = '2-9', dev = 'eth1', via = 'http://u:p@q:8'}]\n"
        "connections = 4",
    )
    tables = load(
        tmp_path,
        """
connections = 4
[[server]]
address = "a:1"
bind = "10.0.0.2"
connections = 3
[[server]]
address = "b:2"
direction = "down"
backup = true
[[server]]
address = "c:3"
connections = "2-9"
dev = "eth1"
via = "http://u:p@q:8"
""",
    )
    assert texts == tables
    assert texts.subflows == 3 + 4 + 2
    assert texts.paths[2].connections == Connections(2, 9)
    one = load(tmp_path, "[server]\naddress = 'a:1'")
    assert one.server == (PathSpec(A),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[server]]\nbind = '1.2.3.4'", "the table needs its address, as in address = "),
        ("[[server]]\naddress = 7700", "the table needs its address, as in address = "),
        (
            "[[server]]\naddress = 'a:1'\nworkers = 2",
            "a:1: 'workers' is not an option of a path; they are bind, dev, connections, "
            "direction, backup, via; other settings stand above the first [[server]]",
        ),
        ("[[server]]\naddress = 'a:1'\nbackup = 1", "a:1: backup=1 must be true or false"),
        ("[[server]]\naddress = 'a:1'\nconnections = 'x'", "a:1: connections=x must be a whole"),
        ("[[server]]\naddress = 'a:1'\nconnections = 2.5", "a:1: connections=2.5 must be a whol"),
        ("[[server]]\naddress = 'a:1'\nconnections = true", "a:1: connections=true must be a wh"),
        ("[[server]]\naddress = 'a:1'\nvia = 5", "a:1: via= must be socks5://[USER:PASSWORD@]"),
        ("[[server]]\naddress = 'a:1'\ndev = ['x']", "a:1: dev=['x'] must be the name of a net"),
        ("server = 7", "7 must be HOST:PORT, or a list of such, in quotes"),
        ("server = 'a:0'", "a:0 has port 0, which is for listening only"),
        ("server = ['a:1', 'a:1,direction=both']", "a:1 is there twice; for more connections writ"),
        (
            "server = '10.0.0.1:1,bind=::1'",
            "bind=::1 and 10.0.0.1:1 are an IPv6 and an IPv4 address; write two of one kind",
        ),
        (
            "server = 'a:1,bind=10.0.0.2,via=http://[::1]:8'",
            "bind=10.0.0.2 and [::1]:8 are an IPv4 and an IPv6 address; write two of one kind",
        ),
        (
            "server = ['a:1,direction=up', 'b:1,direction=up']",
            "no path carries data from the server; add one with direction=down or without",
        ),
        ("server = 'a:1,direction=down'", "no path carries data to the server; add one with dir"),
        (
            "server = ['a:1,connections=60', 'b:1,connections=61']",
            "the paths have 121 connections or more, the limit is 120; lower --connections or the",
        ),
    ],
)
def test_a_wrong_file_is_one_line_with_the_key(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/c.toml: server: {problem}")


def test_paths_for_each_direction_are_enough() -> None:
    paths = ("a:1,direction=up", "b:1,direction=down,backup")
    assert len(settings.load(ClientConfig, None, {"server": paths}).paths) == 2
