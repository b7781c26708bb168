"""Beginning and end: dropped objects, forks, the exit of the interpreter, crashes, new servers."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from multiprocessing import resource_tracker
from pathlib import Path

import fastmtcp
import psutil
import pytest
from fastmtcp.api import pair, thread

from tests import unmeasured
from tests.io.net import Background, is_reset, read_all, read_exactly, silent_port
from tests.library.conftest import KEY
from tests.library.echo import echo, serve
from tests.process.programs import eventually

# A process of multiprocessing's own, and a descriptor to it, that stay.
resource_tracker.ensure_running()

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def run(
    program: str, *arguments: object, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A program of its own."""
    command = [sys.executable, "-X", "dev", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


_SIGNALS = """
import random, signal, fastmtcp

class Alarm(Exception):
    pass

def on_alarm(*_):
    if armed:
        raise Alarm

def interrupted(call, within):
    global armed
    sock = None
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, within))
        try:
            sock = call()
        except TimeoutError:
            pass
        armed = False
    except Alarm:
        armed = False
    if sock is not None:
        sock.close()

armed = False
signal.signal(signal.SIGALRM, on_alarm)
server = fastmtcp.Server("127.0.0.1:0")
client = fastmtcp.Client(server.addresses)
with client.connect(), server.accept()[0]:
    pass
for _ in range(400):
    interrupted(lambda: client.connect(wait=random.random() < 0.5), 0.0012)
    interrupted(lambda: server.accept(0.0005)[0], 0.0005)
while True:
    try:
        server.accept(0.5)[0].close()
    except TimeoutError:
        break
with client.connect() as near, server.accept()[0] as far:
    near.sendall(b"both work")
    print(far.recv(100).decode())
client.close()
server.close()
"""


class TestTheEnd:
    def test_a_dropped_client_serves_its_sockets_to_their_end(
        self, echo_server: fastmtcp.Server
    ) -> None:
        client = fastmtcp.Client(echo_server.addresses, key=KEY)
        sock = client.connect()
        del client
        sock.sendall(b"still here")
        assert read_exactly(sock, 10) == b"still here"
        sock.close()

    def test_a_dropped_server(self) -> None:
        server = fastmtcp.Server("127.0.0.1:0")
        client = fastmtcp.Client(server.addresses)
        near, far = client.connect(), server.accept()[0]
        del server
        near.sendall(b"x")
        assert read_exactly(far, 1) == b"x"
        near.close()
        far.close()
        client.close()

    def test_close_waits_for_what_is_on_its_way(self, server: fastmtcp.Server) -> None:
        content = os.urandom(8_000_000)
        with fastmtcp.Client(server.addresses, key=KEY) as client:
            sock = client.connect()
            far, _ = server.accept()
            reading = Background(read_all, far)
            sock.sendall(content)
            sock.close()
        assert reading.result() == content
        far.close()

    def test_close_resets_what_is_open(self, server: fastmtcp.Server) -> None:
        client = fastmtcp.Client(server.addresses, key=KEY)
        with client.connect() as near, server.accept()[0] as far:
            client.close()
            eventually(lambda: is_reset(near), "the near end is reset")
            eventually(lambda: is_reset(far), "the far end is reset")
        with pytest.raises(OSError, match="closed"):
            client.connect()
        with pytest.raises(OSError, match="closed"):
            client.status()
        client.close()

    def test_close_gives_up_when_nothing_moves(self, server: fastmtcp.Server) -> None:
        client = fastmtcp.Client(server.addresses, key=KEY, drain_timeout=0.3)
        near = client.connect()
        far, _ = server.accept()
        near.sendall(b"x" * 100)
        near.close()  # the other end reads nothing, and does not close
        before = time.monotonic()
        client.close()
        assert time.monotonic() - before < 20
        eventually(lambda: is_reset(far), "the other end is reset")
        far.close()

    def test_close_ends_a_connect_that_waits(self) -> None:
        with fastmtcp.Server("127.0.0.1:0", target="127.0.0.1:1") as server:
            listen = server.addresses[0]
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = fastmtcp.Client(silent.getsockname())
            waiting = Background(client.connect)
            time.sleep(0.1)
            client.close()
            with pytest.raises(OSError, match="closed"):
                waiting.result()
        assert listen

    def test_the_thread_ends_with_the_last(self, server: fastmtcp.Server) -> None:
        names = [t.name for t in threading.enumerate()]
        assert names.count("fastmtcp") == 1
        with fastmtcp.Client(server.addresses, key=KEY), fastmtcp.Client(("127.0.0.1", 1)):
            assert [t.name for t in threading.enumerate()].count("fastmtcp") == 1
        server.close()
        assert "fastmtcp" not in [t.name for t in threading.enumerate()]

    def test_a_crash_of_the_loop_resets_and_the_next_client_gets_another(
        self, server: fastmtcp.Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = fastmtcp.Client(server.addresses, key=KEY)
        near = client.connect()

        def crash() -> None:
            raise RuntimeError("made by the test")

        client._core.thread.post(crash)
        eventually(lambda: is_reset(near), "its sockets are reset")
        assert "crashed" in caplog.text
        client._core.closed.result(30)
        with pytest.raises(OSError, match="closed"):
            client.connect()
        client.close()
        near.close()
        with (
            fastmtcp.Server("127.0.0.1:0") as other,
            fastmtcp.create_connection(None, server=other.addresses),
        ):
            other.accept()[0].close()


class TestNewServers:
    def test_a_client_finds_a_server_that_was_started_anew(self) -> None:
        with fastmtcp.Server("127.0.0.1:0") as server, serve(server, echo):
            address = server.addresses[0]
            client = fastmtcp.Client(address, session_timeout=30)
            with client.connect() as sock:
                sock.sendall(b"x")
                assert read_exactly(sock, 1) == b"x"
        with fastmtcp.Server(address) as server, serve(server, echo):
            with client.connect(timeout=30) as sock:
                sock.sendall(b"y")
                assert read_exactly(sock, 1) == b"y"
            client.close()


class TestWhatIsClosed:
    def test_it_does_not_stay_in_memory_while_others_live(
        self, echo_server: fastmtcp.Server
    ) -> None:
        """They share a loop, whose timers must not hold what has ended."""
        server = fastmtcp.Server("127.0.0.1:0", key=KEY)
        client = fastmtcp.Client(server.addresses, key=KEY)
        with client.connect(timeout=30) as near, server.accept(timeout=30)[0] as far:
            near.sendall(b"hello")
            assert read_exactly(far, 5) == b"hello"
        ended: list[weakref.ref[object]] = [
            weakref.ref(server._core.service),
            weakref.ref(client._core.service),
        ]
        client.close()
        server.close()
        del client, server

        def are_gone() -> bool:
            gc.collect()
            return not any(reference() for reference in ended)

        eventually(are_gone, "the services are forgotten")


class TestWhenTheSystemHasNoMore:
    def test_interfaces_that_cannot_be_looked_at_end_nothing(
        self, echo_server: fastmtcp.Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_descriptor() -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        with (
            fastmtcp.Client(echo_server.addresses, key=KEY) as client,
            client.connect(timeout=30) as sock,
        ):
            core = client._core
            with monkeypatch.context() as patch:
                patch.setattr(psutil, "net_if_addrs", no_descriptor)
                core.thread.call(core.service._on_network, True).result()
                sock.sendall(b"there")
                assert read_exactly(sock, 5) == b"there"
            eventually(lambda: not core.service._routes_changed, "it is looked at again")
            sock.sendall(b"still")
            assert read_exactly(sock, 5) == b"still"

    def test_without_a_thread_there_is_no_client_but_a_later_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_thread(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(OSError, match="thread"):
                fastmtcp.Client("127.0.0.1:1")
        with fastmtcp.Client("127.0.0.1:1") as client:
            assert client.status() is not None

    def test_a_handler_without_a_thread_costs_its_stream_only(
        self, server: fastmtcp.Server, client: fastmtcp.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = threading.Thread.start
        refused: list[str] = []

        def start(thread: threading.Thread) -> None:
            if thread.name == "fastmtcp-handler" and not refused:
                refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", start)
        serving = Background(server.serve_forever, lambda sock, _: sock.sendall(b"hello"))
        with client.connect(timeout=30, wait=False) as first:
            eventually(lambda: is_reset(first), "the stream is reset")
        with client.connect(timeout=30) as second:
            assert read_all(second) == b"hello"
        server.close()
        serving.result()


class TestThreads:
    def test_one_client_for_many_threads(self, echo_server: fastmtcp.Server) -> None:
        with fastmtcp.Client(echo_server.addresses, key=KEY) as client:

            def work(number: int) -> None:
                for turn in range(5):
                    with client.connect(timeout=30) as sock:
                        text = f"{number} {turn}".encode() * 1000
                        sock.sendall(text)
                        sock.shutdown(socket.SHUT_WR)
                        assert read_all(sock) == text

            for worker in [Background(work, number) for number in range(16)]:
                worker.result()

    def test_a_stranger_cannot_slip_into_a_pair(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another process connects to the listener in the moment that it is there."""
        strangers: list[socket.socket] = []
        real = socket.socket.listen

        def listen(sock: socket.socket, backlog: int) -> None:
            real(sock, backlog)
            strangers.append(socket.create_connection(sock.getsockname()))

        monkeypatch.setattr(socket.socket, "listen", listen)
        outer, inner = pair.make_pair()
        assert inner.getpeername() == outer.getsockname()
        assert strangers[0].getsockname() != inner.getpeername()
        for sock in (outer, inner, *strangers):
            sock.close()


def _use_in_child(sock: socket.socket, queue: multiprocessing.Queue[bytes]) -> None:
    sock.sendall(b"from the child")
    queue.put(sock.recv(100))


class TestForks:
    def test_the_child_touches_nothing_of_the_parent(self, echo_server: fastmtcp.Server) -> None:
        with fastmtcp.Client(echo_server.addresses, key=KEY, connections=4) as client:
            sock = client.connect(timeout=30)
            eventually(lambda: len(fastmtcp.info(sock).session.subflows) == 5, "all are up")
            subflows = {s.local for s in fastmtcp.info(sock).session.subflows}
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    code = _look_around(client, sock, subflows)
                finally:
                    os._exit(code)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            sock.sendall(b"x" * 100_000)
            assert read_exactly(sock, 100_000) == b"x" * 100_000
            found = fastmtcp.info(sock).session
            assert {s.local for s in found.subflows} == subflows
            assert not sum(path.reconnects for path in found.paths)
            sock.close()

    def test_a_child_makes_a_client_of_its_own(self, echo_server: fastmtcp.Server) -> None:
        with fastmtcp.create_connection(None, server=echo_server.addresses, key=KEY):
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    with fastmtcp.create_connection(
                        None, 30, server=echo_server.addresses, key=KEY
                    ) as sock:
                        sock.sendall(b"child")
                        code = 0 if read_exactly(sock, 5) == b"child" else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def test_the_parents_end_is_seen_while_a_child_lives(self, server: fastmtcp.Server) -> None:
        client = fastmtcp.Client(server.addresses, key=KEY)
        near = client.connect()
        far, _ = server.accept()
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            near.close()
            far.close()
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        near.close()
        assert read_all(far) == b""
        far.close()
        client.close()
        os.close(write)
        os.waitpid(pid, 0)
        os.close(read)

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_multiprocessing_passes_a_socket_on(
        self, echo_server: fastmtcp.Server, method: str
    ) -> None:
        context = multiprocessing.get_context(method)
        # A timeout makes the connection non-blocking, for whoever gets it too.
        with fastmtcp.create_connection(None, None, server=echo_server.addresses, key=KEY) as sock:
            queue: multiprocessing.Queue[bytes] = context.Queue()
            process = context.Process(target=_use_in_child, args=(sock, queue))  # type: ignore[attr-defined]
            process.start()
            assert queue.get(timeout=60) == b"from the child"
            process.join(30)
            assert process.exitcode == 0
            queue.close()
            queue.join_thread()

    def test_a_subprocess_inherits_nothing(self, server: fastmtcp.Server) -> None:
        with fastmtcp.Client(server.addresses, key=KEY) as client, client.connect():
            server.accept()[0].close()
            listing = "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"
            plain = subprocess.run(
                [sys.executable, "-c", listing], capture_output=True, text=True, close_fds=False,
                check=True,
            )  # fmt: skip
        alone = subprocess.run(
            [sys.executable, "-c", listing], capture_output=True, text=True, close_fds=False,
            check=True,
        )  # fmt: skip
        assert plain.stdout == alone.stdout


def _look_around(client: fastmtcp.Client, sock: socket.socket, subflows: set[str]) -> int:
    """In the child: 0 if all is as it should be."""
    for use in (client.connect, client.status, client.close):
        try:
            use()
        except fastmtcp.ForkedError:
            continue
        return 2
    for fd in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(fd))) as copy:
                name = copy.getsockname()
        except OSError:
            continue
        if name and isinstance(name, tuple) and f"{name[0]}:{name[1]}" in subflows:
            return 3
    if thread._threads:
        return 4
    del client
    return 0


_WRITE_AND_EXIT = """
import sys, fastmtcp
sock = fastmtcp.create_connection(None, 30, server=("127.0.0.1", int(sys.argv[1])))
sock.sendall(b"x" * 5_000_000)
"""


class TestTheExit:
    def test_what_was_written_arrives_although_nobody_closed(self) -> None:
        with fastmtcp.Server("127.0.0.1:0") as server:
            counts: list[int] = []

            def count(sock: socket.socket, _address: object) -> None:
                counts.append(len(read_all(sock)))

            with serve(server, count):
                done = run(_WRITE_AND_EXIT, server.addresses[0][1])
                assert done.returncode == 0, done.stderr
                assert "Traceback" not in done.stderr
                eventually(lambda: counts, "it arrives")
            assert counts == [5_000_000]

    @pytest.mark.parametrize(
        "end", ["", "raise SystemExit(0)", "import gc; gc.collect()", "client.close()"]
    )
    def test_no_trouble_at_exit(self, echo_server: fastmtcp.Server, end: str) -> None:
        program = f"""
import sys, fastmtcp
client = fastmtcp.Client(("127.0.0.1", int(sys.argv[1])), key=bytes(range(32)))
server = fastmtcp.Server("127.0.0.1:0")
with client.connect() as sock:
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
{end}
"""
        done = run(program, echo_server.addresses[0][1])
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_daemon_threads_that_wait_are_left_alone(self) -> None:
        program = """
import sys, threading, time, fastmtcp
client = fastmtcp.Client(("127.0.0.1", int(sys.argv[1])))
server = fastmtcp.Server("127.0.0.1:0")
for wait in (client.connect, server.accept):
    threading.Thread(target=wait, kwargs={"timeout": None}, daemon=True).start()
time.sleep(0.3)
"""
        with silent_port() as port:
            done = run(program, port)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_exceptions_of_signal_handlers_do_not_lock_up_anything(self) -> None:
        done = run(_SIGNALS, env=unmeasured.environment())
        assert (done.returncode, done.stdout) == (0, "both work\n"), done.stderr

    def test_importing_costs_next_to_nothing(self) -> None:
        """The figure is in perf/; here, that nothing is loaded before it is used."""
        program = (
            "import sys, fastmtcp; "
            "print([m for m in sys.modules if m.startswith(('fastmtcp.', 'msgspec', 'psutil'))])"
        )
        assert run(program).stdout == "[]\n"

    def test_a_module_has_what_it_promises(self) -> None:
        assert all(hasattr(fastmtcp, name) for name in fastmtcp.__all__)
        assert set(fastmtcp.__all__) <= set(dir(fastmtcp))
        with pytest.raises(AttributeError, match="nothing"):
            fastmtcp.nothing  # noqa: B018


def test_the_types_are_complete(tmp_path: Path) -> None:
    """A user who checks his own program strictly sees full types."""
    program = tmp_path / "user.py"
    program.write_text(
        "import socket\nimport fastmtcp\n"
        "sock: socket.socket = fastmtcp.create_connection(('a', 1), server='b:2')\n"
        "with fastmtcp.Client(['b:2'], key=b'') as client:\n"
        "    reveal_type(client.connect(None, 3.0, wait=False))\n"
        "reveal_type(fastmtcp.info(sock).session.subflows[0].srtt)\n"
        "async def main() -> None:\n"
        "    reveal_type(await fastmtcp.open_connection(client=client))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", str(program)],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(fastmtcp.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for kind in ("socket.socket", "float | None", "tuple[asyncio.streams.StreamReader"):
        assert kind in done.stdout
