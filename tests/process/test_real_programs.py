"""iperf3, curl and nginx, ssh and rsync through the forwarder."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.io.net import WAIT, data, free_port
from tests.process.programs import IN_BOTH_SETUPS, Program, Programs, command, eventually

MB = 1_000_000
_PACKAGES = {
    "iperf3": "iperf3",
    "nginx": "nginx-light",
    "curl": "curl",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "rsync": "rsync",
    "nc": "netcat-openbsd",
    "socat": "socat",
    "haproxy": "haproxy",
}


def tool(name: str) -> str:
    """Where an installed program is. Missing ones fail the test: skipping would hide them."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        pytest.fail(f"{name} is missing: install the package {_PACKAGES[name]} (see scripts/test)")
    return found


@contextlib.contextmanager
def running(folder: Path, port: int, *command: object) -> Iterator[None]:
    """A server program, from when it listens at `port` until the end of the block."""
    log = folder / f"{Path(str(command[0])).name}.out"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )

    def listens() -> bool:
        if process.poll() is not None:
            pytest.fail(f"{command[0]} ended:\n{log.read_text()}")
        try:
            socket.create_connection(("127.0.0.1", port), WAIT).close()
        except ConnectionRefusedError:
            return False
        return True

    try:
        eventually(listens, f"{command[0]} listens at port {port}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a client program; its output, if it was successful."""
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=90, check=False, cwd=cwd
    )
    if result.returncode:
        pytest.fail(f"{command} failed with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def big_file(path: Path, size: int) -> str:
    """Make a file of random bytes; returns its SHA-256."""
    block = data(10 * MB, 9)
    with open(path, "wb") as file:
        for number in range(size // len(block)):
            file.write(number.to_bytes(8) + block[8:])
    return sha256(path)


class TestIperf:
    @pytest.fixture
    def client(self, programs: Programs) -> Iterator[Program]:
        port = free_port()
        with running(programs.folder, port, tool("iperf3"), "-s", "-p", port):
            yield programs.pair(port, server_workers=2, client_workers=2)

    # Not --bidir: it takes the order in which the target accepts connections for the order in which
    # they were opened, and no forwarder with more than one path can promise that.
    @pytest.mark.parametrize("options", [(), ("-R",), ("-P", 4), ("-P", 4, "-R")])
    def test_both_directions(self, client: Program, options: tuple[object, ...]) -> None:
        output = run(tool("iperf3"), "-c", "127.0.0.1", "-p", client.port, "-t", 1, "-J", *options)
        report = json.loads(output)
        assert "error" not in report
        assert len(report["start"]["connected"]) == (4 if "-P" in options else 1)
        assert all(stream["receiver"]["bytes"] > 0 for stream in report["end"]["streams"])
        for name in ("sum_sent", "sum_received"):
            assert report["end"][name]["bytes"] > MB


class TestCurlAndNginx:
    SIZE = 200 * MB

    @pytest.fixture
    def nginx(self, tmp_path: Path) -> Iterator[tuple[int, Path]]:
        """nginx with the files of a folder; PUT works too."""
        port = free_port()
        files = tmp_path / "files"
        files.mkdir()
        config = tmp_path / "nginx.conf"
        temporary = "\n".join(
            f"{kind}_temp_path {tmp_path}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(
            f"""
            daemon off; master_process off; pid {tmp_path}/nginx.pid; {user}
            error_log {tmp_path}/error.log;
            events {{ worker_connections 512; }}
            http {{
                access_log off; sendfile on; keepalive_timeout 60; {temporary}
                server {{
                    listen 127.0.0.1:{port};
                    root {files};
                    client_max_body_size 0;
                }}
            }}
            """
        )
        command = (tool("nginx"), "-p", tmp_path, "-e", tmp_path / "error.log", "-c", config)
        with running(tmp_path, port, *command):
            yield port, files

    @IN_BOTH_SETUPS
    def test_a_file_of_200_mb(
        self, programs: Programs, nginx: tuple[int, Path], tmp_path: Path
    ) -> None:
        port, files = nginx
        expected = big_file(files / "big", self.SIZE)
        client = programs.pair(port, server_workers=2, client_workers=2)
        url = f"http://127.0.0.1:{client.port}"
        got = tmp_path / "got"
        run(tool("curl"), "-sSf", "-o", got, f"{url}/big")
        assert got.stat().st_size == self.SIZE
        assert sha256(got) == expected

    def test_parts_and_many_requests_on_one_connection(
        self, programs: Programs, nginx: tuple[int, Path], tmp_path: Path
    ) -> None:
        port, files = nginx
        content = data(3 * MB)
        (files / "part").write_bytes(content)
        for number in range(50):
            (files / f"small{number}").write_bytes(data(number * 100, number))
        client = programs.pair(port)
        url = f"http://127.0.0.1:{client.port}"
        got = tmp_path / "got"
        run(tool("curl"), "-sSf", "-r", "1000000-1999999", "-o", got, f"{url}/part")
        assert got.read_bytes() == content[MB : 2 * MB]
        run(tool("curl"), "-sSf", "--remote-name-all", f"{url}/small[0-49]", cwd=tmp_path)
        for number in range(50):
            assert (tmp_path / f"small{number}").read_bytes() == data(number * 100, number)


@IN_BOTH_SETUPS
class TestRsync:
    def test_a_tree_there_and_back(self, programs: Programs, tmp_path: Path) -> None:
        port = free_port()
        store, source, back = (tmp_path / name for name in ("store", "source", "back"))
        for folder in (store, source, back):
            folder.mkdir()
        for number in range(30):
            (source / f"{number}.bin").write_bytes(data(number * 30_000, number))
        big_file(source / "big.bin", 40 * MB)
        config = tmp_path / "rsyncd.conf"
        ids = "uid = root\ngid = root\n" if os.geteuid() == 0 else ""
        config.write_text(
            f"use chroot = no\n{ids}pid file = {tmp_path}/rsyncd.pid\n"
            f"[store]\npath = {store}\nread only = no\n"
        )
        rsync = tool("rsync")
        command = (rsync, "--daemon", "--no-detach", "--address=127.0.0.1")
        with running(tmp_path, port, *command, f"--port={port}", f"--config={config}"):
            client = programs.pair(port, server_workers=2, client_workers=2)
            url = f"rsync://127.0.0.1:{client.port}/store/"
            run(rsync, "-a", "--whole-file", f"{source}/", url)
            run(rsync, "-a", "--whole-file", url, f"{back}/")
        names = sorted(path.name for path in source.iterdir())
        assert sorted(path.name for path in back.iterdir()) == names
        assert all(sha256(source / name) == sha256(back / name) for name in names)


class TestSsh:
    @pytest.fixture
    def sshd(self, tmp_path: Path) -> Iterator[int]:
        """A daemon of our own, with keys of our own, for this very user."""
        port = free_port()
        for name in ("host", "user"):
            run(tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name)
        config = tmp_path / "sshd_config"
        config.write_text(
            f"""ListenAddress 127.0.0.1:{port}
HostKey {tmp_path}/host
AuthorizedKeysFile {tmp_path}/user.pub
PidFile {tmp_path}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""
        )
        daemon = (tool("sshd"), "-D", "-e", "-f", config)
        with privilege_separation_folder(), running(tmp_path, port, *daemon):
            yield port

    def ssh(self, folder: Path) -> list[str]:
        """The client with a key of our own and no configuration."""
        return [
            *(tool("ssh"), "-F", "none", "-i", str(folder / "user")),
            *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"),
            *("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder}/known"),
        ]

    def through_connect(self, programs: Programs, sshd: int) -> list[str]:
        """Options of ssh: no client runs, `fastmtcp connect` is the connection."""
        server = programs.server(sshd, "--workers", 1)
        proxy = f"{command('fastmtcp')} connect --server 127.0.0.1:{server.port}"
        return ["-o", f"ProxyCommand={proxy}"]

    def test_connect_as_the_proxy_command(
        self, programs: Programs, sshd: int, tmp_path: Path
    ) -> None:
        proxy = self.through_connect(programs, sshd)
        content = data(10 * MB, 4)
        result = subprocess.run(
            [
                *(*self.ssh(tmp_path), *proxy, f"{getpass.getuser()}@host.example"),
                "cat; echo the end >&2; exit 7",
            ],
            input=content,
            capture_output=True,
            timeout=90,
            check=False,
        )
        assert result.stderr == b"the end\n"
        assert result.stdout == content
        assert result.returncode == 7

    def test_rsync_through_connect(self, programs: Programs, sshd: int, tmp_path: Path) -> None:
        proxy = self.through_connect(programs, sshd)
        (tmp_path / "from").mkdir()
        digest = big_file(tmp_path / "from" / "big", 20 * MB)
        shell = shlex.join([*self.ssh(tmp_path), *proxy])
        source = f"{getpass.getuser()}@host.example:{tmp_path}/from/"
        run(tool("rsync"), "-a", "-e", shell, source, tmp_path / "to")
        assert sha256(tmp_path / "to" / "big") == digest

    @IN_BOTH_SETUPS
    @pytest.mark.parametrize("way", ["plain", "socks5", "http"])
    def test_a_command_with_much_input_and_output(
        self, programs: Programs, sshd: int, tmp_path: Path, way: str
    ) -> None:
        proxy: list[str] = []
        port = sshd
        if way == "plain":
            port = programs.pair(sshd, server_workers=2, client_workers=2).port
        else:
            server = programs.server(1, "--workers", 2, "--allow", f"127.0.0.1:{sshd}")
            through = programs.proxy(server).port
            command = {
                "socks5": f"{tool('nc')} -X 5 -x 127.0.0.1:{through} %h %p",
                "http": f"{tool('socat')} - PROXY:127.0.0.1:%h:%p,proxyport={through}",
            }
            proxy = ["-o", f"ProxyCommand={command[way]}"]
        content = data(30 * MB, 4)
        result = subprocess.run(
            [
                *(*self.ssh(tmp_path), "-p", str(port)),
                *proxy,
                f"{getpass.getuser()}@127.0.0.1",
                "cat; echo the end >&2; exit 7",
            ],
            input=content,
            capture_output=True,
            timeout=90,
            check=False,
        )
        assert result.stderr == b"the end\n"
        assert result.stdout == content
        assert result.returncode == 7


@contextlib.contextmanager
def privilege_separation_folder() -> Iterator[None]:
    """sshd started by root wants /run/sshd, which is made at boot, so containers lack it."""
    folder = Path("/run/sshd")
    made = os.geteuid() == 0 and not folder.exists()
    if made:
        folder.mkdir(mode=0o755)
    try:
        yield
    finally:
        if made:
            folder.rmdir()
