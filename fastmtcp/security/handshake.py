"""The handshake of a subflow (docs/SPEC.md, section 3). Sans-IO, like the engine.

    client                                        server
    preamble(TLS or not, session's worker)   ->
    TLS                                     <->   TLS, if the preamble says so
    HELLO(versions, client, nonce, session)  ->
                                             <-   CHALLENGE(version, nonce)
    PROOF(client's proof, join MAC)          ->
                                             <-   WELCOME(grant, MAC)   or REFUSE(code)

The client proves first, so whoever does not hold a key learns nothing but that a fastmtcp
server of this version listens. All proofs are HMAC-SHA256 over the hash of everything said so far
and of the connection's TLS, so nonces, roles, version and parameters cannot be changed or replayed,
nobody in the middle can talk the two out of TLS, and nobody there can pass proofs on from one TLS
connection to another, whatever certificate and key they have. A session has a secret of its own,
made from the client's key and the handshake that created it: nobody who did not see that handshake
can add subflows to it.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import struct
from typing import TypeVar

import msgspec

from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.wire.frames import VERSION
from fastmtcp.errors import PeerError
from fastmtcp.security.identity import KEY_SIZE, Clients, Identity, Verifier

MAGIC = b"fastmtcp"
FORM = 1
"""Of the preamble. What comes behind it has versions of its own."""

NEW_SESSION = 0xFFFF
"""In the place of the worker, for a session that is yet to be made."""

MAX_MESSAGE = 1024
"""Bytes of a handshake message: before the proof a peer can make us hold this much."""

MAX_TLS_BYTES = 32 * 1024
"""Bytes that a peer may send until the handshake is over; most of them are its certificates."""

MAX_CLIENT_BYTES = 4 * 1024
"""Those of a client behind the handshake of TLS: HELLO and PROOF, each in a record or more. It
might change its keys instead, which costs us some microseconds for 27 bytes."""

HANDSHAKE_TIMEOUT = 5.0
"""Seconds from the connection to the last word of the handshake: a peer that says nothing costs
no more than this long."""

NONCE_SIZE = 32
SESSION_ID_SIZE = 16

_PREAMBLE = struct.Struct("!8sBBH")
PREAMBLE_SIZE = _PREAMBLE.size
_TLS = 1
_OWNER = struct.Struct("!H")

_LENGTH = struct.Struct("!H")
_T = TypeVar("_T")


WRONG_KEY = "wrong key, or a client that this server does not know (any more)"

_NOBODY = Verifier(os.urandom(KEY_SIZE), os.urandom(KEY_SIZE))
"""Whose key nobody has."""


class RefuseCode(enum.IntEnum):
    """Why a handshake was refused."""

    PROTOCOL = 0
    VERSION = 1
    KEY = 2
    UNKNOWN_SESSION = 3
    LIMIT = 4
    DRAINING = 5
    TLS = 6


class RefusedError(PeerError):
    """The server refused the handshake."""

    def __init__(self, code: RefuseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Preamble(msgspec.Struct, frozen=True):
    """The first bytes of a connection, never encrypted: whether TLS follows, and the worker whose
    session is joined. The worker that accepts passes the connection on as it is, as the state of
    TLS could not be passed on."""

    tls: bool
    worker: int

    @classmethod
    def of(cls, session: bytes, *, tls: bool) -> Preamble:
        """To join `session`, or for a new one if that is empty."""
        return cls(tls, _OWNER.unpack_from(session)[0] if session else NEW_SESSION)

    @classmethod
    def decode(cls, data: bytes) -> Preamble | None:
        """None while bytes are missing.

        Raises:
            PeerError: this is something else.
        """
        if not data.startswith(MAGIC[: len(data)]):
            raise PeerError("the peer does not speak fastmtcp")
        if len(data) < PREAMBLE_SIZE:
            return None
        _, form, flags, worker = _PREAMBLE.unpack(data)
        if form != FORM or flags & ~_TLS:
            raise PeerError("the peer does not speak fastmtcp")
        return cls(bool(flags), worker)

    def encode(self) -> bytes:
        return _PREAMBLE.pack(MAGIC, FORM, _TLS * self.tls, self.worker)


def new_session_id(worker: int) -> bytes:
    """A random id that tells which worker owns the session."""
    return _OWNER.pack(worker) + os.urandom(SESSION_ID_SIZE - _OWNER.size)


class Hello(msgspec.Struct, array_like=True, tag=1):
    """`client` is its name; `session` is empty for a new session; `subflow` is unique within its
    session; `role` are the flags of fastmtcp.engine.subflows.role.Role."""

    versions: list[int]
    client: str
    nonce: bytes
    session: bytes
    subflow: int
    role: int = int(Role.BOTH)


class Challenge(msgspec.Struct, array_like=True, tag=2):
    """The version chosen, and the server's nonce."""

    version: int
    nonce: bytes


