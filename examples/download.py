"""Download a file over HTTPS with requests, over many connections.

    python examples/download.py --server vps.example.com:7700 --key-file fastmtcp.key \
        https://host/file

The server's target is the web server (or the server lets clients choose, see --choose).
"""

from __future__ import annotations

import argparse
import socket
import sys

import fastmtcp
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPSConnectionPool
from urllib3.connection import HTTPSConnection


def adapter(client: fastmtcp.Client, choose: bool) -> HTTPAdapter:
    """What makes the connections of a requests.Session streams of `client`."""

    class Connection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return client.connect((self._dns_host, self.port) if choose else None, timeout=30)

    class Pool(HTTPSConnectionPool):
        ConnectionCls = Connection

    made = HTTPAdapter()
    made.poolmanager.pool_classes_by_scheme = {"https": Pool}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--server", required=True, action="append")
    parser.add_argument("--key-file")
    parser.add_argument("--ca", help="certificates to trust, instead of the usual ones")
    parser.add_argument("--choose", action="store_true", help="ask the server for the URL's host")
    given = parser.parse_args()
    with (
        fastmtcp.Client(given.server, key_file=given.key_file) as client,
        requests.Session() as session,
    ):
        session.mount("https://", adapter(client, given.choose))
        with session.get(given.url, stream=True, timeout=30, verify=given.ca or True) as answer:
            answer.raise_for_status()
            for block in answer.iter_content(1 << 18):
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
