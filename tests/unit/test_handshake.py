"""The handshake of a subflow: who gets in, who does not, and what either of them learns."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import struct
from collections.abc import Callable

import msgspec
import pytest
from fastmtcp.engine.wire.frames import VERSION
from fastmtcp.errors import PeerError
from fastmtcp.security.handshake import (
    FORM,
    MAGIC,
    MAX_MESSAGE,
    NEW_SESSION,
    NONCE_SIZE,
    PREAMBLE_SIZE,
    SESSION_ID_SIZE,
    WRONG_KEY,
    Challenge,
    ClientHandshake,
    Grant,
    Hello,
    Membership,
    Preamble,
    Proof,
    Refuse,
    RefuseCode,
    RefusedError,
    ServerHandshake,
    Welcome,
    clear_refusal,
    is_no_tls,
    new_session_id,
    pack,
)
from fastmtcp.security.identity import NO_KEY, UNNAMED, Clients, Identity, unnamed
from hypothesis import given
from hypothesis import strategies as st

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
CLIENT_NONCE = b"c" * NONCE_SIZE
SERVER_NONCE = b"s" * NONCE_SIZE
SESSION = b"\0\1" + b"session-id-xyz"
GRANT = Grant(SESSION, 65536, 4096, 5000.0)


CHANNEL = b"f" * 64
NAMED = Identity.from_key("laptop", OTHER_KEY)
NEW = Preamble(tls=False, worker=NEW_SESSION)
JOINS = Preamble.of(SESSION, tls=False)


def identity(key: bytes = KEY) -> Identity:
    return Identity.from_key(UNNAMED, key)


def new_client(
    key: bytes = KEY, join: Membership | None = None, channel: bytes = b""
) -> ClientHandshake:
    return ClientHandshake(identity(key), CLIENT_NONCE, 7, join, channel=channel)


def new_server(
    key: bytes = KEY,
    nonce: bytes = SERVER_NONCE,
    preamble: Preamble = NEW,
    channel: bytes = b"",
) -> ServerHandshake:
    return ServerHandshake(unnamed(key), nonce, preamble, channel)


def proof_of(identity: Identity, transcript: bytes, join: bytes = b"") -> bytes:
    """The PROOF of whoever has the key, in other words than the code's."""
    digest = hashlib.sha256(transcript).digest()
    stored_key = hashlib.sha256(identity.client_key).digest()
    signature = hmac.digest(stored_key, b"fastmtcp 1 client\0" + digest, "sha256")
    pairs = zip(identity.client_key, signature, strict=True)
    return pack(Proof(bytes(a ^ b for a, b in pairs), join))


def joins(server: ServerHandshake) -> bytes:
    """The session that a client which has proved its key wants to join."""
    assert server.request is not None
    return server.request.session


def bodies(data: bytes) -> list[bytes]:
    """The messages in `data`, without their lengths."""
    found = []
    while data:
        (size,) = struct.unpack_from("!H", data)
        found.append(data[2 : 2 + size])
        data = data[2 + size :]
    return found


def shake(client: ClientHandshake, server: ServerHandshake, grant: Grant = GRANT) -> None:
    """A whole handshake without trouble."""
    proof = client.feed(server.feed(client.hello))
    assert server.feed(proof) == b""
    assert server.request is not None
    assert client.feed(server.welcome(grant)) == b""
    assert client.grant == grant


def create_session() -> tuple[Membership, bytes]:
    """What both sides keep of a new session: the client's membership, the server's secret."""
    client, server = new_client(), new_server()
    shake(client, server)
    assert client.membership is not None
    return client.membership, server.session_secret()


