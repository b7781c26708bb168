from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
import psutil
import pytest
from fastmtcp.config import common, settings
from fastmtcp.config.checks import check_limits
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.connections import Connections, fit
from fastmtcp.config.ingress import WayIn
from fastmtcp.config.limits import ClientLimits, ServerLimits, within
from fastmtcp.config.path import PathSpec
from fastmtcp.config.server import ServerConfig
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.limits import MIB
from fastmtcp.errors import ConfigError, FormError
from fastmtcp.io import cgroup
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

HEX = "0123456789abcdef" * 4
BOTH: list[type[common.Config]] = [ServerConfig, ClientConfig]


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "fastmtcp.toml"
    path.write_text(text)
    return str(path)


def refusal(config_type: type[common.Config], path: str | None, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        settings.load(config_type, path, overrides)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert caught.value.exit_code == 2
    return message


def test_server_defaults() -> None:
    loaded = settings.load(ServerConfig, None, {})
    assert loaded == ServerConfig()
    assert loaded.listen == (Endpoint("127.0.0.1", 7700),)
    assert loaded.target == Endpoint("127.0.0.1", 5201)
    assert loaded.workers is None
    assert loaded.key_file is None
    assert (loaded.log_level, loaded.log_format) == ("info", "text")
    assert (loaded.drain_timeout, loaded.connect_timeout) == (30, 10)


def test_client_defaults_reach_the_default_server() -> None:
    loaded = settings.load(ClientConfig, None, {})
    assert loaded.ways_in == (WayIn(Endpoint("127.0.0.1", 7701)),)
    assert tuple(path.endpoint for path in loaded.paths) == ServerConfig().listen
    assert loaded.connections == Connections(2, 16)
    assert (loaded.egress, loaded.express) == ("off", True)
    assert loaded.workers is None


@pytest.mark.parametrize(
    ("text", "connections"),
    [
        ("4", (4, 4)),
        ("'4'", (4, 4)),
        ("'2-16'", (2, 16)),
        ("' 1 - 64 '", (1, 64)),
        ("'3-3'", (3, 3)),
    ],
)
def test_a_number_or_a_range(tmp_path: Path, text: str, connections: tuple[int, int]) -> None:
    loaded = settings.load(ClientConfig, write(tmp_path, f"connections = {text}"), {})
    assert loaded.connections == Connections(*connections)
    assert loaded.connections.is_fixed == (connections[0] == connections[1])


def test_only_lower_ends_that_do_not_fit_are_an_error() -> None:
    paths = tuple(f"a:{port}" for port in range(1, 41))
    assert settings.load(ClientConfig, None, {"server": paths}).subflows == 80
    message = refusal(ClientConfig, None, server=paths, connections="4-16")
    assert message == (
        "--server: the paths have 160 connections or more, the limit is 120; lower --connections "
        "or the connections= of a path"
    )


def test_upper_ends_are_lowered_until_they_fit() -> None:
    automatic, fixed = Connections(2, 16), Connections(60, 60)
    assert fit([automatic] * 7, 120) == [automatic] * 7
    assert fit([automatic] * 8, 120) == [Connections(2, 15)] * 8
    assert fit([fixed, Connections(2, 64), automatic], 120) == [
        fixed,
        Connections(2, 44),
        automatic,
    ]
    # What cannot be helped stays as it is.
    assert fit([fixed] * 3, 120) == [fixed] * 3


SERVER_FILE = """
listen = ["127.0.0.1:1", "[::1]:2"]
target = "example.com:80"
send_proxy = "v2"
allow = ["*.example.com:443", "10.0.0.0/8:*"]
workers = 3
key_file = "/etc/fastmtcp.key"
log_level = "debug"
log_format = "json"
drain_timeout = 0
control = "edge.1"
connect_timeout = 2.5
session_timeout = 1
keepalive = 0
clients_file = "clients"
tls = true
certificate = "certificate.pem"
certificate_key = "certificate.key"
client_ca_file = "ca.pem"
public_address = "example.com:7700"
user = "nobody:nogroup"
limits = { max_sessions = 5, opens_per_second = 0.5, subflow_timeout = 20 }
"""
FINGERPRINT = "A1:" * 31 + "b2"
CLIENT_FILE = f"""
listen = "127.0.0.1:1"
forward = ["8080:web:80", "unix:/run/web.sock:web:80"]
proxy = "127.0.0.1:1080"
accept_proxy = true
proxy_login_file = "/etc/proxy.login"
target = "example.com:80"
server = ["a:1", "b:2"]
connections = "2-60"
egress = "auto"
express = false
workers = 256
key_file = "/etc/fastmtcp.key"
log_level = "error"
log_format = "text"
drain_timeout = 86400
control = "off"
connect_timeout = 600
session_timeout = 86400
keepalive = 32767
name = "laptop"
tls = true
fingerprint = "{FINGERPRINT}"
ca_file = "ca.pem"
server_name = "example.com"
certificate = "certificate.pem"
certificate_key = "certificate.key"
limits = {{ max_streams = 100 }}
user = "nobody"
"""


@pytest.mark.parametrize(
    ("config_type", "text"), [(ServerConfig, SERVER_FILE), (ClientConfig, CLIENT_FILE)]
)
def test_a_file_can_say_all(tmp_path: Path, config_type: type[common.Config], text: str) -> None:
    loaded = settings.load(config_type, write(tmp_path, text), {})
    given = [line.split(" = ")[0] for line in text.strip().splitlines()]
    # A link says what the key file, the name and the fingerprint say.
    assert sorted(given) == sorted({*config_type.__struct_fields__} - {"link_file"})
    defaults = config_type()
    same = [name for name in given if getattr(loaded, name) == getattr(defaults, name)]
    assert same in ([], ["log_format"])
    if isinstance(loaded, ServerConfig):
        assert loaded.listen == (Endpoint("127.0.0.1", 1), Endpoint("::1", 2))
        assert loaded.target == Endpoint("example.com", 80)
    else:
        assert isinstance(loaded, ClientConfig)
        assert loaded.listen == (Endpoint("127.0.0.1", 1),)
        assert loaded.paths == (PathSpec(Endpoint("a", 1)), PathSpec(Endpoint("b", 2)))


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, CLIENT_FILE)
    loaded = settings.load(ClientConfig, path, {"connections": "2", "server": ("c:3",)})
    assert loaded.connections == Connections(2, 2)
    assert loaded.paths == (PathSpec(Endpoint("c", 3)),)
    assert loaded.workers == 256


