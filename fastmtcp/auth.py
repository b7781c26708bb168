"""The handshake of a subflow (docs/SPEC.md, section 3). Sans-IO, like the engine.

    client                                server
    HELLO(versions, nonce, session)  ->
                                     <-   CHALLENGE(version, nonce)
    PROOF(key MAC, join MAC)         ->
                                     <-   WELCOME(grant, MAC)   or REFUSE(code)

The client proves first, so whoever does not hold the key learns nothing but that a fastmtcp
server of this version listens. Both MACs are HMAC-SHA256 over the hash of everything said so far,
so nonces, roles, version and parameters cannot be changed or replayed. A session has a secret of
its own, made from the key and the handshake that created it: nobody who did not see that handshake
can add subflows to it.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from typing import TypeVar

import msgspec

from fastmtcp.engine.frames import VERSION
from fastmtcp.engine.role import Role
from fastmtcp.errors import PeerError

MAGIC = "fastmtcp"
NONCE_SIZE = 32
SESSION_ID_SIZE = 16
NO_KEY = bytes(32)
"""Stands for the key on a server without one; such a server listens on loopback only."""

MAX_MESSAGE = 1024
"""Before the proof a peer can make us hold this much, for the handshake's few seconds."""

_LENGTH = struct.Struct("!H")
_T = TypeVar("_T")


class RefuseCode(enum.IntEnum):
    """Why a handshake was refused."""

    PROTOCOL = 0
    VERSION = 1
    KEY = 2
    UNKNOWN_SESSION = 3
    LIMIT = 4
    DRAINING = 5


class RefusedError(PeerError):
    """The server refused the handshake."""

    def __init__(self, code: RefuseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Hello(msgspec.Struct, array_like=True, tag=1):
    """`session` is empty for a new session; `subflow` is unique within its session; `role` are the
    flags of fastmtcp.engine.role.Role."""

    magic: str
    versions: list[int]
    nonce: bytes
    session: bytes
    subflow: int
    role: int = int(Role.BOTH)


class Challenge(msgspec.Struct, array_like=True, tag=2):
    """The version chosen, and the server's nonce."""

    version: int
    nonce: bytes


class Proof(msgspec.Struct, array_like=True, tag=3):
    """`join` is empty for a new session."""

    key: bytes
    join: bytes


class Grant(msgspec.Struct, array_like=True):
    """What the client may do: session id, credit of a new stream (bytes), streams at once."""

    session: bytes
    floor_window: int
    max_streams: int


class Welcome(msgspec.Struct, array_like=True, tag=4):
    """`grant` is an encoded Grant, so that the MAC is over the very bytes that were sent."""

    grant: bytes
    mac: bytes


class Refuse(msgspec.Struct, array_like=True, tag=5):
    """The end of the handshake."""

    code: int
    message: str


_encode = msgspec.msgpack.Encoder().encode


def pack(message: Hello | Challenge | Proof | Welcome | Refuse) -> bytes:
    """A handshake message: u16 length, msgpack array."""
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    # Text that is not UTF-8 and nesting are errors of their own, and must not end the worker.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise PeerError("the peer does not speak fastmtcp") from None


def _mac(key: bytes, label: str, transcript: bytes) -> bytes:
    message = f"{MAGIC} {VERSION} {label}\0".encode() + hashlib.sha256(transcript).digest()
    return hmac.digest(key, message, "sha256")


class _Messages:
    """Cuts the peer's bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole message, without its length.

        Raises:
            PeerError: it announces more than MAX_MESSAGE bytes.
        """
        if len(self._buffer) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._buffer)
        if not 0 < size <= MAX_MESSAGE:
            raise PeerError("the peer does not speak fastmtcp")
        end = _LENGTH.size + size
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return body

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)


class Membership(msgspec.Struct, frozen=True):
    """A session that further subflows may join: its id and its secret."""

    session: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"Membership(session={self.session.hex()})"