class TestWhole:
    def test_both_sides_agree(self) -> None:
        client, server = new_client(), new_server()
        shake(client, server)
        assert server.request is not None
        assert server.request.subflow == client.subflow_id == 7
        assert server.request.session == b""
        assert client.membership == Membership(SESSION, server.session_secret())

    def test_without_a_key_the_same_handshake_runs(self) -> None:
        shake(new_client(NO_KEY), new_server(NO_KEY))

    def test_byte_by_byte(self) -> None:
        client, server = new_client(), new_server()
        to_server, to_client = client.hello, b""
        for _ in range(3):
            for byte in to_server:
                to_client += server.feed(bytes([byte]))
            to_server = b""
            if server.request is not None and client.grant is None:
                to_client += server.welcome(GRANT)
            for byte in to_client:
                to_server += client.feed(bytes([byte]))
            to_client = b""
        assert client.grant == GRANT
        assert client.membership == Membership(SESSION, server.session_secret())

    @given(st.data())
    def test_cut_anywhere(self, data: st.DataObject) -> None:
        client, server = new_client(), new_server()

        def through(feed: Callable[[bytes], bytes], content: bytes) -> bytes:
            cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
            edges = [0, *cuts, len(content)]
            return b"".join(feed(content[a:b]) for a, b in itertools.pairwise(edges))

        proof = through(client.feed, through(server.feed, client.hello))
        through(server.feed, proof)
        through(client.feed, server.welcome(GRANT))
        assert client.grant == GRANT

    def test_bytes_behind_the_handshake_are_kept(self) -> None:
        client, server = new_client(), new_server()
        proof = client.feed(server.feed(client.hello))
        server.feed(proof + b"first frames up")
        assert server.early == b"first frames up"
        client.feed(server.welcome(GRANT) + b"first frames down")
        assert client.early == b"first frames down"

    def test_early_bytes_that_look_like_a_message_are_not_one(self) -> None:
        client, server = new_client(), new_server()
        proof = client.feed(server.feed(client.hello))
        server.feed(proof + client.hello)
        assert server.early == client.hello


class TestKeys:
    def test_a_client_with_another_key_is_told_so_and_learns_nothing_else(self) -> None:
        client, server = new_client(OTHER_KEY), new_server()
        challenge = server.feed(client.hello)
        assert [msgspec.msgpack.decode(body)[0] for body in bodies(challenge)] == [2]
        with pytest.raises(RefusedError, match="wrong key") as caught:
            server.feed(client.feed(challenge))
        assert caught.value.code is RefuseCode.KEY
        assert server.request is None
        with pytest.raises(RefusedError, match="wrong key") as told:
            client.feed(clear_refusal(caught.value))
        assert told.value.code is RefuseCode.KEY
        assert client.grant is None

    @pytest.mark.parametrize(("ours", "theirs"), [(KEY, NO_KEY), (NO_KEY, KEY)])
    def test_a_key_on_one_side_only_is_a_wrong_key(self, ours: bytes, theirs: bytes) -> None:
        client, server = new_client(ours), new_server(theirs)
        with pytest.raises(RefusedError, match="key"):
            server.feed(client.feed(server.feed(client.hello)))

    def test_a_server_that_lets_everybody_in_must_hold_the_key_too(self) -> None:
        client, impostor = new_client(), new_server(OTHER_KEY)
        client.feed(impostor.feed(client.hello))
        impostor.verifier = unnamed(OTHER_KEY)[UNNAMED]
        with pytest.raises(PeerError, match="does not know this client"):
            client.feed(impostor.welcome(GRANT))
        assert client.grant is None
        assert client.membership is None

    def test_a_mirror_does_not_pass(self) -> None:
        """An attacker without the key sends back what it is sent: roles are part of the MAC."""
        client = new_client()
        challenge = pack(Challenge(VERSION, CLIENT_NONCE))
        (body,) = bodies(client.feed(challenge))
        proof = msgspec.msgpack.decode(body, type=Proof)
        with pytest.raises(PeerError, match="does not know this client"):
            client.feed(pack(Welcome(msgspec.msgpack.encode(GRANT), proof.client)))

    def test_a_recorded_proof_is_no_use_to_anybody_later(self) -> None:
        client, server = new_client(), new_server()
        proof = client.feed(server.feed(client.hello))
        later = new_server(nonce=b"t" * NONCE_SIZE)
        later.feed(client.hello)
        with pytest.raises(RefusedError) as caught:
            later.feed(proof)
        assert caught.value.code is RefuseCode.KEY

    def test_a_recorded_welcome_is_no_use_to_a_false_server(self) -> None:
        server = new_server()
        client = new_client()
        challenge = server.feed(client.hello)
        server.feed(client.feed(challenge))
        welcome = server.welcome(GRANT)
        victim = ClientHandshake(identity(), b"d" * NONCE_SIZE, 7)
        victim.feed(challenge)
        with pytest.raises(PeerError, match="does not know this client"):
            victim.feed(welcome)

    def test_no_key_and_no_secret_in_what_may_be_logged(self) -> None:
        client, server = new_client(), new_server()
        shake(client, server)
        assert client.membership is not None
        texts = [repr(x) for x in (client, server, client.membership, server.request)]
        texts += [repr(vars(client)["membership"]), repr([client.membership])]
        with pytest.raises(RefusedError) as caught:
            new_server(OTHER_KEY).feed(client.hello + pack(Proof(b"x" * 32, b"")))
        texts += [repr(caught.value), str(caught.value)]
        with pytest.raises(PeerError) as lost:
            new_client().feed(pack(Challenge(VERSION, SERVER_NONCE)) + pack(Welcome(b"", b"")))
        texts += [repr(lost.value), str(lost.value)]
        for secret in (KEY, OTHER_KEY, server.session_secret()):
            for text in texts:
                assert secret.hex() not in text.lower()
                assert repr(secret)[2:-1] not in text


