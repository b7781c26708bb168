"""Set-up by link, TLS, and clients that come and go, with the real commands."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import time
from pathlib import Path

import pytest
from fastmtcp.security.certificates import fingerprint, read_certificate
from fastmtcp.security.handshake import NEW_SESSION, Preamble
from fastmtcp.security.link import Link

from tests.io import certificates
from tests.io.net import WAIT, is_reset, read_exactly
from tests.process.programs import (
    ALL_UP,
    LINK,
    SERVER_DIR,
    Program,
    Programs,
    eventually,
    subflows_by_worker,
)
from tests.process.targets import Target, ask_for_exchange, round_trip

MB = 1_000_000


class Setup:
    """A server that `fastmtcp init server` has set up, and its clients."""

    def __init__(self, programs: Programs, target: int) -> None:
        self.programs = programs
        self.port = programs.init_server(target=f"127.0.0.1:{target}")
        self.folder = programs.folder / SERVER_DIR
        self.links = {"first": Link.parse((programs.folder / LINK).read_text())}

    def add(self, name: str) -> None:
        line = ("client", "add", name, "--dir", SERVER_DIR)
        self.links[name] = self.programs.keep_link(f"{name}.link", *line)

    def server(self, *arguments: object) -> Program:
        config = ("--config", self.folder / "server.toml")
        return self.programs.start("fastmtcp-server", *config, *arguments).ready()

    def client(self, name: str, *arguments: object) -> Program:
        line = ("--link-file", f"{name}.link", "--listen", "127.0.0.1:0")
        return self.programs.start("fastmtcp-client", *line, *arguments).ready()

    def check_no_secret_shows(self, *running: Program) -> None:
        stored = re.findall(r"[0-9a-f]{64}", (self.folder / "clients").read_text())
        secrets = {link.key.hex() for link in self.links.values()} | set(stored)
        status = self.programs.run("fastmtcp", "status", "--json").stdout
        assert json.loads(status)["instances"]
        texts = [status, *(program.log for program in running)]
        for program in running:
            for pid in (program.process.pid, *program.workers()):
                texts.append(Path(f"/proc/{pid}/cmdline").read_text())
        for text in texts:
            assert not [secret for secret in secrets if secret in text.lower()]


@pytest.fixture
def made(programs: Programs, exchange_target: Target[str]) -> Setup:
    return Setup(programs, exchange_target.port)


def test_a_link_is_enough_for_an_encrypted_transfer_with_handoff_and_after_a_restart(
    made: Setup, exchange_target: Target[str]
) -> None:
    server = made.server("--workers", 3)
    client = made.client("first", "--workers", 1, "--connections", 8)
    assert "8 of 8 subflows up" in client.wait_for("ready")
    # That the kernel gives all of them to one worker has a probability of 1e-3; and this one is
    # the session's owner.
    (at_client,) = subflows_by_worker(client, made.port, remote=True).values()
    at_server = subflows_by_worker(server, made.port, remote=False)
    assert [at_client & ports for ports in at_server.values() if at_client & ports] == [at_client]

    up = ask_for_exchange(client.address, 20 * MB, 20 * MB)
    assert exchange_target.works[0].result() == up
    made.check_no_secret_shows(server, client)

    server.end()
    server = made.server("--workers", 2)
    eventually(lambda: client.log.count("path") > 2, "the client sees the server again")
    up = ask_for_exchange(client.address, MB, MB)
    assert exchange_target.works[-1].result() == up
    made.check_no_secret_shows(server, client)


def test_nothing_of_the_payload_can_be_seen_on_the_way(programs: Programs) -> None:
    """A relay between the two keeps all it sees."""
    secret = b"nobody on the way may read this" * 100
    seen = bytearray()

    def reader(sock: socket.socket) -> bytes:
        return read_exactly(sock, len(secret))

    def spy(sock: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", setup.port), WAIT) as onward:
            onward.setblocking(False)
            sock.setblocking(False)
            while True:
                for source, sink in ((sock, onward), (onward, sock)):
                    try:
                        part = source.recv(65536)
                    except BlockingIOError:
                        time.sleep(0.002)
                        continue
                    except OSError:
                        return
                    if not part:
                        return
                    seen.extend(part)
                    sink.setblocking(True)
                    sink.sendall(part)
                    sink.setblocking(False)

    target, relay = Target(reader), Target(spy)
    try:
        setup = Setup(programs, target.port)
        setup.server("--workers", 1)
        paths = ("--server", f"127.0.0.1:{relay.port}", "--connections", 2, "--workers", 1)
        client = setup.client("first", *paths)
        assert "2 of 2 subflows up" in client.wait_for("ready")
        with client.connect() as sock:
            sock.sendall(secret)
            assert eventually(lambda: target.works, "the target is reached")[0].result() == secret
        assert len(seen) > len(secret)
        assert seen.count(b"fastmtcp") == 2  # the preambles
        for part in (secret[:16], b"first", setup.links["first"].key):
            assert part not in seen
    finally:
        relay.close()
        target.close()


def test_a_revoked_client_is_out_within_a_second_and_others_go_on(
    programs: Programs, echo_target: Target[int]
) -> None:
    made = Setup(programs, echo_target.port)
    server = made.server("--workers", 2)
    made.add("second")
    first, second = made.client("first", "--workers", 1), made.client("second", "--workers", 1)
    with first.connect() as out, second.connect() as stays:
        for sock in (out, stays):
            sock.sendall(b"hello")
            assert read_exactly(sock, 5) == b"hello"
        listed = programs.run("fastmtcp", "client", "list", "--dir", "server").stdout
        assert listed == "first\nsecond\n"
        revoked = programs.run("fastmtcp", "client", "revoke", "first", "--dir", "server")
        name = f"server-{made.port}"
        assert revoked.stderr == f"revoked first; {name} has taken it\n"
        assert revoked.returncode == 0
        eventually(lambda: is_reset(out), "the revoked client's stream is reset")
        server.wait_for(r"session \w+ of first ended: this client was revoked")
        first.wait_for("wrong key, or a client that this server does not know")
        first.check_resets()
        stays.sendall(b"still here")
        assert read_exactly(stays, 10) == b"still here"
    assert round_trip(second.address)
    made.add("third")
    assert round_trip(made.client("third", "--workers", 1).address)
    made.check_no_secret_shows(server, second)


def test_it_is_told_who_has_not_taken_a_revocation(
    programs: Programs, echo_target: Target[int]
) -> None:
    made = Setup(programs, echo_target.port)
    line = ("fastmtcp", "client", "revoke")
    for name in ("second", "third"):
        made.add(name)
    alone = programs.run(*line, "third", "--dir", "server")
    assert (alone.returncode, alone.stderr) == (
        0,
        "revoked third; no server was found here that runs with this list\n",
    )
    server = made.server("--workers", 2)
    (deaf, _) = server.workers()
    os.kill(deaf, signal.SIGSTOP)
    try:
        ended = programs.run(*line, "second", "--dir", "server")
    finally:
        os.kill(deaf, signal.SIGCONT)
    assert ended.returncode == 1
    assert (
        f"revoked second, but not everywhere: server-{made.port} has not taken it" in ended.stderr
    )


def test_a_worker_that_starts_later_lets_nobody_in_that_was_revoked_meanwhile(
    programs: Programs, echo_target: Target[int]
) -> None:
    """It does not know the list of the program's start, nor anybody while it cannot read it."""
    made = Setup(programs, echo_target.port)
    made.add("second")
    server = made.server("--workers", 1)
    server.expects_trouble = True
    assert programs.run("fastmtcp", "client", "revoke", "first", "--dir", "server").returncode == 0
    listed = made.folder / "clients"
    os.chmod(listed, 0o644)  # which is refused
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    server.wait_for("is open to others .* no client is let in until it can be read")
    first, second = made.client("first", "--workers", 1), made.client("second", "--workers", 1)
    for client in (first, second):
        client.wait_for("wrong key, or a client that this server does not know")
    os.chmod(listed, 0o600)
    second.wait_for(ALL_UP)
    assert round_trip(second.address)
    first.check_resets()


