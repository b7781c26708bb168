"""A stream of a Client, until the server has connected it to its target."""

from __future__ import annotations

from collections.abc import Callable

from fastmtcp.api.answer import Answer
from fastmtcp.api.connection import Joined
from fastmtcp.api.errors import closed_error, reset_error, server_error
from fastmtcp.client.service import ClientService
from fastmtcp.client.session import ClientSession
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.errors import OpenError, ResetCode
from fastmtcp.io.loop import Loop

_ATTEMPTS = 3
_AGAIN = 0.15
"""Seconds until a session that has ended is replaced, and a little more."""


class Opening:
    """Opens a stream, joins it with a socket for the user, and sets `answer`; or fails. All on the
    loop.

    With `wait` it is joined when the target has accepted; else at once, and the first bytes go
    with the OPEN.
    """

    def __init__(
        self,
        service: ClientService,
        loop: Loop,
        connect_timeout: float,
        join: Callable[[ClientSession, Stream, str], Joined],
        over: Callable[[Opening], None],
        target: str,
        *,
        wait: bool,
    ) -> None:
        """`join` makes the socket for a stream to a target; `over` is called once, when nothing
        more is to come. `connect_timeout` is how long a server that was there may be away."""
        self.answer: Answer[Joined] = Answer()
        self._service = service
        self._loop = loop
        self._connect_timeout = connect_timeout
        self._make_socket = join
        self._on_over = over
        self._target = target
        self._wait = wait
        self._attempts = 0
        self._session: ClientSession | None = None
        self._stream: Stream | None = None
        self._joined: Joined | None = None
        self._over = False

    def begin(self) -> None:
        if self._over:
            return
        if self._service.is_draining:
            self._fail(closed_error("Client"))
            return
        self._attempts += 1
        try:
            self._session, stream = self._service.open(self._target)
        except OpenError as error:
            self._stream = None
            if self._session_is_over():
                self._again()
            else:
                self._fail(_too_many(error))
            return
        self._stream = stream
        stream.watcher = self
        if self._wait:
            stream.announce()
            self._session.driver.progress()
        self.check_server()
        self.update()

    def update(self) -> None:
        """The stream was updated."""
        stream = self._stream
        if stream is None or self._over:
            return
        if stream.reset_code is not None:
            self._on_reset(stream, stream.reset_code)
        elif stream.connected or not self._wait:
            self._join(stream)

    def moved(self, session: ClientSession, stream: Stream) -> None:
        """The stream is in another session now."""
        if stream is self._stream:
            self._session = session

    def check_server(self) -> None:
        """Fail if there is no server to open the stream at: at once while there has been none at
        all, later only after the connect timeout, as a line may be down for a moment."""
        session = self._session
        if session is None or self._over:
            return
        error = session.pool.failure
        if error is None:
            return
        down = self._loop.now - (session.down_since or 0.0)
        if not self._service.has_been_up or down > self._connect_timeout:
            self._give_up(server_error(error, session.peer))

    def cancel(self) -> None:
        """Nobody waits for it any more, or takes the socket that `answer` may hold."""
        self._end()
        self._reset()
        if self._joined is not None:
            self._joined[0].close()

    def shut(self) -> None:
        """The Client is closed."""
        self._give_up(closed_error("Client"))

    def _on_reset(self, stream: Stream, code: ResetCode) -> None:
        # The server was started anew, and has never seen this stream, or nothing of it is left.
        if code is ResetCode.SESSION_LOST and not stream.open_acked and self._attempts < _ATTEMPTS:
            self._again()
            return
        assert self._session is not None
        failure = self._session.pool.failure
        if not stream.open_sent and failure is not None:
            self._fail(server_error(failure, self._session.peer))
        else:
            self._fail(reset_error(code))

    def _session_is_over(self) -> bool:
        return not self._service.sessions and self._attempts < _ATTEMPTS

    def _again(self) -> None:
        self._stream = None
        self._loop.call_later(_AGAIN, self.begin)

    def _give_up(self, error: OSError) -> None:
        self._fail(error)
        self._reset()

    def _join(self, stream: Stream) -> None:
        assert self._session is not None
        self._end()
        try:
            self._joined = self._make_socket(self._session, stream, self._target)
        except BaseException as error:
            self._reset()
            self.answer.set_exception(error)
        else:
            self.answer.set_result(self._joined)

    def _fail(self, error: OSError) -> None:
        if not self._over:
            self._end()
            self.answer.set_exception(error)

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._on_over(self)

    def _reset(self) -> None:
        if self._stream is not None:
            self._stream.reset(ResetCode.CANCELLED)
            assert self._session is not None
            self._session.driver.progress()


def _too_many(error: OpenError) -> OSError:
    failure = reset_error(ResetCode.OVERLOADED)
    failure.strerror = str(error)
    return failure