class TestTranscript:
    """Whatever is changed on the way, one of the two notices."""

    @staticmethod
    def change(data: bytes, field: int, value: object) -> bytes:
        (body,) = bodies(data)
        content = msgspec.msgpack.decode(body)
        assert content[field] != value
        content[field] = value
        encoded = msgspec.msgpack.encode(content)
        return struct.pack("!H", len(encoded)) + encoded

    @pytest.mark.parametrize(
        ("field", "value"),
        [(1, [VERSION, 77]), (2, "other"), (3, b"x" * NONCE_SIZE), (4, SESSION), (5, 8)],
        ids=["versions", "client", "nonce", "session", "subflow"],
    )
    def test_a_changed_hello(self, field: int, value: object) -> None:
        client, server = new_client(), new_server()
        proof = client.feed(server.feed(self.change(client.hello, field, value)))
        with pytest.raises(RefusedError) as caught:
            server.feed(proof)
        assert caught.value.code is RefuseCode.KEY

    def test_a_changed_challenge(self) -> None:
        client, server = new_client(), new_server()
        challenge = self.change(server.feed(client.hello), 2, b"y" * NONCE_SIZE)
        with pytest.raises(RefusedError) as caught:
            server.feed(client.feed(challenge))
        assert caught.value.code is RefuseCode.KEY

    @pytest.mark.parametrize(
        "grant",
        [
            Grant(b"\0" * SESSION_ID_SIZE, 65536, 4096, 5000.0),
            Grant(SESSION, 65537, 4096, 5000.0),
            Grant(SESSION, 65536, 4095, 5000.0),
            Grant(SESSION, 65536, 4096, 5001.0),
        ],
        ids=["session", "window", "streams", "opens"],
    )
    def test_a_changed_grant(self, grant: Grant) -> None:
        client, server = new_client(), new_server()
        server.feed(client.feed(server.feed(client.hello)))
        welcome = self.change(server.welcome(GRANT), 1, msgspec.msgpack.encode(grant))
        with pytest.raises(PeerError, match="does not know this client"):
            client.feed(welcome)
        assert client.grant is None

    def test_a_changed_join_proof_changes_the_welcome(self) -> None:
        membership, secret = create_session()
        client, server = new_client(join=membership), new_server(preamble=JOINS)
        proof = client.feed(server.feed(client.hello))
        server.feed(self.change(proof, 2, b"z" * 32))
        assert not server.may_join(secret)
        with pytest.raises(PeerError, match="does not know this client"):
            client.feed(server.welcome(GRANT))

    @given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from(["hello", "challenge"]))
    def test_any_flipped_byte(self, position: int, flip: int, which: str) -> None:
        """Not even the parts of the encoding that mean nothing may be changed."""
        client, server = new_client(), new_server()
        hello = client.hello
        if which == "hello":
            hello = flip_byte(hello, position, flip)
        with pytest.raises(PeerError):  # noqa: PT012 - either side may notice
            challenge = server.feed(hello)
            if which == "challenge":
                challenge = flip_byte(challenge, position, flip)
            proof = client.feed(challenge)
            server.feed(proof)
            # A flipped length leaves one of them waiting, which the handshake's time-out ends.
            if server.request is None:
                raise PeerError("still waiting")
        assert server.request is None


