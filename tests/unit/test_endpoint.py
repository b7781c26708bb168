from __future__ import annotations

import ipaddress

import pytest
from fastmtcp.endpoint import Endpoint, ascii_name, host_of, unicode_name
from fastmtcp.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

LABELS = st.from_regex(r"[a-z_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
ADDRESSES = st.ip_addresses().map(str)
ZONED = st.from_regex(r"fe80::[1-9a-f]%[a-z0-9.-]{1,15}", fullmatch=True)
HOSTS = st.one_of(NAMES, ADDRESSES, ZONED, st.just("*"))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7700", "127.0.0.1", 7700),
        ("example.com:80", "example.com", 80),
        ("Example.COM:80", "example.com", 80),
        ("example.com.:80", "example.com.", 80),
        ("my_container-1:65535", "my_container-1", 65535),
        ("4chan.org:80", "4chan.org", 80),
        ("api-.example:80", "api-.example", 80),
        ("-x.-b.example:80", "-x.-b.example", 80),
        ("a+b.example:80", "a+b.example", 80),
        ("a*b.example:80", "a*b.example", 80),
        ("host.1:80", "host.1", 80),
        ("9.example.0x1f:80", "9.example.0x1f", 80),
        ("B\u00fccher.example:80", "b\u00fccher.example", 80),
        ("y" * 63 + ".example:80", "y" * 63 + ".example", 80),
        ("[::1]:7700", "::1", 7700),
        ("[2001:DB8:0:0::1]:1", "2001:db8::1", 1),
        ("[fe80::1%eth0.12]:22", "fe80::1%eth0.12", 22),
        ("*:7700", "*", 7700),
        (":7700", "*", 7700),
        ("[::]:7700", "::", 7700),
        ("localhost:0", "localhost", 0),
        ("localhost:00080", "localhost", 80),
        ("  localhost:80\n", "localhost", 80),
    ],
)
def test_parse(text: str, host: str, port: int) -> None:
    assert Endpoint.parse(text) == Endpoint(host, port)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("example.com", "example.com:7700"),
        ("10.0.0.1", "10.0.0.1:7700"),
        ("[::1]", "[::1]:7700"),
        ("*", "*:7700"),
        ("example.com:80", "example.com:80"),
        ("[::1]:80", "[::1]:80"),
    ],
)
def test_default_port_is_for_texts_without_one(text: str, expected: str) -> None:
    assert str(Endpoint.parse(text, default_port=7700)) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("localhost", "has no port"),
        ("localhost:", "has no port"),
        ("[::1]", "for example [::1]:7700"),
        ("[::1]:", "has no port"),
        (":", "has no port"),
        ("7700", "write 127.0.0.1:7700"),
        ("::1", "write [::1]:7700"),
        ("::1:7700", "write [::1]:7700"),
        ("fe80::1:2:3:4:5:6:7", "write [fe80::1:2:3:4:5:6]:7"),
        ("a:b:c", "too many colons"),
        ("[::1", "unclosed bracket"),
        ("[::1]x:80", "unclosed bracket"),
        ("[]:80", "no IPv6 address in its brackets"),
        ("[127.0.0.1]:80", "no IPv6 address in its brackets"),
        ("[localhost]:80", "no IPv6 address in its brackets"),
        ("[fe80::1%a b]:80", "wrong zone"),
        ("[fe80::1%]:80", "no IPv6 address in its brackets"),
        ("h:65536", "0 to 65535"),
        ("h:99999999999", "0 to 65535"),
        ("h:-1", "0 to 65535"),
        ("h:+1", "0 to 65535"),
        ("h:1_0", "0 to 65535"),
        ("h: 80", "0 to 65535"),
        ("h:http", "0 to 65535"),
        ("h:\u0661\u0662", "0 to 65535"),
        ("h:\u00b2", "0 to 65535"),
        ("127.1:80", "four numbers"),
        ("127.1.:80", "four numbers"),
        ("0177.0.0.1:80", "four numbers"),
        ("256.0.0.1:80", "four numbers"),
        ("127.0.0.01:80", "four numbers"),
        ("0x7f000001:80", "four numbers"),
        ("1.2.3.4.5:80", "four numbers"),
        ("exa mple:80", "no valid host name"),
        ("a..b:80", "no valid host name"),
        (".:80", "no valid host name"),
        ("a" * 64 + ":80", "no valid host name"),
        (".".join(["a" * 60] * 5) + ":80", "no valid host name"),
        ("\u00fc" * 127 + ":80", "no valid host name"),
        ("\udc80:80", "no valid host name"),
        ("a@b:80", "no valid host name"),
        ("a%b:80", "no valid host name"),
        ("a,b:80", "no valid host name"),
        ("a#b:80", "no valid host name"),
        ("a\x00b:80", "no valid host name"),
        ("a\u2028b:80", "no valid host name"),
        ("http://example.com:80", "nothing around it"),
        ("example.com:80/", "nothing around it"),
        ("127.0.0.1:80,127.0.0.1:81", "too many colons"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.parse(text)
    message = str(caught.value)
    assert part in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_an_empty_port_is_not_the_default_port() -> None:
    with pytest.raises(ConfigError, match="has no port"):
        Endpoint.parse("localhost:", default_port=80)


def test_a_long_text_is_cut_in_the_error() -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.parse("a" * 100_000 + ":80")
    assert len(str(caught.value)) < 500


@given(HOSTS, st.integers(0, 65535))
def test_text_form_reads_back(host: str, port: int) -> None:
    endpoint = Endpoint(host, port)
    assert Endpoint.parse(str(endpoint)) == endpoint


@given(st.text(alphabet=st.one_of(st.sampled_from("[]:.%*/-_ 0189afxl"), st.characters())))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    endpoint = refusal = None
    try:
        endpoint = Endpoint.parse(text)
    except ConfigError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.splitlines() == [refusal]
    else:
        assert endpoint is not None
        assert 0 <= endpoint.port <= 65535
        assert Endpoint.parse(str(endpoint)) == endpoint


@given(st.ip_addresses(v=6), st.integers(0, 65535))
def test_ipv6_is_bracketed(address: ipaddress.IPv6Address, port: int) -> None:
    text = str(Endpoint.parse(f"[{address.exploded}]:{port}"))
    assert text == f"[{address}]:{port}"


@pytest.mark.parametrize(
    ("host", "numeric", "loopback", "wildcard"),
    [
        ("127.0.0.1", True, True, False),
        ("127.255.255.254", True, True, False),
        ("::1", True, True, False),
        ("::ffff:127.0.0.1", True, True, False),
        ("::ffff:7f00:1", True, True, False),
        ("localhost", False, True, False),
        ("localhost.", False, False, False),
        ("localhost.example.com", False, False, False),
        ("example.com", False, False, False),
        ("128.0.0.1", True, False, False),
        ("::2", True, False, False),
        ("fe80::1%lo", True, False, False),
        ("::ffff:10.0.0.1", True, False, False),
        ("0.0.0.0", True, False, True),
        ("::", True, False, True),
        ("::ffff:0.0.0.0", True, False, True),
        ("*", False, False, True),
    ],
)
def test_kinds_of_hosts(host: str, numeric: bool, loopback: bool, wildcard: bool) -> None:
    endpoint = Endpoint(host, 80)
    assert endpoint.is_numeric is numeric
    assert endpoint.is_loopback is loopback
    assert endpoint.is_wildcard is wildcard


def test_it_is_immutable_hashable_and_ordered() -> None:
    first, second = Endpoint("a", 1), Endpoint("a", 2)
    assert len({first, second, Endpoint("a", 1)}) == 2
    assert sorted([second, first]) == [first, second]
    with pytest.raises(AttributeError):
        first.port = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("192.0.2.7:80", "192.0.2.7"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("[fe80::1%eth0]:80", "fe80::1%eth0"),
        ("", ""),
    ],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("example.com", "example.com:80"),
        ("10.0.0.1", "10.0.0.1:80"),
        ("::1", "[::1]:80"),
        ("[::1]", "[::1]:80"),
        ("[::ffff:127.0.0.1]", f"[{ipaddress.ip_address('::ffff:7f00:1')}]:80"),
    ],
)
def test_a_host_may_have_its_brackets_or_not(host: str, text: str) -> None:
    assert str(Endpoint.of(host, 80)) == text


@pytest.mark.parametrize("host", ["127.0.0.1]", "[127.0.0.1]", "a]:1", "::1]", "[::1", "a:1"])
def test_what_is_no_host_is_none(host: str) -> None:
    with pytest.raises(ConfigError):
        Endpoint.of(host, 80)


@pytest.mark.parametrize(
    ("name", "in_ascii"),
    [
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("example.com", "example.com"),
        ("a+b.-c", "a+b.-c"),
        # What the older and the newer rules write otherwise may be two machines.
        ("stra\u00dfe.example", None),
        ("\u00fc" * 63, None),
        ("\ud800", None),
    ],
)
def test_the_form_that_the_dns_has(name: str, in_ascii: str | None) -> None:
    assert ascii_name(name) == in_ascii
    if in_ascii is not None and in_ascii != name:
        assert unicode_name(in_ascii) == name


@pytest.mark.parametrize("name", ["example.com", "xn--", "xn--zca", "XN--bcher-kva", "xn--a\u00fc"])
def test_a_name_without_another_form(name: str) -> None:
    assert unicode_name(name) is None