def test_options_that_were_not_given_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, CLIENT_FILE)
    overrides: dict[str, object] = dict.fromkeys(ClientConfig.__struct_fields__)
    overrides |= {"server": (), "listen": []}
    assert settings.load(ClientConfig, path, overrides) == settings.load(ClientConfig, path, {})


def test_overrides_may_be_ready_values() -> None:
    path = PathSpec(Endpoint("a", 1))
    overrides = {"server": [path], "connections": 7, "drain_timeout": 1.5, "express": False}
    loaded = settings.load(ClientConfig, None, overrides)
    assert loaded == ClientConfig(
        server=(path,), connections=Connections(7, 7), drain_timeout=1.5, express=False
    )


@pytest.mark.parametrize(
    ("config_type", "line", "problem"),
    [
        (ServerConfig, "lisen = 1", "lisen: unknown key; did you mean listen?"),
        (ServerConfig, "key-file = 'k'", "key-file: unknown key; did you mean key_file?"),
        (ServerConfig, "Workers = 2", "Workers: unknown key; did you mean workers?"),
        (
            ServerConfig,
            "zzz = 1",
            "zzz: unknown key; the keys are allow, certificate, certificate_key, client_ca_file, "
            "clients_file, connect_timeout, control, drain_timeout, keepalive, key_file, limits, "
            "listen, log_format, log_level, public_address, send_proxy, session_timeout, target, "
            "tls, user, workers",
        ),
        (
            ServerConfig,
            "connections = 4",
            "connections: is a setting of fastmtcp-client, not of fastmtcp-server; remove it",
        ),
        (
            ClientConfig,
            "allow = '*:1'",
            "allow: is a setting of fastmtcp-server, not of fastmtcp-client; remove it",
        ),
        (
            ClientConfig,
            "[client]\nconnections = 4",
            "client: is a table; write the keys at the top of the file, without [tables], or in "
            "[limits]",
        ),
        (
            ClientConfig,
            "[server]",
            'server: the table needs its address, as in address = "example.com:7700"',
        ),
        (
            ClientConfig,
            "connections = 65",
            f"connections: 65 must be {Connections.FORM}",
        ),
        (
            ClientConfig,
            "connections = 0",
            f"connections: 0 must be {Connections.FORM}",
        ),
        (
            ClientConfig,
            "connections = 2.5",
            f"connections: 2.5 must be {Connections.FORM}",
        ),
        (
            ClientConfig,
            "connections = '4-'",
            f"connections: '4-' must be {Connections.FORM}",
        ),
        (
            ClientConfig,
            "connections = true",
            f"connections: true must be {Connections.FORM}",
        ),
        (
            ClientConfig,
            f"connections = {10**30}",
            f"connections: {10**30} must be {Connections.FORM}",
        ),
        (ClientConfig, "workers = 0", "workers: 0 must be a whole number from 1 to 256"),
        (
            ClientConfig,
            "drain_timeout = nan",
            "drain_timeout: nan must be a number of seconds from 0 to 86400",
        ),
        (
            ClientConfig,
            "drain_timeout = inf",
            "drain_timeout: inf must be a number of seconds from 0 to 86400",
        ),
        (
            ClientConfig,
            "drain_timeout = -1",
            "drain_timeout: -1 must be a number of seconds from 0 to 86400",
        ),
        (
            ClientConfig,
            "connect_timeout = 0",
            "connect_timeout: 0 must be a number of seconds from 0.1 to 600",
        ),
        (
            ServerConfig,
            "log_level = 'warn'",
            "log_level: 'warn' must be one of debug, info, warning, error; did you mean warning?",
        ),
        (ServerConfig, "log_format = 1", "log_format: 1 must be one of text, json"),
        (ServerConfig, "key_file = 1", "key_file: 1 must be a text"),
        (ServerConfig, "key_file = ''", "key_file: names no file; write the name of one"),
        (ServerConfig, "target = 80", "target: 80 must be HOST:PORT, in quotes"),
        (ServerConfig, "target = ['a:1']", "target: a list must be HOST:PORT, in quotes"),
        (
            ServerConfig,
            "target = 'a'",
            "target: 'a' has no port; write HOST:PORT, for example a:7700",
        ),
        (
            ServerConfig,
            "target = 'a:0'",
            "target: a:0 has port 0, which is for listening only; write a port",
        ),
        (
            ServerConfig,
            "target = '*:80'",
            "target: *:80 is for listening only; write the host, as in 127.0.0.1:80",
        ),
        (
            ClientConfig,
            "server = ['a:1', '[::]:80']",
            "server: [::]:80 is for listening only; write the host, as in 127.0.0.1:80",
        ),
        (
            ClientConfig,
            "server = ['a:1', 'b:0']",
            "server: b:0 has port 0, which is for listening only; write a port",
        ),
        (ServerConfig, "allow = 80", "allow: 80 must be HOST:PORTS, or a list of such, in quotes"),
        (
            ServerConfig,
            "allow = ['a:1', 'localhost:22']",
            "allow: 'localhost:22' is not allowed by name; write the address, as in 127.0.0.1:22 "
            "or [::1]:22",
        ),
        (
            ClientConfig,
            "target = '*:80'",
            "target: *:80 is for listening only; write the host, as in 127.0.0.1:80",
        ),
        (
            ClientConfig,
            "proxy = '*:1080'",
            "proxy: *:1080 is not loopback, and without a login everybody who can reach it could "
            "use the proxy; write USER:PASSWORD to a file of mode 0600 and add "
            "`--proxy-login-file FILE`",
        ),
        (
            ClientConfig,
            "proxy = '127.0.0.1:1'\nlisten = '127.0.0.1:1'",
            "proxy: 127.0.0.1:1 is there twice; choose another place",
        ),
        (ClientConfig, "server = []", "server: names no server; write at least one HOST:PORT"),
        (ClientConfig, "listen = []", "listen: names no address; write at least one HOST:PORT"),
        (ClientConfig, "listen = [1]", "listen: 1 must be HOST:PORT, or a list of such, in quotes"),
        (
            ClientConfig,
            "listen = ['[::1]:1', '[0::1]:1']",
            "listen: [::1]:1 is there twice; remove one of them",
        ),
    ],
)
def test_a_wrong_file_is_one_line_with_file_key_and_remedy(
    tmp_path: Path, config_type: type[common.Config], line: str, problem: str
) -> None:
    path = write(tmp_path, line)
    assert refusal(config_type, path) == f"{path}: {problem}"