class Proof(msgspec.Struct, array_like=True, tag=3):
    """`client` proves its key; `join` is empty for a new session."""

    client: bytes
    join: bytes


class Grant(msgspec.Struct, array_like=True):
    """What the client may do: session id, credit of a new stream (bytes), streams at once, streams
    that it may open in a second, and at once; 0 is any number."""

    session: bytes
    floor_window: int
    max_streams: int
    opens_per_second: float


class Welcome(msgspec.Struct, array_like=True, tag=4):
    """`grant` is an encoded Grant, so that the MAC is over the very bytes that were sent."""

    grant: bytes
    mac: bytes


class Refuse(msgspec.Struct, array_like=True, tag=5):
    """The end of the handshake. `mac` is empty as long as the client has proved nothing."""

    code: int
    message: str
    mac: bytes = b""


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
    message = f"fastmtcp {VERSION} {label}\0".encode() + hashlib.sha256(transcript).digest()
    return hmac.digest(key, message, "sha256")


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


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
    """The client's side, behind the preamble and TLS. Send `hello`, feed what comes, send what
    feed() returns, until `grant`.

    `nonce` is NONCE_SIZE fresh random bytes, `channel` says which TLS connection this is (the same
    at both ends, and no other has it), empty without TLS.
    """

    def __init__(
        self,
        identity: Identity,
        nonce: bytes,
        subflow_id: int,
        join: Membership | None = None,
        role: Role = Role.BOTH,
        channel: bytes = b"",
    ) -> None:
        self._identity = identity
        self._join = join
        self.subflow_id = subflow_id
        session = join.session if join else b""
        self.role = role
        self.hello = pack(Hello([VERSION], identity.name, nonce, session, subflow_id, int(role)))
        preamble = Preamble.of(session, tls=bool(channel)).encode()
        self._transcript = preamble + channel + self.hello
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
            RefusedError: the server said no; that it does not know the session it has proved.
            PeerError: it is no fastmtcp server, or it does not hold the key.
        """
        self._messages.add(data)
        out = b""
        while self.grant is None and (body := self._messages.next()) is not None:
            reply = _decode(body, Challenge | Welcome | Refuse)  # type: ignore[arg-type]
            if isinstance(reply, Refuse):
                raise self._refused(reply)
            if isinstance(reply, Challenge) and not self._challenged:
                out += self._on_challenge(reply, body)
            elif isinstance(reply, Welcome) and self._challenged:
                self._on_welcome(reply)
            else:
                raise PeerError("the peer does not speak fastmtcp")
        return out

    def _refused(self, refuse: Refuse) -> PeerError:
        code = _refuse_code(refuse.code)
        # It would end the session with all its streams, so not just anybody may say so.
        if code is RefuseCode.UNKNOWN_SESSION:
            expected = _refusal_mac(self._identity.server_key, self._transcript, refuse)
            if not hmac.compare_digest(expected, refuse.mac):
                return PeerError(
                    "it says that the session is unknown, and does not prove that it knows this "
                    "client; it may be a false server"
                )
        return RefusedError(code, _printable(refuse.message))

    def _on_challenge(self, challenge: Challenge, body: bytes) -> bytes:
        if challenge.version != VERSION:
            raise PeerError(f"the server chose protocol version {challenge.version}, not offered")
        if len(challenge.nonce) != NONCE_SIZE:
            raise PeerError("the peer does not speak fastmtcp")
        self._challenged = True
        self._transcript += _LENGTH.pack(len(body)) + body
        identity = self._identity
        signature = _mac(identity.verifier.stored_key, "client", self._transcript)
        if self._join is None:
            join_mac = b""
            self._secret = _mac(identity.client_key, "session", self._transcript)
        else:
            join_mac = _mac(self._join.secret, "join", self._transcript)
        proof = pack(Proof(_xor(identity.client_key, signature), join_mac))
        self._transcript += proof
        return proof

    def _on_welcome(self, welcome: Welcome) -> None:
        server_key = self._identity.server_key
        expected = _mac(server_key, "server", self._transcript + welcome.grant)
        if not hmac.compare_digest(expected, welcome.mac):
            raise PeerError("the server does not know this client's key; it may be a false server")
        grant = _decode(welcome.grant, Grant)
        least = min(grant.floor_window, grant.max_streams)
        # Infinity is no rate, and NaN is not even that.
        if (
            len(grant.session) != SESSION_ID_SIZE
            or least < 1
            or not 0 <= grant.opens_per_second < 1e9
        ):
            raise PeerError("the server sent an impossible grant")
        self.grant = grant
        if self._join is None:
            self.membership = Membership(grant.session, self._secret)


class ServerHandshake:
    """The server's side, behind the preamble and TLS: feed() until `request`, then welcome() or
    refusal().

    `nonce` is NONCE_SIZE fresh random bytes, `channel` says which TLS connection this is (the same
    at both ends, and no other has it), empty without TLS.
    """

    def __init__(
        self, clients: Clients, nonce: bytes, preamble: Preamble, channel: bytes = b""
    ) -> None:
        self._clients = clients
        self._nonce = nonce
        self._messages = _Messages()
        self._transcript = preamble.encode() + channel
        self._proof = b""
        self._join = b""
        self._client_key = b""
        self._hello: Hello | None = None
        self.request: Hello | None = None
        """The client's HELLO, once the client has proved that it holds its key."""
        self.verifier = _NOBODY
        """Which the client has proved to fit."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the client; return bytes to send.

        Raises:
            RefusedError: with a wrong key or version; send refusal(error) and close.
            PeerError: this is no fastmtcp client; close without a word.
        """
        self._messages.add(data)
        out = b""
        while self.request is None and (body := self._messages.next()) is not None:
            if self._hello is None:
                out += self._on_hello(body)
            else:
                self._on_proof(body, self._hello)
        return out

    def may_join(self, secret: bytes) -> bool:
        """Whether the client proved that it knows the secret of the session it joins."""
        return hmac.compare_digest(_mac(secret, "join", self._transcript), self._join)

    def session_secret(self) -> bytes:
        """The secret of the session that this handshake creates."""
        return _mac(self._client_key, "session", self._transcript)

    def welcome(self, grant: Grant) -> bytes:
        encoded = _encode(grant)
        text = self._transcript + self._proof + encoded
        return pack(Welcome(encoded, _mac(self.verifier.server_key, "server", text)))

    def refusal(self, error: RefusedError) -> bytes:
        """The REFUSE message that says `error`, with a proof if the client has proved its key."""
        refuse = Refuse(int(error.code), str(error))
        if self.request is not None:
            text = self._transcript + self._proof
            refuse.mac = _refusal_mac(self.verifier.server_key, text, refuse)
        return pack(refuse)

    @property
    def early(self) -> bytes:
        return self._messages.rest

    def _on_hello(self, body: bytes) -> bytes:
        hello = _decode(body, Hello)
        if VERSION not in hello.versions:
            raise RefusedError(RefuseCode.VERSION, f"this server speaks protocol version {VERSION}")
        if len(hello.nonce) != NONCE_SIZE or len(hello.session) not in (0, SESSION_ID_SIZE):
            raise PeerError("the peer does not speak fastmtcp")
        self._hello = hello
        challenge = pack(Challenge(VERSION, self._nonce))
        self._transcript += _LENGTH.pack(len(body)) + body + challenge
        return challenge

    def _on_proof(self, body: bytes, hello: Hello) -> None:
        proof = _decode(body, Proof)
        # A name that nobody has costs the same time, and fails by the same words.
        verifier = self._clients.get(hello.client, _NOBODY)
        client_key = bytes(KEY_SIZE)
        if len(proof.client) == KEY_SIZE:
            signature = _mac(verifier.stored_key, "client", self._transcript)
            client_key = _xor(proof.client, signature)
        stored_key = hashlib.sha256(client_key).digest()
        if not hmac.compare_digest(stored_key, verifier.stored_key):
            raise RefusedError(RefuseCode.KEY, WRONG_KEY)
        self.verifier = verifier
        self._client_key = client_key
        self._join = proof.join
        self._proof = _LENGTH.pack(len(body)) + body
        self.request = hello


def clear_refusal(error: RefusedError) -> bytes:
    """The REFUSE message that says `error` to a client that has proved nothing."""
    return pack(Refuse(int(error.code), str(error)))


def _refusal_mac(server_key: bytes, transcript: bytes, refuse: Refuse) -> bytes:
    text = transcript + bytes([refuse.code]) + refuse.message.encode()
    return _mac(server_key, "refuse", text)


def is_no_tls(data: bytes) -> bool:
    """Whether these, a server's first bytes, say in its place that it speaks no TLS.

    Nothing else that is said in the clear is heard by a client that wants TLS, the words of this
    refusal included: anybody on the path could say that the session is unknown, and so end it.
    """
    messages = _Messages()
    messages.add(data)
    try:
        body = messages.next()
        return body is not None and _decode(body, Refuse).code == RefuseCode.TLS
    except PeerError:
        return False


def _refuse_code(value: int) -> RefuseCode:
    try:
        return RefuseCode(value)
    except ValueError:
        return RefuseCode.PROTOCOL


def _printable(text: str) -> str:
    """A peer's text goes to the log: no control characters, no novels."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])
