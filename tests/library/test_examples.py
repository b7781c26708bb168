"""The programs in examples/ do what they say."""

from __future__ import annotations

import contextlib
import http.server
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fastmtcp
import pytest
import trustme

from tests.io.net import WAIT, Background, data, read_all
from tests.library.echo import echo, serve

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.contextmanager
def running(name: str, *arguments: str) -> Iterator[str]:
    """A program that listens: where, as HOST:PORT."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"listening on \('([\d.]+)', (\d+)\)\n", line)
            assert found is not None, line
            yield f"{found[1]}:{found[2]}"
        finally:
            process.terminate()


def run(name: str, *arguments: str) -> bytes:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        timeout=2 * WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_all_are_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in text for path in EXAMPLES.glob("*.py"))
    assert len(list(EXAMPLES.glob("*.py"))) == 5


def test_download(tmp_path: Path, authority: trustme.CA) -> None:
    content = data(5_000_000)
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file").write_bytes(content)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("host.example").configure_cert(context)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "www"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        web.socket = context.wrap_socket(web.socket, server_side=True)
        thread = threading.Thread(target=web.serve_forever, args=(0.02,))
        thread.start()
        with fastmtcp.Server("127.0.0.1:0", target=web.server_address[:2]) as server:  # type: ignore[arg-type]
            where = ("--server", f"127.0.0.1:{server.addresses[0][1]}")
            trust = ("--ca", str(tmp_path / "ca.pem"))
            assert run("download.py", *where, *trust, "https://host.example/file") == content
        web.shutdown()
        thread.join()


def test_echo_with_asyncio() -> None:
    with running("echo_asyncio.py", "serve", "127.0.0.1:0") as address:
        assert run("echo_asyncio.py", "ask", address, "hello", "there") == b"hello there\n"


def test_tls(tmp_path: Path, authority: trustme.CA) -> None:
    issued = authority.issue_cert("host.example")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    files = {name: str(tmp_path / f"{name}.pem") for name in ("key", "certificate", "ca")}
    with running("tls.py", "serve", "127.0.0.1:0", files["certificate"], files["key"]) as address:
        answer = run("tls.py", "ask", address, "host.example", files["ca"], "hello")
    assert answer == b"TLSv1.3 HELLO\n"


def test_ssh_tunnel() -> None:
    with (
        # The example is killed, and the server waits for it.
        fastmtcp.Server("127.0.0.1:0", drain_timeout=0.5) as server,
        serve(server, echo),
        running("ssh_tunnel.py", "--server", f"127.0.0.1:{server.addresses[0][1]}", "0") as local,
        socket.create_connection(("127.0.0.1", int(local.rpartition(":")[2])), WAIT) as sock,
    ):
        content = data(2_000_000)

        def send() -> None:
            sock.sendall(content)
            sock.shutdown(socket.SHUT_WR)

        sending = Background(send)
        assert read_all(sock) == content
        sending.result()


def test_copy_file(tmp_path: Path) -> None:
    source, folder = tmp_path / "big.tar", tmp_path / "folder"
    source.write_bytes(data(10_000_000))
    folder.mkdir()
    with running("copy_file.py", "receive", "127.0.0.1:0", str(folder)) as address:
        output = run("copy_file.py", "send", address, str(source)).decode()
    assert "100%" in output
    assert "MB/s" in output
    assert "complete" in output
    assert (folder / "big.tar").read_bytes() == source.read_bytes()
    shutil.rmtree(folder)