@pytest.mark.parametrize(
    ("config_type", "key", "value", "problem"),
    [
        (
            ClientConfig,
            "connections",
            "x",
            f"--connections: 'x' must be {Connections.FORM}",
        ),
        (
            ClientConfig,
            "connections",
            "",
            f"--connections: '' must be {Connections.FORM}",
        ),
        (ClientConfig, "workers", "null", "--workers: 'null' must be a whole number from 1 to 256"),
        (
            ClientConfig,
            "drain_timeout",
            "30s",
            "--drain-timeout: '30s' must be a number of seconds from 0 to 86400",
        ),
        (ClientConfig, "server", ("",), "--server: the address is empty; write HOST:PORT"),
        (
            ClientConfig,
            "server",
            ("a:1", "b"),
            "--server: 'b' has no port; write HOST:PORT, for example b:7700",
        ),
        (
            ServerConfig,
            "target",
            ":0",
            "--target: *:0 has port 0, which is for listening only; write a port",
        ),
        (ServerConfig, "key_file", "", "--key-file: names no file; write the name of one"),
        (ServerConfig, "tarjet", "a:1", "tarjet: unknown key; did you mean target?"),
    ],
)
def test_a_wrong_option_is_one_line_with_option_and_remedy(
    config_type: type[common.Config], key: str, value: object, problem: str
) -> None:
    assert refusal(config_type, None, **{key: value}) == problem


