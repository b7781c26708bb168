"""Libraries and test suites that are not ours, over our sockets."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fastmtcp
import httpcore
import httpx
import paramiko
import pytest
import requests
import trio
import trio.testing
import trustme
import urllib3
import urllib3.connection
from requests.adapters import HTTPAdapter

from tests.io.net import WAIT, Background, data, free_port, read_all
from tests.library.conftest import Pair
from tests.process.test_real_programs import running, sha256, tool

Pairs = Callable[[], Pair]


# --- trio -----------------------------------------------------------------------------------------


def test_a_half_closeable_stream_of_trio(pairs: Pairs) -> None:
    # Without trio's checks of a clogged stream: what is between the two ends fills up in steps.
    def wrapped(pair: Pair) -> tuple[trio.SocketStream, trio.SocketStream]:
        first, second = (trio.socket.from_stdlib_socket(sock.dup()) for sock in pair)
        for sock in pair:
            sock.close()
        return trio.SocketStream(first), trio.SocketStream(second)

    async def maker() -> tuple[trio.SocketStream, trio.SocketStream]:
        return wrapped(pairs())  # not on a thread: trio's stay for ten seconds

    async def main() -> None:
        with trio.fail_after(2 * WAIT):
            await trio.testing.check_half_closeable_stream(maker, None)

    trio.run(main)


# --- HTTP -----------------------------------------------------------------------------------------


class Web:
    """An nginx with a file, and a Server in front of it."""

    def __init__(self, server: fastmtcp.Server, digest: str) -> None:
        self.server = server
        self.digest = digest


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("www") / "file"
    path.write_bytes(data(20_000_000))
    return path


@pytest.fixture
def web(tmp_path: Path, file: Path) -> Iterator[Web]:
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in kinds)
    file.parent.chmod(0o755)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off;\npid {tmp_path}/nginx.pid;\nuser root;\nevents {{}}\n"
        f"http {{\n{temporary}access_log off;\n"
        f"server {{ listen 127.0.0.1:{port}; root {file.parent}; }}\n}}\n"
    )
    command = (tool("nginx"), "-p", tmp_path, "-e", "stderr", "-c", tmp_path / "nginx.conf")
    with (
        running(tmp_path, port, *command),
        fastmtcp.Server("127.0.0.1:0", target=("127.0.0.1", port)) as server,
    ):
        yield Web(server, sha256(file))


def digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def test_urllib3(web: Web) -> None:
    with fastmtcp.Client(web.server.addresses) as client:

        class Connection(urllib3.connection.HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return client.connect(timeout=WAIT)

        with urllib3.HTTPConnectionPool("nginx.example", 80) as pool:
            pool.ConnectionCls = Connection
            for _ in range(2):
                assert digest(pool.request("GET", "/file").data) == web.digest
            assert pool.num_connections == 1


def test_requests(web: Web) -> None:
    with fastmtcp.Client(web.server.addresses) as client:

        class Connection(urllib3.connection.HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return client.connect(timeout=WAIT)

        class Pool(urllib3.HTTPConnectionPool):
            ConnectionCls = Connection

        with requests.Session() as session:
            adapter = HTTPAdapter()
            adapter.poolmanager.pool_classes_by_scheme = {"http": Pool}
            session.mount("http://", adapter)
            answer = session.get("http://nginx.example/file", timeout=WAIT)
            assert answer.status_code == 200
            assert digest(answer.content) == web.digest
            assert session.get("http://nginx.example/none", timeout=WAIT).status_code == 404


class _Backend(httpcore.SyncBackend):
    """httpcore's own stream, over our sockets."""

    def __init__(self, client: fastmtcp.Client) -> None:
        self._client = client

    def connect_tcp(self, *_: object, **__: object) -> httpcore.NetworkStream:
        from httpcore._backends.sync import SyncStream

        return SyncStream(self._client.connect(timeout=WAIT))


def test_httpx(web: Web) -> None:
    with fastmtcp.Client(web.server.addresses) as client:
        transport = httpx.HTTPTransport()
        transport._pool = httpcore.ConnectionPool(network_backend=_Backend(client))
        with httpx.Client(transport=transport) as http:
            answer = http.get("http://nginx.example/file", timeout=WAIT)
            assert answer.status_code == 200
            assert digest(answer.content) == web.digest


# --- TLS and SSH ----------------------------------------------------------------------------------


def test_tls_from_the_standard_library(pairs: Pairs) -> None:
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.com").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    near, far = pairs()
    content = data(3_000_000)

    def serve() -> bytes:
        with server_side.wrap_socket(far, server_side=True) as tls:
            got = read_all(tls)
            tls.unwrap().close()
            return got

    serving = Background(serve)
    with client_side.wrap_socket(near, server_hostname="example.com") as tls:
        assert fastmtcp.info(tls).is_client
        tls.sendall(content)
        tls.unwrap().close()
    assert serving.result() == content


class _Everybody(paramiko.ServerInterface):
    def check_auth_none(self, username: str) -> int:
        return paramiko.common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED


def test_paramiko(pairs: Pairs) -> None:
    near, far = pairs()
    host_key = paramiko.ECDSAKey.generate()
    content = data(1_000_000)
    with paramiko.Transport(far) as there, paramiko.Transport(near) as here:
        there.add_server_key(host_key)
        there.start_server(event=threading.Event(), server=_Everybody())
        here.start_client(timeout=WAIT)
        assert here.get_remote_server_key() == host_key
        here.auth_none("anybody")
        channel = here.open_session(timeout=WAIT)
        accepted = there.accept(WAIT)
        assert accepted is not None

        def send() -> None:
            channel.sendall(content)
            channel.shutdown_write()

        sending = Background(send)
        got = bytearray()
        while part := accepted.recv(1 << 16):
            got += part
        sending.result()
        assert got == content
