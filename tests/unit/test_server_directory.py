"""The directory of a server, its list of clients, and what a client makes of a link."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastmtcp.cli import main
from fastmtcp.config import credentials, settings
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.path import PathSpec
from fastmtcp.config.server import ServerConfig
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError, StartError
from fastmtcp.security import clients, self_signed
from fastmtcp.security.certificates import fingerprint, read_certificate
from fastmtcp.security.identity import UNNAMED, Identity
from fastmtcp.security.link import Link
from fastmtcp.server.directory import ServerDir

ADDRESS = Endpoint("vps.example.com", 7700)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ServerDir.create(tmp_path / "server", ADDRESS, Endpoint("127.0.0.1", 22))
    return tmp_path / "server"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o777])
def test_only_the_owner_can_read_anything(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        server = ServerDir.create(tmp_path / "server", ADDRESS, ADDRESS)
        server.add_client("laptop")
        server.add_client("phone")
    finally:
        os.umask(before)
    assert mode(server.path) == 0o700
    files = sorted(server.path.iterdir())
    names = ["certificate.key", "certificate.pem", "clients", "server.toml"]
    assert [path.name for path in files] == names
    assert {mode(path) for path in files} == {0o600}


def test_the_configuration_is_ready_to_use(folder: Path) -> None:
    config = settings.load(ServerConfig, str(folder / "server.toml"), {})
    assert (config.listen, config.tls) == ((Endpoint("*", 7700),), True)
    assert (config.target, config.public_address) == (Endpoint("127.0.0.1", 22), ADDRESS)
    known, certificates = credentials.of_server(config)
    assert known == {}
    assert certificates is not None


def test_nothing_is_overwritten_and_nothing_left_of_a_failure(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="already exists and is not overwritten"):
        ServerDir.create(folder, ADDRESS, ADDRESS)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    for wrong in (Endpoint("*", 7700), Endpoint("a", 0)):
        with pytest.raises(ConfigError, match="public-address"):
            ServerDir.create(tmp_path / "other", wrong, ADDRESS)
    monkeypatch.setattr(self_signed, "_by_cryptography", lambda host: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError, match=r"pip install 'fastmtcp\[tls\]'"):
        ServerDir.create(tmp_path / "other", ADDRESS, ADDRESS)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("host", ["vps.example.com", "192.0.2.7", "2001:db8::7"])
@pytest.mark.parametrize("maker", ["cryptography", "openssl"])
def test_both_makers_make_a_certificate(
    tmp_path: Path, host: str, maker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if maker == "openssl":
        monkeypatch.setattr(self_signed, "_by_cryptography", lambda host: None)
    pem, key = tmp_path / "c.pem", tmp_path / "c.key"
    self_signed.generate(host, pem, key)
    assert (mode(pem), mode(key)) == (0o600, 0o600)
    config = ServerConfig(tls=True, certificate=str(pem), certificate_key=str(key))
    certificates = credentials.read_certificate(config)
    assert certificates is not None
    assert certificates.fingerprint == fingerprint(read_certificate(str(pem)))
    openssl = shutil.which("openssl")
    assert openssl is not None
    option = "-checkhost" if host[0] == "v" else "-checkip"
    said = subprocess.run(
        [openssl, "x509", "-in", pem, "-noout", "-enddate", option, host],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "does match certificate" in said
    found = re.search(r"notAfter=.* (\d{4}) GMT", said)
    assert found is not None
    assert int(found[1]) >= 2120


class TestClients:
    def test_a_link_gets_its_client_in(self, folder: Path) -> None:
        link = ServerDir(folder).add_client("laptop")
        assert (link.name, link.endpoint) == ("laptop", ADDRESS)
        known = clients.read(folder / "clients")
        assert known == {"laptop": Identity.from_key("laptop", link.key).verifier}
        # Stored is what checks a proof, not what makes one.
        content = (folder / "clients").read_text()
        own = Identity.from_key("laptop", link.key)
        for secret in (link.key, own.client_key):
            assert secret.hex() not in content
        assert link.fingerprint == fingerprint(read_certificate(str(folder / "certificate.pem")))

    def test_add_list_revoke(self, folder: Path) -> None:
        server = ServerDir(folder)
        for name in ("a", "ab", "a.b"):
            server.add_client(name)
        server.revoke_client("a")
        assert server.client_names() == ["ab", "a.b"]
        with pytest.raises(ConfigError, match="there is no client a;"):
            server.revoke_client("a")
        with pytest.raises(ConfigError, match="there is a client ab already"):
            server.add_client("ab")
        for wrong in ("", "a b", "a\nb", "-a", "a/b", "x" * 65, "ä"):
            with pytest.raises(ConfigError, match="is no name of a client"):
                server.add_client(wrong)
        assert server.client_names() == ["ab", "a.b"]

    def test_comments_stay(self, folder: Path) -> None:
        path = folder / "clients"
        path.write_text("# mine\n\n" + path.read_text().rstrip("\n"))
        ServerDir(folder).add_client("x")
        ServerDir(folder).revoke_client("x")
        assert path.read_text().startswith("# mine\n\n# Clients of this server")

    def test_many_commands_at_once_lose_nothing(self, folder: Path) -> None:
        names = [f"client-{number}" for number in range(20)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: ServerDir(folder).add_client(name), names))
        assert sorted(ServerDir(folder).client_names()) == sorted(names)
        assert sorted(path.name for path in folder.iterdir()) == [
            "certificate.key",
            "certificate.pem",
            "clients",
            "server.toml",
        ]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("laptop 12 34\n", "line 1 is no client"),
            (f"lap/top {'0' * 64} {'0' * 64}\n", "line 1 is no client"),
            (f"# x\na {'0' * 64} {'0' * 64}\n" * 2, "line 4: a is there twice"),
            ("\xff\xfe", "line 1 is no client"),
        ],
    )
    def test_a_broken_list_is_refused_whole(self, folder: Path, content: str, problem: str) -> None:
        path = folder / "clients"
        path.write_text(content, encoding="latin-1")
        with pytest.raises(ConfigError, match=problem):
            clients.read(path)
        with pytest.raises(ConfigError, match=problem):
            ServerDir(folder).add_client("b")
        assert path.read_text(encoding="latin-1") == content

    def test_a_list_that_others_can_read_is_refused(self, folder: Path) -> None:
        (folder / "clients").chmod(0o640)
        with pytest.raises(ConfigError, match=r"list of clients .* is open to others"):
            clients.read(folder / "clients")

    def test_the_key_file_is_one_more_client(self, folder: Path, tmp_path: Path) -> None:
        key_file = tmp_path / "k.key"
        key_file.write_text("0f" * 32)
        key_file.chmod(0o600)
        ServerDir(folder).add_client("laptop")
        config = settings.load(
            ServerConfig, str(folder / "server.toml"), {"key_file": str(key_file)}
        )
        assert set(credentials.read_clients(config)) == {UNNAMED, "laptop"}


class TestCommands:
    def test_the_link_alone_is_on_standard_output(self, tmp_path: Path, capsys: Capture) -> None:
        folder = str(tmp_path / "it")
        line = ["init", "server", "--public-address", "[2001:db8::7]:7700", "--dir", folder]
        assert main.main(line) == 0
        out, err = capsys.readouterr()
        link = Link.parse(out)
        assert (link.name, link.endpoint) == ("first", Endpoint("2001:db8::7", 7700))
        assert f"fastmtcp-server --config {folder}/server.toml" in err
        assert "fastmtcp-client --link-file fastmtcp.link" in err
        assert link.key.hex() not in err
        assert main.main(["client", "add", "phone", "--dir", folder]) == 0
        out, err = capsys.readouterr()
        assert Link.parse(out).name == "phone"
        assert main.main(["client", "list", "--dir", folder]) == 0
        assert capsys.readouterr().out == "first\nphone\n"
        assert main.main(["client", "revoke", "first", "--dir", folder]) == 0
        capsys.readouterr()
        assert main.main(["client", "list", "--dir", folder]) == 0
        assert capsys.readouterr().out == "phone\n"

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("init server", "--public-address"),
            ("init server --public-address x", "has no port"),
            ("init server --public-address x:1 --client a/b", "is no name of a client"),
            ("init server --public-address x:1 --dir /proc/none/there", "cannot be made"),
            ("client add laptop --dir nowhere", "fastmtcp init server"),
            ("client revoke", "NAME"),
        ],
    )
    def test_wrong_use_is_one_line(
        self,
        line: str,
        problem: str,
        capsys: Capture,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main.main(line.split()) in (1, 2)
        (error,) = capsys.readouterr().err.splitlines()
        assert problem in error
        assert list(tmp_path.iterdir()) == []


class TestOfClient:
    LINK = Link("laptop", bytes(range(32)), ADDRESS, bytes(32))

    def load(self, **values: object) -> ClientConfig:
        return settings.load(ClientConfig, None, values)

    def link_file(self, tmp_path: Path, text: str | None = None) -> str:
        path = tmp_path / "fastmtcp.link"
        path.write_text(f"{self.LINK.text() if text is None else text}\n")
        path.chmod(0o600)
        return str(path)

    def test_a_link_is_all_it_needs(self, tmp_path: Path) -> None:
        by_file: dict[str, str] = {}
        for config, environment in (
            (self.load(link_file=self.link_file(tmp_path)), by_file),
            (self.load(), {"FASTMTCP_LINK": self.LINK.text()}),
        ):
            complete, own = credentials.of_client(config, environment)
            assert complete.paths == (PathSpec(ADDRESS),)
            assert own.identity == Identity.from_key("laptop", self.LINK.key)
            assert own.tls is not None

    def test_paths_of_the_user_win_over_the_link(self, tmp_path: Path) -> None:
        paths = ("127.0.0.1:7700", "vps.example.com:7700,dev=eth0")
        config = self.load(link_file=self.link_file(tmp_path), server=paths)
        complete, _ = credentials.of_client(config, {})
        assert tuple(map(str, complete.paths)) == paths

    def test_a_link_without_a_fingerprint_means_no_tls(self, tmp_path: Path) -> None:
        plain = Link("laptop", self.LINK.key, ADDRESS)
        config = self.load(link_file=self.link_file(tmp_path, plain.text()))
        assert credentials.of_client(config, {})[1].tls is None

    def test_tls_may_be_turned_off(self, tmp_path: Path) -> None:
        config = self.load(link_file=self.link_file(tmp_path), tls=False)
        assert credentials.of_client(config, {})[1].tls is None

    def test_a_key_file_wins_over_the_environment(self, tmp_path: Path) -> None:
        key_file = tmp_path / "k.key"
        key_file.write_text("0f" * 32)
        key_file.chmod(0o600)
        environment = {"FASTMTCP_LINK": self.LINK.text()}
        config = self.load(key_file=str(key_file), name="me")
        _, own = credentials.of_client(config, environment)
        assert own.identity == Identity.from_key("me", b"\x0f" * 32)
        assert own.tls is None

    def test_bad_links_are_not_shown(self, tmp_path: Path) -> None:
        bad = self.LINK.text().replace("@", "@@")
        for config, environment in (
            (self.load(link_file=self.link_file(tmp_path, bad)), {}),
            (self.load(), {"FASTMTCP_LINK": bad}),
        ):
            with pytest.raises(ConfigError, match="is no link") as caught:
                credentials.of_client(config, environment)
            assert self.LINK.key.hex() not in str(caught.value)

    def test_a_link_file_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        path = self.link_file(tmp_path)
        os.chmod(path, 0o644)
        with pytest.raises(ConfigError, match=r"link file .* is open to others"):
            credentials.of_client(self.load(link_file=path), {})

    def test_a_link_in_place_of_a_file_is_hidden(self) -> None:
        with pytest.raises(ConfigError, match="takes the name of a file") as caught:
            self.load(link_file=self.LINK.text())
        assert self.LINK.key.hex() not in str(caught.value)


@pytest.mark.parametrize(
    ("config_type", "values", "problem"),
    [
        (ClientConfig, {"name": "me"}, "--name: needs the key"),
        (ClientConfig, {"name": "a b", "key_file": "k"}, "--name: 'a b' is no name"),
        (ClientConfig, {"link_file": "l", "key_file": "k"}, "--key-file: is in the link"),
        (ClientConfig, {"fingerprint": ["12"]}, "--fingerprint: '12' is no fingerprint"),
        (ClientConfig, {"tls": False, "ca_file": "c"}, "--ca-file: needs TLS"),
        (ClientConfig, {"certificate_key": "k"}, "--certificate-key: belongs to a certificate"),
        (ServerConfig, {"tls": True}, "--tls: needs a certificate"),
        (ServerConfig, {"client_ca_file": "c"}, "--client-ca-file: needs TLS"),
        (ServerConfig, {"public_address": "*:7700"}, "--public-address: .* is for listening only"),
        (ServerConfig, {"listen": "*:7700"}, "--listen: .*fastmtcp init server"),
    ],
)
def test_settings_that_do_not_fit(
    config_type: type[ServerConfig | ClientConfig], values: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        settings.load(config_type, None, values)


def test_neither_command_loads_what_it_does_not_need() -> None:
    """`--help` must not wait for ssl."""
    code = "import sys, fastmtcp.cli.client; sys.exit('ssl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