def test_the_source_of_a_bad_value_is_the_one_that_won(tmp_path: Path) -> None:
    path = write(tmp_path, "target = 'a:1'")
    assert refusal(ServerConfig, path, target="b:0").startswith("--target: b:0 ")


@pytest.mark.parametrize(
    "listen",
    ["0.0.0.0:7700", "*:7700", ":7700", "[::]:7700", "10.0.0.1:7700", "example.com:7700", "*:0"],
)
@pytest.mark.parametrize("by_file", [False, True])
def test_without_a_key_a_server_listens_on_loopback_only(
    tmp_path: Path, listen: str, by_file: bool
) -> None:
    listening = ["127.0.0.1:7700", listen]
    if by_file:
        path = write(tmp_path, f"listen = {listening}")
        message = refusal(ServerConfig, path)
        assert message.startswith(f"{path}: listen: {Endpoint.parse(listen)} is not loopback")
    else:
        message = refusal(ServerConfig, None, listen=listening)
        assert message.startswith(f"--listen: {Endpoint.parse(listen)} is not loopback")
    assert "`fastmtcp keygen fastmtcp.key`" in message
    assert "`--key-file fastmtcp.key`" in message
    with_key = {"listen": listening, "key_file": "fastmtcp.key"}
    assert settings.load(ServerConfig, None, with_key).listen[1] == Endpoint.parse(listen)


@pytest.mark.parametrize("listen", ["127.0.0.2:1", "[::1]:1", "localhost:1", "127.0.0.1:0"])
def test_loopback_needs_no_key(listen: str) -> None:
    loaded = settings.load(ServerConfig, None, {"listen": [listen]})
    assert loaded.listen == (Endpoint.parse(listen),)


def test_check_alone_names_the_option() -> None:
    with pytest.raises(settings.SettingError, match=r"^--listen: 0\.0\.0\.0:7700 is not loopback"):
        ServerConfig(listen=(Endpoint("0.0.0.0", 7700),)).check()


