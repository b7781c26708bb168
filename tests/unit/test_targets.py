"""Which targets a client may choose."""

from __future__ import annotations

import ipaddress

import pytest
from fastmtcp.config.targets import Rule, is_allowed, is_possible, is_public
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

NOT_PUBLIC = [
    *("127.0.0.1", "127.255.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
    *("192.168.1.1", "169.254.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200"),
    *("168.63.129.16", "192.0.0.192", "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1"),
    *("::", "::1", "::7f00:1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254"),
    *("fd20:ce::254", "ff02::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("::ffff:169.254.169.254", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1"),
    *("64:ff9b::169.254.169.254", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1"),
]
RESERVED = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    *("169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32", "168.63.129.16/32"),
    *("100.100.100.200/32", "192.0.0.192/32"),
    *("::/96", "::/128", "::1/128", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32"),
    *("2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    *("fd00:ec2::254/128", "fd00:ec2::23/128", "fd20:ce::254/128"),
]
"""What the registries of IANA and the clouds keep for themselves."""
PUBLIC = [
    *("8.8.8.8", "93.184.216.34", "172.15.0.1", "172.32.0.1", "192.167.255.255", "11.0.0.1"),
    *("100.128.0.1", "168.63.129.17", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"),
    *("64:ff9b::8.8.8.8",),
]


def rules(*texts: str) -> list[Rule]:
    return [Rule.parse(text) for text in texts]


def allowed(listed: str | list[str], target: str, address: str | None = None) -> bool:
    """May a client of a server that allows `listed` connect to `target`, found at `address`?"""
    chosen = rules(*([listed] if isinstance(listed, str) else listed))
    endpoint = Endpoint.parse(target)
    address = endpoint.host if address is None else address
    answer = is_allowed(chosen, endpoint, address)
    if answer:
        assert is_possible(chosen, endpoint)
    return answer


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("git.example.com:22", "git.example.com:22"),
        (" Git.Example.COM.:22 ", "git.example.com:22"),
        ("*.example.com:80,443", "*.example.com:80,443"),
        ("10.1.0.0/16:8000-8099", "10.1.0.0/16:8000-8099"),
        ("10.0.0.1:22-22", "10.0.0.1:22"),
        ("10.0.0.1/32:1-65535", "10.0.0.1:*"),
        ("[2001:DB8::/32]:*", "[2001:db8::/32]:*"),
        ("[::1]:22, 80", "[::1]:22,80"),
        ("*:443", "*:443"),
        ("*:*", "*:*"),
        ("laptop@*.example.com:443", "laptop@*.example.com:443"),
        ("a.b-c_1@[::1]:22", "a.b-c_1@[::1]:22"),
    ],
)
def test_a_rule_is_read_and_written(text: str, written: str) -> None:
    rule = Rule.parse(text)
    assert str(rule) == written
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must be HOST:PORTS"),
        ("example.com", "must be HOST:PORTS"),
        (":80", "must be HOST:PORTS"),
        ("[::1:80", "must be HOST:PORTS"),
        ("example.com:0", "no valid ports"),
        ("example.com:70000", "no valid ports"),
        ("example.com:90-80", "no valid ports"),
        ("example.com:80,", "no valid ports"),
        ("example.com:\u0661", "no valid ports"),
        ("::1:80", "needs brackets"),
        ("2001:db8::/32:80", "needs brackets"),
        ("[10.0.0.1]:80", "brackets that only IPv6 has"),
        ("[example.com]:80", "no valid address or network"),
        ("10.0.0.0/33:80", "no valid address or network"),
        ("10.1.2.3/16:80", "write 10.1.0.0/16 or 10.1.2.3"),
        ("[fe80::1%eth0]:80", "has a zone"),
        ("[::ffff:10.0.0.1]:80", "write 10.0.0.1"),
        ("127.1:80", "no valid IPv4 address"),
        ("a*b.com:80", "something that is no name"),
        ("*.10.0.0.1:80", "something that is no name"),
        ("*.:80", "something that is no name"),
        ("*.*.com:80", "something that is no name"),
        ("exa mple.com:80", "no valid host name"),
        ("localhost:22", "write the address, as in 127.0.0.1:22"),
        ("*.localhost:22", "write the address, as in 127.0.0.1:22"),
        ("x" * 5000, "must be HOST:PORTS"),
        ("@example.com:80", "no name of a client"),
        ("me you@example.com:80", "no name of a client"),
    ],
)
def test_a_wrong_rule_says_what_to_write(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Rule.parse(text)
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 400


def test_nothing_is_allowed_that_is_not_listed() -> None:
    target = Endpoint("example.com", 443)
    assert not is_possible([], target)
    assert not is_allowed([], target, "93.184.216.34")
    assert not allowed("example.com:443", "example.com:444", "93.184.216.34")
    assert not allowed("example.com:443", "example.org:443", "93.184.216.34")
    assert not allowed("example.com:443", "www.example.com:443", "93.184.216.34")
    assert not allowed("example.com:443", "93.184.216.34:443")


def test_a_rule_for_one_client_is_for_nobody_else() -> None:
    for_all, for_one = rules("git.example.com:22", "laptop@git.example.com:22")
    assert for_all.is_for("laptop")
    assert for_all.is_for("phone")
    assert for_one.is_for("laptop")
    assert not for_one.is_for("phone")
    assert not for_one.is_for("")


def test_names() -> None:
    assert allowed("example.com:443", "example.com:443", "93.184.216.34")
    assert allowed("example.com:443", "EXAMPLE.com.:443", "93.184.216.34")
    assert allowed("*.example.com:443", "a.b.example.com:443", "93.184.216.34")
    for other in ("example.com", "badexample.com", "example.com.evil.org"):
        assert not allowed("*.example.com:443", f"{other}:443", "93.184.216.34")


def test_networks() -> None:
    assert allowed("93.184.0.0/16:443", "93.184.216.34:443")
    assert allowed("93.184.0.0/16:443", "example.com:443", "93.184.216.34")
    assert not allowed("93.184.0.0/16:443", "93.185.0.1:443")
    assert allowed("[2606:4700::/32]:1-1023", "[2606:4700::1111]:443")
    assert not allowed("[2606:4700::/32]:1-1023", "[2606:4701::1111]:443")
    assert not allowed("0.0.0.0/0:*", "[2606:4700::1111]:443")


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_public_must_be_listed_by_number(address: str) -> None:
    target = f"[{address}]:80" if ":" in address else f"{address}:80"
    everything = ["*:*", "0.0.0.0/0:*", "[::/0]:*", "*.example.com:*"]
    assert not allowed(everything, target)
    # A listed name gains nothing by where it points, or is made to point.
    assert not allowed(everything, "www.example.com:80", address)
    plain = address.partition("%")[0].removeprefix("::ffff:")
    rule = f"[{plain}]:80" if ":" in plain else f"{plain}:80"
    assert allowed(rule, target)
    assert allowed([rule], "www.example.com:80", address)
    assert not allowed(rule.replace(":80", ":81"), target)


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_covered_by_a_star(address: str) -> None:
    target = f"[{address}]:80" if ":" in address else f"{address}:80"
    assert allowed("*:80", target)
    assert allowed("*.example.com:80", "www.example.com:80", address)
    assert not allowed("*:81", target)


@pytest.mark.parametrize(
    ("network", "address", "covered"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.1.0.0/16", "10.1.2.3", True),
        ("10.0.0.0/7", "10.1.2.3", False),
        ("10.0.0.0/7", "11.1.2.3", True),
        ("169.254.0.0/16", "169.254.1.1", True),
        # Metadata only by its own address.
        ("169.254.0.0/16", "169.254.169.254", False),
        ("fd00::/8", "fd00:ec2::254", False),
        ("fd00::/8", "fd00:ec2::255", True),
        ("64:ff9b::/96", "64:ff9b::10.0.0.1", False),
        ("64:ff9b::a00:0/104", "64:ff9b::10.0.0.1", True),
        ("10.0.0.0/8", "64:ff9b::10.0.0.1", False),
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
    ],
)
def test_a_network_names_what_is_not_public_if_it_holds_nothing_else(
    network: str, address: str, covered: bool
) -> None:
    rule = f"[{network}]:*" if ":" in network else f"{network}:*"
    target = f"[{address}]:80" if ":" in address else f"{address}:80"
    assert allowed(rule, target) is covered


def test_what_cannot_be_allowed_is_not_looked_up() -> None:
    target = Endpoint("example.com", 443)
    assert not is_possible(rules("*:80", "example.org:443", "10.0.0.0/8:80"), target)
    assert is_possible(rules("10.0.0.0/8:443"), target)
    assert is_possible(rules("*:443"), target)
    assert not is_possible(rules("*:443"), Endpoint("10.0.0.1", 443))


@pytest.mark.parametrize("address", ["", "example.com", "0x7f.1", "1.2.3", "2130706433"])
def test_an_address_that_is_none_is_not_allowed(address: str) -> None:
    assert not is_allowed(rules("*:*"), Endpoint("example.com", 80), address)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_an_impossible_port_is_not_allowed(port: int) -> None:
    assert not is_allowed(rules("*:*"), Endpoint("example.com", port), "8.8.8.8")


ADDRESSES = st.ip_addresses() | st.sampled_from([*NOT_PUBLIC, *PUBLIC]).map(
    lambda text: ipaddress.ip_address(text.partition("%")[0])
)
PORTS = st.integers(1, 65535)


def bracketed(address: object) -> str:
    return f"[{address}]" if ":" in str(address) else str(address)


@given(ADDRESSES, PORTS)
def test_a_star_covers_what_the_library_calls_global(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    """Python's own tables differ by version, so only one way round: public here is so there."""
    if allowed(f"*:{port}", f"{bracketed(address)}:{port}"):
        mapped = getattr(address, "ipv4_mapped", None)
        if not str(address).startswith("64:ff9b:"):
            assert (mapped or address).is_global
        assert is_public(mapped or address)


@given(ADDRESSES, st.integers(0, 128), PORTS)
def test_a_network_covers_nothing_outside_of_it(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, size: int, port: int
) -> None:
    kind = ipaddress.IPv4Network if address.version == 4 else ipaddress.IPv6Network
    network = kind((int(address), min(size, address.max_prefixlen)), strict=False)
    before = int(network.network_address) - 1
    try:
        chosen = rules(f"{bracketed(network)}:{port}")
    except ConfigError:
        assert address.version == 6  # IPv4 in disguise
        return
    if before > 0:
        outside = type(address)(before)
        assert not is_allowed(chosen, Endpoint("x", port), str(outside))
    if getattr(address, "ipv4_mapped", None) is None:
        chosen = rules(f"{bracketed(address)}:{port}")
        assert is_allowed(chosen, Endpoint("x", port), str(address))


@given(st.text(max_size=60))
def test_whatever_stands_there_is_a_rule_or_an_error(text: str) -> None:
    try:
        rule = Rule.parse(text)
    except ConfigError:
        return
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize("written", ["b\u00fccher.example", "xn--bcher-kva.example"])
@pytest.mark.parametrize("asked", ["b\u00fccher.example", "xn--bcher-kva.example"])
@pytest.mark.parametrize(("star", "below"), [("", ""), ("*.", "www.")])
def test_a_rule_counts_in_both_forms_of_its_name(
    written: str, asked: str, star: str, below: str
) -> None:
    rules = [Rule.parse(f"{star}{written}:443")]
    target = Endpoint.parse(f"{below}{asked}:443")
    assert is_possible(rules, target)
    assert is_allowed(rules, target, "93.184.216.34")
    assert not is_allowed(rules, target, "127.0.0.1")
    assert not is_possible(rules, Endpoint.parse(f"{below}a{asked}:443"))


@pytest.mark.parametrize(
    "asked",
    [
        # Their other form would be below example.com, or it: what is looked up first is not.
        "www\u3002example.com:443",
        "www.example\uff0ecom:443",
        "\uff45xample.com:443",
        "example.com\uff0e:443",
    ],
)
def test_what_only_looks_like_a_listed_name_is_none(asked: str) -> None:
    rules = [Rule.parse("*.example.com:443"), Rule.parse("example.com:443")]
    assert not is_possible(rules, Endpoint.parse(asked))


@pytest.mark.parametrize("asked", ["api-.example", "-x.example", "a+b.example", "host.1"])
def test_an_odd_name_can_be_listed(asked: str) -> None:
    target = Endpoint.parse(f"{asked}:443")
    assert not is_possible([Rule.parse("other.example:443")], target)
    rules = [Rule.parse(f"{asked}:443")]
    assert is_allowed(rules, target, "93.184.216.34")
    assert not is_allowed(rules, target, "10.0.0.1")


@pytest.mark.parametrize("text", RESERVED)
def test_every_reserved_network_is_reserved_from_end_to_end(text: str) -> None:
    network = ipaddress.ip_network(text)
    for address in (network[0], network[-1]):
        assert not is_public(address)
        # A rule for all there is covers no address of a network of its own.
        everything = "0.0.0.0/0:*" if network.version == 4 else "[::/0]:*"
        host = str(address) if network.version == 4 else f"[{address}]"
        assert not allowed(everything, f"{host}:80")
        assert allowed(f"{host}:80", f"{host}:80")


@pytest.mark.parametrize(
    ("rule", "address", "covered"),
    [
        ("[fc00::/7]:*", "fd00:ec2::254", False),
        ("[fc00::/7]:*", "fd00:ec2::23", False),
        ("[fc00::/7]:*", "fd20:ce::254", False),
        ("[fc00::/7]:*", "fd00:ec2::22", True),
        ("[fd00:ec2::23]:*", "fd00:ec2::23", True),
        ("169.254.0.0/16:*", "169.254.169.254", False),
        ("169.254.0.0/16:*", "169.254.170.2", False),
        ("169.254.0.0/16:*", "169.254.170.23", False),
        ("169.254.0.0/16:*", "169.254.1.1", True),
        ("100.64.0.0/10:*", "100.100.100.200", False),
        ("192.0.0.0/24:*", "192.0.0.192", False),
        ("168.63.0.0/16:*", "168.63.129.16", False),
        ("[64:ff9b::/96]:*", "64:ff9b::a9fe:a9fe", False),
        ("[64:ff9b::/96]:*", "64:ff9b::808:808", True),
        ("10.0.0.0/8:*", "10.1.2.3", True),
    ],
)
def test_a_network_covers_none_that_is_reserved_within_it(
    rule: str, address: str, covered: bool
) -> None:
    host = f"[{address}]" if ":" in address else address
    assert allowed(rule, f"{host}:80") is covered