def flip_byte(data: bytes, position: int, flip: int) -> bytes:
    changed = bytearray(data)
    changed[position % len(data)] ^= flip
    return bytes(changed)


class TestJoining:
    def test_a_member_joins(self) -> None:
        membership, secret = create_session()
        client, server = (
            new_client(join=membership),
            new_server(nonce=b"u" * NONCE_SIZE, preamble=JOINS),
        )
        server.feed(client.feed(server.feed(client.hello)))
        assert joins(server) == SESSION
        assert server.may_join(secret)
        client.feed(server.welcome(GRANT))
        assert client.membership is membership

    def test_the_key_alone_is_not_enough(self) -> None:
        _, secret = create_session()
        guess = Membership(SESSION, b"g" * 32)
        client, server = new_client(join=guess), new_server(preamble=JOINS)
        server.feed(client.feed(server.feed(client.hello)))
        assert joins(server) == SESSION
        assert not server.may_join(secret)

    def test_no_join_proof_at_all_is_not_enough(self) -> None:
        _, secret = create_session()
        server = new_server(preamble=JOINS)
        hello = pack(Hello([VERSION], UNNAMED, CLIENT_NONCE, SESSION, 7))
        challenge = server.feed(hello)
        server.feed(proof_of(identity(), JOINS.encode() + hello + challenge))
        assert joins(server) == SESSION
        assert not server.may_join(secret)

    def test_a_recorded_join_proof_is_no_use_later(self) -> None:
        membership, secret = create_session()
        client, server = new_client(join=membership), new_server(preamble=JOINS)
        recorded = client.feed(server.feed(client.hello))
        later = new_server(nonce=b"v" * NONCE_SIZE, preamble=JOINS)
        challenge = later.feed(client.hello)
        # Even from somebody who has the key: only the secret makes a join proof.
        (body,) = bodies(recorded)
        join = msgspec.msgpack.decode(body, type=Proof).join
        later.feed(proof_of(identity(), JOINS.encode() + client.hello + challenge, join))
        assert not later.may_join(secret)

    def test_every_session_has_a_secret_of_its_own(self) -> None:
        first, second = new_server(), new_server(nonce=b"w" * NONCE_SIZE)
        for server in (first, second):
            shake(new_client(), server)
        assert first.session_secret() != second.session_secret()
        assert first.session_secret() != KEY


