"""The number of connections that the real programs find, behind `fastmtcp throttle`."""

from __future__ import annotations

import socket
import threading
import time

from tests.io.net import WAIT
from tests.process.programs import Programs, eventually
from tests.process.test_status import ask, name_of

RATE = 2_000_000


def test_the_number_grows_and_the_transfer_with_it(programs: Programs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT)
        server = programs.server(listener.getsockname()[1], "--workers", 1)
        throttle = programs.start(
            *("fastmtcp", "throttle", "--listen", "127.0.0.1:0"),
            *("--target", f"127.0.0.1:{server.port}", "--rate", str(RATE)),
        )
        port = int(throttle.wait_for("ready").split()[1].rpartition(":")[2])
        client = programs.client(port, "--workers", 1, "--connections", "2-8")

        def wanted() -> int:
            (worker,) = ask(programs, name_of(client))["workers"]
            (session,) = worker["sessions"]
            (path,) = session["paths"]
            return int(path["wanted"])

        assert wanted() == 2
        with client.connect() as application:
            target, _ = listener.accept()
            sending = threading.Thread(target=pour, args=(target,), daemon=True)
            sending.start()
            download = Download(application)
            eventually(lambda: wanted() >= 3, "the number grows")
            # Two connections would carry less.
            eventually(lambda: download.rate() > 2.4 * RATE, "the transfer is faster")
        sending.join(WAIT)
        target.close()


def pour(sock: socket.socket) -> None:
    """Send until the application is gone."""
    try:
        while True:
            sock.sendall(bytes(1 << 16))
    except OSError:
        pass


class Download:
    """Reads all that comes, on a thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received = 0
        threading.Thread(target=self._read, daemon=True).start()

    def rate(self) -> float:
        """Bytes per second over the next second."""
        before, start = self._received, time.monotonic()
        time.sleep(1.0)
        return (self._received - before) / (time.monotonic() - start)

    def _read(self) -> None:
        try:
            while part := self._sock.recv(1 << 18):
                self._received += len(part)
        except OSError:
            pass
