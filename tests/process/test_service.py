"""As a service: another user than root, and what the service manager is told."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastmtcp.security import keys
from fastmtcp.status.control_name import ControlName
from fastmtcp.status.query import ask

from tests.io.net import WAIT, free_port, read_all
from tests.process.programs import ALL_UP, Program, Programs, eventually
from tests.process.targets import Target, round_trip

NOBODY = pwd.getpwnam("nobody")


def identity(pid: int) -> dict[str, list[int]]:
    """Real, effective, saved and file-system ids of a process, its groups and capabilities."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Uid", "Gid", "Groups"):
            found[name] = [int(number) for number in rest.split()]
        elif name in ("CapPrm", "CapEff", "CapAmb"):
            found[name] = [int(rest, 16)]
    return found


def low_port() -> int:
    """A free port that only root may bind."""
    for port in range(1023, 600, -1):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    pytest.fail("no port below 1024 is free")


_NOTE_IMPORTS = """
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if forked:
            with open(os.environ["LATE_IMPORTS"], "a") as file:
                file.write(name + os.linesep)

def fork():
    if not forked:
        with open(os.environ["LATE_IMPORTS"], "w") as file:
            file.write("-")
    forked.append(True)

forked = []
if os.environ.get("LATE_IMPORTS"):
    sys.meta_path.insert(0, Finder())
    os.register_at_fork(before=fork)
"""