class TestNames:
    """A server knows many clients, by what their keys leave behind."""

    CLIENTS: Clients = {NAMED.name: NAMED.verifier} | dict(unnamed(KEY))

    def server(self) -> ServerHandshake:
        return ServerHandshake(self.CLIENTS, SERVER_NONCE, NEW)

    def refusal_of(self, identity: Identity) -> bytes:
        """What a client of this server is told that should not get in."""
        client, server = ClientHandshake(identity, CLIENT_NONCE, 7), self.server()
        proof = client.feed(server.feed(client.hello))
        with pytest.raises(RefusedError) as caught:
            server.feed(proof)
        assert server.request is None
        return clear_refusal(caught.value)

    def test_each_gets_in_with_its_own_key(self) -> None:
        for one in (NAMED, identity()):
            client, server = ClientHandshake(one, CLIENT_NONCE, 7), self.server()
            shake(client, server)
            assert server.request is not None
            assert server.request.client == one.name
            assert server.verifier == one.verifier

    def test_every_wrong_key_is_told_the_same(self) -> None:
        wrong = [
            Identity.from_key(NAMED.name, KEY),
            Identity.from_key(UNNAMED, OTHER_KEY),
            Identity.from_key("nobody", OTHER_KEY),
            Identity.from_key("nobody", bytes(32)),
            Identity.from_key("x" * 500, OTHER_KEY),
            Identity.from_key("no\nname", OTHER_KEY),
        ]
        assert {self.refusal_of(one) for one in wrong} == {
            clear_refusal(RefusedError(RefuseCode.KEY, WRONG_KEY))
        }

    def test_what_the_server_keeps_does_not_get_anybody_in(self) -> None:
        """A thief of the list has both keys of each client, but not the client's."""
        kept = NAMED.verifier
        for stolen in (kept.stored_key, kept.server_key):
            self.refusal_of(Identity(NAMED.name, stolen, kept.server_key))

    def test_a_proof_of_the_wrong_size_is_wrong(self) -> None:
        for size in (0, 31, 33):
            server = self.server()
            server.feed(new_client().hello)
            with pytest.raises(RefusedError, match="wrong key"):
                server.feed(pack(Proof(bytes(size), b"")))

    def test_nothing_of_a_key_shows(self) -> None:
        texts = [repr(NAMED), repr(NAMED.verifier), str(self.CLIENTS)]
        for secret in (OTHER_KEY, NAMED.client_key, NAMED.server_key, NAMED.verifier.stored_key):
            for text in texts:
                assert secret.hex() not in text
                assert repr(secret)[2:-1] not in text


class TestPreamble:
    @pytest.mark.parametrize("tls", [True, False])
    @pytest.mark.parametrize("worker", [0, 1, 255, NEW_SESSION])
    def test_there_and_back(self, tls: bool, worker: int) -> None:
        preamble = Preamble(tls, worker)
        data = preamble.encode()
        assert len(data) == PREAMBLE_SIZE
        assert Preamble.decode(data) == preamble
        for end in range(PREAMBLE_SIZE):
            assert Preamble.decode(data[:end]) is None

    def test_it_names_the_worker_of_a_session(self) -> None:
        assert Preamble.of(new_session_id(7), tls=True) == Preamble(True, 7)
        assert Preamble.of(b"", tls=False) == NEW

    def test_anything_else_is_noticed_at_its_first_wrong_byte(self) -> None:
        right = NEW.encode()
        for at in range(len(MAGIC) + 2):
            wrong = right[:at] + bytes([right[at] ^ 0x80]) + right[at + 1 :]
            with pytest.raises(PeerError, match="does not speak fastmtcp"):
                Preamble.decode(wrong[: at + 1] if at < len(MAGIC) else wrong)
        for form in (0, FORM + 1):
            with pytest.raises(PeerError):
                Preamble.decode(MAGIC + bytes([form]) + right[len(MAGIC) + 1 :])

    @given(st.binary(max_size=40))
    def test_any_bytes(self, data: bytes) -> None:
        with contextlib.suppress(PeerError):
            Preamble.decode(data[:PREAMBLE_SIZE])

    @pytest.mark.parametrize(
        ("preamble", "channel"),
        [(Preamble(False, 3), b""), (Preamble(True, NEW_SESSION), CHANNEL), (NEW, CHANNEL)],
        ids=["another worker", "with TLS", "TLS that the client knows nothing of"],
    )
    def test_it_is_part_of_the_proof(self, preamble: Preamble, channel: bytes) -> None:
        client = new_client()
        server = new_server(preamble=preamble, channel=channel)
        with pytest.raises(RefusedError) as caught:
            server.feed(client.feed(server.feed(client.hello)))
        assert caught.value.code is RefuseCode.KEY

    @pytest.mark.parametrize("channel", [b"", b"g" * 64])
    def test_who_is_in_the_middle_of_tls_does_not_pass(self, channel: bytes) -> None:
        """Even if the client took its certificate, or it has the server's own."""
        client = new_client(channel=CHANNEL)
        tls = Preamble(bool(channel), NEW_SESSION)
        server = new_server(preamble=tls, channel=channel)
        with pytest.raises(RefusedError) as caught:
            server.feed(client.feed(server.feed(client.hello)))
        assert caught.value.code is RefuseCode.KEY

    def test_the_same_connection_at_both_ends(self) -> None:
        tls = Preamble(True, NEW_SESSION)
        shake(new_client(channel=CHANNEL), new_server(preamble=tls, channel=CHANNEL))


