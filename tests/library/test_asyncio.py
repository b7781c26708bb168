"""The library for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import fastmtcp
import pytest
from fastmtcp.api.aio import AsyncServer
from fastmtcp.api.answer import answer_of

from tests.io.net import WAIT, silent_port
from tests.library.conftest import KEY


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine, in debug mode: what blocks the event loop is reported."""
    asyncio.run(asyncio.wait_for(main(), 2 * WAIT), debug=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(1 << 16):
            writer.write(part)
            await writer.drain()
        writer.write_eof()
    writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> bytes:
    writer.write(text)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def test_both_ends() -> None:
    async def main() -> None:
        async with await fastmtcp.start_server(echo, "127.0.0.1:0", key=KEY) as server:
            assert server.is_serving()
            connected = await fastmtcp.open_connection(server=server.addresses, key=KEY)
            assert await ask(*connected, b"x" * 3_000_000) == b"x" * 3_000_000
            assert (await server.status()).totals.streams_opened == 1
        assert not server.is_serving()

    run(main)


def test_a_client_for_many() -> None:
    async def main() -> None:
        async with await fastmtcp.start_server(echo, "127.0.0.1:0") as server:
            client = fastmtcp.Client(server.addresses)

            async def one(number: int) -> bytes:
                connected = await fastmtcp.open_connection(("host", 80), client=client)
                return await ask(*connected, b"%d" % number)

            answers = await asyncio.gather(*(one(number) for number in range(100)))
            assert answers == [b"%d" % number for number in range(100)]
            await asyncio.to_thread(client.close)

    run(main)


def test_what_came_before_the_callback_is_served_too() -> None:
    async def main() -> None:
        accepting = fastmtcp.Server("127.0.0.1:0")
        client = fastmtcp.Client(accepting.addresses)
        connected = await fastmtcp.open_connection(client=client)
        async with AsyncServer(accepting, echo, 1 << 16, None):
            assert await ask(*connected, b"early") == b"early"
            await asyncio.to_thread(client.close)

    run(main)


def test_the_target_and_the_info() -> None:
    async def main() -> None:
        seen: list[str] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(fastmtcp.info(writer.get_extra_info("socket")).target)
            await echo(reader, writer)

        async with await fastmtcp.start_server(serve, "127.0.0.1:0") as server:
            reader, writer = await fastmtcp.open_connection(
                ("example.com", 443), server=server.addresses
            )
            assert fastmtcp.info(writer.get_extra_info("socket")).is_client
            await ask(reader, writer, b"x")
        assert seen == ["example.com:443"]

    run(main)


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02])
def test_cancelling_leaves_nothing(moment: float) -> None:
    async def main() -> None:
        async with await fastmtcp.start_server(echo, "127.0.0.1:0") as server:
            task = asyncio.create_task(fastmtcp.open_connection(server=server.addresses))
            await asyncio.sleep(moment)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                _, writer = await task
                writer.close()

    run(main)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_cancelling_while_the_library_is_busy_leaves_nothing(turns: int) -> None:
    async def main() -> None:
        async with await fastmtcp.start_server(echo, "127.0.0.1:0") as server:
            client = fastmtcp.Client(server.addresses)
            await ask(*await fastmtcp.open_connection(client=client), b"x")
            go_on = threading.Event()
            held = client._core.thread.call(go_on.wait, WAIT)
            task = asyncio.create_task(fastmtcp.open_connection(client=client, wait=False))
            asking = asyncio.create_task(answer_of(client._core.thread.call(client._core.report)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            asking.cancel()
            await asyncio.gather(task, asking, return_exceptions=True)
            go_on.set()
            assert held.result(WAIT)
            connected = await fastmtcp.open_connection(client=client)
            assert await ask(*connected, b"still there") == b"still there"
            await asyncio.to_thread(client.close)

    run(main)


def test_without_waiting_the_first_bytes_travel_with_the_opening() -> None:
    async def main() -> None:
        async with await fastmtcp.start_server(echo, "127.0.0.1:0") as server:
            connected = await fastmtcp.open_connection(server=server.addresses, wait=False)
            assert await ask(*connected, b"GET /") == b"GET /"

    run(main)


def test_timeouts() -> None:
    async def main() -> None:
        with silent_port() as port:
            with pytest.raises(TimeoutError) as caught:
                await fastmtcp.open_connection(server=("127.0.0.1", port), timeout=0.2)
            assert caught.value.errno
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await fastmtcp.open_connection(server=("127.0.0.1", port))

    run(main)


def test_errors() -> None:
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await fastmtcp.open_connection(server=("127.0.0.1", 1))
        with pytest.raises(fastmtcp.ConfigError):
            await fastmtcp.open_connection()
        with pytest.raises(fastmtcp.ConfigError, match="key"):
            await fastmtcp.open_connection(server=("127.0.0.1", 1), key=b"short")
        async with await fastmtcp.start_server(echo, "127.0.0.1:0") as server:
            with pytest.raises(OSError, match="in use"):
                await fastmtcp.start_server(echo, server.addresses[0])

    run(main)


def test_a_close_lets_open_connections_go_on_and_abort_resets_them() -> None:
    async def main() -> None:
        server = await fastmtcp.start_server(echo, "127.0.0.1:0")
        client = fastmtcp.Client(server.addresses)
        reader, writer = await fastmtcp.open_connection(client=client)
        serving = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert not server.is_serving()
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        server.abort_clients()
        with pytest.raises(ConnectionError):
            assert await reader.read(1)
        await server.wait_closed()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await asyncio.to_thread(client.close)

    run(main)


def test_the_event_loop_is_never_held_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that may wait is done elsewhere: a socket, a key file, a look-up."""
    import socket

    from fastmtcp.api import pair
    from fastmtcp.security import keys

    here: list[str] = []
    for module, name in ((pair, "_accept"), (keys, "load"), (socket, "getaddrinfo")):
        real = getattr(module, name)

        def spy(*arguments: object, real: Any = real, name: str = name, **more: object) -> object:
            if threading.current_thread() is threading.main_thread():
                here.append(name)
            return real(*arguments, **more)

        monkeypatch.setattr(module, name, spy)

    async def main() -> None:
        async with await fastmtcp.start_server(echo, "127.0.0.1:0") as server:
            before = time.monotonic()
            connected = await fastmtcp.open_connection(server=server.addresses)
            assert await ask(*connected, b"x") == b"x"
            with pytest.raises(fastmtcp.ConfigError):
                await fastmtcp.open_connection(server=server.addresses, key_file="/no/key")
            assert time.monotonic() - before < WAIT

    run(main)
    assert here == []