class ClientHandshake:
    """The client's side. Send `hello`, feed what comes, send what feed() returns, until `grant`.

    `nonce` is NONCE_SIZE fresh random bytes.
    """

    def __init__(
        self,
        key: bytes,
        nonce: bytes,
        subflow_id: int,
        join: Membership | None = None,
        role: Role = Role.BOTH,
    ) -> None:
        self._key = key
        self._join = join
        self.subflow_id = subflow_id
        session = join.session if join else b""
        self.role = role
        self.hello = pack(Hello(MAGIC, [VERSION], nonce, session, subflow_id, int(role)))
        self._transcript = self.hello
        self._messages = _Messages()
        self._challenged = False
        self.grant: Grant | None = None
        self.membership: Membership | None = join

    @property
    def early(self) -> bytes:
        """Bytes behind the WELCOME: the first frames."""
        return self._messages.rest

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the server; return bytes to send.

        Raises:
            RefusedError: the server said no.
            PeerError: it is no fastmtcp server, or it does not hold the key.
        """
        self._messages.add(data)
        out = b""
        while self.grant is None and (body := self._messages.next()) is not None:
            reply = _decode(body, Challenge | Welcome | Refuse)  # type: ignore[arg-type]
            if isinstance(reply, Refuse):
                raise RefusedError(_refuse_code(reply.code), _printable(reply.message))
            if isinstance(reply, Challenge) and not self._challenged:
                out += self._on_challenge(reply, body)
            elif isinstance(reply, Welcome) and self._challenged:
                self._on_welcome(reply)
            else:
                raise PeerError("the peer does not speak fastmtcp")
        return out

    def _on_challenge(self, challenge: Challenge, body: bytes) -> bytes:
        if challenge.version != VERSION:
            raise PeerError(f"the server chose protocol version {challenge.version}, not offered")
        if len(challenge.nonce) != NONCE_SIZE:
            raise PeerError("the peer does not speak fastmtcp")
        self._challenged = True
        self._transcript += _LENGTH.pack(len(body)) + body
        key_mac = _mac(self._key, "client", self._transcript)
        if self._join is None:
            join_mac = b""
            self._secret = _mac(self._key, "session", self._transcript)
        else:
            join_mac = _mac(self._join.secret, "join", self._transcript)
        proof = pack(Proof(key_mac, join_mac))
        self._transcript += proof
        return proof

    def _on_welcome(self, welcome: Welcome) -> None:
        expected = _mac(self._key, "server", self._transcript + welcome.grant)
        if not hmac.compare_digest(expected, welcome.mac):
            raise PeerError("the server does not hold the key; use the same key file on both sides")
        grant = _decode(welcome.grant, Grant)
        if len(grant.session) != SESSION_ID_SIZE or min(grant.floor_window, grant.max_streams) < 1:
            raise PeerError("the server sent an impossible grant")
        self.grant = grant
        if self._join is None:
            self.membership = Membership(grant.session, self._secret)


class ServerHandshake:
    """The server's side: feed() until `request`, then welcome() or refuse().

    The worker that accepted the connection runs it up to the client's proof; the worker that owns
    the session checks the join MAC and answers (see export() and restore()).
    """

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._key = key
        self._nonce = nonce
        self._messages = _Messages()
        self._transcript = b""
        self._proof = b""
        self._hello: Hello | None = None
        self.request: Hello | None = None
        """The client's HELLO, once the client has proved that it holds the key."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the client; return bytes to send.

        Raises:
            RefusedError: with a wrong key or version; send refuse(error) and close.
            PeerError: this is no fastmtcp client; close without a word.
        """
        self._messages.add(data)
        out = b""
        while self.request is None and (body := self._messages.next()) is not None:
            if self._hello is None:
                out += self._on_hello(body)
            else:
                self._on_proof(body)
        return out

    @property
    def joins(self) -> bytes:
        """The id of the session that the client wants to join; empty for a new one."""
        return self.request.session if self.request else b""

    def may_join(self, secret: bytes) -> bool:
        """Whether the client proved that it knows the secret of the session it joins."""
        proof = _decode(self._proof[_LENGTH.size :], Proof)
        return hmac.compare_digest(_mac(secret, "join", self._transcript), proof.join)

    def session_secret(self) -> bytes:
        """The secret of the session that this handshake creates."""
        return _mac(self._key, "session", self._transcript)

    def welcome(self, grant: Grant) -> bytes:
        encoded = _encode(grant)
        mac = _mac(self._key, "server", self._transcript + self._proof + encoded)
        return pack(Welcome(encoded, mac))

    def export(self) -> bytes:
        """The state after the proof, for the worker that owns the session. Holds no key."""
        return _encode([self._transcript, self._proof, self._messages.rest])

    @classmethod
    def restore(cls, key: bytes, state: bytes) -> ServerHandshake:
        """Continue a handshake that another worker of this server has checked."""
        transcript, proof, rest = msgspec.msgpack.decode(state, type=tuple[bytes, bytes, bytes])
        handshake = cls(key, b"")
        handshake._transcript = transcript
        handshake._proof = proof
        handshake._messages.add(rest)
        (size,) = _LENGTH.unpack_from(transcript)
        handshake.request = _decode(transcript[_LENGTH.size : _LENGTH.size + size], Hello)
        return handshake

    @property
    def early(self) -> bytes:
        return self._messages.rest

    def _on_hello(self, body: bytes) -> bytes:
        hello = _decode(body, Hello)
        if hello.magic != MAGIC:
            raise PeerError("the peer does not speak fastmtcp")
        if VERSION not in hello.versions:
            raise RefusedError(RefuseCode.VERSION, f"this server speaks protocol version {VERSION}")
        if len(hello.nonce) != NONCE_SIZE or len(hello.session) not in (0, SESSION_ID_SIZE):
            raise PeerError("the peer does not speak fastmtcp")
        self._hello = hello
        challenge = pack(Challenge(VERSION, self._nonce))
        self._transcript = _LENGTH.pack(len(body)) + body + challenge
        return challenge

    def _on_proof(self, body: bytes) -> None:
        proof = _decode(body, Proof)
        if not hmac.compare_digest(_mac(self._key, "client", self._transcript), proof.key):
            raise RefusedError(
                RefuseCode.KEY, "the keys differ; use the same key file on both sides"
            )
        self._proof = _LENGTH.pack(len(body)) + body
        self.request = self._hello


def refusal(error: RefusedError) -> bytes:
    """The REFUSE message that says `error`."""
    return pack(Refuse(int(error.code), str(error)))


def _refuse_code(value: int) -> RefuseCode:
    try:
        return RefuseCode(value)
    except ValueError:
        return RefuseCode.PROTOCOL


def _printable(text: str) -> str:
    """A peer's text goes to the log: no control characters, no novels."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])