def test_only_no_tls_is_heard_in_the_place_of_tls() -> None:
    assert is_no_tls(clear_refusal(RefusedError(RefuseCode.TLS, "no TLS here")))
    for code in set(RefuseCode) - {RefuseCode.TLS}:
        assert not is_no_tls(clear_refusal(RefusedError(code, "no TLS here")))
    server_hello = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + bytes(116)
    said = clear_refusal(RefusedError(RefuseCode.TLS, "no TLS here"))
    for other in (server_hello, b"\x15\x03\x01\x00\x02\x02\x46", said[:9], b"", b"\0", b"\0\1x"):
        assert not is_no_tls(other)


class TestAnUnknownSession:
    """It ends the session with all its streams, so only the server may say so."""

    def told(self, edit: Callable[[Refuse], None]) -> tuple[PeerError, RefusedError]:
        """What the client makes of a refusal that was edited on its way, and what was said."""
        membership, _ = create_session()
        client, server = new_client(join=membership), new_server(preamble=JOINS)
        assert server.feed(client.feed(server.feed(client.hello))) == b""
        said = RefusedError(RefuseCode.UNKNOWN_SESSION, "unknown session")
        (body,) = bodies(server.refusal(said))
        message = msgspec.msgpack.decode(body, type=Refuse)
        edit(message)
        with pytest.raises(PeerError) as caught:
            client.feed(pack(message))
        return caught.value, said

    def test_of_the_server_is_heard(self) -> None:
        error, said = self.told(lambda _message: None)
        assert isinstance(error, RefusedError)
        assert (error.code, str(error)) == (said.code, str(said))

    @pytest.mark.parametrize(
        ("field", "value"),
        [("mac", b""), ("mac", bytes(32)), ("mac", bytes(31)), ("message", "Unknown session")],
    )
    def test_of_anybody_else_is_a_failed_attempt(self, field: str, value: object) -> None:
        error, _ = self.told(lambda message: setattr(message, field, value))
        assert not isinstance(error, RefusedError)
        assert "may be a false server" in str(error)

    def test_of_another_code_proves_nothing(self) -> None:
        """The proof of a refusal that ends nothing does not make one that does."""
        client, server = new_client(), new_server()
        server.feed(client.feed(server.feed(client.hello)))
        (body,) = bodies(server.refusal(RefusedError(RefuseCode.LIMIT, "too many")))
        message = msgspec.msgpack.decode(body, type=Refuse)
        message.code = int(RefuseCode.UNKNOWN_SESSION)
        with pytest.raises(PeerError) as caught:
            client.feed(pack(message))
        assert not isinstance(caught.value, RefusedError)

    def test_before_the_proof_nothing_is_proved(self) -> None:
        client = new_client()
        said = RefusedError(RefuseCode.UNKNOWN_SESSION, "unknown session")
        with pytest.raises(PeerError) as caught:
            client.feed(clear_refusal(said))
        assert not isinstance(caught.value, RefusedError)
        assert new_server().refusal(said) == clear_refusal(said)


