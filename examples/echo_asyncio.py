"""An echo server and its client with asyncio, over many connections.

python examples/echo_asyncio.py serve 127.0.0.1:7700
python examples/echo_asyncio.py ask 127.0.0.1:7700 "hello there"
"""

from __future__ import annotations

import asyncio
import sys

import fastmtcp


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while part := await reader.read(1 << 16):
        writer.write(part)
        await writer.drain()
    writer.close()


async def serve(listen: str) -> None:
    server = await fastmtcp.start_server(echo, listen)
    print("listening on", *server.addresses, flush=True)
    await server.serve_forever()


async def ask(server: str, text: str) -> None:
    reader, writer = await fastmtcp.open_connection(server=server, timeout=30)
    writer.write(text.encode())
    writer.write_eof()
    print((await reader.read()).decode())
    writer.close()
    await writer.wait_closed()


if __name__ == "__main__":
    what, address, *texts = sys.argv[1:]
    asyncio.run(serve(address) if what == "serve" else ask(address, " ".join(texts)))