def test_a_new_certificate_is_used_without_a_restart(
    programs: Programs, echo_target: Target[int], tmp_path: Path
) -> None:
    made = Setup(programs, echo_target.port)
    server = made.server("--workers", 2)
    client = made.client("first", "--workers", 1)
    with client.connect() as old:
        old.sendall(b"before")
        assert read_exactly(old, 6) == b"before"
        files = certificates.make(tmp_path)
        # Not both at once: in between they do not fit, and the old ones stay in use.
        os.replace(files.certificate, made.folder / "certificate.pem")
        server.wait_for("going on with what was read before")
        assert round_trip(client.address)
        os.replace(files.key, made.folder / "certificate.key")
        wanted = fingerprint(read_certificate(str(made.folder / "certificate.pem")))
        for _ in range(10):  # by any of the workers
            eventually(lambda: served(made.port) == wanted, "the new certificate is served")
        old.sendall(b"after")
        assert read_exactly(old, 5) == b"after"
    made.add("second")
    assert made.links["second"].fingerprint == wanted
    assert round_trip(made.client("second", "--workers", 1).address)


def test_a_client_uses_its_new_certificate_without_a_restart(
    programs: Programs, echo_target: Target[int], tmp_path: Path
) -> None:
    old = certificates.make(tmp_path, "client")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Path(old.certificate).read_bytes())
    made = Setup(programs, echo_target.port)
    server = made.server("--workers", 1, "--client-ca-file", trusted)
    own = ("--certificate", old.certificate, "--certificate-key", old.key)
    client = made.client("first", "--workers", 1, "--connections", 2, *own)
    assert round_trip(client.address)

    new = certificates.make(tmp_path, "new")
    trusted.write_bytes(Path(new.certificate).read_bytes())
    os.replace(new.key, old.key)
    client.wait_for("going on with what was read before")
    os.replace(new.certificate, old.certificate)
    server.end()
    made.server("--workers", 1, "--client-ca-file", trusted)
    client.wait_for("path .*: up", count=2)
    assert round_trip(client.address)


def test_a_rule_for_one_client_is_not_for_another(
    programs: Programs, echo_target: Target[int]
) -> None:
    made = Setup(programs, echo_target.port)
    made.add("second")
    target = f"127.0.0.1:{echo_target.port}"
    server = made.server("--workers", 1, "--allow", f"first@{target}")
    assert round_trip(made.client("first", "--workers", 1, "--target", target).address)
    other = made.client("second", "--workers", 1, "--target", target)
    with other.connect() as sock:
        sock.sendall(b"may I?")
        eventually(lambda: is_reset(sock), "its stream is reset")
    server.wait_for(rf"client second at 127\.0\.0\.1: target {target} is not allowed$")


def served(port: int) -> bytes:
    """The fingerprint of the certificate that a new connection gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), WAIT) as sock:
        sock.sendall(Preamble(True, NEW_SESSION).encode())
        with context.wrap_socket(sock) as secure:
            assert secure.version() == "TLSv1.3"
            return fingerprint(secure.getpeercert(binary_form=True) or b"")