def test_several_free_ports_are_not_duplicates() -> None:
    loaded = settings.load(ServerConfig, None, {"listen": ["127.0.0.1:0", "127.0.0.1:0"]})
    assert len(loaded.listen) == 2


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"listen = ", "is not valid TOML"),
        (b"workers = 1\nworkers = 2", "is not valid TOML"),
        (b"workers = " + b"1" * 5000, "is not valid TOML"),
        (b"listen = " + b"[" * 100_000, "is not valid TOML"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"#" * (2 << 20), "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "fastmtcp.toml"
    path.write_bytes(content)
    message = refusal(ServerConfig, str(path))
    assert message.startswith(f"{path}: ")
    assert part in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file or directory"),
        (".", "Is a directory"),
        ("a\0b", "impossible name"),
        ("a\nb", "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, reason: str) -> None:
    message = refusal(ServerConfig, f"{tmp_path}/{name}")
    assert message.startswith("--config ")
    assert message.endswith(f"cannot be read: {reason}")


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "fastmtcp.toml"
    path.write_bytes(b"\xef\xbb\xbfworkers = 2\n")
    assert settings.load(ServerConfig, str(path), {}).workers == 2


def test_control_characters_stay_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, '"a\\nb\\u001b[31m" = 1')
    assert "\x1b" not in refusal(ServerConfig, path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("k", "{dir}/k"), ("sub/k", "{dir}/sub/k"), ("/abs/k", "/abs/k"), ("~/k", "{home}/k")],
)
def test_a_key_file_is_named_relative_to_the_configuration_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    loaded = settings.load(ServerConfig, write(tmp_path, f"key_file = '{name}'"), {})
    assert loaded.key_file == expected.format(dir=tmp_path, home="/home/someone")
    assert settings.load(ServerConfig, None, {"key_file": name}).key_file == name


@pytest.mark.parametrize(
    "line", [f"{{}} = '{HEX}'", f"{{}} = ['{HEX}']", f"'{HEX}' = 1", f"{{}} = '{HEX}:80'"]
)
@pytest.mark.parametrize("key", sorted({*ServerConfig.__struct_fields__, "key"}))
def test_a_key_in_the_wrong_place_is_not_repeated(tmp_path: Path, line: str, key: str) -> None:
    message = refusal(ServerConfig, write(tmp_path, line.format(key)))
    assert HEX[:16] not in message


def test_a_key_in_place_of_a_file_name(tmp_path: Path) -> None:
    for message in (
        refusal(ServerConfig, write(tmp_path, f"key_file = '{HEX}'")),
        refusal(ServerConfig, None, key_file=HEX),
        refusal(ClientConfig, HEX),
    ):
        assert HEX not in message
    with pytest.raises(ConfigError, match="never the key itself") as caught:
        ServerConfig(key_file=HEX).check()
    assert HEX not in str(caught.value)


TOML_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=30),
        st.datetimes(),
        st.sampled_from(["127.0.0.1:1", "*:1", "a:0", "info", "json"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(
    st.sampled_from(BOTH),
    st.dictionaries(
        st.one_of(
            st.sampled_from(
                sorted({*ServerConfig.__struct_fields__, *ClientConfig.__struct_fields__})
            ),
            st.text(max_size=8),
        ),
        TOML_VALUES,
        max_size=3,
    ),
    st.booleans(),
)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_is_taken_or_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    config_type: type[common.Config],
    values: dict[str, Any],
    as_file: bool,
) -> None:
    monkeypatch.setattr(settings, "_read", lambda path: values)
    loaded = refusal = None
    try:
        if as_file:
            loaded = settings.load(config_type, "f.toml", {})
        else:
            loaded = settings.load(config_type, None, values)
    except ConfigError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.splitlines() == [refusal]
    else:
        assert isinstance(loaded, ServerConfig | ClientConfig)
        loaded.check()
        assert loaded.workers is None or 1 <= loaded.workers <= 256
        assert 0 <= loaded.drain_timeout <= 86400
        assert all(isinstance(endpoint, Endpoint) for endpoint in loaded.listen or ())


def test_worker_count_is_what_was_set() -> None:
    assert ServerConfig(workers=7).worker_count() == 7


def test_worker_count_respects_the_affinity() -> None:
    code = (
        "import psutil\n"
        "from fastmtcp.config.client import ClientConfig\n"
        "from fastmtcp.config.server import ServerConfig\n"
        "me = psutil.Process(); me.cpu_affinity(me.cpu_affinity()[:1])\n"
        "print(ServerConfig().worker_count(), ClientConfig().worker_count())"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    assert out.stdout.split() == [b"1", b"1"]


def test_worker_count_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    monkeypatch.setattr(psutil, "cpu_count", lambda: 6)
    assert ServerConfig().worker_count() == 6
    monkeypatch.setattr(psutil, "cpu_count", lambda: None)
    assert ServerConfig().worker_count() == 1


def test_worker_count_has_a_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(1000)))
    assert ServerConfig().worker_count() == common.USUAL_WORKERS
    assert ServerConfig(workers=common.MAX_WORKERS).worker_count() == common.MAX_WORKERS