class TestVersions:
    def test_an_unknown_version_is_answered_with_what_is_known(self) -> None:
        server = new_server()
        hello = pack(Hello([VERSION + 1, VERSION + 2], UNNAMED, CLIENT_NONCE, b"", 0))
        with pytest.raises(RefusedError, match=f"speaks protocol version {VERSION}") as caught:
            server.feed(hello)
        assert caught.value.code is RefuseCode.VERSION
        with pytest.raises(RefusedError, match=f"speaks protocol version {VERSION}"):
            new_client().feed(clear_refusal(caught.value))

    def test_a_client_that_can_do_more_gets_the_common_version(self) -> None:
        server = new_server()
        hello = pack(Hello([VERSION + 1, VERSION], UNNAMED, CLIENT_NONCE, b"", 0))
        (body,) = bodies(server.feed(hello))
        assert msgspec.msgpack.decode(body, type=Challenge).version == VERSION

    def test_a_later_hello_with_more_fields_is_understood(self) -> None:
        fields = [1, [VERSION + 1], UNNAMED, CLIENT_NONCE, b"", 0, 3, {"new": True}]
        body = msgspec.msgpack.encode(fields)
        with pytest.raises(RefusedError) as caught:
            new_server().feed(struct.pack("!H", len(body)) + body)
        assert caught.value.code is RefuseCode.VERSION

    def test_a_version_that_was_not_offered_is_not_accepted(self) -> None:
        with pytest.raises(PeerError, match=f"version {VERSION + 1}, not offered"):
            new_client().feed(pack(Challenge(VERSION + 1, SERVER_NONCE)))

    def test_a_reason_from_the_future_is_still_a_refusal(self) -> None:
        with pytest.raises(RefusedError, match="a new reason") as caught:
            new_client().feed(pack(Refuse(99, "a new reason")))
        assert caught.value.code is RefuseCode.PROTOCOL

    def test_a_reason_cannot_forge_log_lines_or_fill_the_log(self) -> None:
        message = "bad\nready: all is well\x1b[2J" + "x" * 900
        with pytest.raises(RefusedError) as caught:
            new_client().feed(pack(Refuse(0, message)))
        text = str(caught.value)
        assert text.isprintable()
        assert len(text) <= 200


