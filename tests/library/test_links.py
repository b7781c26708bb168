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
