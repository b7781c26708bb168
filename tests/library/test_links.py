"""The library with what `fastmtcp init server` sets up: a link for each client, and TLS."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import fastmtcp
import pytest
from fastmtcp.errors import ConfigError
from fastmtcp.security.clients import digest, read

from tests.library.echo import echo, serve


def link_of(folder: Path, port: int) -> str:
    """Set a server up; the link of its first client."""
    command = [sys.executable, "-m", "fastmtcp.cli.main", "init", "server", "--dir", str(folder)]
    command += ["--public-address", f"127.0.0.1:{port}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def server_of(folder: Path) -> fastmtcp.Server:
    return fastmtcp.Server(
        "127.0.0.1:0",
        clients_file=folder / "clients",
        certificate=folder / "certificate.pem",
        certificate_key=folder / "certificate.key",
    )


def test_a_link_is_all_that_a_client_needs(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    # The port is known only when the server is up; a link may name another address than --server.
    link = link_of(folder, 1)
    with server_of(folder) as server, serve(server, echo):
        own = link.replace("127.0.0.1:1", f"127.0.0.1:{server.addresses[0][1]}")
        file = tmp_path / "link"
        file.write_text(own)
        os.chmod(file, 0o600)
        for given in ({"link": own}, {"link_file": file}):
            with fastmtcp.create_connection(None, 30, **given) as sock:
                sock.sendall(b"hello")
                assert sock.recv(100) == b"hello"

        async def ask() -> bytes:
            reader, writer = await fastmtcp.open_connection(link=own, timeout=30)
            writer.write(b"again")
            answer = await reader.read(100)
            writer.close()
            await writer.wait_closed()
            return answer

        assert asyncio.run(ask()) == b"again"
        # Without the link's fingerprint the client does not speak TLS, and is refused.
        with pytest.raises(OSError, match="TLS"):
            fastmtcp.create_connection(None, 30, server=server.addresses, key=bytes(32))


def revoke(folder: Path, name: str) -> None:
    command = [sys.executable, "-m", "fastmtcp.cli.main", "client", "revoke", name]
    subprocess.run([*command, "--dir", str(folder)], capture_output=True, check=True)


def test_a_revoked_client_is_out_when_the_list_was_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    link = link_of(folder, 1)
    with server_of(folder) as server, serve(server, echo):
        own = link.replace("127.0.0.1:1", f"127.0.0.1:{server.addresses[0][1]}")

        def talk(word: bytes) -> None:
            sock.sendall(word)
            assert sock.recv(100) == word

        with fastmtcp.create_connection(None, 30, link=own) as sock:
            talk(b"hello")
            server.set_clients()
            talk(b"still here")
            with pytest.raises(ConfigError, match="does not exist"):
                server.set_clients(tmp_path / "none")
            talk(b"again")
            revoke(folder, "first")
            server.set_clients()
            assert not server.status().sessions
            with pytest.raises(ConnectionResetError):
                sock.recv(100)
        with pytest.raises(OSError, match="wrong key"):
            fastmtcp.create_connection(None, 30, link=own)
    with pytest.raises(OSError, match="closed"):
        server.set_clients()


def test_another_list_and_the_key_goes_on_to_count(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    link_of(folder, 1)
    key = bytes(range(32))
    with fastmtcp.Server("127.0.0.1:0", key=key) as server, serve(server, echo):
        with pytest.raises(ConfigError, match="no list of clients"):
            server.set_clients()
        server.set_clients(folder / "clients")
        assert server.status().clients == digest(read(folder / "clients"))
        with fastmtcp.create_connection(None, 30, server=server.addresses, key=key) as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"


def test_a_list_beside_a_key_counts_from_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    link_of(folder, 1)
    with fastmtcp.Server("127.0.0.1:0", key=bytes(32), clients_file=folder / "clients") as server:
        assert server.status().clients == digest(read(folder / "clients"))


def test_the_list_of_a_server_of_asyncio(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    link_of(folder, 1)

    async def main() -> str:
        async with await fastmtcp.start_server(
            lambda _reader, _writer: None, "127.0.0.1:0", clients_file=folder / "clients"
        ) as server:
            revoke(folder, "first")
            await server.set_clients()
            return (await server.status()).clients

    assert asyncio.run(main()) == digest({})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "server: is missing"),
        ({"link": "fastmtcp://x"}, "link: "),
        ({"link": "x", "key": bytes(32)}, "exclude one another"),
        ({"link_file": "/none/here"}, "does not exist"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        fastmtcp.Client(**given)  # type: ignore[arg-type]
    assert "fastmtcp://x" not in str(caught.value)