class TestAnotherUser:
    def test_root_is_given_up_and_everything_still_works(
        self, programs: Programs, echo_target: Target[int], tmp_path: Path
    ) -> None:
        arguments = ("--user", "nobody", "--workers", 2, "--key-file", "k", "--control", "dropped")
        keys.generate(tmp_path / "k")
        if os.geteuid() != 0:
            ended = programs.run("fastmtcp-server", *arguments)
            assert ended.returncode == 2
            assert "only root can become another user" in ended.stderr
            return
        server = programs.server(echo_target.port, *arguments, port=low_port())
        client = programs.client(server, "--workers", 1, "--key-file", "k", "--user", "nobody")
        assert round_trip(client.address)
        for program in (server, client):
            for pid in (program.process.pid, *program.workers()):
                found = identity(pid)
                assert found["Uid"] == [NOBODY.pw_uid] * 4
                assert found["Gid"] == [NOBODY.pw_gid] * 4
                assert 0 not in found["Groups"]
                assert found["CapPrm"] == found["CapEff"] == found["CapAmb"] == [0]
        status = ask(ControlName("dropped", NOBODY.pw_uid))
        assert status.pid == server.process.pid
        assert all(worker.memory for worker in status.workers)
        # A worker's successor listens on the same port, which it could not bind any more.
        server.expects_trouble = client.expects_trouble = True
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        server.wait_for("worker . .* ended by signal 9", 2)
        eventually(lambda: len(server.workers()) == 2, "both workers are there again")
        eventually(lambda: serves(client), "streams go through again")

    def test_a_group_may_be_named(self, programs: Programs, echo_target: Target[int]) -> None:
        if os.geteuid() != 0:
            ended = programs.run("fastmtcp-client", "--user", "nobody:nogroup")
            assert ended.returncode == 2
            return
        server = programs.server(echo_target.port, "--user", "daemon:nogroup")
        assert identity(server.process.pid)["Groups"] == [NOBODY.pw_gid]

    def test_a_list_of_clients_that_it_cannot_read_stops_the_start(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        """Nobody could be revoked."""
        if os.geteuid() != 0:
            return  # see the first one
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            address = ("--public-address", f"127.0.0.1:{free_port()}")
            where = folder / "server"
            target = ("--target", f"127.0.0.1:{echo_target.port}")
            made = programs.run("fastmtcp", "init", "server", *address, *target, "--dir", where)
            assert made.returncode == 0, made.stderr
            where.chmod(0o755)
            line = ("fastmtcp-server", "--config", where / "server.toml", "--user", "nobody")
            ended = programs.run(*line)
            assert ended.returncode == 1
            assert f"list of clients {where}/clients cannot be read: Permission" in ended.stderr
            assert "as user nobody, and nobody could be revoked" in ended.stderr
            assert "Traceback" not in ended.stderr
            os.chown(where / "clients", NOBODY.pw_uid, NOBODY.pw_gid)
            programs.start(*line).ready()

    @pytest.mark.parametrize(
        ("user", "group", "mode"), [("nobody", "", 0o600), ("nobody", "daemon", 0o660)]
    )
    def test_its_unix_sockets_are_the_users_and_are_removed(
        self, programs: Programs, tmp_path: Path, user: str, group: str, mode: int
    ) -> None:
        if os.geteuid() != 0:
            return  # see the first one
        account = pwd.getpwnam(user)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.sock"
            os.chown(folder, account.pw_uid, account.pw_gid)
            client = programs.start(
                *("fastmtcp-client", "--server", "127.0.0.1:1", "--listen", "127.0.0.1:0"),
                *("--forward", f"unix:{path}:127.0.0.1:1"),
                *("--user", f"{user}:{group}" if group else user, "--workers", 1),
            ).ready()
            status = path.stat()
            gid = grp.getgrnam(group).gr_gid if group else account.pw_gid
            assert (status.st_uid, status.st_gid) == (account.pw_uid, gid)
            assert stat.S_IMODE(status.st_mode) == mode
            code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
            subprocess.run(
                ["/usr/bin/python3", "-c", code, path], user=user, check=True, timeout=WAIT
            )
            client.signal(signal.SIGTERM)
            assert client.wait() == 0
            assert not path.exists()

    def test_a_folder_where_it_could_not_be_removed_is_refused(
        self, programs: Programs, tmp_path: Path
    ) -> None:
        if os.geteuid() != 0:
            return  # see the first one
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            ended = programs.run(
                *("fastmtcp-client", "--user", "nobody", "--listen", "127.0.0.1:0"),
                *("--forward", f"unix:{folder}/a.sock:127.0.0.1:1"),
            )
            assert ended.returncode == 1
            assert "may make and remove it" in ended.stderr
            assert os.listdir(folder) == []

    def test_nothing_is_imported_once_the_ports_are_bound(
        self, programs: Programs, echo_target: Target[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The user may not be able to read it: names need a codec that Python imports late."""
        late = programs.folder / "late"
        (programs.folder / "sitecustomize.py").write_text(_NOTE_IMPORTS)
        path = os.pathsep.join(filter(None, (str(programs.folder), os.environ.get("PYTHONPATH"))))
        server = programs.server(echo_target.port, "--workers", 1)
        monkeypatch.setenv("PYTHONPATH", path)
        monkeypatch.setenv("LATE_IMPORTS", str(late))
        # Nothing here is a name but the server's, which the worker looks up.
        unix = programs.folder / "a.sock"
        client = programs.start(
            *("fastmtcp-client", "--server", f"localhost:{server.port}", "--workers", 1),
            *("--forward", f"unix:{unix}:127.0.0.1:1"),
        )
        client.wait_for(ALL_UP)
        client.signal(signal.SIGTERM)
        assert client.wait() == 0
        assert late.read_text() == "-"

    @pytest.mark.parametrize(
        ("user", "problem"),
        [
            ("no-such-user", "there is no user 'no-such-user'"),
            ("nobody:no-such-group", "there is no group 'no-such-group'"),
            ("root", "is root; name an unprivileged user and group"),
            ("nobody:root", "is root; name an unprivileged user and group"),
            ("", "'' is no user; write NAME or NAME:GROUP"),
            ("nobody:", "'nobody:' is no user; write NAME or NAME:GROUP"),
        ],
    )
    def test_a_user_that_cannot_be(self, programs: Programs, user: str, problem: str) -> None:
        ended = programs.run("fastmtcp-server", "--user", user)
        assert ended.returncode == 2
        named = "--user" if "write NAME" in problem else f"--user {user!r}"
        assert ended.stderr == f"fastmtcp-server: error: {named}: {problem}\n"


def serves(client: Program) -> bool:
    try:
        return bool(round_trip(client.address))
    except (OSError, EOFError, AssertionError):
        return False


def test_a_dead_workers_share_of_the_connections_goes_to_the_others(
    programs: Programs, echo_target: Target[int]
) -> None:
    """The supervisor holds all sockets: nobody must be left in the queue of a listener whose
    worker is gone."""
    server = programs.server(echo_target.port, "--workers", 3)
    client = programs.client(server, "--workers", 3)
    client.expects_trouble = True
    victim = client.workers()[0]
    os.kill(victim, signal.SIGKILL)
    client.wait_for(rf"\(pid {victim}\) ended by signal 9")
    for _ in range(30):
        with client.connect() as sock:
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"hello"


class TestServiceManager:
    @pytest.fixture(params=["path", "abstract"])
    def manager(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[socket.socket]:
        """The socket on which systemd would listen."""
        name = f"@fastmtcp-test-{os.getpid()}"
        if request.param == "path":
            name = str(tmp_path / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(name.replace("@", "\0"))
            sock.settimeout(WAIT)
            monkeypatch.setenv("NOTIFY_SOCKET", name)
            monkeypatch.setenv("WATCHDOG_USEC", "200000")
            yield sock
            if request.param == "path":
                os.unlink(name)

    def test_it_hears_ready_alive_and_stopping(
        self, programs: Programs, echo_target: Target[int], manager: socket.socket
    ) -> None:
        server = programs.server(echo_target.port, "--workers", 2, "--drain-timeout", 7)
        heard: list[str] = []
        while sum("WATCHDOG=1" in text for text in heard) < 3:
            heard.append(manager.recv(4096).decode())
        ready = [text for text in heard if text.startswith("READY=1\n")]
        assert ready == [f"READY=1\nSTATUS=listening on 127.0.0.1:{server.port}"]
        server.signal(signal.SIGTERM)
        while not (text := manager.recv(4096).decode()).startswith("STOPPING=1"):
            assert text == "WATCHDOG=1"
        assert text == "STOPPING=1\nEXTEND_TIMEOUT_USEC=17000000"
        assert server.wait() == 0

    def test_a_client_whose_server_is_missing_is_ready_all_the_same(
        self, programs: Programs, manager: socket.socket
    ) -> None:
        programs.start("fastmtcp-client", "--listen", "127.0.0.1:0", "--server", "127.0.0.1:1")
        while not (text := manager.recv(4096).decode()).startswith("READY=1"):
            assert text == "WATCHDOG=1"
        assert "0 of " in text