class TestGarbage:
    @given(st.binary(max_size=3000))
    def test_any_bytes_at_the_server(self, data: bytes) -> None:
        self.check_harmless(new_server(), data)

    @given(st.binary(max_size=3000))
    def test_any_bytes_at_the_client(self, data: bytes) -> None:
        self.check_harmless(new_client(), data)

    @given(st.binary(min_size=1, max_size=MAX_MESSAGE))
    def test_any_message_instead_of_the_proof(self, body: bytes) -> None:
        server = new_server()
        server.feed(new_client().hello)
        with pytest.raises(PeerError):
            server.feed(struct.pack("!H", len(body)) + body)
        assert server.request is None

    @staticmethod
    def check_harmless(side: ServerHandshake | ClientHandshake, data: bytes) -> None:
        """It raises PeerError, or waits for the rest of a message with little in its hands."""
        try:
            side.feed(data)
        except PeerError:
            pass
        else:
            held = side._messages.rest
            assert len(held) < 2 or len(held) < 2 + int.from_bytes(held[:2]) <= 2 + MAX_MESSAGE
        if isinstance(side, ServerHandshake):
            assert side.request is None
        else:
            assert side.grant is None

    @pytest.mark.parametrize("size", [0, MAX_MESSAGE + 1, 0xFFFF])
    def test_an_impossible_length_is_noticed_at_once(self, size: int) -> None:
        for side in (new_server(), new_client()):
            with pytest.raises(PeerError, match="does not speak fastmtcp"):
                side.feed(struct.pack("!H", size))

    @pytest.mark.parametrize(
        "hello",
        [
            Hello([VERSION], UNNAMED, b"", b"", 0),
            Hello([VERSION], UNNAMED, CLIENT_NONCE + b"x", b"", 0),
            Hello([VERSION], UNNAMED, CLIENT_NONCE, b"short", 0),
            Hello([VERSION], UNNAMED, CLIENT_NONCE, SESSION + b"x", 0),
        ],
        ids=["no nonce", "long nonce", "short session", "long session"],
    )
    def test_a_hello_that_makes_no_sense_gets_no_answer(self, hello: Hello) -> None:
        with pytest.raises(PeerError) as caught:
            new_server().feed(pack(hello))
        assert not isinstance(caught.value, RefusedError)

    @pytest.mark.parametrize("depth", [1, 500, 960])
    def test_nesting_cannot_break_the_worker(self, depth: int) -> None:
        """msgspec raises RecursionError when the caller's stack is deep already."""
        plain = msgspec.msgpack.encode([1, [VERSION], UNNAMED, CLIENT_NONCE, b"", 0])
        body = bytes([plain[0] + 1]) + plain[1:] + b"\x91" * depth + b"\xc0"
        assert len(body) <= MAX_MESSAGE

        def feed(frames: int) -> None:
            if frames:
                feed(frames - 1)
            else:
                new_server().feed(struct.pack("!H", len(body)) + body)

        with contextlib.suppress(PeerError):
            feed(200)

    def test_text_that_is_not_utf8(self) -> None:
        body = msgspec.msgpack.encode([1, [VERSION], "fastmtcp", CLIENT_NONCE, b"", 0])
        body = body.replace(b"fastmtcp", b"fast\xff\xfe\xe6p")
        with pytest.raises(PeerError, match="does not speak fastmtcp"):
            new_server().feed(struct.pack("!H", len(body)) + body)

    def test_other_protocols_get_no_answer(self) -> None:
        for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03"):
            with pytest.raises(PeerError, match="does not speak fastmtcp") as caught:
                new_server().feed(data + bytes(600))
            assert not isinstance(caught.value, RefusedError)

    def test_messages_out_of_turn(self) -> None:
        challenge = pack(Challenge(VERSION, SERVER_NONCE))
        grant = msgspec.msgpack.encode(GRANT)
        for early in (challenge + challenge, pack(Welcome(grant, b"m" * 32))):
            client = new_client()
            with pytest.raises(PeerError, match="does not speak fastmtcp"):
                client.feed(early)
            assert client.grant is None
        server = new_server()
        with pytest.raises(PeerError, match="does not speak fastmtcp"):
            server.feed(pack(Proof(b"m" * 32, b"")))
        server = new_server()
        with pytest.raises(PeerError):
            server.feed(new_client().hello + new_client().hello)

    @pytest.mark.parametrize(
        "grant",
        [
            Grant(b"", 65536, 1, 5000.0),
            Grant(SESSION, 0, 1, 5000.0),
            Grant(SESSION, 65536, 0, 5000.0),
            Grant(SESSION, -5, 1, 5000.0),
            Grant(SESSION, 65536, 1, -1.0),
            Grant(SESSION, 65536, 1, float("inf")),
            Grant(SESSION, 65536, 1, float("nan")),
        ],
        ids=["session", "no window", "no streams", "negative", "opens", "infinite", "no number"],
    )
    def test_an_impossible_grant(self, grant: Grant) -> None:
        client, server = new_client(), new_server()
        server.feed(client.feed(server.feed(client.hello)))
        with pytest.raises(PeerError, match="impossible grant"):
            client.feed(server.welcome(grant))
        assert client.grant is None

    def test_a_challenge_with_a_wrong_nonce(self) -> None:
        with pytest.raises(PeerError, match="does not speak fastmtcp"):
            new_client().feed(pack(Challenge(VERSION, b"short")))