@pytest.mark.parametrize(
    ("quota", "memory", "expected"),
    [
        (None, None, 8),
        (0.5, None, 1),
        (2.5, None, 2),
        (64.0, None, 8),
        (None, 150 * MIB, 2),
        (4.0, 30 * MIB, 1),
        (4.0, 1 << 40, 4),
    ],
)
def test_worker_count_keeps_to_the_limits_of_the_control_group(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, memory: int | None, expected: int
) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(64)))
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: memory)
    assert ServerConfig().worker_count() == ClientConfig().worker_count() == expected
    assert ServerConfig(workers=20).worker_count() == 20


def test_worker_count_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(_: object) -> None:
        raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(psutil.Process, "cpu_affinity", no_process)
    assert ServerConfig().worker_count() == len(os.sched_getaffinity(0))


class TestMemoryOfTheControlGroup:
    def test_all_workers_together_hold_a_part_of_it(self) -> None:
        limits = within(ServerLimits(), 1024 * MIB, 4)
        assert limits.worker_memory == 64 * MIB
        assert limits.window_pool == limits.send_buffer == limits.max_window == 48 * MIB
        limits = within(ServerLimits(), 150 * MIB, 2)
        assert limits.worker_memory == 150 * MIB // 8
        assert limits.window_pool == limits.send_buffer == 150 * MIB // 8
        check_limits(limits)

    def test_there_is_always_enough_to_work(self) -> None:
        limits = within(ClientLimits(), 1, 8)
        assert limits.worker_memory == 16 * MIB
        check_limits(limits)

    def test_what_fits_or_was_set_stays(self) -> None:
        usual, own = ServerLimits(), ServerLimits(worker_memory=400 * MIB)
        assert within(usual, None, 8) == within(usual, 64 << 30, 8) == usual
        assert within(own, 150 * MIB, 2) == own


@pytest.mark.parametrize("config_type", BOTH)
def test_every_setting_is_described(config_type: type[common.Config]) -> None:
    fields = settings.fields(config_type)
    assert sorted(field.name for field in fields) == sorted(config_type.__struct_fields__)
    fields = tuple(field for field in fields if not field.is_table)
    groups = [settings.GROUPS.index(field.setting.group) for field in fields]
    assert groups == sorted(groups)
    for field in fields:
        assert field.setting.help.endswith(".")
        assert field.default_text not in ("", "None")
        assert field.setting.metavar or field.choices or field.type is bool


@pytest.mark.parametrize("config_type", BOTH)
def test_defaults_pass_their_own_checks(config_type: type[common.Config]) -> None:
    for field in settings.fields(config_type):
        if field.default is not None:
            assert field.convert(field.default, field.name, lax=False) == field.default
    config_type().check()


def test_configurations_are_immutable_and_strict() -> None:
    loaded = ServerConfig()
    with pytest.raises(AttributeError):
        loaded.workers = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        ServerConfig(lisen=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\r\n c", "a b c"),
        ("a\x1b[31m\x00\u202e", "a\\x1b[31m\\x00\\u202e"),
        ("caf\u00e9", "caf\u00e9"),
        (f"x {HEX}", "x (hidden)"),
    ],
)
def test_one_line(text: str, expected: str) -> None:
    assert settings.one_line(text) == expected


class Colour(msgspec.Struct, frozen=True):
    """A type that fastmtcp.config.settings has never heard of."""

    FORM: ClassVar[str] = "red or green"

    name: str

    @classmethod
    def read(cls, value: object) -> Self:
        if value not in ("red", "green"):
            raise FormError(cls.FORM, ", in quotes")
        return cls(str(value))


def test_a_type_reads_itself() -> None:
    setting = settings.Setting(settings.TARGET, "Of the line.")
    one = settings.Field("colour", Colour, False, None, setting)
    many = settings.Field("colours", Colour, True, (), setting)
    assert one.convert("red", "file: colour", lax=False) == Colour("red")
    assert many.convert(["red", Colour("green")], "", lax=True) == (Colour("red"), Colour("green"))
    with pytest.raises(ConfigError, match=r"^file: colour: 7 must be red or green, in quotes$"):
        one.convert(7, "file: colour", lax=False)
    with pytest.raises(ConfigError, match="'x' must be red or green, or a list of such, in"):
        many.convert(["x"], "file: colours", lax=False)
    assert not one.is_table


class TestLimits:
    def load(self, tmp_path: Path, table: str) -> ServerConfig:
        return settings.load(ServerConfig, write(tmp_path, f"[limits]\n{table}"), {})

    def test_the_table_changes_what_it_names(self, tmp_path: Path) -> None:
        loaded = self.load(tmp_path, "max_sessions = 3\nstream_idle_timeout = 90")
        assert loaded.limits == ServerLimits(max_sessions=3, stream_idle_timeout=90)

    def test_the_sessions_timeout_comes_from_its_own_setting(self, tmp_path: Path) -> None:
        loaded = settings.load(
            ServerConfig,
            write(tmp_path, "session_timeout = 7\n[limits]\nmax_gaps = 100"),
            {},
        )
        assert loaded.session_limits() == ServerLimits(max_gaps=100, session_timeout=7)

    @pytest.mark.parametrize("config_type", BOTH)
    def test_smallest_and_largest_value_of_each(
        self, tmp_path: Path, config_type: type[common.Config]
    ) -> None:
        (table,) = (field for field in settings.fields(config_type) if field.is_table)
        inner = settings.table_fields(table.type)
        assert len(inner) >= 14
        for field in inner:
            low, high = field.limits.split(" to ")
            for value in (low, high):
                assert field.convert(int(float(value)), "", lax=False) == float(value)
            for wrong in (str(int(float(low)) - 1), str(int(float(high)) + 1), '"5"', "true", "[]"):
                text = f"limits = {{ {field.name} = {wrong} }}"
                message = refusal(config_type, write(tmp_path, text))
                assert f"limits.{field.name}: " in message
                assert f"from {field.limits}" in message

    @pytest.mark.parametrize(
        ("table", "problem"),
        [
            ("max_stream = 5", "limits.max_stream: unknown key; did you mean max_streams?"),
            ("zzz = 5", "limits.zzz: unknown key; the keys are backlog, "),
            ("session_timeout = 5", "limits.session_timeout: unknown key; did you mean "),
            ("ack_delay = 1", "limits.ack_delay: unknown key"),
            (
                "floor_window = 2000000",
                "limits: floor_window = 2000000 is too much beside start_window = 1048576; ",
            ),
            ("max_window = 4294967296", "limits: max_window = 4294967296 is too much beside "),
            ("ping_interval = 15", "limits: ping_interval = 15 is too much beside subflow_timeout"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, tmp_path: Path, table: str, problem: str) -> None:
        assert problem in refusal(ServerConfig, write(tmp_path, f"[limits]\n{table}"))

    def test_no_table_at_all(self, tmp_path: Path) -> None:
        message = refusal(ServerConfig, write(tmp_path, "limits = 5"))
        assert message.endswith("limits: 5 must be a table; write [limits]")

    def test_a_limit_of_the_server_alone(self, tmp_path: Path) -> None:
        message = refusal(ClientConfig, write(tmp_path, "[limits]\nopens_per_second = 5"))
        assert "limits.opens_per_second: is a limit of fastmtcp-server, not of this " in message

    def test_a_client_has_room_for_its_own_subflows(self, tmp_path: Path) -> None:
        path = write(tmp_path, "connections = 8\n[limits]\nmax_subflows = 15")
        assert "the paths have 8 connections or more, the limit is 7" in refusal(ClientConfig, path)
        assert settings.load(ClientConfig, path, {"connections": "7"}).limits.max_subflows == 15
